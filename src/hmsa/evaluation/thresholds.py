"""How sure of each class a network must be for its labels to be learnt from.

The rules read counts of stored confidences, all 256 of them, so what they find is exact. A
threshold is a number in 0..1 as `Dataset.trusting` and a recipe's `sampling.confidence` take it.
"""

from __future__ import annotations

from torch import Tensor


def surest(counts: Tensor, share: float) -> list[float]:
    """The highest threshold of each class that keeps at least this share of its pixels.

    counts: `[K,256]`, pixels by class and stored confidence. 0 for a class without pixels.
    Class-balanced self-training (Zou et al., ECCV 2018, arXiv 1810.07911) chooses so.
    """
    kept = _from(counts)
    enough = kept / kept[:, :1] >= share  # nowhere, where there are none
    return [threshold(v) for v in (enough.sum(1) - 1).clamp(min=0).tolist()]


def precise(counts: Tensor, target: float) -> list[float | None]:
    """The lowest confidence seen of each class from which on its precision reaches `target`.

    counts: `[K,256,2]`, those of a `Calibration`. None for a class that never reaches it, or that
    nothing was taken for.
    """
    seen = counts.sum(2)
    good = (_from(counts[..., 1]) / _from(seen) >= target) & (seen > 0)
    lowest = good.int().argmax(1).tolist()
    return [threshold(v) if good[k, v] else None for k, v in enumerate(lowest)]


def threshold(stored: int) -> float:
    """Stored confidence 0..255 -> the number in four digits that keeps it and nothing below it."""
    return stored * 10_000 // 255 / 10_000


def _from(counts: Tensor) -> Tensor:
    """`[K,256]` float64: pixels of at least each confidence."""
    return counts.flip(1).cumsum(1).flip(1).double()
