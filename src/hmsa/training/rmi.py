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
from torch.utils.checkpoint import checkpoint

from ..runs.machine import total

STRIDE, PADDING = 4, 2  # of the mean pooling before neighbourhoods are taken
SIDE = 3  # of a neighbourhood
ALPHA = 5e-4  # added to the diagonals of covariances
LEAST = 1e-6  # added to every probability


class RMI(NamedTuple):
    """The two halves of the loss; only `rmi` can be negative."""

    bce: Tensor  # binary cross-entropy, summed over classes, mean over labelled pixels
    rmi: Tensor  # lower bound of the negative region mutual information, summed over classes

    @property
    def loss(self) -> Tensor:
        return 0.5 * self.bce + 0.5 * self.rmi


def region_mutual_information(logits: Tensor, label: Tensor) -> RMI:
    """logits `[B,K,H,W]`, label `[B,H,W]` int64; labels outside 0..K-1 are ignored.

    Autograd keeps logits and label only; everything else is computed again for backward.
    """
    entropy, information = checkpoint(_sums, logits, label, use_reentrant=False)
    images = total(label.new_tensor(len(label)))
    return RMI(entropy / _labelled(logits, label), information / images)


def binary_cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """The first half alone: summed over classes, mean over labelled pixels (and one more)."""
    return _entropy(logits, label) / _labelled(logits, label)


def _entropy(logits: Tensor, label: Tensor) -> Tensor:
    valid, index = _valid(logits, label)
    losses = F.softplus(logits).sum(1, keepdim=True) - logits.gather(1, index)
    return (losses * valid).sum()


def _labelled(logits: Tensor, label: Tensor) -> Tensor:
    return total(_valid(logits, label)[0].sum()) + 1


def _valid(logits: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Which pixels are labelled, and the class of each, `[B,1,H,W]`."""
    valid = ((label >= 0) & (label < logits.shape[1]))[:, None]
    return valid, torch.where(valid, label[:, None], 0)


def _sums(logits: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Both halves: summed over pixels, and summed over images."""
    with torch.autocast(logits.device.type, enabled=False):
        logits = logits if logits.dtype == torch.float64 else logits.float()
        entropy = _entropy(logits, label)
        valid, index = _valid(logits, label)
        predicted, truth = logits.sigmoid() * valid + LEAST, torch.zeros_like(logits)
        truth.scatter_(1, index, valid.to(truth))
        p, y = (F.avg_pool2d(maps, STRIDE, STRIDE, PADDING) for maps in (predicted, truth))
        if min(p.shape[-2:]) < SIDE:  # too small for one neighbourhood
            return entropy, p.sum() * 0
        return entropy, _bound(_neighbourhoods(p), _neighbourhoods(y)).to(entropy)


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
