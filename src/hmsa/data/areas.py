"""Areas that people drew in annotation tools: polygons and run lengths -> pixels of a label."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Label = NDArray[np.uint8]  # [H,W] class indices
Paint = Callable[[Label, int], None]  # gives the pixels of one area of a label a class


def polygon(points: Sequence[float]) -> Paint:
    """x, y, x, y, .. in pixels from the upper left corner: the pixels whose centre is inside."""
    corners = np.array(points, float).reshape(-1, 2)
    if not len(corners) or not np.isfinite(corners).all():
        raise ValueError("a polygon without points, or with infinite ones")

    def paint(label: Label, value: int) -> None:
        height, width = label.shape
        left, top = np.floor(corners.min(0)).clip(0, (width, height)).astype(int)
        right, bottom = np.ceil(corners.max(0)).clip(0, (width, height)).astype(int)
        crossed = np.zeros((bottom - top, right - left + 1), bool)  # an edge left of the centre
        for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, 0), strict=True):
            first, last = np.ceil(np.clip(sorted((y0, y1)), top, bottom) - 0.5).astype(int)
            rows = np.arange(first, last)
            at = x0 + (rows + 0.5 - y0) * (x1 - x0) / (y1 - y0 or 1)
            columns = np.ceil(at - 0.5).clip(left, right).astype(int)
            crossed[rows - top, columns - left] ^= True
        inside = np.logical_xor.accumulate(crossed, axis=1)[:, :-1]
        label[top:bottom, left:right][inside] = value

    return paint


def rectangle(x0: float, y0: float, x1: float, y1: float) -> Paint:
    return polygon([x0, y0, x1, y0, x1, y1, x0, y1])


def pasted(decode: Callable[[], NDArray[np.bool_]], left: int = 0, top: int = 0) -> Paint:
    """A mask `[h,w]` whose upper left pixel is at `left`, `top`; decoded when it is needed."""

    def paint(label: Label, value: int) -> None:
        mask = decode()
        bottom, right = top + mask.shape[0], left + mask.shape[1]
        if min(left, top) < 0 or bottom > label.shape[0] or right > label.shape[1]:
            raise ValueError("a mask that leads out of the image")
        label[top:bottom, left:right][mask] = value

    return paint


def runs(
    lengths: Sequence[int], size: tuple[int, int], order: Literal["C", "F"] = "C"
) -> NDArray[np.bool_]:
    """Lengths of runs of 0, 1, 0, .. -> mask of `size`, height and width, by rows ("C") or columns.

    Raises ValueError if they are not as many pixels.
    """
    count, pixels = np.array(lengths, np.int64).ravel(), size[0] * size[1]
    if ((count < 0) | (count > pixels)).any() or count.sum() != pixels:
        raise ValueError(f"run lengths that are not {size[1]}x{size[0]} pixels")
    values = np.arange(len(count)) % 2 == 1
    return np.repeat(values, count).reshape(size, order=order)


def coco_lengths(text: str) -> list[int]:
    """The run lengths in COCO's text: 6 bits a letter, differences to the length but one."""
    lengths: list[int] = []
    number = shift = 0
    for letter in text.encode():
        bits = letter - 48
        number |= (bits & 31) << shift
        shift += 5
        if shift > 60:
            raise ValueError("a run length beyond all bounds")
        if not bits & 32:
            number -= (bits & 16) << shift - 4  # its sign
            lengths.append(number + (lengths[-2] if len(lengths) > 2 else 0))
            number = shift = 0
    return lengths
