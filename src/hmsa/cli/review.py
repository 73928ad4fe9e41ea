"""`hmsa review`: auto-labels looked at, handed to people, and taken back from them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ..errors import InputError
from .arguments import show, typed, verb, whole_number


def add_review(verbs: Any) -> None:
    parser = verb(
        verbs, "review", review, "see what auto-labels are worth; have people mend the worst",
        "hmsa review labelled --truth camvid --split val",
    )  # fmt: skip
    # fmt: off
    parser.add_argument("out", type=Path, metavar="OUT", help="folder that hmsa autolabel made")
    parser.add_argument("--report", type=Path, metavar="HTML", help="page (OUT/quality.html)")
    parser.add_argument("--json", action="store_true", help="the JSON line alone on stdout")

    beside = parser.add_argument_group("what the labels are held beside")
    beside.add_argument("--people", type=Path, metavar="DATA",
                        help="labels by people, coarse ones of these pictures or others")
    beside.add_argument("--people-split", default="train", metavar="S", help="(train)")
    beside.add_argument("--truth", type=Path, metavar="DATA",
                        help="true labels of some of these pictures")
    beside.add_argument("--split", default="val", metavar="S", help="of the truth (val)")
    beside.add_argument("--before", type=Path, metavar="OUT",
                        help="an earlier round on the same pictures: what has changed?")

    people = parser.add_argument_group("people")
    way = people.add_mutually_exclusive_group()
    way.add_argument("--export", choices=("cvat", "labelstudio"),
                     help="hand the most doubtful pictures to this tool, with their labels")
    way.add_argument("--take", type=Path, metavar="FILE",
                     help="labels that people corrected: CVAT zip (Segmentation mask 1.1) or "
                          "Label Studio JSON")
    people.add_argument("-o", "--out", dest="output", type=Path, metavar="FILE",
                        help="to write by --export: .zip (cvat), .json (labelstudio)")
    people.add_argument("--worst", type=whole_number, default=50, metavar="N",
                        help="pictures to export (50)")
    people.add_argument("--url", metavar="PREFIX",
                        help="where Label Studio finds the pictures: what comes before their path "
                             "below IMAGES (its local files, by whole path)")
    # fmt: on


def review(options: argparse.Namespace) -> None:
    from ..commands.review import export, review, take_back
    from ..runtime import say

    if options.output and not options.export:
        raise InputError("-o is where --export writes; the page goes where --report says")
    if options.export:
        if not options.output:
            raise InputError("--export needs -o FILE, where the tasks are to be written")
        summary, files = export(
            options.out, options.export, options.output, options.worst, options.url
        )
        say(f"{summary['images']} picture(s) in {' and '.join(map(str, files))}")
        print(json.dumps(summary))
    elif options.take:
        summary = take_back(options.out, options.take)
        say(
            f"{summary['taken']} label(s) taken, {summary['same']} were there already, "
            f"{summary['empty']} left empty; {summary['people']} by people in all"
        )
        print(json.dumps(summary))
    else:
        found = review(
            options.out, people=options.people, people_split=options.people_split,
            truth=options.truth, split=options.split, before=options.before,
            report=options.report or options.out / "quality.html", command=typed(),
        )  # fmt: skip
        show(options.json, *found)
