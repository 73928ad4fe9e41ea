"""Options of the command line and of Python, each declared once."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from cyclopts.validators import Number
from pydantic import Field


def parsed_by(parse: Callable[[str], Any]) -> Parameter:
    """An option whose text `parse` turns into its value; `parse` may raise ValueError."""
    return Parameter(n_tokens=1, negative="", converter=lambda _, tokens: parse(tokens[0].value))


def comma_list(text: str) -> list[str]:
    """`a,b,c` as a list."""
    return [part.strip() for part in text.split(",")]


def scale_list(text: str) -> tuple[float, ...]:
    """`0.5,1,2` as numbers. Raises ValueError for anything but positive ones."""
    try:
        scales = tuple(float(part) for part in text.split(","))
    except ValueError:
        scales = ()
    if not scales or not all(0 < scale < math.inf for scale in scales):
        raise ValueError(f"{text!r} is not a list of positive numbers like 0.5,1,2")
    return scales


def height_width(text: str) -> tuple[int, int]:
    """`256x512` as height and width in pixels."""
    size = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text.lower())
    if not size:
        raise ValueError(f"{text!r} is not HEIGHTxWIDTH in pixels, like 256x512")
    return int(size[1]), int(size[2])


def tile_side(text: str) -> int | Literal["auto"] | None:
    """`auto`, `none` (None) or a number of pixels."""
    if text in ("auto", "none"):
        return "auto" if text == "auto" else None
    if not re.fullmatch(r"[1-9]\d*", text):
        raise ValueError(f"{text!r} is not auto, none or a number of pixels")
    return int(text)


# Numbers with a range, which recipes (pydantic) and the command line (cyclopts) both check
Share = Annotated[float, Field(ge=0, le=1), Parameter(validator=Number(gte=0, lte=1))]
Count = Annotated[int, Field(ge=1), Parameter(validator=Number(gte=1))]
Flag = Annotated[bool, Parameter(negative="")]
Names = Annotated[list[str], parsed_by(comma_list)]
ScaleList = Annotated[tuple[float, ...], parsed_by(scale_list)]
Size = Annotated[tuple[int, int], parsed_by(height_width)]
Tile = Annotated[int | Literal["auto"] | None, parsed_by(tile_side)]
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
    Parameter(name="--set", negative="", help="KEY=VALUE: change a setting, such as joint.lr=1e-3"),
]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Chain:
    """The scales to fuse."""

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
    """All arguments of `Predictor.load` except the checkpoint."""

    tile: Tile = "auto"
    """side in pixels of the parts that the network runs on; none: whole images; auto: by memory"""
    budget: Share | None = None
    """run scales above 1 in this share of an image only, where they count most"""
    gate: Share | None = None
    """or wherever their mean expected weight is at least this"""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class HeadTraining:
    """How `hmsa attend` trains an attention head; the network itself stays as it is."""

    split: str = "train"
    """split to train on"""
    val: str | None = None
    """split to score; default: val if there is one, else the held-out images"""
    scales: ScaleList = (0.5, 1.0, 2.0)
    """two or more scales to fuse"""
    features: str = "auto"
    """input of the head beside confidence: the output of a module, such as backbone.layer4; its
    input, such as classifier.4:input; none; or auto, the input of the last convolution"""
    per_class: Flag = False
    """one attention map for each class"""
    reference: Flag = False
    """do not copy the network's weights into OUT"""
    pairs: Flag = False
    """the head also sees the finer scale of a pair; then there is no gate and there are no tiles"""
    penalty: Share = 0.0
    """weight of the use of fine scales in the loss"""
    steps: Count = 1200
    """optimizer steps at most, of one image each"""
    images: Count = 200
    """images at most, evenly from the split; the last fifth of the split is held out"""
    seed: int = 0
    """of the head's first weights and the order of images"""
    cache: Annotated[float, Parameter(validator=Number(gt=0))] = 4.0
    """GiB on disk for the outputs of the network"""
