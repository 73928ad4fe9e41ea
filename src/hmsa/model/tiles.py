"""A scale seen tile by tile: memory that does not depend on the image, places left out at will.

Tiles are cut on the grid of the image at one scale, at multiples of the trunk's coarsest stride,
and show what the whole would show there. Each is seen with a halo: what lies in the outer half of
it is thrown away, over its inner half neighbours are blended. So what a network whose receptive
field fits half the halo sees in tiles is what it sees in the whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..runs.errors import InputError
from .bands import Size, bands, sampled

_BAND = 1 << 24  # source pixels that are looked at together when a window is brought to a scale


class Source(Protocol):
    """An image of any size, of which windows can be had."""

    @property
    def size(self) -> Size: ...

    def read(self, rows: slice, cols: slice) -> Tensor:
        """`[B,3,h,w]`, uint8 or float in 0..1."""


@dataclass(frozen=True)
class Held:
    """An image that is there, `[B,3,H,W]`."""

    image: Tensor

    @property
    def size(self) -> Size:
        return self.image.shape[-2], self.image.shape[-1]

    def read(self, rows: slice, cols: slice) -> Tensor:
        return self.image[..., rows, cols]


@dataclass(frozen=True)
class Mirrored:
    """The image from right to left."""

    source: Source

    @property
    def size(self) -> Size:
        return self.source.size

    def read(self, rows: slice, cols: slice) -> Tensor:
        left, right, _ = cols.indices(self.size[1])
        width = self.size[1]
        return self.source.read(rows, slice(width - right, width - left)).flip(-1)


@dataclass(frozen=True)
class Tiling:
    """tile: pixels of a side that the network sees at once, halo included, at every scale.

    halo: pixels beyond what a tile is there for; rounded up to what the trunk's strides need.
    """

    tile: int
    halo: int = 128

    def __post_init__(self) -> None:
        if self.halo < 0 or self.tile <= 2 * self.halo:
            raise InputError(
                f"tile: {self.tile} pixels leave nothing inside a halo of {self.halo} on each "
                f"side; give more than {2 * self.halo}, or a smaller halo"
            )


class Patch(NamedTuple):
    """Pixels that one tile is there for."""

    top: int
    bottom: int
    left: int
    right: int


class Scaled:
    """The image at one scale, padded to what the trunk takes; windows of it, normalised."""

    def __init__(
        self, source: Source, scale: float, multiple: int, normalise: Callable[[Tensor], Tensor]
    ) -> None:
        self.source, self.normalise = source, normalise
        height, width = (max(1, math.floor(n * scale)) for n in source.size)
        self.size: Size = (height, width)
        self.padded: Size = (height + -height % multiple, width + -width % multiple)

    def window(self, at: Patch) -> Tensor:
        """`[B,3,h,w]`; beyond the image its edge goes on."""
        height, width = self.size
        rows, cols = range(at.top, min(at.bottom, height)), range(at.left, min(at.right, width))
        if (len(rows), len(cols)) == self.size and math.prod(self.source.size) <= _BAND:
            whole = self.normalise(self.source.read(slice(None), slice(None)))
            if whole.shape[-2:] != self.size:
                whole = F.interpolate(whole, self.size, mode="bilinear", align_corners=False)
        else:
            whole = torch.cat(list(self._bands(rows, cols)), 2)
        down, right = at.bottom - at.top - len(rows), at.right - at.left - len(cols)
        return F.pad(whole, (0, right, 0, down), "replicate") if down or right else whole

    def _bands(self, rows: range, cols: range) -> Iterator[Tensor]:
        (height, width), (h, w) = self.source.size, self.size
        left, right, across = sampled(width, w, cols)
        at_once = max(1, _BAND * h // (max(1, right - left) * height))
        for start, stop in bands(len(rows), at_once):
            top, bottom, down = sampled(height, h, rows[start:stop])
            part = self.normalise(self.source.read(slice(top, bottom), slice(left, right)))
            yield across(down(part, -2), -1)


class Patches:
    """A node: maps on the trunk's grid, each patch computed when rows of it are asked for.

    see: pixels of a window -> `[B,C,h,w]` on the trunk's grid. Its last channel is 1, so that this
    channel of the node is the share that was computed: 1 where patches lie, 0 where none is.
    """

    def __init__(
        self,
        patches: Sequence[Patch],
        see: Callable[[Patch], Tensor],
        padded: Size,
        stride: int,
        halo: int,
        nothing: Tensor,
    ) -> None:
        self.patches, self.see, self.padded, self.stride, self.halo = (
            list(patches), see, padded, stride, halo
        )  # fmt: skip
        self.size: Size = (math.ceil(padded[0] / stride), math.ceil(padded[1] / stride))
        self._blend = halo // 2 // stride  # cells on either side of an edge
        self._empty = nothing  # [1,C,1,1], zeros
        self._made: dict[Patch, tuple[Tensor, int, int]] = {}

    def rows(self, start: int, stop: int) -> Tensor:
        rows: Tensor | None = None
        for patch in self.patches:
            above, below = self._reach(patch.top, patch.bottom, 0)
            if below <= start:  # bands come from above: nobody will ask for these again
                if below <= start - 4:
                    self._made.pop(patch, None)
                continue
            if above >= stop:
                continue
            maps, top, left = self._make(patch)
            first, last = max(start, top), min(stop, top + maps.shape[2])
            cols = slice(left, left + maps.shape[3])
            if rows is None:
                rows = maps.new_zeros(*maps.shape[:2], stop - start, self.size[1])
            rows[..., first - start : last - start, cols] += maps[..., first - top : last - top, :]
        if rows is None:
            return self._empty.expand(-1, -1, stop - start, self.size[1])
        return rows

    def _reach(self, first: int, last: int, axis: int) -> tuple[int, int]:
        """Cells that a patch has any say in."""
        cells = (first // self.stride, math.ceil(last / self.stride))
        return max(0, cells[0] - self._blend), min(self.size[axis], cells[1] + self._blend)

    @property
    def pixels(self) -> int:
        """All that `see` is to see."""
        windows = map(self._window, self.patches)
        return sum((w.bottom - w.top) * (w.right - w.left) for w in windows)

    def _window(self, patch: Patch) -> Patch:
        (height, width), halo = self.padded, self.halo
        return Patch(
            max(0, patch.top - halo), min(height, patch.bottom + halo),
            max(0, patch.left - halo), min(width, patch.right + halo),
        )  # fmt: skip

    def _make(self, patch: Patch) -> tuple[Tensor, int, int]:
        """Its weighted maps, and the cell of their upper left corner."""
        if patch in self._made:
            return self._made[patch]
        window = self._window(patch)
        seen = self.see(window)
        places = []
        for axis, (first, last, begins) in enumerate(
            [(patch.top, patch.bottom, window.top), (patch.left, patch.right, window.left)]
        ):
            low, high = self._reach(first, last, axis)
            origin = begins // self.stride
            places.append((low, slice(low - origin, high - origin)))
        (top, rows), (left, cols) = places
        maps = seen[..., rows, cols]
        down = self._ramps(patch.top, patch.bottom, 0).to(maps)
        across = self._ramps(patch.left, patch.right, 1).to(maps)
        self._made[patch] = maps * down[:, None] * across, top, left
        return self._made[patch]

    def _ramps(self, first: int, last: int, axis: int) -> Tensor:
        """A patch's say along one axis. Those of patches side by side sum to 1, whatever their
        sizes: it is a box of twice the blend, run over the cells that the patch is there for."""
        low, high = self._reach(first, last, axis)
        say = torch.ones(high - low, dtype=torch.float64)
        cells = torch.arange(low, high, dtype=torch.float64) + 0.5
        wide = 2 * self._blend
        if wide and first:
            say *= ((cells - (first // self.stride - self._blend)) / wide).clamp(0, 1)
        if wide and last < self.padded[axis]:
            say *= ((math.ceil(last / self.stride) + self._blend - cells) / wide).clamp(0, 1)
        return say


def cut(padded: Size, side: int) -> list[Patch]:
    """Patches of at most side x side that cover the image once, from the top, of like sizes."""
    (height, width) = padded
    return [
        Patch(top, bottom, left, right)
        for top, bottom in bands(height, side)
        for left, right in bands(width, side)
    ]


def merged(chosen: Tensor, padded: Size, cell: int, largest: int) -> list[Patch]:
    """The chosen cells `[h,w]` of side `cell` as few rectangles of at most `largest` a side: the
    less edge, the less halo."""
    free = chosen.clone()
    reach = max(1, largest // cell)
    patches = []
    for top, left in chosen.nonzero().tolist():
        if not free[top, left]:
            continue
        right = left
        while right < free.shape[1] and right - left < reach and free[top, right]:
            right += 1
        bottom = top
        while bottom < free.shape[0] and bottom - top < reach and free[bottom, left:right].all():
            bottom += 1
        free[top:bottom, left:right] = False
        edges = (top * cell, bottom * cell, left * cell, right * cell)
        patches.append(Patch(*(min(e, padded[axis // 2]) for axis, e in enumerate(edges))))
    return sorted(patches)
