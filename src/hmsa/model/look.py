"""How a network looks at an image when nothing is to be learnt: scale after scale, tile by tile.

The same numbers as `HMSA.forward`, in less memory, and without what a gate leaves out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..runs.errors import InputError
from .bands import (
    Applied,
    Completed,
    Constant,
    Cropped,
    Fused,
    Node,
    Product,
    Resized,
    Size,
    Whole,
    resized,
)
from .heads import resize
from .tiles import Patch, Patches, Scaled, Source, Tiling, cut, merged

if TYPE_CHECKING:
    from .gate import Gate
    from .hmsa import HMSA


@dataclass(frozen=True)
class Seen:
    """One scale's say in the fusion, on the grid of the image at that scale."""

    logits: Node  # K channels; weighted by `share` where there is one
    attention: Node | None  # 1 where nothing was computed; one channel, or one for each class
    share: Node | None = None  # 1 channel in 0..1: how much of it was computed; None: all of it
    computed: float = 1.0  # share of the image
    pixels: int = 0  # that the network looked at, padding and halo included


Fold = Callable[[Mapping[float, Seen], Size], Node]  # logits of the scales -> logits of that size


class Look(NamedTuple):
    """What a network saw, of which rows are made as they are asked for, from the top."""

    seen: dict[float, Seen]  # ascending
    size: Size  # of the image
    fold: Fold
    like: Tensor  # of the device and of the precision of weights
    cost: float = 1.0  # pixels that the network looks at, to those of all scales seen whole
    maps: int = 1  # of attention: one for all classes, or one each

    def fused(self, size: Size) -> Node:
        """The network's logits, K channels."""
        return resized(self.fold(self.seen, self.size), size)

    def alone(self, scale: float, size: Size) -> Node:
        """One scale's own logits."""
        return resized(completed(self.seen)[scale], size)

    def weights(self, size: Size) -> Node:
        """Effective weight of each scale, a channel each; see `hmsa.effective_weights`."""
        count, maps, indicators = len(self.seen), self.maps, {}
        for index, (scale, one) in enumerate(self.seen.items()):
            value = self.like.new_zeros(1, count, maps, 1, 1)
            value[:, index] = 1
            node: Node = Constant(value.flatten(1, 2), one.logits.size)
            if one.share is not None:
                node = Product(one.share, node)
            attention = one.attention
            if attention is not None and maps > 1:
                attention = Applied(attention, lambda each: each.repeat(1, count, 1, 1))
            indicators[scale] = replace(one, logits=node, attention=attention)
        each = resized(self.fold(indicators, self.size), size)
        return Applied(each, lambda rows: rows.unflatten(1, (count, maps)).mean(2))


def completed(seen: Mapping[float, Seen]) -> dict[float, Node]:
    """Logits of each scale; where one was not computed, the next coarser one stands in."""
    logits: dict[float, Node] = {}
    rest: Node | None = None
    for scale, one in sorted(seen.items()):
        rest = one.logits if one.share is None or rest is None else Completed(
            one.logits, one.share, rest
        )  # fmt: skip
        logits[scale] = rest
    return logits


def chain_of(seen: Mapping[float, Seen], size: Size) -> Node:
    """As `hmsa.chain` folds whole maps."""
    logits = completed(seen)
    finest, *coarser = sorted(seen, reverse=True)
    fused = logits[finest]
    for scale in coarser:
        lo, attention = logits[scale], seen[scale].attention
        assert attention is not None
        fused = Fused(lo, attention, fused, lo.size if scale >= 1 else fused.size)
    return resized(fused, size)


class Looking:
    """One look of `model` at `source`, coarse before fine."""

    def __init__(
        self, model: HMSA, source: Source, tiling: Tiling | None, gate: Gate | None
    ) -> None:
        self.model, self.source, self.tiling, self.gate = model, source, tiling, gate
        self.align = math.lcm(model.multiple, model.strides[1])
        self.whole = 0  # pixels of all scales, without tiles or gate
        self.context: Tensor | None = None  # of the finest scale that was seen whole

    def at(self, scale: float, attended: bool, coarser: Mapping[float, Seen]) -> Seen | None:
        """One scale: whole, in tiles, or where the gate looks; None if it looks nowhere."""
        scaled = Scaled(self.source, scale, self.model.multiple, self.model.normalise)
        self.whole += math.prod(scaled.padded)
        side = self._side()
        patches, halo = cut(scaled.padded, side or max(scaled.padded)), self._halo()
        gated = self.gate is not None and scale > 1 and bool(coarser)
        if gated:
            assert self.gate is not None
            cell, halo = self._up(self.gate.cell), self._up(self.gate.halo)
            chosen = self.gate.choose(coarser, scaled.padded, cell)
            if not chosen.any():
                return None
            gated = not bool(chosen.all())
            if gated:
                patches = merged(chosen, scaled.padded, cell, side or max(scaled.padded))
        if len(patches) == 1 and not gated:
            maps, self.context = self._see(scaled, patches[0], attended, None)
            return self._seen(Whole(maps), scaled, attended, None, math.prod(scaled.padded))
        context = self._context()

        def see(window: Patch) -> Tensor:
            return self._see(scaled, window, attended, context)[0]

        channels = self.model.classes + attended * self.model.maps + 1
        nothing = self.model.mean.new_zeros(1, channels, 1, 1)
        stride = self.model.strides[0]
        node = Patches(patches, see, scaled.padded, stride, halo, nothing)
        area = sum((p.bottom - p.top) * (p.right - p.left) for p in patches)
        share = area / math.prod(scaled.padded) if gated else None
        return self._seen(node, scaled, attended, share, node.pixels)

    def _seen(
        self, node: Node, scaled: Scaled, attended: bool, share: float | None, pixels: int
    ) -> Seen:
        def maps(which: slice) -> Node:
            part = Applied(node, lambda rows: rows[:, which])
            return Cropped(Resized(part, scaled.padded), scaled.size)

        k, a = self.model.classes, attended * self.model.maps
        logits, attention = maps(slice(0, k)), maps(slice(k, k + a)) if attended else None
        if share is None:
            return Seen(logits, attention, pixels=pixels)
        computed = maps(slice(k + a, k + a + 1))
        if attention is not None:
            one = Constant(self.model.mean.new_ones(1, 1, 1, 1), scaled.size)
            attention = Completed(attention, computed, one)
        return Seen(logits, attention, computed, share, pixels)

    def _see(
        self, scaled: Scaled, window: Patch, attended: bool, context: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Logits, attention where it is wanted, and ones, on the trunk's grid; the context."""
        model = self.model
        seen = model.see(scaled.window(window), attended, context)
        parts = [wide(seen.logits)]
        if attended:
            assert model.attention is not None
            assert seen.features is not None
            attention = torch.sigmoid(wide(model.attention(seen.features)))
            parts.append(resize(attention, seen.logits.shape[-2:]))
        parts.append(torch.ones_like(parts[0][:, :1]))
        return torch.cat(parts, 1), seen.context

    def _context(self) -> Tensor | None:
        """What the head knows of the whole image; from a look at a low scale if there was none."""
        if self.context is None and self.model.head.contextual:
            assert self.tiling is not None
            fits = self.tiling.tile / max(self.source.size)
            scaled = Scaled(self.source, fits, self.model.multiple, self.model.normalise)
            everything = Patch(0, scaled.padded[0], 0, scaled.padded[1])
            self.context = self._see(scaled, everything, False, None)[1]
        return self.context

    def _side(self) -> int | None:
        """Pixels that one tile is there for, or None for no tiles."""
        if self.tiling is None:
            return None
        inside = (self.tiling.tile - 2 * self._halo()) // self.align * self.align
        if inside < max(self.align, self._halo()):
            raise InputError(
                f"tile: {self.tiling.tile} pixels are too few for this network, whose grid needs "
                f"a halo of {self._halo()} on each side; give "
                f"{2 * self._halo() + max(self.align, self._halo())} or more"
            )
        return inside

    def _halo(self) -> int:
        return 0 if self.tiling is None else self._up(self.tiling.halo)

    def _up(self, pixels: int) -> int:
        return -(-pixels // self.align) * self.align


def look(
    model: HMSA,
    source: Source,
    scales: Sequence[float],
    tiling: Tiling | None = None,
    gate: Gate | None = None,
) -> Look:
    """`scales` ascending. InputError: tiles or a gate for a network that cannot be cut."""
    looking = Looking(model, source, tiling, gate)
    attended, seen = model.attended(list(scales)), dict[float, Seen]()
    for scale in scales:
        one = looking.at(scale, scale in attended, seen)
        if one is not None:
            seen[scale] = one
    cost = sum(one.pixels for one in seen.values()) / looking.whole
    return Look(seen, source.size, model.by_rows, model.mean, cost, model.maps)


def wide(maps: Tensor) -> Tensor:
    """Fusion is arithmetic on logits: never in the 8 bits of mantissa that autocast leaves."""
    return maps if maps.dtype == torch.float64 else maps.float()
