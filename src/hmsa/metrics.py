"""One confusion matrix for a whole split, in exact integers; every score is read off it."""

from __future__ import annotations

import torch
from torch import Tensor

from .data.labels import IGNORE


class Confusion:
    """`matrix` `[K,K]` int64: rows truth, columns prediction, ignored pixels left out.

    A class that neither truth nor prediction holds has no IoU (nan) and is left out of the mean.
    """

    def __init__(self, classes: int, device: torch.device | str = "cpu") -> None:
        self.matrix = torch.zeros(classes, classes, dtype=torch.int64, device=device)

    def add(self, label: Tensor, predicted: Tensor) -> None:
        """label, predicted: train ids of equal shape, any integer type."""
        k = len(self.matrix)
        label, predicted = label.flatten().long(), predicted.flatten().long()
        kept = label != IGNORE
        pairs = label[kept] * k + predicted[kept]
        self.matrix += torch.bincount(pairs, minlength=k * k).view(k, k)

    def iou(self) -> Tensor:
        """`[K]` float64 in 0..1, nan where the class does not occur at all."""
        hit = self.matrix.diagonal().double()
        return hit / (self.matrix.sum(0) + self.matrix.sum(1) - hit)

    def miou(self) -> float:
        return float(self.iou().nanmean())

    def accuracy(self) -> float:
        """Share of labelled pixels that are right."""
        return float(self.matrix.diagonal().sum() / self.matrix.sum())
