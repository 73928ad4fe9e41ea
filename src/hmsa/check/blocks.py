"""Which images to hold out of a folder that has no images for validation."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from ..data.labels import pack
from ..data.pairs import natural, recording
from .scan import FileScan

SHARE = 0.2  # of the images; from half to one and a half of it where recordings end
_MOST = 200  # blocks that are compared


def block(labels: Mapping[str, FileScan], table: Mapping[str, Any]) -> list[str]:
    """About a fifth of two or more names, neighbours in natural order.

    Neighbours look alike, so a block judges more honestly than a draw, most of all one that begins
    and ends with recordings; but first of all, both parts should have every class, and as often.

    labels: the values of each; table: of a description, what the values mean.
    """
    names = sorted(labels, key=natural)
    count, pixels = len(names), _pixels([labels[name] for name in names], table)
    before = np.concatenate([np.zeros((1, pixels.shape[1])), pixels.cumsum(0)])
    wanted = max(1, round(SHARE * count))
    cuts = [n + 1 for n, (a, b) in enumerate(pairwise(names)) if recording(a) != recording(b)]
    cuts = [0, *cuts, count]
    blocks = [(start, start + wanted) for start in range(0, count - wanted + 1, count // _MOST + 1)]
    if len(cuts) <= _MOST:
        near = range(max(1, wanted // 2), min(count - 1, 3 * wanted // 2) + 1)
        blocks += [(a, b) for a in cuts for b in cuts if b - a in near]

    def worth(ends: tuple[int, int]) -> tuple[float, ...]:
        inside = before[ends[1]] - before[ends[0]]
        outside = before[-1] - inside
        shares = [part / max(1, part.sum()) for part in (inside, outside)]
        apart = float(np.abs(shares[0] - shares[1]).sum())
        in_both = np.sum((inside > 0) & (outside > 0))
        return in_both, sum(end in cuts for end in ends), -apart, ends[0]

    first, last = max(blocks, key=worth)
    return names[first:last]


def _pixels(labels: list[FileScan], table: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    """Pixels of each class `[N,K]`; of palettes that differ, nothing is known."""
    raw = [*table["names"]] if isinstance(table["names"], dict) else []
    if table["encoding"] == "rgb":
        raw = pack(np.array(table["palette"], np.uint8)).tolist()
    classes = {value: place for place, value in enumerate(raw)}
    if table["encoding"] == "binary":
        classes = {value: value // 128 for value in range(256)}
    pixels = np.zeros((len(labels), max(classes.values(), default=0) + 1))
    for row, label in zip(pixels, labels, strict=True):
        for value, number in label.values.items():
            if value in classes:
                row[classes[value]] += number
    return pixels
