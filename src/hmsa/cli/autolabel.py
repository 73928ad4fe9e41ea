"""`hmsa autolabel`: labels for many pictures, by a network that has seen few."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..errors import InputError
from .arguments import further, share, show, verb, whole_number


def add_autolabel(verbs: Any) -> argparse.ArgumentParser:
    """The parser, still without what concerns inference."""
    parser = verb(
        verbs, "autolabel", autolabel, "label many pictures for a student to learn from",
        "hmsa autolabel runs/camvid more-pictures/ -o labelled --held-out camvid --split test",
    )  # fmt: skip
    parser.add_argument("teacher", type=Path, metavar="TEACHER", help="file or run folder")
    parser.add_argument("images", metavar="IMAGES", help="folder of pictures; see also --cluster")
    parser.add_argument("-o", "--out", required=True, metavar="OUT",
                        help="new, or that of a run to go on with")  # fmt: skip
    parser.add_argument("--overwrite", action="store_true",
                        help="label anew if the teacher or a setting is another now")  # fmt: skip
    parser.add_argument("--agreement", action="store_true",
                        help="also store where scales, and with --flip the mirror image, "
                             "agree, for hmsa review")  # fmt: skip
    parser.add_argument("--raw", type=Path, metavar="DATA",
                        help="write the values that files of this dataset hold")  # fmt: skip

    parser.add_argument("--workers", type=whole_number, metavar="N",
                        help="processes, GPUs in turn (1; with --cluster one a GPU)")  # fmt: skip
    parser.add_argument("--cluster", metavar="ADDRESS",
                        help="label with Ray: address of a cluster, or local. IMAGES may then be "
                             "a folder, .txt list, .parquet or .tar files (with a *), here or at "
                             "a URI; labels go to OUT/shards unless both are folders")  # fmt: skip

    people = parser.add_argument_group("coarse labels by people, of the same pictures")
    people.add_argument("--coarse", type=Path, metavar="DATA", help="dataset that has them")
    people.add_argument("--coarse-split", default="train", metavar="S", help="(train)")
    how = people.add_mutually_exclusive_group()
    how.add_argument("--override", action="store_true", help="where they speak they count")
    how.add_argument("--fill", metavar="NAME,NAME,...", help="only where they say these classes")
    people.add_argument("--grow", type=_pixels, default=0, metavar="PIXELS",
                        help="and as far around them as this, the nearest first (0)")  # fmt: skip

    rules = parser.add_argument_group("how sure a label must be, class by class: thresholds.json")
    rules.add_argument("--threshold", type=share, default=0.5, metavar="T",
                       help="fixed: one for all classes (0.5)")  # fmt: skip
    rules.add_argument("--keep", type=share, default=0.5, metavar="SHARE",
                       help="quantile: what keeps the surest of each class (0.5)")  # fmt: skip
    rules.add_argument("--held-out", type=Path, metavar="DATA",
                       help="precision: labels that the teacher has not learnt from")  # fmt: skip
    rules.add_argument("--split", default="val", metavar="S", help="of the held-out dataset (val)")
    rules.add_argument("--precision-target", type=share, default=0.95, metavar="P",
                       help="share of the labels kept that is right there (0.95)")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="the JSON line alone on stdout")
    return parser


def _pixels(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of pixels, like 8")
    return int(text)


def autolabel(options: argparse.Namespace) -> int:
    from ..commands.autolabel import Rules, autolabel
    from ..runtime import say

    if bool(options.coarse) != (options.override or options.fill is not None):
        raise InputError(
            "coarse labels need --coarse DATA and what to take of them: --override or --fill NAMES"
        )
    if options.grow and not options.coarse:
        raise InputError("--grow is about coarse labels; name them with --coarse DATA")
    summary, table, problems = autolabel(
        options.teacher, options.images, options.out, options.scales,
        flip=options.flip, precision=options.precision, overwrite=options.overwrite,
        raw=options.raw, coarse=options.coarse, coarse_split=options.coarse_split,
        fill=None if options.fill is None else options.fill.split(","),
        agreement=options.agreement,
        grow=options.grow,
        rules=Rules(options.threshold, options.keep, options.held_out, options.split,
                    options.precision_target),
        workers=options.workers, cluster=options.cluster, **further(options),
    )  # fmt: skip
    for problem in problems:
        say(f"hmsa: {problem}")
    show(options.json, summary, table)
    return 2 if problems else 0
