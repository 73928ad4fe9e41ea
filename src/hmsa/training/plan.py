"""`hmsa train --plan`: what a step of the joint stage costs, and what fits into memory.

Bytes are counted on tensors without content, at the recipe's crop and batch. Seconds are those of
one small step, by the number of pixels. What libraries need beside tensors is not counted.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from ..config.recipe import Recipe, Stage
from ..model import HMSA
from ..runs.machine import Precision, autocast, fast_bf16
from ..runs.memory import Alive, free_memory
from .lean import lean, regions
from .losses import objective

SIDE, BATCH = 256, 2  # at most, of a step that is timed
SHARE = 0.9  # of the free memory that a plan uses
Memory = Literal["lean", "plain"]


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
    """Of the joint stage, for `memory` bytes; default: most of what is free on `device`."""
    room = SHARE * free_memory(device) if memory is None else memory
    precisions: list[Precision] = ["fp32", "bf16"] if fast_bf16(device) else ["fp32"]
    if recipe.precision != "auto":
        precisions = [recipe.precision]
    both: tuple[Memory, Memory] = ("lean", "plain")
    return [_plan(model, recipe.joint, device, room, how, p) for how in both for p in precisions]


def _plan(
    model: HMSA, stage: Stage, device: torch.device, room: float, memory: Memory,
    precision: Precision,
) -> Plan:  # fmt: skip
    stage = stage.model_copy(update={"memory": memory})
    one, two = (counted(model, stage, stage.batch * factor) for factor in (1, 2))
    small = [min(side, SIDE) for side in stage.crop]
    batch, trial = min(stage.batch, BATCH), copy.deepcopy(model).to(device).train()
    with torch.random.fork_rng():
        runs = [step_cost(trial, stage, precision, batch, small) for _ in range(2)]
        full = runs if precision == "fp32" else [step_cost(trial, stage, "fp32", batch, small)]
    narrower = runs[0].saved / full[0].saved  # of bf16, relative to fp32
    pixels = stage.batch * math.prod(stage.crop)
    seconds = min(run.seconds for run in runs) * pixels / (batch * math.prod(small))
    weights = sum(t.nbytes for t in [*model.parameters(), *model.buffers()])
    copies = 1 + (2 if stage.optimizer == "adamw" else 1) + bool(stage.ema)
    slope = (two.peak - one.peak) * narrower / pixels  # bytes of a pixel
    peak = one.peak * narrower + copies * weights
    most = pixels + (room - peak) / slope
    largest = max(0, int(most / math.prod(stage.crop)))
    side = max(0, int(math.sqrt(max(0, most) / stage.batch)) // 32 * 32)
    power = 0.5 if stage.optimizer == "adamw" else 1.0
    lr = stage.lr * (largest / stage.batch) ** power
    return Plan(memory, precision, one.saved * narrower, peak, seconds, largest, lr, side)
