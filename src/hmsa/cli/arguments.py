"""What the verbs share: their form, the types of their arguments, how results are shown."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from typing import Any


def verb(group: Any, name: str, work: Any, what: str, example: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = group.add_parser(
        name, help=what, description=f"{what[0].upper()}{what[1:]}.", allow_abbrev=False,
        epilog=f"example: {example}",
    )  # fmt: skip
    parser.set_defaults(verb=work)
    return parser


def scale_list(text: str) -> list[float]:
    try:
        scales = [float(part) for part in text.split(",")]
    except ValueError:
        scales = []
    if not scales or not all(0 < s < float("inf") for s in scales):
        raise argparse.ArgumentTypeError(f"{text!r} is not positive numbers like 0.5,1,2")
    return scales


def save_list(text: str) -> list[str]:
    from ..outputs import KINDS  # only now: --help need not wait for torch

    kinds = text.split(",")
    strange = [kind for kind in kinds if kind not in KINDS]
    if strange:
        raise argparse.ArgumentTypeError(f"{strange[0]!r} is none of {', '.join(KINDS)}")
    return kinds


def tile_side(text: str) -> int | str | None:
    """A number of pixels; None, no tiles, for the word none."""
    return text if text == "auto" else None if text == "none" else whole_number(text)


def share(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share in 0..1, like 0.9")
    return number


def whole_number(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 up")
    return int(text)


def height_width(text: str) -> tuple[int, int]:
    try:
        height, width = (int(part) for part in text.lower().split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not HEIGHTxWIDTH, like 256x512") from None
    return height, width


def graph_size(text: str) -> tuple[int, int] | None:
    """None, any size, for the word dynamic."""
    size = None if text == "dynamic" else height_width(text)
    if size and min(size) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} has a side without pixels")
    return size


def split_count(text: str) -> tuple[str, int]:
    split, _, number = text.partition("=")
    if not split or not number.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not SPLIT=N, like train=200")
    return split, int(number)


def further(options: argparse.Namespace) -> dict[str, Any]:
    """What `Predictor.load` takes beside scales, flip and precision."""
    from ..model.gate import Gate

    asked = options.budget is not None or options.gate is not None
    gate = Gate(options.budget, options.gate) if asked else None
    return {"device": options.device, "tile": options.tile, "gate": gate}


def show(json_alone: bool, summary: dict[str, Any], table: Any) -> None:
    from ..commands.evaluate import print_result

    if not json_alone:
        print_result(summary, table)
    print(json.dumps(summary))


def typed() -> str:
    return shlex.join(["hmsa", *sys.argv[1:]])
