"""What the paper compares with, behind the same interface: the rivals of hierarchical attention.

A single scale is any of these at one scale; without idle weights, `AveragePooling` at (1.0,).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..runs.errors import InputError
from .bands import Node, Size, Whole, resized
from .gate import Gate
from .heads import predictor, resize
from .hmsa import HMSA, Encoded, Fold, Output, ScaleOutput, ordered, to_pixels
from .look import Look, Seen, completed
from .tiles import Source, Tiling


def average(maps: Mapping[float, ScaleOutput], size: Sequence[int]) -> Tensor:
    """The mean over scales of logits brought to `size`, `[B,K,*size]`."""
    return torch.stack([resize(m.logits, size) for m in maps.values()]).mean(0)


def maximum(maps: Mapping[float, ScaleOutput], size: Sequence[int]) -> Tensor:
    """The largest over scales of logits brought to `size`, class by class, `[B,K,*size]`."""
    return torch.stack([resize(m.logits, size) for m in maps.values()]).amax(0)


def weighted(maps: Mapping[float, ScaleOutput], size: Sequence[int]) -> Tensor:
    """Sum over scales of attention times logits, both brought to `size`, `[B,K,*size]`."""
    fused = torch.zeros(())
    for one in maps.values():
        assert one.attention is not None
        fused = fused.to(one.logits) + resize(one.attention, size) * resize(one.logits, size)
    return fused


@dataclass(frozen=True)
class Folded:
    """A fold that needs no other grid than the image's own, row by row."""

    seen: Mapping[float, Seen]
    size: Size
    fold: Fold

    def rows(self, start: int, stop: int) -> Tensor:
        def rows(node: Node) -> Tensor:
            return resized(node, self.size).rows(start, stop)

        logits = completed(self.seen)
        maps = {
            scale: ScaleOutput(
                rows(logits[scale]), None if one.attention is None else rows(one.attention)
            )
            for scale, one in self.seen.items()
        }
        return self.fold(maps, (stop - start, self.size[1]))


class AveragePooling(HMSA):
    """Every scale counts the same, at every pixel; there is no attention."""

    fusion = "average"
    fold = staticmethod(average)
    by_rows = staticmethod(partial(Folded, fold=average))

    def __init__(self, classes: int, **network: Any) -> None:
        super().__init__(classes, **network)
        self.attention = None

    def attended(self, scales: list[float]) -> list[float]:
        return []


class MaxPooling(AveragePooling):
    """The surest scale counts alone, class by class: no weighted sum, so without weights."""

    fusion = "max"
    fold = staticmethod(maximum)
    by_rows = staticmethod(partial(Folded, fold=maximum))


class _AllAtOnce(HMSA):
    """Attention that looks at the features of several scales together."""

    tiles = False

    def look(
        self,
        source: Source,
        scales: Sequence[float],
        tiling: Tiling | None = None,
        gate: Gate | None = None,
    ) -> Look:
        """Whole: InputError for tiles and for a gate."""
        if tiling or gate:
            raise InputError(
                f"{self.fusion} attention looks at whole pictures, at all scales together: no "
                "tiles and no gate; a hierarchical network takes both"
            )
        output = self(source.read(slice(None), slice(None)), scales)
        seen = {
            scale: Seen(Whole(one.logits), None if one.attention is None else Whole(one.attention))
            for scale, one in output.maps.items()
        }
        return Look(seen, source.size, self.by_rows, self.mean, maps=self.maps)


class ExplicitAttention(_AllAtOnce):
    """One weight per scale from the features of all: a fixed list of scales, trained all at once.

    scales: the list, with 1.0 in it. short: two convolutions without norms rather than the paper's
    head. Weights are a softmax over scales, or, with `official`, raw as in the official code.
    Source: Chen et al., "Attention to Scale: Scale-aware Semantic Image Segmentation", 2016.
    """

    fusion = "explicit"
    fold = staticmethod(weighted)
    by_rows = staticmethod(partial(Folded, fold=weighted))

    def __init__(
        self,
        classes: int,
        scales: Sequence[float] = (0.5, 1.0, 2.0),
        short: bool = False,
        **network: Any,
    ) -> None:
        super().__init__(classes, **network)
        self.scales = ordered(scales)
        if 1.0 not in self.scales:
            raise InputError(f"explicit attention over {self.scales} needs 1 among its scales")
        self.card.network |= {"scales": self.scales, "short": short}
        self.raw: bool = self.card.network["official"]
        inputs = self.head.features * len(self.scales)
        if short:
            # The official 1x1 has a stray padding of 1: its map is a frame of zeros too large
            self.attention = nn.Sequential(
                nn.Conv2d(inputs, 512, 3, padding=1, bias=False),
                nn.ReLU(inplace=True),
                nn.Conv2d(512, len(self.scales), 1, padding=int(self.raw), bias=False),
            )
        else:
            width = self.card.network["width"]
            self.attention = predictor(inputs, width, len(self.scales), self.head.bias)

    def encode(self, image: Tensor, scales: Sequence[float]) -> dict[float, Encoded]:
        if ordered(scales) != self.scales:
            wanted, got = (",".join(f"{s:g}" for s in which) for which in (self.scales, scales))
            raise InputError(f"explicit attention was made for scales {wanted}, not for {got}")
        return super().encode(image, scales)

    def attended(self, scales: list[float]) -> list[float]:
        return scales

    def attend(self, encoded: Mapping[float, Encoded], size: Sequence[int]) -> Output:
        assert self.attention is not None
        whole = encoded[1.0]
        order = [1.0, *(s for s in self.scales if s != 1.0)]
        attention = self.attention(torch.cat([onto(whole, encoded[s]) for s in order], 1))
        if not self.raw:
            attention = attention.softmax(1)
        weights = to_pixels(attention, whole).split(1, dim=1)
        maps = {}
        for (scale, seen), weight in zip(encoded.items(), weights, strict=True):
            aux = None if seen.aux is None else to_pixels(seen.aux, seen)
            maps[scale] = ScaleOutput(to_pixels(seen.logits, seen), weight, aux)
        return Output(self.fold(maps, size), maps, self.fold)


class PairAttention(_AllAtOnce):
    """Hierarchical, but the attention of a pair looks at the features of both its scales."""

    fusion = "pair"

    def __init__(self, classes: int, **network: Any) -> None:
        super().__init__(classes, **network)
        width = self.card.network["width"]
        self.attention = predictor(2 * self.head.features, width, 1, self.head.bias)

    def attended(self, scales: list[float]) -> list[float]:
        return scales

    def attend(self, encoded: Mapping[float, Encoded], size: Sequence[int]) -> Output:
        pairs = {}
        for lo, hi in zip(encoded, [*list(encoded)[1:], None], strict=True):
            both = None
            if hi is not None:
                both = torch.cat(
                    [onto(encoded[lo], encoded[lo]), onto(encoded[lo], encoded[hi])], 1
                )
            pairs[lo] = encoded[lo]._replace(features=both)
        return super().attend(pairs, size)


def onto(target: Encoded, seen: Encoded) -> Tensor:
    """Features of one scale on another one's grid: what lies on one place of the image meets."""
    assert seen.features is not None
    assert target.features is not None
    grid, features = target.features.shape[-2:], seen.features
    # Both grids may reach past the image, each by its own padding
    reach = [
        max(1, round(cells * padded * size / (whole * own)))
        for cells, padded, size, whole, own in zip(
            grid, seen.padded, target.size, target.padded, seen.size, strict=True
        )
    ]
    features = resize(features, reach)[..., : grid[0], : grid[1]]
    down, right = (g - n for g, n in zip(grid, features.shape[-2:], strict=True))
    return F.pad(features, (0, right, 0, down), "replicate") if down or right else features


FUSIONS: dict[str, type[HMSA]] = {
    kind.fusion: kind
    for kind in (HMSA, AveragePooling, MaxPooling, ExplicitAttention, PairAttention)
}


def build(fusion: str = HMSA.fusion, **network: Any) -> HMSA:
    """The network whose `card.network` this is."""
    if fusion not in FUSIONS:
        raise InputError(f"fusion {fusion!r} is not one of {', '.join(FUSIONS)}")
    return FUSIONS[fusion](**network)
