"""`hmsa attend`: scale attention for any segmentation network."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .arguments import share, show, typed, verb, whole_number


def add_attend(verbs: Any) -> argparse.ArgumentParser:
    """The parser, still without what concerns inference."""
    parser = verb(
        verbs, "attend", attend, "give any segmentation network attention over scales",
        "hmsa attend transformers:nvidia/segformer-b0-finetuned-cityscapes-1024-1024 cityscapes "
        "--data Cityscapes -o runs/segformer",
    )  # fmt: skip
    parser.add_argument("network", metavar="NETWORK",
                        help="transformers:NAME, smp:NAME, torchvision:NAME[@FILE], a folder of "
                             "save_pretrained, MODULE:FUNCTION of your own, or a checkpoint of "
                             "ours; it stays as it is")  # fmt: skip
    parser.add_argument("dataset", type=Path, metavar="DATA", help="YAML file, folder or known "
                        "name of labelled pictures")  # fmt: skip
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="RUN",
                        help="run folder, for predict, autolabel and the others")  # fmt: skip
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="where the pictures are")
    parser.add_argument("--split", default="train", metavar="S", help="to learn from (train)")
    parser.add_argument("--val", metavar="S",
                        help="to compare fusions on (val, or what is held out)")  # fmt: skip
    parser.add_argument("--reference", action="store_true",
                        help="keep the network's weights where they are, out of RUN")  # fmt: skip

    head = parser.add_argument_group("the head, all that learns")
    head.add_argument("--features", default="auto", metavar="PART",
                      help="what it looks at beside confidence: output of a module of the "
                           "network, as backbone.layer4, or its input, as classifier.4:input; "
                           "none (auto: input of the last convolution)")  # fmt: skip
    head.add_argument("--per-class", action="store_true", help="one attention map for each class")
    head.add_argument("--pairs", action="store_true",
                      help="also look at the finer scale of a pair: no gate, no tiles")  # fmt: skip
    head.add_argument("--penalty", type=share, default=0.0, metavar="W",
                      help="weight of the use of fine scales in the loss (0)")  # fmt: skip
    head.add_argument("--steps", type=whole_number, default=600, metavar="N",
                      help="at most, of two pictures (600)")  # fmt: skip
    head.add_argument("--pictures", type=whole_number, default=200, metavar="N",
                      help="at most, evenly out of the split; every fifth part of it, the last, "
                           "tells when to stop (200)")  # fmt: skip
    head.add_argument("--seed", type=int, default=0, metavar="N", help="(0)")
    head.add_argument("--cache", type=_gibibytes, default=4 << 30, metavar="GIB",
                      help="on disk, for what the network says of the pictures (4)")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="the JSON line alone on stdout")
    return parser


def _gibibytes(text: str) -> int:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of GiB, like 4")
    return int(number * (1 << 30))


def attend(options: argparse.Namespace) -> None:
    from ..commands.attend import Head, attend

    head = Head(
        None if options.features == "none" else options.features, options.per_class,
        options.pairs, options.steps, options.penalty, pictures=options.pictures,
        seed=options.seed,
    )  # fmt: skip
    show(
        options.json,
        *attend(
            options.network, options.dataset, options.out, options.split,
            options.scales or (0.5, 1.0, 2.0), head, val=options.val, files=options.data,
            cache=options.cache, reference=options.reference, precision=options.precision,
            device=options.device, command=typed(),
        ),
    )  # fmt: skip
