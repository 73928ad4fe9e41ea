"""One confusion matrix for a whole split, in exact integers, and its scores; iIoU of instances."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.labels import IGNORE

Ids = Tensor | NDArray[Any]  # train ids of any integer type


class Confusion:
    """`matrix` `[K,K]` int64: rows truth, columns prediction, ignored pixels left out.

    Here and in every other score, a class has no score (nan) where its denominator is 0, and a mean
    leaves nan out: a class that neither truth nor prediction holds does not count, one that is
    predicted but never true has IoU 0, which counts. The official Cityscapes scripts do the same.
    """

    def __init__(self, classes: int) -> None:
        self.matrix = torch.zeros(classes, classes, dtype=torch.int64)

    def add(self, label: Ids, predicted: Ids) -> None:
        """label, predicted: train ids of one shape, 255 in label = ignore, where any may be
        predicted. Raises ValueError for a label or prediction outside the classes."""
        k, label, predicted = len(self.matrix), torch.as_tensor(label), torch.as_tensor(predicted)
        # Counting all 256 x 256 pairs is three times as fast as picking the labelled pixels first
        pairs = (label.to(torch.uint8).int() << 8) | predicted.to(torch.uint8)
        counts = torch.bincount(pairs.flatten(), minlength=1 << 16).view(256, 256)[:IGNORE]
        if counts.sum() > counts[:k, :k].sum():
            raise ValueError(f"a label or a prediction is outside the {k} classes")
        self.matrix += counts[:k, :k]

    def grouped(self, groups: Sequence[Sequence[int]]) -> Confusion:
        """Classes merged into categories; groups: the train ids of each category."""
        merged = Confusion(len(groups))
        rows = torch.stack([self.matrix[list(ids)].sum(0) for ids in groups])
        merged.matrix = torch.stack([rows[:, list(ids)].sum(1) for ids in groups], 1)
        return merged

    def iou(self) -> Tensor:
        """`[K]` float64 in 0..1."""
        hit = self.matrix.diagonal().double()
        return hit / (self.matrix.sum(0) + self.matrix.sum(1) - hit)

    def precision(self) -> Tensor:
        """`[K]` float64: share of the pixels predicted as the class that are right."""
        return self.matrix.diagonal().double() / self.matrix.sum(0)

    def recall(self) -> Tensor:
        """`[K]` float64: share of the class's pixels that are found, also called class accuracy."""
        return self.matrix.diagonal().double() / self.matrix.sum(1)

    def miou(self) -> float:
        return float(self.iou().nanmean())

    def accuracy(self) -> float:
        """Share of labelled pixels that are right."""
        return float(self.matrix.diagonal().sum().double() / self.matrix.sum())

    def weighted_iou(self) -> float:
        """Mean IoU in which each class weighs as much as its share of the truth ("fwIoU")."""
        share = self.matrix.sum(1).double() / self.matrix.sum()
        return float((share * self.iou().nan_to_num()).sum())


class InstanceConfusion:
    """Pixels of an instance weigh (average size in the class, in `sizes` `[K]`, or nan) / (its own
    size): Cordts et al., CVPR 2016 (arXiv 1604.01685). `shares` `[K,K]` float64: each instance adds
    1 to the row of its class, split by what was predicted. `confusion`: all pixels, unweighted."""

    def __init__(self, sizes: Sequence[float]) -> None:
        k = len(sizes)
        self.sizes = torch.tensor(sizes, dtype=torch.float64)
        self.shares, self.confusion = torch.zeros(k, k, dtype=torch.float64), Confusion(k)

    def add(self, label: Ids, predicted: Ids, instance: Ids) -> None:
        """One image's train ids and predicted train ids, as for `Confusion`, and instance ids: 0
        where a pixel belongs to no single instance. One that two classes share counts as two."""
        self.confusion.add(label, predicted)
        maps = (torch.as_tensor(ids).long() for ids in (label, predicted, instance))
        k, (label, predicted, instance) = len(self.sizes), maps
        member = (label != IGNORE) & (instance > 0)
        found, which = (instance[member] * 256 + label[member]).unique(return_inverse=True)
        pairs = which * k + predicted[member]
        pixels = torch.bincount(pairs, minlength=len(found) * k).view(-1, k).double()
        self.shares.index_add_(0, found % 256, pixels / pixels.sum(1, keepdim=True))

    def iou(self) -> Tensor:
        """`[K]` float64 in 0..1."""
        weighted, pixels = self.shares * self.sizes[:, None], self.confusion.matrix
        excess = pixels.sum(0) - pixels.diagonal()
        return weighted.diagonal() / (weighted.sum(1) + excess)
