"""Region mutual information loss: compares 3x3 neighbourhoods of predictions and of labels.

Source: Zhao et al., "Region Mutual Information Loss for Semantic Segmentation", NeurIPS 2019, with
the constants of the official multi-scale attention code. The loss can be negative: a class that is
not in a crop adds a constant of -3.80 and no gradient. A covariance that is not positive definite
gets a larger diagonal.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

STRIDE, PADDING = 4, 2  # of the mean pooling before neighbourhoods are taken
SIDE = 3  # of a neighbourhood
ALPHA = 5e-4  # added to the diagonals of covariances
LEAST = 1e-6  # added to every probability


class RMI(NamedTuple):
    """The two halves of the loss; only `rmi` can be negative."""

    bce: Tensor  # binary cross-entropy, summed over classes, mean over labelled pixels
    rmi: Tensor  # lower bound of the negative region mutual information, summed over classes
    fallbacks: Tensor  # number of covariances (of an image and class) that needed more diagonal

    @property
    def loss(self) -> Tensor:
        return 0.5 * self.bce + 0.5 * self.rmi


def region_mutual_information(logits: Tensor, label: Tensor) -> RMI:
    """logits `[B,K,H,W]`, label `[B,H,W]` int64; labels outside 0..K-1 are ignored.

    Autograd keeps logits and label only; everything else is computed again for backward.
    """
    return RMI(*checkpoint(_terms, logits, label, use_reentrant=False))


def binary_cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """The first half alone: summed over classes, mean over labelled pixels (and one more)."""
    valid, index = _valid(logits, label)
    losses = F.softplus(logits).sum(1, keepdim=True) - logits.gather(1, index)
    return (losses * valid).sum() / (valid.sum() + 1)


def _valid(logits: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Which pixels are labelled, and the class of each, `[B,1,H,W]`."""
    valid = ((label >= 0) & (label < logits.shape[1]))[:, None]
    return valid, torch.where(valid, label[:, None], 0)


def _terms(logits: Tensor, label: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    with torch.autocast(logits.device.type, enabled=False):
        logits = logits if logits.dtype == torch.float64 else logits.float()
        bce = binary_cross_entropy(logits, label)
        valid, index = _valid(logits, label)
        predicted, truth = logits.sigmoid() * valid + LEAST, torch.zeros_like(logits)
        truth.scatter_(1, index, valid.to(truth))
        p, y = (F.avg_pool2d(maps, STRIDE, STRIDE, PADDING) for maps in (predicted, truth))
        if min(p.shape[-2:]) < SIDE:  # too small for one neighbourhood
            return bce, p.sum() * 0, torch.zeros(())
        rmi, fallbacks = _bound(_neighbourhoods(p), _neighbourhoods(y))
        return bce, rmi.to(bce.dtype), fallbacks


def _neighbourhoods(maps: Tensor) -> Tensor:
    """`[B,K,h,w]` -> `[B,K,9,(h-2)(w-2)]`: each shift less its mean, in double if there is one."""
    maps = maps if maps.device.type == "mps" else maps.double()
    points = F.unfold(maps.flatten(0, 1)[:, None], SIDE).unflatten(0, maps.shape[:2])
    return cast(Tensor, points - points.mean(-1, keepdim=True))


def _bound(p: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Half the log-determinant of the part of y that p does not explain; number of fallbacks."""
    eye = torch.eye(SIDE**2, dtype=p.dtype, device=p.device)
    yp = y @ p.mT
    root, first = _cholesky(p @ p.mT + ALPHA * eye)
    left = y @ y.mT - yp @ torch.cholesky_solve(yp.mT, root)
    root, second = _cholesky((left + left.mT) / 2 + ALPHA * eye)
    logdet = 2 * (root.diagonal(dim1=-2, dim2=-1) + 1e-8).log().sum(-1)
    return (0.5 * logdet).mean(0).sum() / SIDE**2, first + second


def _cholesky(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Cholesky factors, and how many matrices needed more on their diagonal to have one."""
    root, info = torch.linalg.cholesky_ex(matrix)
    count = (info != 0).sum()
    size = matrix.detach().diagonal(dim1=-2, dim2=-1).abs().amax(-1)
    for power in range(-9, 1):
        if not bool(info.any()):
            break
        more = torch.where(info != 0, size * 10.0**power + ALPHA, 0)[..., None]
        root, info = torch.linalg.cholesky_ex(
            matrix + torch.diag_embed(more.expand(root.shape[:-1]))
        )
    return root, count
