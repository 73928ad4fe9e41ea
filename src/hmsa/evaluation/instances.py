"""IoU in which a small instance weighs as much as a large one: the iIoU of Cityscapes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .confusion import Confusion, checked, fold


class InstanceConfusion:
    """Pixels of an instance weigh (average instance size of the class) / (size of the instance).

    sizes `[K]`: those averages in pixels, nan for a class without instances, whose score is nan.
    `shares` `[K,K]` float64: each instance adds 1 to the row of its class, split by what its pixels
    were predicted as. `confusion`: all pixels, unweighted, for what is predicted in excess.
    To pool processes, sum `shares` and `confusion.matrix`; the latter is exact, the order in which
    `shares` are summed can move their last digits. Cordts et al., CVPR 2016 (arXiv 1604.01685), and
    the official scripts, evalPixelLevelSemanticLabeling.py, to which it is equal.
    """

    def __init__(self, sizes: Sequence[float], device: torch.device | str = "cpu") -> None:
        k = len(sizes)
        self.sizes = torch.tensor(sizes, dtype=torch.float64, device=device)
        self.shares = torch.zeros(k, k, dtype=torch.float64, device=device)
        self.confusion = Confusion(k, device)

    def add(self, label: Tensor, predicted: Tensor, instance: Tensor) -> None:
        """One picture's train ids, predicted train ids and instance ids, of equal shape.

        instance: any integers above 0, and 0 where a pixel belongs to no single instance (in files
        of Cityscapes: values up to 1000, which also mark groups). Ignored pixels (label 255) are
        left out, and an instance that two classes share is taken for two.
        """
        k = len(self.sizes)
        label, predicted, known = checked(k, label, predicted, instance)
        self.confusion.add(label, predicted)
        instance = instance.long()
        member = known & (instance > 0)
        found, which = (instance[member] * 256 + label[member]).unique(return_inverse=True)
        pairs = which * k + predicted[member]
        pixels = torch.bincount(pairs, minlength=len(found) * k).view(-1, k).double()
        self.shares.index_add_(0, found % 256, pixels / pixels.sum(1, keepdim=True))

    def grouped(self, groups: Sequence[int]) -> InstanceConfusion:
        """Classes merged into categories; groups: category 0..G-1 of each class, `[K]`.

        A category has a score where all its classes have instances; each keeps its own average.
        """
        weighted = fold(self.shares * self.sizes[:, None], groups)
        merged = InstanceConfusion([1.0] * len(weighted), self.shares.device)
        merged.shares, merged.confusion = weighted, self.confusion.grouped(groups)
        return merged

    def iou(self) -> Tensor:
        """`[K]` float64 in 0..1; nan for classes without instances and those that do not occur."""
        weighted, pixels = self.shares * self.sizes[:, None], self.confusion.matrix
        excess = pixels.sum(0) - pixels.diagonal()
        return weighted.diagonal() / (weighted.sum(1) + excess)

    def miou(self) -> float:
        return float(self.iou().nanmean())
