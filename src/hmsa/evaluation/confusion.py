"""One confusion matrix for a whole split, in exact integers, and its scores; iIoU of instances."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..data.labels import IGNORE

Ids = Tensor | NDArray[Any]  # train ids of any integer type


class Confusion:
    """`matrix` `[K,K]` int64: rows truth, columns prediction, ignored pixels left out.

    Absent classes, here and in every other score: a class has no score (nan) where its denominator
    is 0, and a mean leaves nan out. So a class that neither truth nor prediction holds is not
    counted; one that is predicted but never true has IoU 0, which is counted, and no recall; one
    that is true but never predicted has IoU 0 and recall 0, and no precision. With nothing to
    average, a mean is nan. The official Cityscapes scripts do the same.
    """

    def __init__(self, classes: int) -> None:
        self.matrix = torch.zeros(classes, classes, dtype=torch.int64)

    def add(self, label: Ids, predicted: Ids) -> None:
        """label, predicted: train ids of equal shape, 255 in label = ignore.

        Raises ValueError for other values than 0..K-1; ignored pixels may be predicted as anything.
        """
        k = len(self.matrix)
        label, predicted, _ = checked(k, label, predicted)
        # Counting all 256 x 256 pairs is three times as fast as picking the labelled pixels first
        pairs = (label.flatten().int() << 8) | predicted.flatten()
        self.matrix += torch.bincount(pairs, minlength=1 << 16).view(256, 256)[:k, :k]

    def grouped(self, groups: Sequence[int]) -> Confusion:
        """Classes merged into categories; groups: category 0..G-1 of each class, `[K]`.

        Mistaking a class for another of its category is right here.
        """
        member = F.one_hot(torch.tensor(groups))
        merged = Confusion(member.shape[1])
        merged.matrix = member.T @ self.matrix @ member
        return merged

    def iou(self) -> Tensor:
        """`[K]` float64 in 0..1, nan where the class does not occur at all."""
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

    def mean_accuracy(self) -> float:
        """Mean recall of the classes that the truth holds."""
        return float(self.recall().nanmean())

    def weighted_iou(self) -> float:
        """Mean IoU in which each class weighs as much as its share of the truth ("fwIoU")."""
        share = self.matrix.sum(1).double() / self.matrix.sum()
        return float((share * self.iou().nan_to_num()).sum())


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


def checked(
    classes: int, label: Ids, predicted: Ids, *further: Ids
) -> tuple[Tensor, Tensor, Tensor]:
    """label and predicted as uint8, and where label is known (bool).

    Raises ValueError where the shapes of all arguments or the classes do not fit together.
    """
    label, predicted = torch.as_tensor(label), torch.as_tensor(predicted)
    if any(other.shape != label.shape for other in (predicted, *further)):
        shapes = ", ".join(str([*ids.shape]) for ids in (label, predicted, *further))
        raise ValueError(f"all that is scored together needs one shape, these have {shapes}")
    if classes > IGNORE:
        raise ValueError(f"{classes} classes, but {IGNORE} is ignore: at most {IGNORE}")
    known = label != IGNORE
    for name, ids in (("label", label), ("prediction", predicted)):
        if ids.is_floating_point():
            raise ValueError(f"{name} is {ids.dtype}, it needs train ids of an integer type")
        strange = known & ((ids < 0) | (ids >= classes))
        if strange.any():
            raise ValueError(
                f"{name} {int(ids[strange][0])} is outside the {classes} classes "
                f"(0..{classes - 1}{f', {IGNORE} = ignore' if name == 'label' else ''})"
            )
    return label.to(torch.uint8), predicted.to(torch.uint8), known
