"""Every knob once: typed, with unit, range and source. A recipe is a YAML file of differences.

Unknown keys are refused with the nearest name; `--set section.key=value` changes one.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from ..runs.errors import InputError

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Edge = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Scales = Annotated[tuple[Positive, ...], Field(min_length=1)]


class Strict(BaseModel):
    """A section of a configuration file: no unknown keys, no silent conversion between types."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Data(Strict):
    """Which labelled pictures."""

    dataset: str = Field(description="YAML file or folder from the recipe, or a known name")
    train: str = Field("train", description="split to learn from")
    val: str = Field("val", description="split that decides which checkpoint is best")
    long_edge: Count | None = Field(
        None, description="pixels that pictures are brought to first, in inference too"
    )
    workers: int | None = Field(None, ge=0, description="loader processes; null: by cores")


class Model(Strict):
    """Which network; see `HMSA` and `Trunk`."""

    trunk: str = Field("hrnet_w18_small_v2", description="any timm name with features_only")
    pretrained: bool | str = Field(False, description="true: timm's weights; a path: a local file")
    stride: Literal[4, 8] = Field(4, description="grid of the head; 8 dilates the trunk")
    head: Literal["plain", "stacked", "ocr", "deeplab"] = Field(
        "plain", description="deeplab wants stride 8"
    )
    fusion: Literal["hierarchical", "average", "max", "explicit", "pair"] = Field(
        "hierarchical", description="or a rival; explicit is bound to the joint stage's scales"
    )
    official: bool = Field(False, description="HRNet or ResNet to the digit as the official code")
    width: int = Field(128, ge=1, description="channels in the head; the paper has 256")


class Augment(Strict):
    """What happens to a picture before it is learnt; official.md section 6 has the paper's list."""

    flip: Share = Field(0.5, description="probability of a left-right flip")
    color: Share = Field(
        0.25, description="range of brightness, contrast, saturation; hue: a fifth"
    )
    hue: float | None = Field(
        None, ge=0, le=0.5, description="range, share of the circle; null: as above; paper: 0.25"
    )
    blur: Share = Field(0.0, description="probability of a Gaussian blur of sigma 0.15..1.3 pixels")


class Mixed(Strict):
    """How much of a further set the joint stage sees."""

    share: Share = Field(0.0, description="of the plain pictures that come from this set")
    boost: list[str] = Field([], description="classes whose class-uniform crops also come from it")
    until: Share = Field(1.0, description="share of the stage's steps after which it is left out")
    border: tuple[Edge, Edge, Edge, Edge] = Field(
        (0, 0, 0, 0),
        description="pixels at top, right, bottom, left whose labels do not count: a car's bonnet",
    )


class Extra(Mixed):
    """A further labelled set, coarse or labelled by a network, mixed into the joint stage."""

    dataset: str | None = Field(
        None, description="YAML file, relative to the recipe; null: that of `data`"
    )
    split: str = Field(description="of that dataset; its classes must be those of `data`")
    confidence: Share | dict[str, Share] | None = Field(
        None, description="as that of `sampling`, for this set; null: that of `sampling`"
    )


class Sampling(Strict):
    """Which picture comes next in the joint stage, and where it is cut; see `TrainingStream`."""

    class_uniform: Share = Field(
        0.0, description="share of crops around a class, every class as often; the paper: 0.5"
    )
    until: Share = Field(1.0, description="share of the steps after which these crops stop")
    tile: int = Field(1024, ge=1, description="pixels; a class is found once in every tile of this")
    confidence: Share | dict[str, Share] = Field(
        0.0, description="pixels stored as less sure are ignored; of all classes, or name: number"
    )
    extra: list[Extra] = Field([], description="sets mixed in")


class Stage(Strict):
    """One stage of training: an optimizer with a polynomial schedule over a number of steps."""

    steps: int = Field(ge=0, description="optimizer steps; 0 skips the stage")
    batch: int = Field(8, ge=1, description="pictures a step, per process")
    crop: tuple[Count, Count] = Field((288, 288), description="pixels, height and width")
    resize: tuple[Positive, Positive] = Field(
        (0.5, 2.0), description="random size factor before the crop, from..to"
    )
    scales: Scales = Field(description="chain whose fused output the loss sees")
    loss: Literal["cross_entropy", "ohem", "rmi"] = Field(
        "cross_entropy", description="of the fused logits; rmi is half binary cross-entropy"
    )
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: Positive = 1e-3
    momentum: Share = Field(0.9, description="of sgd")
    weight_decay: float = Field(1e-2, ge=0, description="not on norms and biases")
    power: float = Field(1.0, ge=0, description="lr falls as (1 - done) ** power")
    warmup: int = Field(0, ge=0, description="steps of linear rise before the fall")
    auxiliary: float = Field(0.4, ge=0, description="weight of the auxiliary head's loss (ocr)")
    supervision: float = Field(0.0, ge=0, description="weight of the loss of each scale by itself")
    penalty: float = Field(0.0, ge=0, description="weight of the fused result's use of fine scales")
    ema: float = Field(0.0, ge=0, lt=1, description="decay of the averaged weights; 0: none")
    validate_every: int = Field(500, ge=1, description="steps")


class Joint(Stage):
    """The paper's training: everything learns, at two adjacent scales."""

    steps: int = Field(3000, ge=0, description="optimizer steps; 0 skips the stage")
    scales: Scales = (0.5, 1.0)
    supervision: float = Field(0.1, ge=0, description="weight of the loss of each scale by itself")
    warmup: int = Field(100, ge=0, description="steps of linear rise before the fall")
    ema: float = Field(0.998, ge=0, lt=1, description="decay of the averaged weights; 0: none")


class Attention(Stage):
    """Then the attention head alone, on the fused output of a whole chain of scales.

    The network is frozen, so it sees each picture once and what it says is kept in memory. Which
    scale to trust depends on the size of things and on how much can be seen around them, so these
    are pictures as they are, not resized, and whole where memory allows.
    """

    steps: int = Field(150, ge=0, description="optimizer steps; 0 skips the stage")
    batch: int = Field(2, ge=1, description="pictures a step, per process")
    pictures: int = Field(160, ge=1, description="pictures kept in memory, per process")
    crop: tuple[Count, Count] = Field((512, 512), description="pixels; better the whole picture")
    resize: tuple[Positive, Positive] = (1.0, 1.0)
    lr: Positive = 3e-3
    scales: Scales = (0.5, 1.0, 2.0)
    weight_decay: float = Field(1e-4, ge=0, description="not on norms and biases")
    validate_every: int = Field(100, ge=1, description="steps")


class Inference(Strict):
    """What the network is validated with, and what it does by default ever after."""

    scales: Scales | None = Field(None, description="chain; null: that of the last stage")
    flip: bool = Field(False, description="also look at the mirrored picture")


class ByPeople(Strict):
    """Coarse labels that people drew on pictures which a teacher labels, too."""

    dataset: str | None = Field(
        None, description="YAML file or name, from the recipe; null: that of `data`"
    )
    split: str = Field(description="of that dataset; its classes must be those of `data`")
    fill: list[str] | None = Field(
        None, description="classes that alone are taken over; null: all, wherever people spoke"
    )


class Selftrain(Mixed):
    """What `hmsa selftrain` has labelled, what of it a student learns, and how. See its command."""

    images: str | None = Field(None, description="folder of pictures to label, from the recipe")
    dataset: str | None = Field(
        None, description="YAML file or name, from the recipe, of `split`; null: that of `data`"
    )
    split: str | None = Field(
        None, description="instead of `images`: the folder of this split's pictures"
    )
    coarse: ByPeople | None = Field(None, description="of these pictures, laid over the labels")
    scales: Scales | None = Field(None, description="that the teacher looks at; null: its own")
    flip: bool | None = Field(None, description="its look at the mirrored picture; null: its own")
    rule: Literal["fixed", "quantile", "precision"] = Field(
        "fixed", description="that finds how sure a label must be; those of hmsa autolabel"
    )
    level: Share | None = Field(
        None, description="confidence, share kept or share right, by rule; null: 0.5, 0.5, 0.95"
    )
    held_out: str | None = Field(
        None, description="split of `data` that precision is measured on; null: its `val`"
    )
    share: Share = Field(0.5, description="of the plain pictures that come from these labels")
    start: Literal["scratch", "teacher"] = Field(
        "scratch", description="what a student begins from: as the recipe says, or its teacher"
    )


class Recipe(Strict):
    """All that `hmsa train` needs, and `hmsa selftrain`; the sections are above."""

    data: Data
    model: Model = Model()
    augment: Augment = Augment()
    sampling: Sampling = Sampling()
    joint: Joint = Joint()
    attention: Attention = Attention()
    inference: Inference = Inference()
    selftrain: Selftrain | None = Field(None, description="hmsa train passes it by")
    start: str | None = Field(
        None, description="checkpoint or hub id to begin from; its classes may be others"
    )
    class_balance: Share = Field(
        0.0,
        description="cross-entropy weight of a class = (median frequency / its frequency) ** this",
    )
    seed: int = Field(0, ge=0)
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    devices: Count | Literal["auto"] = Field(1, description="processes on this machine")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 where fast")


Section = TypeVar("Section", bound=Strict)


def read(kind: type[Section], path: Path, changes: list[str] | None = None) -> Section:
    """A YAML file as `kind`, with `changes` such as `joint.steps=100` laid over it."""
    return validate(kind, changed(read_yaml(path), changes or []), path)


def changed(content: dict[str, Any], changes: list[str]) -> dict[str, Any]:
    """`content` with `changes` such as `joint.steps=100` laid over it."""
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals or not key:
            raise InputError(
                f"--set {change}: write it as section.key=value, such as joint.lr=1e-3"
            )
        *sections, last = key.split(".")
        place = content
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise InputError(f"--set {change}: {section!r} is a value, not a section")
        place[last] = _number(yaml.safe_load(value))
    return content


def validate(kind: type[Section], content: dict[str, Any], source: object) -> Section:
    """`content` as `kind`; the first thing wrong with it becomes one line that names `source`."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{source}: {_explain(kind, error.errors()[0])}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in _siblings(path)], n=1)
        hint = f"; did you mean {path.with_name(near[0])}?" if near else ""
        raise InputError(f"no file {path}{hint}") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path} is not readable YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} holds {type(content).__name__}, not keys and values")
    return _numbers(content)


def _siblings(path: Path) -> list[Path]:
    return list(path.parent.glob("*.yaml")) if path.parent.is_dir() else []


def _number(value: Any) -> Any:
    """YAML reads 1e-3 (no dot) as text; everybody means the number."""
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
        return float(value)
    return value


def _numbers(content: dict[str, Any]) -> dict[str, Any]:
    return {k: _numbers(v) if isinstance(v, dict) else _number(v) for k, v in content.items()}


def _explain(kind: type[BaseModel], detail: ErrorDetails) -> str:
    where = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        known = _keys_beside(kind, detail["loc"])
        near = difflib.get_close_matches(str(detail["loc"][-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
        return f"unknown key {where!r}; {hint}"
    if detail["type"] == "missing":
        return f"key {where!r} is missing"
    return f"{where}: {detail['msg']}, but {detail['input']!r} came"


def _keys_beside(kind: type[BaseModel], place: tuple[int | str, ...]) -> list[str]:
    """The keys that the section which holds `place` knows."""
    for part in place[:-1]:
        field = kind.model_fields.get(str(part))
        held = field.annotation if field else None
        inner = [t for t in (held, *get_args(held)) if isinstance(t, type)]  # or in a list, or null
        sections = [t for t in inner if issubclass(t, BaseModel)]
        if not sections:
            break
        kind = sections[0]
    return list(kind.model_fields)
