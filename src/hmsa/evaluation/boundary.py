"""Scores of outlines: how well the borders between classes are met, whatever their insides.

Ignored pixels, in both scores: they are not counted, and what was predicted there is taken to be
true. So a border that runs on into an ignored region is not broken there, and one that the truth
hides in it is met by one that was predicted in it or beside it. The rim of an ignored region is no
border itself: a pixel counts only for a border between pixels that have a label.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .confusion import checked


class BoundaryF1:
    """`counts` `[K,4]` int64: boundary pixels of the truth, those of them met, boundary pixels of
    the prediction, those of them met.

    A boundary pixel of a class has one of its four neighbours in another class (the frame of the
    picture is none). It is met by a boundary pixel of the same class in the other map at a
    Euclidean distance below `tolerance` times the picture's diagonal. Csurka et al., "What is a
    good evaluation measure for semantic segmentation?", BMVC 2013, from where also its default;
    but they average over pictures, here pixels are pooled over the split, as for IoU.
    """

    def __init__(
        self, classes: int, tolerance: float = 0.0075, device: torch.device | str = "cpu"
    ) -> None:
        self.tolerance = tolerance
        self.counts = torch.zeros(classes, 4, dtype=torch.int64, device=device)

    def add(self, label: Tensor, predicted: Tensor) -> None:
        """label, predicted: one picture's train ids `[H,W]`, 255 in label = ignore."""
        k = len(self.counts)
        truth, predicted, known = _completed(k, label, predicted)
        everywhere = torch.ones_like(known)
        limit = (self.tolerance * math.hypot(*truth.shape)) ** 2
        for column, mine, other in ((0, truth, predicted), (2, predicted, truth)):
            counted = _outline(mine, known)
            met = _met(mine, counted, other, _outline(other, everywhere), limit)
            self.counts[:, column] += torch.bincount(mine[counted], minlength=k)
            self.counts[:, column + 1] += torch.bincount(mine[met], minlength=k)

    def recall(self) -> Tensor:
        """`[K]` float64: share of the true boundary that is met; nan where there is none."""
        return self.counts[:, 1].double() / self.counts[:, 0]

    def precision(self) -> Tensor:
        """`[K]` float64: share of the predicted boundary that is met; nan where there is none."""
        return self.counts[:, 3].double() / self.counts[:, 2]

    def f1(self) -> Tensor:
        """`[K]` float64: harmonic mean of both; nan where neither map has a boundary, 0 where only
        one has."""
        precision, recall = self.precision().nan_to_num(), self.recall().nan_to_num()
        score: Tensor = (2 * precision * recall / (precision + recall)).nan_to_num()
        score[self.counts.sum(1) == 0] = math.nan
        return score

    def mf1(self) -> float:
        return float(self.f1().nanmean())


class BoundaryIoU:
    """`counts` `[K,3]` int64: pixels in both bands, in the band of the truth, of the prediction.

    The band of a class is its mask less the mask's erosion by `width` times the picture's diagonal
    (rounded, at least 1 pixel; a square neighbourhood); beyond the frame is outside of every mask,
    so that the band runs along the frame too. Cheng et al., "Boundary IoU", CVPR 2021
    (arXiv 2103.16562) and their public code, from where also its default of 2 %; their tool for
    instances of Cityscapes takes 0.5 %.
    """

    def __init__(
        self, classes: int, width: float = 0.02, device: torch.device | str = "cpu"
    ) -> None:
        self.width = width
        self.counts = torch.zeros(classes, 3, dtype=torch.int64, device=device)

    def add(self, label: Tensor, predicted: Tensor) -> None:
        """label, predicted: one picture's train ids `[H,W]`, 255 in label = ignore."""
        k = len(self.counts)
        truth, predicted, known = _completed(k, label, predicted)
        everywhere = torch.ones_like(known)
        reach = max(1, round(self.width * math.hypot(*truth.shape)))
        counted = known & (_band(truth, known, reach) | _band(predicted, known, reach))
        true_band = counted & _band(truth, everywhere, reach)
        predicted_band = counted & _band(predicted, everywhere, reach)
        both = true_band & predicted_band & (truth == predicted)
        for column, of in enumerate((truth[both], truth[true_band], predicted[predicted_band])):
            self.counts[:, column] += torch.bincount(of, minlength=k)

    def iou(self) -> Tensor:
        """`[K]` float64 in 0..1, nan where neither map has a band of the class."""
        both = self.counts[:, 0].double()
        return both / (self.counts[:, 1] + self.counts[:, 2] - both)

    def miou(self) -> float:
        return float(self.iou().nanmean())


def _completed(classes: int, label: Tensor, predicted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Truth without a gap, prediction (uint8 `[H,W]` each), and where there is a label."""
    if label.ndim != 2:
        raise ValueError(f"one picture [H,W] at a time, this has shape {[*label.shape]}")
    label, predicted, known = checked(classes, label, predicted)
    return torch.where(known, label, predicted), predicted, known


def _outline(ids: Tensor, known: Tensor) -> Tensor:
    """Bool `[H,W]`: pixels with one of four neighbours of another class, both of them known."""
    found = torch.zeros_like(known)
    for here, there in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        step = (ids[here] != ids[there]) & known[here] & known[there]
        found[here] |= step
        found[there] |= step
    return found


def _met(mine: Tensor, marked: Tensor, other: Tensor, targets: Tensor, limit: float) -> Tensor:
    """Bool `[H,W]`: marked pixels of mine with a target of their class in the other map at a
    squared distance below limit. Eight classes at once, one in each bit of a byte."""
    met = torch.zeros_like(marked)
    bit, other_bit = (1 << (ids % 8) for ids in (mine, other))
    for eight in (mine[marked] // 8).unique():
        near = _grown(other_bit.where(targets & (other // 8 == eight), 0), limit)
        met |= marked & (mine // 8 == eight) & ((near & bit) != 0)
    return met


def _grown(bits: Tensor, limit: float) -> Tensor:
    """Each byte of `[H,W]` or-ed with all others at a squared distance below limit.

    The disk is taken row by row from its narrow end, so that the runs within a row only grow.
    """
    largest = math.ceil(limit) - 1
    height, width = bits.shape
    grown, run, aside = torch.zeros_like(bits), bits.clone(), 0
    for down in range(math.isqrt(largest), -1, -1):
        while aside < math.isqrt(largest - down**2):
            aside += 1
            left = max(width - aside, 0)
            run[:, aside:] |= bits[:, :left]
            run[:, :left] |= bits[:, aside:]
        left = max(height - down, 0)
        grown[down:] |= run[:left]
        grown[:left] |= run[down:]
    return grown


def _band(ids: Tensor, known: Tensor, reach: int) -> Tensor:
    """Bool `[H,W]`: pixels with a known one of another class, or the outside of the picture, at
    most `reach` rows and columns away. All classes at once: least and greatest id around differ."""
    pad = (reach,) * 4
    low = F.pad(ids.where(known, 255), pad, value=255)
    high = F.pad(ids.where(known, 0), pad, value=255)
    size = 2 * reach + 1
    return _around(torch.minimum, low, size) != _around(torch.maximum, high, size)


def _around(extreme: Callable[[Tensor, Tensor], Tensor], ids: Tensor, size: int) -> Tensor:
    """Extreme of each window of size x size, windows doubling: 2 log2(size) passes."""
    for dim in (0, 1):
        done = 1
        while done < size:
            step = min(done, size - done)
            left = ids.shape[dim] - step
            ids = extreme(ids.narrow(dim, 0, left), ids.narrow(dim, step, left))
            done += step
    return ids
