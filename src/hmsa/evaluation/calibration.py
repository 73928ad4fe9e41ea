"""Does a confidence of 0.9 mean right in nine of ten pixels? Auto-labelling stands on it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .confusion import checked


class Reliability(NamedTuple):
    """One row per bin, `[B]` each: mean confidence and accuracy (float64, nan where the bin is
    empty) and number of pixels (int64). Calibrated is where the first two are equal."""

    confidence: Tensor
    accuracy: Tensor
    pixels: Tensor


class RiskCoverage(NamedTuple):
    """What it costs to keep more, `[256]` float64 each: with only pixels of at least this
    confidence kept, the share kept and how much of it is right (nan where nothing is kept)."""

    threshold: Tensor
    kept: Tensor
    accuracy: Tensor


class Calibration:
    """`counts` `[K,256,2]` int64: labelled pixels by predicted class, stored confidence, and
    whether the prediction was wrong (0) or right (1).

    A stored confidence v = floor(255 p) is taken at its word, as v / 255: what a file claims, at
    most 1/255 below what the model did. With all 256 values counted, every binning is exact.
    """

    def __init__(self, classes: int, device: torch.device | str = "cpu") -> None:
        self.counts = torch.zeros(classes, 256, 2, dtype=torch.int64, device=device)

    def add(self, label: Tensor, predicted: Tensor, confidence: Tensor) -> None:
        """label, predicted: train ids, 255 in label = ignore; confidence: uint8, equal shape."""
        if confidence.dtype != torch.uint8:
            raise ValueError(f"confidence is {confidence.dtype}, it needs uint8: floor(255 p)")
        k = len(self.counts)
        label, predicted, known = checked(k, label, predicted, confidence)
        outcome = (label == predicted).int().where(known, 2)
        place = (predicted.int() << 10) | (confidence.int() << 2) | outcome
        counts = torch.bincount(place.flatten(), minlength=1 << 18).view(256, 256, 4)
        self.counts += counts[:k, :, :2]

    def only(self, predicted: int) -> Calibration:
        """Of the pixels predicted as this class alone."""
        part = Calibration(1, self.counts.device)
        part.counts = self.counts[predicted : predicted + 1]
        return part

    def reliability(self, bins: int = 15) -> Reliability:
        """Over `bins` equal steps of confidence, each with its upper edge: the arrays of a
        reliability diagram."""
        claimed, right, pixels = self._binned(bins)
        return Reliability(claimed / pixels, right / pixels, pixels)

    def ece(self, bins: int = 15) -> float:
        """Expected calibration error in 0..1, nan where nothing was counted. Guo et al., ICML 2017
        (arXiv 1706.04599), from where also the 15 bins."""
        claimed, right, pixels = self._binned(bins)
        return float((claimed - right).abs().sum() / pixels.sum())

    def risk_coverage(self) -> RiskCoverage:
        """For each stored confidence v, the threshold v / 255."""
        total, right = self.counts.sum((0, 2)), self.counts[..., 1].sum(0)
        kept, kept_right = (n.flip(0).cumsum(0).flip(0).double() for n in (total, right))
        steps = torch.arange(256, device=total.device).double() / 255
        return RiskCoverage(steps, kept / total.sum(), kept_right / kept)

    def _binned(self, bins: int) -> tuple[Tensor, Tensor, Tensor]:
        """`[B]` each: sum of confidences, right pixels (float64), pixels (int64)."""
        value = torch.arange(256, device=self.counts.device)
        into = ((value * bins + 254) // 255 - 1).clamp(min=0)  # (lower, upper], in integers
        wrong, right = self.counts.sum(0).T
        rows = torch.stack([value * (wrong + right), right, wrong + right])
        claimed, right, pixels = rows.new_zeros(3, bins).index_add_(1, into, rows)
        return claimed.double() / 255, right.double(), pixels
