"""IoU in which a small instance weighs as much as a large one: the iIoU of Cityscapes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .confusion import Confusion, Ids, checked


class InstanceConfusion:
    """Pixels of an instance weigh (average instance size of the class) / (size of the instance).

    sizes `[K]`: those averages in pixels, nan for a class without instances, whose score is nan.
    `shares` `[K,K]` float64: each instance adds 1 to the row of its class, split by what its pixels
    were predicted as. `confusion`: all pixels, unweighted, for what is predicted in excess.
    Cordts et al., CVPR 2016 (arXiv 1604.01685), and the official scripts,
    evalPixelLevelSemanticLabeling.py, to which it is equal.
    """

    def __init__(self, sizes: Sequence[float]) -> None:
        k = len(sizes)
        self.sizes = torch.tensor(sizes, dtype=torch.float64)
        self.shares, self.confusion = torch.zeros(k, k, dtype=torch.float64), Confusion(k)

    def add(self, label: Ids, predicted: Ids, instance: Ids) -> None:
        """One image's train ids, predicted train ids and instance ids, of equal shape.

        instance: any integers above 0, and 0 where a pixel belongs to no single instance (in files
        of Cityscapes: values up to 1000, which also mark groups). Ignored pixels (label 255) are
        left out, and an instance that two classes share counts as two.
        """
        k = len(self.sizes)
        label, predicted, known = checked(k, label, predicted, instance)
        self.confusion.add(label, predicted)
        instance = torch.as_tensor(instance).long()
        member = known & (instance > 0)
        found, which = (instance[member] * 256 + label[member]).unique(return_inverse=True)
        pairs = which * k + predicted[member]
        pixels = torch.bincount(pairs, minlength=len(found) * k).view(-1, k).double()
        self.shares.index_add_(0, found % 256, pixels / pixels.sum(1, keepdim=True))

    def iou(self) -> Tensor:
        """`[K]` float64 in 0..1; nan for classes without instances and those that do not occur."""
        weighted, pixels = self.shares * self.sizes[:, None], self.confusion.matrix
        excess = pixels.sum(0) - pixels.diagonal()
        return weighted.diagonal() / (weighted.sum(1) + excess)

    def miou(self) -> float:
        return float(self.iou().nanmean())
