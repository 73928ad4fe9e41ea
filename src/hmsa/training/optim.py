"""How weights move: optimizer, schedule, class weights, averaged weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..config.recipe import Stage


def make_optimizer(trained: nn.Module, stage: Stage) -> torch.optim.Optimizer:
    """Weight decay for what multiplies features; none for norms and biases."""
    parameters = [p for p in trained.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim > 1]},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if stage.optimizer == "sgd":
        return torch.optim.SGD(groups, stage.lr, stage.momentum, weight_decay=stage.weight_decay)
    return torch.optim.AdamW(groups, stage.lr, weight_decay=stage.weight_decay)


def moving_average(decay: float) -> Callable[[Any, Any, Any], None]:
    """Exponential average for AveragedModel, whose memory is short while the run is young.

    Without that, a short run would still remember what it began from.
    """

    @torch.no_grad()
    def average(averaged: list[Tensor], current: list[Tensor], count: Tensor | int) -> None:
        share = max(1 - decay, 9 / (10 + int(count)))
        for mean, value in zip(averaged, current, strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, share)
            else:
                mean.copy_(value)

    return average


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then (1 - done) ** power: of the step alone, so that resume is exact."""

    stage: Stage

    def __call__(self, optimizer: Any, step: int) -> float:
        """Set the learning rate of `step` (from 0) and return it."""
        rise = min(1.0, (step + 1) / (self.stage.warmup + 1))
        lr: float = self.stage.lr * rise * (1 - step / self.stage.steps) ** self.stage.power
        for group in optimizer.param_groups:
            group["lr"] = lr
        return lr


def class_weights(pixels: np.ndarray[Any, Any], balance: float) -> Tensor:
    """(median frequency / frequency) ** balance, `[K]` float32; 1 for classes that do not occur."""
    present = pixels > 0
    weight = np.ones(len(pixels))
    weight[present] = (np.median(pixels[present]) / pixels[present]) ** balance
    return torch.tensor(weight, dtype=torch.float32)
