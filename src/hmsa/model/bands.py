"""The same fusion in bands of rows: no map of the size classes x height x width ever exists whole.

A node stands for a map on a grid of pixels and makes any of its rows when they are asked for. What
is kept of a scale are its logits and attention on the trunk's own grid.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

Size = tuple[int, int]


class Node(Protocol):
    @property
    def size(self) -> Size: ...

    def rows(self, start: int, stop: int) -> Tensor:
        """`[B,C,stop-start,w]` of the map."""


@dataclass(frozen=True)
class Whole:
    """A map that is there."""

    maps: Tensor

    @property
    def size(self) -> Size:
        return self.maps.shape[-2], self.maps.shape[-1]

    def rows(self, start: int, stop: int) -> Tensor:
        return self.maps[..., start:stop, :]


@dataclass(frozen=True)
class Cropped:
    """The upper left corner of another: what lies on padding is cut off."""

    node: Node
    size: Size

    def rows(self, start: int, stop: int) -> Tensor:
        return self.node.rows(start, stop)[..., : self.size[1]]


@dataclass(frozen=True)
class Resized:
    """R: another, bilinear, corners not aligned, as `heads.resize`."""

    node: Node
    size: Size

    def rows(self, start: int, stop: int) -> Tensor:
        (h, _), (height, width) = self.node.size, self.size
        if self.node.size == self.size:
            return self.node.rows(start, stop)
        if (start, stop) == (0, height):
            whole = self.node.rows(0, h)
            return F.interpolate(whole, size=self.size, mode="bilinear", align_corners=False)
        at = (torch.arange(start, stop, dtype=torch.float64) + 0.5) * (h / height) - 0.5
        at = at.clamp(0, h - 1)
        first, last = int(at[0]), min(int(at[-1]) + 1, h - 1)
        part = self.node.rows(first, last + 1)
        if part.shape[-1] != width:
            size = (part.shape[-2], width)
            part = F.interpolate(part, size=size, mode="bilinear", align_corners=False)
        above = at.floor()
        share = (at - above).to(part)[:, None]
        above = above.long().to(part.device) - first
        below = (above + 1).clamp(max=last - first)
        return part[..., above, :].lerp(part[..., below, :], share)


@dataclass(frozen=True)
class Fused:
    """`fuse(lo, attention, hi, size)`."""

    lo: Node
    attention: Node
    hi: Node
    size: Size

    def rows(self, start: int, stop: int) -> Tensor:
        weighted = Resized(Product(self.attention, self.lo), self.size).rows(start, stop)
        attention = Resized(self.attention, self.size).rows(start, stop)
        return weighted.add_((1 - attention).mul(Resized(self.hi, self.size).rows(start, stop)))


@dataclass(frozen=True)
class Product:
    one: Node
    other: Node

    @property
    def size(self) -> Size:
        return self.other.size

    def rows(self, start: int, stop: int) -> Tensor:
        return self.one.rows(start, stop) * self.other.rows(start, stop)


@dataclass(frozen=True)
class Small:
    """What is kept of a scale: maps on the trunk's grid, and what they stand for."""

    logits: Tensor  # [B,K,h,w]
    attention: Tensor | None  # [B,1,h,w], after its sigmoid; None at the finest scale
    padded: Size  # pixels that the grid stands for
    size: Size  # of the image at this scale


def chain_of(scales: Mapping[float, Small], size: Sequence[int]) -> Node:
    """As `chain` folds whole maps."""

    def pixels(maps: Tensor, one: Small) -> Node:
        return Cropped(Resized(Whole(maps), one.padded), one.size)

    finest, *coarser = sorted(scales, reverse=True)
    fused: Node = pixels(scales[finest].logits, scales[finest])
    for scale in coarser:
        one = scales[scale]
        assert one.attention is not None
        lo, attention = pixels(one.logits, one), pixels(one.attention, one)
        fused = Fused(lo, attention, fused, lo.size if scale >= 1 else fused.size)
    return Resized(fused, (size[0], size[1]))


def bands(height: int, rows: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of bands of `rows` rows, the last one lower."""
    for start in range(0, height, rows):
        yield start, min(height, start + rows)
