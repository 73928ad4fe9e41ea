"""The idea of the paper on one screen: how the results of several scales become one.

Pure functions of tensors. Training, inference, the gate and the export all call these.
Source: Tao, Sapra, Catanzaro, "Hierarchical Multi-Scale Attention for Semantic Segmentation",
arXiv 2005.10821, equation 1 and figure 2.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class ScaleOutput(NamedTuple):
    """What one scale contributes, on the grid of the image at that scale."""

    logits: Tensor  # [B,K,h,w]
    # [B,1,h,w] in (0,1): trust in this scale against the next finer one; [B,K,h,w] where each
    # class has an attention of its own; None at the finest scale
    attention: Tensor | None


Fold = Callable[[Mapping[float, ScaleOutput], Sequence[int]], Tensor]


def resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    """R: bilinear, corners not aligned; `[B,C,h,w]` -> `[B,C,*size]`, itself if it fits already."""
    if maps.shape[-2:] == tuple(size):
        return maps
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)


def wide(maps: Tensor) -> Tensor:
    """In float32 or float64: fusion never runs with the 8 bits of mantissa of bfloat16."""
    return maps if maps.dtype == torch.float64 else maps.float()


def fuse(lo: Tensor, attention: Tensor, hi: Tensor, size: Sequence[int]) -> Tensor:
    """R(attention * lo) + (1 - R(attention)) * R(hi), with R = bilinear resize to `size`.

    lo `[B,K,h,w]`, attention `[B,1,h,w]` in (0,1), hi `[B,K,H,W]` -> `[B,K,*size]`.
    """
    trusted = resize(attention * lo, size)
    return trusted.addcmul(1 - resize(attention, size), resize(hi, size))


def chain(maps: Mapping[float, ScaleOutput], size: Sequence[int]) -> Tensor:
    """Fold any number of scales into one map `[B,K,*size]`, the image's size.

    Each fusion happens on the grid of the scale nearest to the image's own: a scale of 1 or more
    brings the finer result down to its grid, a smaller one is brought up to the finer result.
    """
    finest, *coarser = sorted(maps, reverse=True)
    fused = maps[finest].logits
    for scale in coarser:
        lo, attention = maps[scale]
        assert attention is not None, f"scale {scale} was computed without attention"
        fused = fuse(lo, attention, fused, lo.shape[-2:] if scale >= 1 else fused.shape[-2:])
    return resize(fused, size)


def average(maps: Mapping[float, ScaleOutput], size: Sequence[int]) -> Tensor:
    """The mean over scales of logits brought to `size`, `[B,K,*size]`."""
    return torch.stack([resize(m.logits, size) for m in maps.values()]).mean(0)


def maximum(maps: Mapping[float, ScaleOutput], size: Sequence[int]) -> Tensor:
    """The largest over scales of logits brought to `size`, class by class, `[B,K,*size]`."""
    return torch.stack([resize(m.logits, size) for m in maps.values()]).amax(0)


def weighted(maps: Mapping[float, ScaleOutput], size: Sequence[int]) -> Tensor:
    """Sum over scales of attention times logits, both brought to `size`, `[B,K,*size]`."""
    both = [(m.attention, m.logits) for m in maps.values() if m.attention is not None]
    parts = (resize(attention, size) * resize(logits, size) for attention, logits in both)
    return functools.reduce(operator.add, parts)


def effective_weights(
    maps: Mapping[float, ScaleOutput], size: Sequence[int], fold: Fold = chain
) -> dict[float, Tensor]:
    """The share of the fused result that each scale holds, `[B,1,*size]` each; they sum to 1.

    `fold` is linear in the logits, so the weight of a scale is what it makes of logits that are 1
    at this scale and 0 at all others; the mean over classes where each has its own attention.
    """
    channels = max(1 if m.attention is None else m.attention.shape[1] for m in maps.values())

    def constant(one: ScaleOutput, value: float) -> ScaleOutput:
        batch, _, *grid = one.logits.shape
        logits = one.logits.new_tensor(value).expand(batch, channels, *grid)
        return one._replace(logits=logits)

    def weight(scale: float) -> Tensor:
        ones = {s: constant(one, float(s == scale)) for s, one in maps.items()}
        return fold(ones, size).mean(1, keepdim=True)

    return {scale: weight(scale) for scale in maps}


def known_weight(attention: Iterable[Tensor], size: Sequence[int]) -> Tensor:
    """`[B,1,*size]`: the weight of a scale finer than those that have these attention maps."""
    others = functools.reduce(operator.mul, (1 - resize(each, size) for each in attention))
    return others.mean(1, keepdim=True)


def ordered(scales: Sequence[float]) -> list[float]:
    """Ascending, each once. Raises ValueError for none, or for one that is no positive number."""
    if not scales:
        raise ValueError("scales: none given; give one or more positive numbers, such as 0.5,1,2")
    for scale in scales:
        if not (isinstance(scale, int | float) and math.isfinite(scale) and scale > 0):
            raise ValueError(f"scales: {scale!r} is not a positive number; try 0.5,1,2")
    return sorted({float(s) for s in scales})
