"""Does a confidence of 0.9 mean right in nine of ten pixels? Auto-labelling relies on it.

Everything is read off counts of all 256 stored confidences, so every binning and every threshold is
exact. A threshold is a number in 0..1 as `Dataset.trusting` and `sampling.confidence` take it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .confusion import Ids, checked


class Calibration:
    """`counts` `[K,256,2]` int64: labelled pixels by predicted class, stored confidence, and
    whether the prediction was wrong (0) or right (1).

    A stored confidence v = floor(255 p) counts as v / 255: what a file claims, at most 1/255 below
    what the network predicted.
    """

    def __init__(self, classes: int) -> None:
        self.counts = torch.zeros(classes, 256, 2, dtype=torch.int64)

    def add(self, label: Ids, predicted: Ids, confidence: Ids) -> None:
        """label, predicted: train ids, 255 in label = ignore; confidence: uint8, equal shape."""
        k, confidence = len(self.counts), torch.as_tensor(confidence)
        if confidence.dtype != torch.uint8:
            raise ValueError(f"confidence is {confidence.dtype}, it needs uint8: floor(255 p)")
        label, predicted, known = checked(k, label, predicted, confidence)
        outcome = (label == predicted).int().where(known, 2)
        place = (predicted.int() << 10) | (confidence.int() << 2) | outcome
        counts = torch.bincount(place.flatten(), minlength=1 << 18).view(256, 256, 4)
        self.counts += counts[:k, :, :2]

    def reliability(self, bins: int = 15) -> tuple[Tensor, Tensor, Tensor]:
        """Mean confidence, accuracy (float64, nan where a bin is empty) and pixels, `[B]` each.

        bins: equal steps of confidence, each with its upper edge.
        """
        value = torch.arange(256)
        into = ((value * bins + 254) // 255 - 1).clamp(min=0)  # (lower, upper], in integers
        wrong, right = self.counts.sum(0).T
        rows = torch.stack([value * (wrong + right), right, wrong + right])
        claimed, right, pixels = rows.new_zeros(3, bins).index_add_(1, into, rows)
        return claimed.double() / 255 / pixels, right.double() / pixels, pixels

    def ece(self, bins: int = 15) -> float:
        """Expected calibration error in 0..1, nan where nothing was counted. Guo et al., ICML 2017
        (arXiv 1706.04599), from where also the 15 bins."""
        confidence, accuracy, pixels = self.reliability(bins)
        return float(((confidence - accuracy).abs() * pixels).nansum() / pixels.sum())

    def risk_coverage(self) -> tuple[Tensor, Tensor]:
        """`[256]` float64 each: if only confidences of at least v / 255 are kept, the share of
        pixels kept and how much of it is right (nan where nothing is kept)."""
        wrong, right = _from(self.counts.sum(0).T)
        return (wrong + right) / (wrong + right)[0], right / (wrong + right)


def surest(counts: Tensor, share: float) -> list[float]:
    """The highest threshold of each class that keeps at least this share of its pixels.

    counts: `[K,256]`, pixels by class and stored confidence. 0 for a class without pixels.
    Class-balanced self-training (Zou et al., ECCV 2018, arXiv 1810.07911).
    """
    kept = _from(counts)
    enough = kept / kept[:, :1] >= share  # nowhere, where there are no pixels
    return [threshold(v) for v in (enough.sum(1) - 1).clamp(min=0).tolist()]


def precise(counts: Tensor, target: float) -> list[float | None]:
    """The lowest occurring confidence of each class from which on its precision reaches `target`.

    counts: `[K,256,2]`, those of a `Calibration`. None for a class that never reaches it, or that
    was never predicted.
    """
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
