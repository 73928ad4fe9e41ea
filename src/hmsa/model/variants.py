"""What the paper compares hierarchical attention with, behind the same interface.

A single scale is any of these at one scale; without idle weights, `AveragePooling` at (1.0,).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .fusion import average, maximum, ordered, weighted
from .heads import predictor
from .hmsa import HMSA, Encoded, Grid


class AveragePooling(HMSA):
    """Every scale counts the same, at every pixel; there is no attention."""

    fusion = "average"
    fold = staticmethod(average)

    def __init__(self, classes: int, **network: Any) -> None:
        super().__init__(classes, **network)
        self.attention = None

    def attended(self, scales: list[float]) -> list[float]:
        return []


class MaxPooling(AveragePooling):
    """The largest logit of any scale counts, class by class: no weighted sum, so no weights."""

    fusion = "max"
    fold = staticmethod(maximum)


class _AllAtOnce(HMSA):
    """Attention that needs the features of several scales together, of the whole image."""

    tiles = False

    def attended(self, scales: list[float]) -> list[float]:
        return scales


class ExplicitAttention(_AllAtOnce):
    """One weight per scale from the features of all: a fixed list of scales, trained all at once.

    scales: the list, with 1.0 in it. short: two convolutions without norms instead of the paper's
    head. Weights are a softmax over scales or, with `official`, raw as in the official code.
    Source: Chen et al., "Attention to Scale: Scale-aware Semantic Image Segmentation", 2016.
    """

    fusion = "explicit"
    fold = staticmethod(weighted)

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
            raise ValueError(f"explicit attention over {self.scales} needs 1 among its scales")
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
            raise ValueError(f"explicit attention was made for scales {wanted}, not for {got}")
        return super().encode(image, scales)

    def attention_grids(self, encoded: Mapping[float, Encoded]) -> dict[float, Grid]:
        assert self.attention is not None
        whole = encoded[1.0]
        order = [1.0, *(s for s in self.scales if s != 1.0)]
        attention = self.attention(torch.cat([_onto(whole, encoded[s]) for s in order], 1))
        if not self.raw:
            attention = attention.softmax(1)
        weights = zip(encoded, attention.split(1, dim=1), strict=True)
        return {scale: whole.grid(weight) for scale, weight in weights}


class PairAttention(_AllAtOnce):
    """Hierarchical, but the attention of a pair of scales has the features of both as input."""

    fusion = "pair"

    def __init__(self, classes: int, **network: Any) -> None:
        super().__init__(classes, **network)
        width = self.card.network["width"]
        self.attention = predictor(2 * self.head.features, width, 1, self.head.bias)

    def attention_grids(self, encoded: Mapping[float, Encoded]) -> dict[float, Grid]:
        scales, pairs = list(encoded), dict(encoded)
        for lo, hi in itertools.pairwise(scales):
            both = [_onto(encoded[lo], encoded[scale]) for scale in (lo, hi)]
            pairs[lo] = encoded[lo]._replace(features=torch.cat(both, 1))
        pairs[scales[-1]] = encoded[scales[-1]]._replace(features=None)
        return super().attention_grids(pairs)


def _onto(target: Encoded, source: Encoded) -> Tensor:
    """Features of one scale on the grid of another."""
    assert source.features is not None
    assert target.features is not None
    return source.grid(source.features).onto(target.grid(target.features))


FUSIONS: dict[str, type[HMSA]] = {
    kind.fusion: kind
    for kind in (HMSA, AveragePooling, MaxPooling, ExplicitAttention, PairAttention)
}


def build(fusion: str = HMSA.fusion, **network: Any) -> HMSA:
    """The network whose `card.network` this is."""
    if fusion not in FUSIONS:
        raise ValueError(f"fusion {fusion!r} is not one of {', '.join(FUSIONS)}")
    return FUSIONS[fusion](**network)
