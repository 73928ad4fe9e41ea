"""Heads: feature levels of one scale in, logits out, and an attention head beside them.

Contract: `head(levels)` takes the levels of a `Trunk` and returns a `Reading` on the grid of the
finest level; `head.attention(features)` gives the map `[B,1,h,w]` before its sigmoid. It is a step
of its own because the finest scale of a chain never needs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn


class Reading(NamedTuple):
    """What a head says of one scale."""

    features: Tensor  # [B,C,h,w], what the attention head looks at
    logits: Tensor  # [B,K,h,w]


class ConvBNReLU(nn.Sequential):
    """kxk convolution without bias, batch norm, ReLU: `[B,inputs,h,w]` -> `[B,outputs,h,w]`."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        )


def predictor(inputs: int, width: int, outputs: int) -> nn.Sequential:
    """The paper's form for both heads: 3x3 BN ReLU, 3x3 BN ReLU, 1x1."""
    return nn.Sequential(
        ConvBNReLU(inputs, width), ConvBNReLU(width, width), nn.Conv2d(width, outputs, 1)
    )


class PlainHead(nn.Module):
    """Levels summed on the finest grid, then the paper's semantic and attention predictors."""

    def __init__(self, channels: list[int], classes: int, width: int = 128) -> None:
        super().__init__()
        # A 1x1 convolution of the concatenated levels, written as a sum: it commutes with bilinear
        # resizing, so each level is reduced to `width` on its own small grid first.
        self.reduce = nn.ModuleList(nn.Conv2d(c, width, 1, bias=False) for c in channels)
        self.norm = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(inplace=True))
        self.semantic = predictor(width, width, classes)
        self.attention = predictor(width, width, 1)

    def forward(self, levels: list[Tensor]) -> Reading:
        grid = levels[0].shape[-2:]
        reduced = [reduce(level) for reduce, level in zip(self.reduce, levels, strict=True)]
        features = self.norm(sum(resize(level, grid) for level in reduced))
        return Reading(features, self.semantic(features))


def resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    """R: bilinear, corners not aligned; `[B,C,h,w]` -> `[B,C,*size]`, itself if it fits already."""
    if maps.shape[-2:] == tuple(size):
        return maps
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)
