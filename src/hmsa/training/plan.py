"""Settings for data without a recipe, how long a run will take, and `hmsa train --plan`: what a
step of the joint stage costs, and what fits into memory.

Bytes are counted on tensors without content, at the recipe's crop and batch; for a CPU, by what a
process takes in addition. Seconds are those of one small step, by the number of pixels.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import nn

from ..config.options import Preset
from ..config.recipe import Recipe, Stage
from ..data.datasets import Dataset
from ..data.images import read_size
from ..model import HMSA
from ..runs.machine import Precision, autocast, fast_bf16
from ..runs.memory import Alive, free_memory
from .lean import lean, regions
from .losses import objective

SIDE, BATCH = 256, 2  # at most, of a step that is timed
BACKWARD = 4  # cost of a training step, relative to a forward pass of the same pixels
HEAD = 0.3  # cost of a step of the attention head, relative to a forward pass of the network
LONG = 60  # seconds
SHARE = 0.9  # of the free memory that a plan uses
# Steps for each image on one process, at least and at most; paper: 175 passes at batch 1
STEPS = {"laptop": (20, 400, 3000), "gpu": (40, 1000, 8000), "paper": (175, 50, 10**7)}
WHOLE = 640  # pixels: attention sees whole images up to this side; crops of more fill the disk
Memory = Literal["lean", "plain"]
# On a CPU: bytes of the code of libraries; and the heap of a process relative to its tensors, as
# glibc leaves gaps between those of many sizes. Measured by benchmarks/train_step.py --plan
LIBRARIES, HEAP = 80 * 2**20, {"lean": 1.85, "plain": 1.35}


class Cost(NamedTuple):
    """Of a training step, without the optimizer's."""

    saved: float  # bytes alive between forward and backward
    peak: float  # most bytes alive at once, with gradients, without weights; on a CPU only
    seconds: float


@dataclass(frozen=True)
class Plan:
    """One way to run the steps of a recipe."""

    memory: Memory
    precision: str
    saved: float  # bytes alive between forward and backward
    peak: float  # bytes of the whole training, weights and optimizer included
    seconds: float  # of a step
    batch: int  # the largest that fits at the recipe's crop; 0: none
    lr: float  # for that batch
    crop: int  # the largest side, a multiple of 32, that fits at the recipe's batch; 0: none


def step_cost(
    model: HMSA, stage: Stage, precision: Precision, batch: int, crop: Sequence[int]
) -> Cost:
    """One step with random images, where `model` lies; its statistics and gradients change."""
    device = model.mean.device
    image = torch.rand(batch, model.channels, *crop, device=device)
    label = torch.zeros(batch, *crop, dtype=torch.long, device=device)
    found = regions(model) if stage.memory == "lean" else []
    model.zero_grad()
    began = time.perf_counter()
    with Alive() as alive:
        with autocast(device, precision), lean(found):
            output = model(image, stage.scales)
        loss = objective(output, label, stage)["loss"]
        del output
        saved = alive.now
        loss.backward()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return Cost(saved, alive.peak, time.perf_counter() - began)


def counted(model: HMSA, stage: Stage, batch: int) -> Cost:
    """The bytes of `step_cost` in fp32, without computing anything."""
    held = [*model.parameters(), *model.buffers()]
    memo: dict[int, Any] = {
        id(t): nn.Parameter(t.to("meta"), t.requires_grad)
        if isinstance(t, nn.Parameter) else t.to("meta") for t in held
    }  # fmt: skip
    twin = copy.deepcopy(model, memo).train()
    if stage.loss == "ohem":  # chooses pixels by their values
        stage = stage.model_copy(update={"loss": "cross_entropy"})
    return step_cost(twin, stage, "fp32", batch, stage.crop)


def plans(model: HMSA, recipe: Recipe, device: torch.device, memory: float | None) -> list[Plan]:
    """Of the joint stage, for `memory` bytes; default: most of what is free on `device`.

    A recipe that says `accelerator: cuda` is planned for a GPU, where there is none, too.
    """
    room = SHARE * free_memory(device) if memory is None else memory
    precisions: list[Precision] = ["fp32", "bf16"] if fast_bf16(device) else ["fp32"]
    if recipe.precision != "auto":
        precisions = [recipe.precision]
    both: tuple[Memory, Memory] = ("lean", "plain")
    return [_plan(model, recipe, device, room, how, p) for how in both for p in precisions]


def _plan(
    model: HMSA, recipe: Recipe, device: torch.device, room: float, memory: Memory,
    precision: Precision,
) -> Plan:  # fmt: skip
    stage = recipe.joint.model_copy(update={"memory": memory})
    at_once = math.ceil(stage.batch / stage.accumulate)  # images
    one, two = (counted(model, stage, at_once * factor) for factor in (1, 2))
    small = [min(side, SIDE) for side in stage.crop]
    batch, trial = min(stage.batch, BATCH), copy.deepcopy(model).to(device).train()
    with torch.random.fork_rng():
        runs = [step_cost(trial, stage, precision, batch, small) for _ in range(2)]
        full = runs if precision == "fp32" else [step_cost(trial, stage, "fp32", batch, small)]
    narrower = runs[0].saved / full[0].saved  # of bf16, relative to fp32
    area, pixels = math.prod(stage.crop), at_once * math.prod(stage.crop)
    seconds = min(run.seconds for run in runs) * stage.batch * area / (batch * math.prod(small))
    weights = sum(t.nbytes for t in [*model.parameters(), *model.buffers()])
    copies = 1 + (2 if stage.optimizer == "adamw" else 1) + bool(stage.ema)
    on_gpu = "cuda" in (device.type, recipe.accelerator)
    extra, heap = (0, 1.0) if on_gpu else (LIBRARIES, HEAP[memory])
    slope = (two.peak - one.peak) * narrower * heap / pixels  # bytes of a pixel
    peak = one.peak * narrower * heap + copies * weights + extra
    most = pixels + (room - peak) / slope
    largest = max(0, int(most / area)) * stage.accumulate
    side = max(0, int(math.sqrt(max(0, most) / at_once)) // 32 * 32)
    power = 0.5 if stage.optimizer == "adamw" else 1.0
    lr = stage.lr * (largest / stage.batch) ** power
    return Plan(memory, precision, one.saved * narrower, peak, seconds, largest, lr, side)


def suited(learn: Dataset, recipe: Recipe, chosen: Preset, processes: int = 1) -> list[str]:
    """What a preset leaves to the dataset, as of --set: steps by the number of images, and crops
    no larger than small images and larger ones of large images.

    recipe: with the settings of the preset.
    """
    sizes, (each, least, most) = _sizes(learn), STEPS[chosen]
    steps = min(max(each * len(learn) // processes, least), most)
    steps = steps // 50 * 50
    middle = [math.ceil(side / 32) * 32 for side in np.median(sizes, 0)]
    crop = [min(pair) for pair in zip(recipe.joint.crop, middle, strict=True)]
    found: dict[str, Any] = {"joint.steps": steps, "joint.validate_every": max(100, steps // 6)}
    if chosen == "paper":
        found["joint.lr"] = recipe.joint.lr * processes / 8
    else:
        found["joint.warmup"] = min(100, steps // 10)
    if chosen == "laptop" and min(middle) >= 1024:
        crop, found["joint.batch"] = [512, 512], 4
    found |= {"joint.crop": crop, "sampling.tile": max(crop)}
    found["attention.crop"] = [min(side, WHOLE) for side in middle]
    if max(middle) > 2048:  # at scale 2 these would take most of the time
        found |= {"attention.crop": [1024, 1024], "attention.scales": [0.25, 0.5, 1.0]}
    return [f"{name}={value}" for name, value in found.items()]


def forecast(recipe: Recipe, learn: Dataset, val: Dataset, seconds: float, steps: int) -> str:
    """How long a run will take and what would shorten it, for people; empty if it is short.

    seconds: of a step of the joint stage, with backward; steps: of it that are left. All other
    parts go by the pixels that the network sees.
    """
    joint, attention, scales = recipe.joint, recipe.attention, recipe.inference.scales
    pixel = seconds / (BACKWARD * joint.batch * math.prod(joint.crop) * _area(joint.scales))
    passes = math.ceil(steps / joint.validate_every) * _area(scales or joint.scales)
    parts = {"joint stage": (seconds * steps, f"joint.steps={joint.steps // 2}")}
    if attention.steps:
        images = min(attention.pictures, len(learn)) + min(attention.pictures // 5, len(val))
        once = pixel * math.prod(attention.crop) * _area(attention.scales)
        stage = once * (images + HEAD * attention.steps * attention.batch)
        parts["attention stage"] = (stage, f"attention.steps={attention.steps // 2}")
        times = 1 + math.ceil(attention.steps / attention.validate_every)
        passes += times * _area(scales or attention.scales)
    whole = pixel * passes * len(val) * float(_sizes(val).prod(1).mean())
    parts["validation"] = (whole, f"joint.validate_every={joint.steps}")
    if (total := sum(part for part, _ in parts.values())) < LONG:
        return ""
    each = ", ".join(f"{what} {_time(part)}" for what, (part, _) in parts.items())
    shorter = max(parts.values())[1]
    return f"about {_time(total)} left at {seconds:.2f} s a step: {each}; shorter: --set {shorter}"


def _area(scales: Sequence[float]) -> float:
    return sum(scale**2 for scale in scales)


def _sizes(data: Dataset) -> np.ndarray[Any, Any]:
    """Heights and widths `[N,2]` of some images, evenly over the dataset."""
    return np.array([read_size(pair.image) for pair in data.pairs[:: len(data) // 50 + 1]])


def _time(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
