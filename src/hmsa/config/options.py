"""Options that several verbs share: one declaration for the command line and for Python."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter, Token
from cyclopts.validators import Number


def _parsed(parse: Callable[[str], Any]) -> Callable[[Any, Sequence[Token]], Any]:
    return lambda _, tokens: parse(tokens[0].value)


def comma_list(text: str) -> list[str]:
    """`a,b,c` as a list."""
    return [part.strip() for part in text.split(",")]


def scale_list(text: str) -> tuple[float, ...]:
    """`0.5,1,2` as numbers; ValueError for anything but positive ones."""
    try:
        scales = tuple(float(part) for part in text.split(","))
    except ValueError:
        scales = ()
    if not scales or not all(0 < scale < math.inf for scale in scales):
        raise ValueError(f"{text!r} is not a list of positive numbers like 0.5,1,2")
    return scales


def height_width(text: str) -> tuple[int, int]:
    """`256x512` as height and width in pixels."""
    try:
        height, width = (int(part) for part in text.lower().split("x"))
    except ValueError:
        height = width = 0
    if min(height, width) < 1:
        raise ValueError(f"{text!r} is not HEIGHTxWIDTH in pixels, like 256x512")
    return height, width


def tile_side(text: str) -> int | Literal["auto"] | None:
    """`auto`, `none` (None) or a number of pixels."""
    if text in ("auto", "none"):
        return "auto" if text == "auto" else None
    if not text.isdigit() or not int(text):
        raise ValueError(f"{text!r} is not auto, none or a number of pixels")
    return int(text)


Share = Annotated[float, Parameter(validator=Number(gte=0, lte=1))]
Count = Annotated[int, Parameter(validator=Number(gte=1))]
Names = Annotated[list[str], Parameter(n_tokens=1, negative="", converter=_parsed(comma_list))]
ScaleList = Annotated[
    tuple[float, ...], Parameter(n_tokens=1, negative="", converter=_parsed(scale_list))
]
Size = Annotated[tuple[int, int], Parameter(n_tokens=1, converter=_parsed(height_width))]
Tile = Annotated[int | Literal["auto"] | None, Parameter(n_tokens=1, converter=_parsed(tile_side))]
Arithmetic = Literal["auto", "fp32", "bf16", "fp16"]

Checkpoint = Annotated[
    Path, Parameter(help="a .safetensors file, a run folder, a shared folder or an id on the hub")
]
Dataset = Annotated[Path, Parameter(help="YAML file, folder or known name of a dataset")]
Files = Annotated[
    Path | None, Parameter(name="--data", help="folder of the dataset's files, if elsewhere")
]
Out = Annotated[Path, Parameter(alias="-o")]
Changes = Annotated[
    list[str],
    Parameter(name="--set", negative="", help="KEY=VALUE: change one knob, such as joint.lr=1e-3"),
]
Flag = Annotated[bool, Parameter(negative="")]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Chain:
    """Which scales are fused."""

    scales: ScaleList | None = None
    """positive numbers, such as 0.5,1,2; default: those of the checkpoint"""

    flip: bool | None = None
    """also run the mirrored image; default: as in the checkpoint"""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Compute:
    """Where and with which arithmetic the network runs."""

    precision: Arithmetic = "auto"
    """auto: bf16 where the hardware has it, else fp32"""

    device: str | None = None
    """cpu, cuda, cuda:1 or mps; default: the best one"""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Inference(Chain, Compute):
    """All that `Predictor.load` takes beside the checkpoint."""

    tile: Tile = "auto"
    """pixels of a side that the network sees at once; none: no tiles; auto: only where needed"""

    budget: Share | None = None
    """run scales above 1 in this share of an image only, where they count most"""

    gate: Share | None = None
    """or wherever their mean expected weight is at least this"""
