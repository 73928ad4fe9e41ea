"""The rule behind the golden data: labels that numpy's own generator gives for a seed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def blocky_labels(
    n: int, h: int, w: int, classes: int, block: int, seed: int, p_ignore: float, ignore: int
) -> NDArray[np.int64]:
    """`[n,h,w]`: a class for each block x block square, some of them ignored."""
    draw = np.random.Generator(np.random.PCG64(seed))
    squares = (n, -(-h // block), -(-w // block))
    label = draw.integers(0, classes, size=squares)
    label[draw.random(squares) < p_ignore] = ignore
    return label.repeat(block, 1).repeat(block, 2)[:, :h, :w].astype(np.int64)
