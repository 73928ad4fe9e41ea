"""Options of the command line and of Python, each declared once."""

from __future__ import annotations

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


def scale_list(text: str) -> tuple[float, ...]:
    """`0.5,1,2` as numbers. Raises ValueError for anything but positive ones."""
    parts = text.split(",")
    if not all(re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*", part) and float(part) for part in parts):
        raise ValueError(f"{text!r} is not a list of positive numbers like 0.5,1,2")
    return tuple(float(part) for part in parts)


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


def value_ranges(text: str) -> tuple[tuple[float, float], ...]:
    """`0,3000` as one range; twice as many numbers are two. Raises ValueError."""
    try:
        numbers = [float(part) for part in text.split(",")]
        return tuple(zip(numbers[::2], numbers[1::2], strict=True))
    except ValueError:
        raise ValueError(f"{text!r} is not MIN,MAX like 0,3000, or that for each band") from None


# Numbers with a range, which recipes (pydantic) and the command line (cyclopts) both check
Share = Annotated[float, Field(ge=0, le=1), Parameter(validator=Number(gte=0, lte=1))]
Count = Annotated[int, Field(ge=1), Parameter(validator=Number(gte=1))]
Flag = Annotated[bool, Parameter(negative="", show_default=False)]
Names = Annotated[list[str], parsed_by(lambda text: [name.strip() for name in text.split(",")])]
ScaleList = Annotated[tuple[float, ...], parsed_by(scale_list)]
Size = Annotated[tuple[int, int], parsed_by(height_width)]
Ranges = Annotated[tuple[tuple[float, float], ...], parsed_by(value_ranges)]
Tile = Annotated[int | Literal["auto"] | None, parsed_by(tile_side)]
Arithmetic = Literal["auto", "fp32", "bf16", "fp16"]
Backend = Literal["auto", "torch", "onnxruntime", "openvino"]
Preset = Literal["laptop", "gpu", "paper"]

Checkpoint = Annotated[
    Path,
    Parameter(
        help="a .safetensors file, a run folder, a shared folder, an id on the hub, or one of "
        "`hmsa models`"
    ),
]
Dataset = Annotated[Path, Parameter(help="YAML file, folder or known name of a dataset")]
Files = Annotated[
    Path | None, Parameter(name="--data", help="folder of the dataset's files, if elsewhere")
]
Out = Annotated[Path, Parameter(alias="-o")]
Changes = Annotated[
    list[str],
    Parameter(
        name="--set",
        negative="",
        show_default=False,
        help="KEY=VALUE: change a setting of the recipe, such as joint.lr=1e-3; repeat for more",
    ),
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
    backend: Backend = "auto"
    """what runs the network; auto: on CPUs the fastest that is installed and agrees with torch"""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Inference(Chain, Compute):
    """All arguments of `Predictor.load` except the checkpoint."""

    tile: Tile = "auto"
    """side in pixels of the parts that the network runs on; none: whole images; auto: by memory"""
    stretch: Ranges | None = None
    """MIN,MAX: values of images with more than 8 bits that become 0 and 255; default: those of the
    checkpoint, else most of the images' values"""
    budget: Share | None = None
    """run scales above 1 in this share of an image only, where they count most"""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class HeadTraining:
    """How `hmsa attend` trains an attention head; the network itself stays as it is."""

    split: str = "train"
    """split to train on"""
    val: str | None = None
    """split that chooses among heads, and is scored; default: val, else the last fifth of SPLIT"""
    scales: ScaleList = (0.5, 1.0, 2.0)
    """two or more scales to fuse"""
    features: str = "auto"
    """what the head also sees: MODULE, MODULE:input, none; auto: input of the last convolution"""
    per_class: Flag = False
    """one attention map for each class"""
    reference: Flag = False
    """do not copy the network's weights into OUT"""
    pairs: Flag = False
    """the head also sees the finer scale of a pair, which rules out a gate and tiles"""
    penalty: Share = 0.0
    """weight of the use of fine scales in the loss"""
    steps: Count = 1200
    """optimizer steps at most, of one image each; it ends where held-out images stop improving"""
    images: Count = 200
    """images at most, evenly: four fifths to train on, one fifth to choose by"""
    seed: int = 0
    """of the head's first weights and the order of images"""
    cache: Annotated[float, Parameter(validator=Number(gt=0))] = 4.0
    """GiB on disk for the outputs of the network"""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Rules:
    """How thresholds of auto-labels are chosen."""

    threshold: Share = 0.5
    """rule fixed: one confidence for all classes"""
    keep: Share = 0.5
    """rule quantile: share of each class that is kept"""
    precision_target: Share = 0.95
    """rule precision: share of the kept labels that is right on held-out images"""
