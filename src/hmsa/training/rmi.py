"""Region mutual information loss: compares 3x3 neighbourhoods of predictions and of labels.

Source: Zhao et al., "Region Mutual Information Loss for Semantic Segmentation", NeurIPS 2019, with
the constants of the official multi-scale attention code. The loss can be negative: a class that is
not in a crop adds a constant of -3.80 and no gradient.
"""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ..runs.machine import total
from .groups import Logits, one_hot

STRIDE, PADDING = 4, 2  # of the mean pooling before neighbourhoods are taken
SIDE = 3  # of a neighbourhood
ALPHA = 5e-4  # added to the diagonals of covariances
LEAST = 1e-6  # added to every probability


class RMI(NamedTuple):
    """The loss and the values of its two halves; only `rmi` can be negative."""

    bce: Tensor  # binary cross-entropy, summed over classes, mean over labelled pixels
    rmi: Tensor  # lower bound of the negative region mutual information, summed over classes
    loss: Tensor  # the mean of both, which has a gradient


def region_mutual_information(logits: Logits, label: Tensor, batch: Tensor | None = None) -> RMI:
    """logits of `[B,K,H,W]`, label `[B,H,W]` int64; labels outside 0..K-1 are ignored.

    batch: label of the whole batch, if these images are a part of it.
    """
    batch = label if batch is None else batch
    valid, pixels = _labelled(logits, label, batch)
    images = total(label.new_tensor(len(batch)))
    halves = []

    def part(some: Tensor, classes: slice) -> Tensor:
        device = "cpu" if some.is_meta else some.device.type  # meta: to count memory
        with torch.autocast(device, enabled=False):
            some = some if some.dtype == torch.float64 else some.float()
            truth = one_hot(label, classes) & valid
            entropy = _entropy(some, truth, valid) / pixels
            information = _information(some, truth, valid) / images
        halves.append(torch.stack([entropy, information]).detach())
        return 0.5 * entropy + 0.5 * information

    loss = logits.sum(part)
    entropy, information = torch.stack(halves).sum(0)
    return RMI(entropy, information, loss)


def binary_cross_entropy(logits: Logits, label: Tensor, batch: Tensor | None = None) -> Tensor:
    """The first half alone: summed over classes, mean over labelled pixels (and one more)."""
    valid, pixels = _labelled(logits, label, label if batch is None else batch)

    def part(some: Tensor, classes: slice) -> Tensor:
        return _entropy(some, one_hot(label, classes) & valid, valid)

    return logits.sum(part) / pixels


def _labelled(logits: Logits, label: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
    """Which pixels are labelled, `[B,1,H,W]`; how many in all batches together, and one more."""
    valid, counted = ((each >= 0) & (each < logits.classes) for each in (label, batch))
    return valid[:, None], total(counted.sum()) + 1


def _entropy(logits: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    return ((F.softplus(logits) - logits * truth) * valid).sum()


def _information(logits: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """The second half, summed over images and classes."""
    predicted = logits.sigmoid() * valid + LEAST
    p, y = (F.avg_pool2d(m, STRIDE, STRIDE, PADDING) for m in (predicted, truth.to(logits)))
    if min(p.shape[-2:]) < SIDE:  # too small for one neighbourhood
        return p.sum() * 0
    return _bound(_neighbourhoods(p), _neighbourhoods(y)).to(logits)


def _neighbourhoods(maps: Tensor) -> Tensor:
    """`[B,K,h,w]` -> `[B,K,9,(h-2)(w-2)]` float64: each shift less its mean."""
    maps = (maps.cpu() if maps.device.type == "mps" else maps).double()  # mps has no float64
    points = F.unfold(maps.flatten(0, 1)[:, None], SIDE).unflatten(0, maps.shape[:2])
    return cast(Tensor, points - points.mean(-1, keepdim=True))


def _bound(p: Tensor, y: Tensor) -> Tensor:
    """Half the log-determinant of the part of y that p does not explain."""
    eye = ALPHA * torch.eye(SIDE**2, dtype=p.dtype, device=p.device)
    yp = y @ p.mT
    root = _cholesky(p @ p.mT + eye)
    left = y @ y.mT - yp @ torch.cholesky_solve(yp.mT, root)
    root = _cholesky((left + left.mT) / 2 + eye)
    logdet = 2 * (root.diagonal(dim1=-2, dim2=-1) + 1e-8).log().sum(-1)
    return 0.5 * logdet.sum() / SIDE**2


def _cholesky(matrix: Tensor) -> Tensor:
    """Cholesky factors; nan where a matrix has none, which ends training."""
    root, info = torch.linalg.cholesky_ex(matrix)
    return cast(Tensor, root.masked_fill((info != 0)[..., None, None], math.nan))
