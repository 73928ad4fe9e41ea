"""Does a confidence of 0.9 mean right in nine of ten pixels? Auto-labelling relies on it.

Counts of all 256 stored confidences make every binning and every threshold (0..1) exact.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..data.labels import IGNORE
from .confusion import Ids


class Calibration:
    """`counts` `[K,256,2]` int64: labelled pixels by predicted class, stored confidence
    v = floor(255 p), which counts as v / 255, and whether they are wrong (0) or right (1)."""

    def __init__(self, classes: int) -> None:
        self.counts = torch.zeros(classes, 256, 2, dtype=torch.int64)

    def add(self, label: Ids, predicted: Ids, confidence: Ids) -> None:
        """label, predicted: train ids, 255 in label = ignore; confidence: uint8, equal shape."""
        maps = (torch.as_tensor(each).int() for each in (label, predicted, confidence))
        truth, guess, claimed = maps
        outcome = (truth == guess).int().where(truth != IGNORE, 2)
        place = (guess << 10) | (claimed << 2) | outcome
        counts = torch.bincount(place.flatten(), minlength=1 << 18).view(256, 256, 4)
        self.counts += counts[: len(self.counts), :, :2]

    def reliability(self, bins: int = 15) -> tuple[Tensor, Tensor, Tensor]:
        """Mean confidence, accuracy and pixels of equal steps of confidence, `[B]` each."""
        value = torch.arange(256)
        into = ((value * bins + 254) // 255 - 1).clamp(min=0)  # (lower, upper], in integers
        wrong, right = self.counts.sum(0).T
        rows = torch.stack([value * (wrong + right), right, wrong + right])
        claimed, right, pixels = rows.new_zeros(3, bins).index_add_(1, into, rows)
        return claimed.double() / 255 / pixels, right.double() / pixels, pixels

    def ece(self, bins: int = 15) -> float:
        """Expected calibration error in 0..1 (Guo et al., ICML 2017, arXiv 1706.04599)."""
        confidence, accuracy, pixels = self.reliability(bins)
        return float(((confidence - accuracy).abs() * pixels).nansum() / pixels.sum())

    def risk_coverage(self) -> tuple[Tensor, Tensor]:
        """`[256]` float64 each: the share of pixels that have a confidence of at least v / 255, and
        how much of it is right."""
        wrong, right = _from(self.counts.sum(0).T)
        return (wrong + right) / (wrong + right)[0], right / (wrong + right)


def surest(counts: Tensor, share: float) -> list[float]:
    """The highest threshold of each class that keeps at least this share of its pixels `[K,256]`, 0
    without pixels: class-balanced self-training (Zou et al., ECCV 2018, arXiv 1810.07911)."""
    kept = _from(counts)
    enough = kept / kept[:, :1] >= share  # nowhere, where there are no pixels
    return [threshold(v) for v in (enough.sum(1) - 1).clamp(min=0).tolist()]


def precise(counts: Tensor, target: float) -> list[float | None]:
    """The lowest occurring confidence of each class from which on its precision reaches `target`;
    None for a class that never reaches it. counts: `[K,256,2]`, those of a `Calibration`."""
    pixels = counts.sum(2)
    good = (_from(counts[..., 1]) / _from(pixels) >= target) & (pixels > 0)
    lowest = good.int().argmax(1).tolist()
    return [threshold(v) if good[k, v] else None for k, v in enumerate(lowest)]


def threshold(stored: int) -> float:
    """Stored confidence 0..255 -> the number in four digits that keeps it and nothing below it."""
    return stored * 10_000 // 255 / 10_000


def _from(counts: Tensor) -> Tensor:
    """`[K,256]` float64: pixels of at least each confidence."""
    return counts.flip(1).cumsum(1).flip(1).double()
