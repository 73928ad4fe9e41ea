"""The recipe of `hmsa train` and `hmsa selftrain`: a YAML file with what differs from here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from .options import Count, Preset, Share
from .reading import Strict, read_yaml

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Factor = Annotated[float, Field(ge=0)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Whole = Annotated[int, Field(ge=0)]
Size = tuple[Count, Count]  # height and width in pixels
Scale = Annotated[float, Field(gt=0, le=16)]  # what a checkpoint may hold, as `Edge`
Scales = Annotated[tuple[Scale, ...], Field(min_length=1, max_length=16)]
Edge = Annotated[int, Field(ge=1, le=16384)]
Confidence = Share | dict[str, Share]  # one number, or class name: number
Loss = Literal["cross_entropy", "ohem", "rmi"]


class Data(Strict):
    """Labelled images."""

    dataset: str  # YAML file or folder, relative to the recipe, or a known name
    train: str = "train"  # split to train on
    val: str = "val"  # split for validation, which chooses the best checkpoint
    long_edge: Edge | None = None  # pixels: images are resized to this first, also at inference
    workers: Whole | None = None  # processes that load images; null: by CPU cores


class Model(Strict):
    """The network; see `HMSA` and `Trunk`."""

    trunk: str = "tf_efficientnet_lite0"  # any timm name with features_only
    # true: ImageNet weights of the trunk; or a local file; false: random weights
    pretrained: Annotated[bool | str, Field(union_mode="left_to_right")] = True
    stride: Literal[4, 8] = 4  # pixels per cell of the head; 8 dilates the trunk
    head: Literal["plain", "stacked", "ocr", "deeplab"] = "plain"  # deeplab needs stride 8
    # explicit works at the scales of the joint stage only
    fusion: Literal["hierarchical", "average", "max", "explicit", "pair"] = "hierarchical"
    official: bool = False  # HRNet and ResNet in every detail as in the official code
    width: Count = 96  # channels in the head; paper: 256


class Augment(Strict):
    """Random changes of training images, after size and crop."""

    flip: Share = 0.5  # probability of a left-right flip
    color: Share = 0.25  # range of brightness, contrast and saturation
    hue: Annotated[float, Field(ge=0, le=0.5)] | None = None  # of the circle; null: color / 5
    blur: Share = 0.0  # probability of a Gaussian blur with a sigma of 0.15 to 1.3 pixels


class Mixed(Strict):
    """How much the joint stage uses of an extra set."""

    share: Share = 0.0  # of the images outside class-uniform crops
    boost: list[str] = Field([])  # classes whose class-uniform crops also come from this set
    until: Share = 1.0  # share of the stage's steps after which the set is not used
    # Pixels at top, right, bottom and left whose labels are ignored, such as the own car
    border: tuple[Whole, Whole, Whole, Whole] = (0, 0, 0, 0)


class Extra(Mixed):
    """An extra labelled set for the joint stage, such as coarse or automatic labels."""

    dataset: str | None = None  # YAML file, relative to the recipe; null: that of `data`
    split: str  # of that dataset; its classes must be those of `data`
    confidence: Confidence | None = None  # null: that of `sampling`


class Sampling(Strict):
    """Which image is next in the joint stage, and where it is cropped; see `TrainingStream`."""

    class_uniform: Share = 0.0  # share of crops around a class, all classes alike; paper: 0.5
    until: Share = 1.0  # share of the steps after which these crops stop
    tile: Count = 1024  # pixels: a class is found once in each tile of this side
    confidence: Confidence = 0.0  # labels with less are ignored
    extra: list[Extra] = Field([])


class Stage(Strict):
    """One stage of training."""

    steps: Whole  # optimizer steps; 0 skips the stage
    batch: Count = 8  # images in a step, for each process
    crop: Size = (288, 288)  # height and width in pixels
    resize: tuple[Positive, Positive] = (0.5, 2.0)  # range of the random size before the crop
    scales: Scales  # whose fused output is trained
    loss: Loss = "cross_entropy"  # of the fused logits; rmi is half binary cross-entropy
    optimizer: Literal["adamw", "sgd"] = "adamw"  # paper: sgd
    lr: Positive = 1e-3  # learning rate after the warm-up
    trunk_factor: Factor = 1.0  # learning rate of the trunk, as a multiple of lr
    # Factor of that learning rate from each layer to the one before
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    freeze_norms: bool = False  # the trunk's batch norms keep the statistics that they began with
    momentum: Share = 0.9  # of sgd
    weight_decay: Factor = 1e-2  # not for norms and biases
    power: Factor = 1.0  # lr falls as (1 - step / steps) ** power
    warmup: Whole = 0  # steps in which lr rises linearly
    auxiliary: Factor = 0.4  # weight of the auxiliary head's loss (ocr)
    supervision: Factor = 0.0  # weight of the loss of each scale alone
    penalty: Factor = 0.0  # weight of the use of fine scales in the loss
    ema: Decay = 0.0  # decay of the moving average of weights; 0: no average
    validate_every: Count = 500  # steps from one validation to the next
    # lean: backward computes again what is cheap to compute, see `training.lean`; equal results
    memory: Literal["lean", "plain"] = "lean"


class Joint(Stage):
    """The whole network, at two adjacent scales, as in the paper."""

    steps: Whole = 3000
    scales: Scales = (0.5, 1.0)
    # Parts of a batch that run one after the other and add up their gradients: less memory; batch
    # norms see the images of one part
    accumulate: Count = 1
    supervision: Factor = 0.1
    warmup: Whole = 100
    ema: Decay = 0.998


class Attention(Stage):
    """The attention head alone, on the whole list of scales; the frozen network runs only once.

    It begins at averaging or, where other constant weights of the scales are clearly better on val,
    at these; where no step is better on val, they stay. Images are not resized, and best whole: the
    right scale depends on sizes and surroundings.
    """

    steps: Whole = 150
    batch: Count = 2
    # Images, for each process, and a fifth as many of val; what the network says of them is on disk
    pictures: Count = 160
    crop: Size = (512, 512)  # height and width in pixels
    resize: tuple[Positive, Positive] = (1.0, 1.0)
    scales: Scales = (0.5, 1.0, 2.0)
    lr: Positive = 3e-3
    weight_decay: Factor = 1e-4
    validate_every: Count = 100


class Inference(Strict):
    """Used in validation, and the defaults of the checkpoint."""

    scales: Scales | None = None  # null: those of the last stage
    flip: bool = False  # also run the mirrored image


class ByPeople(Strict):
    """Coarse labels that people drew on images which a teacher also labels."""

    dataset: str | None = None  # YAML file, relative to the recipe, or a name; null: that of `data`
    split: str  # of that dataset; its classes must be those of `data`
    fill: list[str] | None = None  # classes to take over; null: all, wherever people labelled


class Selftrain(Mixed):
    """What `hmsa selftrain` labels, and how students use it."""

    images: str  # folder of images, relative to the recipe
    coarse: ByPeople | None = None  # coarse labels of these images
    scales: Scales | None = None  # of the teacher; null: its defaults
    flip: bool | None = None  # the teacher also runs the mirrored image; null: its default
    rule: Literal["fixed", "quantile", "precision"] = "fixed"  # for thresholds, as in autolabel
    level: Share | None = None  # confidence, share kept or share right; null: 0.5, 0.5, 0.95
    held_out: str | None = None  # split of `data` to measure precision on; null: its `val`
    share: Share = 0.5
    start: Literal["scratch", "teacher"] = "scratch"  # weights that a student starts with


class Recipe(Strict):
    """All settings of `hmsa train` and `hmsa selftrain`."""

    data: Data
    model: Model = Model()
    augment: Augment = Augment()
    sampling: Sampling = Sampling()
    joint: Joint = Joint()
    attention: Attention = Attention()
    inference: Inference = Inference()
    selftrain: Selftrain | None = None  # for hmsa selftrain only
    start: str | None = None  # checkpoint or hub id to start from; it may have other classes
    class_balance: Share = 0.0  # weight of a class: (median frequency / its frequency) ** this
    # Where values of training go, besides metrics.csv and TensorBoard; hmsa[wandb], hmsa[mlflow]
    loggers: list[Literal["wandb", "mlflow"]] = Field([])
    seed: Whole = 0  # of weights that begin at random, of crops and of the order of images
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"  # auto: a GPU if there is one
    devices: Count | Literal["auto"] = 1  # processes, on this machine
    # auto: bf16 on GPUs that have it; on CPUs that have it, if it trains this network faster
    precision: Literal["auto", "fp32", "bf16"] = "auto"


def preset(name: Preset) -> list[str]:
    """The settings of a preset, as of --set."""
    found = read_yaml(Path(__file__).with_name("presets.yaml"))[name]
    return [f"{key}={json.dumps(value)}" for key, value in found.items()]
