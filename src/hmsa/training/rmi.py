"""Region mutual information: how well a 3x3 neighbourhood of predictions tells that of the truth.

Source: Zhao et al., "Region Mutual Information Loss for Semantic Segmentation", NeurIPS 2019, with
the constants of the official multi-scale attention code. Legitimately negative: a class that a crop
does not hold adds a constant of -3.80 and no gradient.

Lean: what is kept for backward is the logits, the labels and maps of a sixteenth of their size; the
rest is computed again. Safe: a covariance that is not positive definite gets a growing diagonal.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

STRIDE, PADDING = 4, 2  # of the mean pooling before neighbourhoods are taken
SIDE = 3  # of a neighbourhood
ALPHA = 5e-4  # added to the diagonals of covariances
LEAST = 1e-6  # added to every probability


class RMI(NamedTuple):
    """The two halves, apart: only `rmi` can be negative."""

    bce: Tensor  # binary cross-entropy, summed over classes, mean over labelled pixels
    rmi: Tensor  # lower bound of the negative region mutual information, summed over classes
    fallbacks: int  # classes and pictures whose covariance needed more than the usual diagonal

    @property
    def loss(self) -> Tensor:
        return 0.5 * self.bce + 0.5 * self.rmi


def region_mutual_information(logits: Tensor, label: Tensor) -> RMI:
    """logits `[B,K,H,W]`, label `[B,H,W]` int64; whatever is not in 0..K-1 is ignored."""
    bce, predicted, valid = _pixels(logits, label)
    with torch.autocast(logits.device.type, enabled=False):
        truth = _pooled_one_hot(label, valid, predicted.shape, predicted.dtype)
        rmi, fallbacks = _Regions.apply(predicted, truth)
    return RMI(bce, rmi.to(bce.dtype), int(fallbacks))


def binary_cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """The first half alone: summed over classes, mean over labelled pixels (and one more)."""
    return _pixels(logits, label)[0]


def _pixels(logits: Tensor, label: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Binary cross-entropy; pooled probabilities `[B,K,h,w]`; which pixels are labelled."""
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()
    valid = (label >= 0) & (label < logits.shape[1])
    with torch.autocast(logits.device.type, enabled=False):
        nll, predicted = _SigmoidPooled.apply(logits, label, valid)
        return nll / (valid.sum() + 1), predicted, valid


class _SigmoidPooled(torch.autograd.Function):
    """(sum of binary cross-entropies, pooled probabilities), from one look at the logits."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, label: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        mask = valid[:, None]
        index = torch.where(valid, label, 0)[:, None]
        ctx.save_for_backward(logits, index, mask)
        hit = logits.gather(1, index).mul_(mask).sum()
        nll = F.softplus(logits).mul_(mask).sum() - hit
        probability = torch.sigmoid(logits).mul_(mask).add_(LEAST)
        return nll, F.avg_pool2d(probability, STRIDE, STRIDE, PADDING)

    @staticmethod
    def backward(ctx: Any, g_nll: Tensor, g_pooled: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        logits, index, mask = ctx.saved_tensors
        h, w = logits.shape[-2:]
        spread = F.interpolate(g_pooled / STRIDE**2, scale_factor=STRIDE, mode="nearest")
        # Rows and columns past the last whole window were never pooled
        down = max(0, PADDING + h - spread.shape[-2])
        right = max(0, PADDING + w - spread.shape[-1])
        spread = F.pad(spread, (0, right, 0, down))[..., PADDING:, PADDING:][..., :h, :w]
        probability = torch.sigmoid(logits)
        gradient = torch.ops.aten.sigmoid_backward(spread, probability)
        probability.mul_(g_nll).scatter_add_(1, index, -g_nll.expand(index.shape))
        return gradient.add_(probability).mul_(mask), None, None


def _pooled_one_hot(label: Tensor, valid: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Mean pooling of the one-hot label, by counting: the one-hot map itself never exists."""
    b, k, h, w = shape
    device = label.device
    rows = (torch.arange(label.shape[1], device=device) + PADDING) // STRIDE
    columns = (torch.arange(label.shape[2], device=device) + PADDING) // STRIDE
    kept = valid & (rows < h)[:, None] & (columns < w)
    window = (rows * w)[:, None] + columns
    start = torch.arange(b, device=device)[:, None, None] * k
    place = ((start + label) * (h * w) + window)[kept]
    return torch.bincount(place, minlength=b * k * h * w).view(shape).to(dtype) / STRIDE**2


class _Regions(torch.autograd.Function):
    """Pooled predictions and truth `[B,K,h,w]` -> the bound, and how many needed help.

    Its gradient in the two 9x9 covariances is taken at once; only that and the maps are kept.
    """

    @staticmethod
    def forward(ctx: Any, predicted: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        if min(predicted.shape[-2:]) < SIDE:  # too small a crop to hold one neighbourhood
            ctx.save_for_backward(predicted)
            return predicted.new_zeros(()), torch.zeros((), dtype=torch.int64)
        p, y = _neighbourhoods(predicted), _neighbourhoods(truth)
        pp = (p @ p.mT).requires_grad_()
        yp = (y @ p.mT).requires_grad_()
        with torch.enable_grad():
            bound, fallbacks = _bound(pp, yp, y @ y.mT)
            g_pp, g_yp = torch.autograd.grad(bound, (pp, yp))
        ctx.save_for_backward(predicted, truth, g_pp, g_yp)
        ctx.mark_non_differentiable(fallbacks)
        return bound.detach(), fallbacks

    @staticmethod
    def backward(ctx: Any, g_bound: Tensor, _: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        if len(ctx.saved_tensors) == 1:
            return torch.zeros_like(ctx.saved_tensors[0]), None
        predicted, truth, g_pp, g_yp = ctx.saved_tensors
        p, y = _neighbourhoods(predicted), _neighbourhoods(truth)
        # The means need no gradient of their own: deviations from a mean sum to nothing
        gradient = ((g_pp + g_pp.mT) @ p + g_yp.mT @ y) * g_bound
        h, w = (n - SIDE + 1 for n in predicted.shape[-2:])
        gradient = gradient.unflatten(-1, (h, w))
        folded = gradient.new_zeros(predicted.shape)
        for i in range(SIDE**2):
            dy, dx = divmod(i, SIDE)
            folded[..., dy : dy + h, dx : dx + w] += gradient[:, :, i]
        return folded.to(predicted.dtype), None


def _neighbourhoods(maps: Tensor) -> Tensor:
    """`[B,K,h,w]` -> `[B,K,9,(h-2)(w-2)]`: each shift less its mean, in double if there is one."""
    maps = maps if maps.device.type == "mps" else maps.double()
    h, w = (n - SIDE + 1 for n in maps.shape[-2:])
    shifts = [maps[..., y : y + h, x : x + w] for y in range(SIDE) for x in range(SIDE)]
    points = torch.stack(shifts, 2).flatten(-2)
    return points.sub_(points.mean(-1, keepdim=True))


def _bound(pp: Tensor, yp: Tensor, yy: Tensor) -> tuple[Tensor, Tensor]:
    """Half the log-determinant of what the predictions leave unexplained of the truth."""
    eye = torch.eye(SIDE**2, dtype=pp.dtype, device=pp.device)
    root, first = _cholesky(pp + ALPHA * eye, eye)
    left = yy - yp @ torch.cholesky_solve(yp.mT, root)
    root, second = _cholesky((left + left.mT) / 2 + ALPHA * eye, eye)
    logdet = 2 * (root.diagonal(dim1=-2, dim2=-1) + 1e-8).log().sum(-1)
    return (0.5 * logdet).mean(0).sum() / SIDE**2, first + second


def _cholesky(matrix: Tensor, eye: Tensor) -> tuple[Tensor, Tensor]:
    """Cholesky factors, and how many matrices needed more on their diagonal to have one."""
    root, info = torch.linalg.cholesky_ex(matrix)
    failed = info != 0
    count = failed.sum()
    size = matrix.detach().diagonal(dim1=-2, dim2=-1).abs().amax(-1)[..., None, None]
    for power in range(-9, 1):
        if not bool(failed.any()):
            break
        more = torch.where(failed[..., None, None], size * 10.0**power + ALPHA, 0) * eye
        root, info = torch.linalg.cholesky_ex(matrix + more)
        failed = info != 0
    return root, count
