"""Not computing what will not count: where a finer scale is worth a look.

From coarse to fine, what a finer scale will weigh is known before it runs: 2x counts for
(1 - a_0.5)(1 - a_1), whatever it sees. It can change a label only where that is much, and where the
coarser scales are not sure: a gate looks where the product of both is highest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..runs.errors import InputError
from .bands import Resized, Size
from .look import Seen, chain_of

Judge = Callable[[Mapping[float, Seen], Size], Tensor]


def known_weight(coarser: Mapping[float, Seen], size: Size) -> Tensor:
    """`[B,1,*size]`: what a scale finer than these will weigh in the fused result; the mean over
    classes where each has an attention of its own."""
    left: Tensor | float = 1.0
    for one in coarser.values():
        assert one.attention is not None
        left = left * (1 - Resized(one.attention, size).rows(0, size[0]))
    assert isinstance(left, Tensor)
    return left.mean(1, keepdim=True)


def doubt(coarser: Mapping[float, Seen], size: Size) -> Tensor:
    """`[B,1,*size]`: entropy of what these scales say together, in 0..1."""
    share = chain_of(coarser, size).rows(0, size[0]).softmax(1)
    entropy: Tensor = torch.special.entr(share).sum(1, keepdim=True)
    return entropy / math.log(max(2, share.shape[1]))


def worth(coarser: Mapping[float, Seen], size: Size) -> Tensor:
    """`[B,1,*size]` in 0..1: known weight times doubt."""
    return known_weight(coarser, size) * doubt(coarser, size)


@dataclass(frozen=True)
class Gate:
    """Scales above 1 are computed only in the cells of the image where `judge` is highest on the
    mean: in this share of it (0..1), or wherever the mean is at least `threshold`.

    cell, halo: pixels of a side, and beyond it, at the scale in question.
    """

    share: float | None = None
    threshold: float | None = None
    cell: int = 128
    halo: int = 32
    judge: Judge = worth

    def __post_init__(self) -> None:
        if (self.share is None) == (self.threshold is None):
            raise InputError("gate: give either a share or a threshold")
        for what in ("share", "threshold"):
            value = getattr(self, what)
            if value is not None and not 0 <= value <= 1:
                raise InputError(f"gate: {what} {value} is not in 0..1")

    def choose(self, coarser: Mapping[float, Seen], padded: Size, cell: int) -> Tensor:
        """`[h,w]` bool: which cells of an image of `padded` pixels to compute."""
        finest = coarser[max(coarser)].logits.size
        judged = self.judge(coarser, (math.ceil(finest[0] / 4), math.ceil(finest[1] / 4)))
        assert len(judged) == 1, "a gate decides for one image"
        mean = _mean_of_cells(judged[0, 0].double(), padded, cell)
        if self.threshold is not None:
            return mean >= self.threshold
        area = _extent(padded[0], cell)[:, None] * _extent(padded[1], cell)
        order = mean.flatten().argsort(descending=True, stable=True)
        spent = area.flatten()[order].cumsum(0)
        assert self.share is not None
        within = order[spent <= self.share * spent[-1] + 0.5]
        chosen = torch.zeros(mean.numel(), dtype=torch.bool)
        chosen[within] = True
        return chosen.view(mean.shape)


def _extent(side: int, cell: int) -> Tensor:
    """Pixels of each cell along one axis; the last may have fewer."""
    starts = torch.arange(0, side, cell)
    return (side - starts).clamp(max=cell)


def _mean_of_cells(judged: Tensor, padded: Size, cell: int) -> Tensor:
    """`[h,w]` of any size, standing for `padded` pixels -> the mean over each cell, on the CPU."""
    sums = torch.nn.functional.pad(judged.cpu().cumsum(0).cumsum(1), (1, 0, 1, 0))
    edges = []
    for axis, side in enumerate(padded):
        cuts = torch.tensor([*range(0, side, cell), side], dtype=torch.float64)
        at = (cuts * (judged.shape[axis] / side)).round().long()
        # A cell narrower than the map's own: the one value that lies there
        low = torch.minimum(at[:-1], torch.tensor(judged.shape[axis] - 1))
        edges.append((low, torch.maximum(at[1:], low + 1)))
    (top, bottom), (left, right) = edges
    boxes = (
        sums[bottom][:, right] - sums[top][:, right] - sums[bottom][:, left] + sums[top][:, left]
    )
    return boxes / ((bottom - top)[:, None] * (right - left))
