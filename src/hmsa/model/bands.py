"""Fusion in bands of rows: no map of the size classes x height x width ever exists whole.

A node stands for a map on a grid of pixels and makes any of its rows when they are asked for. What
is kept of a scale are its maps on the trunk's own grid, or of those the tiles that are in use.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

Size = tuple[int, int]  # height, width


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
class Constant:
    """One value per channel, everywhere."""

    values: Tensor  # [1,C,1,1]
    size: Size

    def rows(self, start: int, stop: int) -> Tensor:
        return self.values.expand(-1, -1, stop - start, self.size[1])


@dataclass(frozen=True)
class Applied:
    """Another, after what is done to each pixel by itself."""

    node: Node
    what: Callable[[Tensor], Tensor]  # [B,C,h,w] -> [B,D,h,w]

    @property
    def size(self) -> Size:
        return self.node.size

    def rows(self, start: int, stop: int) -> Tensor:
        return self.what(self.node.rows(start, stop))


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
        first, last, lerp = sampled(h, height, range(start, stop))
        part = self.node.rows(first, last)
        if part.shape[-1] != width:
            size = (part.shape[-2], width)
            part = F.interpolate(part, size=size, mode="bilinear", align_corners=False)
        return lerp(part, -2)


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
        return weighted.add((1 - attention).mul(resized(self.hi, self.size).rows(start, stop)))


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
class Completed:
    """A map of which only `share` was computed, another one standing in for the rest."""

    part: Node  # already weighted by its share
    share: Node  # [B,1,h,w] in 0..1
    rest: Node  # any size

    @property
    def size(self) -> Size:
        return self.part.size

    def rows(self, start: int, stop: int) -> Tensor:
        part, left = self.part.rows(start, stop), 1 - self.share.rows(start, stop)
        return part if not left.any() else part + left * resized(self.rest, self.size).rows(
            start, stop
        )  # fmt: skip


def resized(node: Node, size: Size) -> Node:
    """R. What stands in for a part does so on the new grid: resized once, not twice."""
    if isinstance(node, Completed):
        return Completed(Resized(node.part, size), Resized(node.share, size), node.rest)
    return Resized(node, size)


class Sampling(Protocol):
    def __call__(self, part: Tensor, dim: int) -> Tensor: ...


def sampled(before: int, after: int, wanted: range) -> tuple[int, int, Sampling]:
    """How R brings an axis of `before` cells to `after`: the cells `first` up to `last` that the
    `wanted` ones are made of, and what makes them of those."""
    at = (torch.tensor(wanted, dtype=torch.float64) + 0.5) * (before / after) - 0.5
    at = at.clamp(0, before - 1)
    first, last = int(at[0]), math.ceil(float(at[-1])) + 1
    floor = at.floor()
    share, above = at - floor, floor.long() - first
    below = (above + 1).clamp(max=last - first - 1)

    def lerp(part: Tensor, dim: int) -> Tensor:
        weight = share.to(part).view(*[-1 if d == part.ndim + dim else 1 for d in range(part.ndim)])
        one, other = (part.index_select(dim, i.to(part.device)) for i in (above, below))
        return one.lerp(other, weight)

    return first, last, lerp


def bands(height: int, rows: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of bands of `rows` rows, the last one lower."""
    for start in range(0, height, rows):
        yield start, min(height, start + rows)
