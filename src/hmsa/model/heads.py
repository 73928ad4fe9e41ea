"""Heads: feature levels of one scale in, logits out, and the features that attention looks at.

Contract: `head(levels, attended, context)` takes the levels of a `Trunk` and returns a `Reading` on
the grid of the finest level; attended: whether attention will look at it. A head that knows
something of the whole image, its context, says it in its reading and, of a part of the image, takes
it from there. Attention over scales is no part of a head: see `HMSA` and its rivals.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .bands import Resized, Whole, bands

ROWS = 32  # of a band, on the trunk's grid


class Reading(NamedTuple):
    """What a head says of one scale."""

    features: Tensor | None  # [B,C,h,w], what attention looks at; may be None where it does not
    logits: Tensor  # [B,K,h,w]
    aux: Tensor | None = None  # [B,K,h,w], logits of an auxiliary head, where there is one
    context: Tensor | None = None  # what it knows of the whole image, if it is contextual


class ConvBNReLU(nn.Sequential):
    """kxk convolution, batch norm, ReLU: `[B,inputs,h,w]` -> `[B,outputs,h,w]`."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 3, dilation: int = 1, bias: bool = False
    ) -> None:
        padding = dilation * (kernel // 2)
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, 1, padding, dilation, bias=bias),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        )

    def of_parts(self, parts: list[Tensor]) -> Tensor:
        """The same of `torch.cat(parts, 1)`, where the kernel is 1x1; see `pointwise`."""
        conv, norm, relu = cast(tuple[nn.Conv2d, nn.Module, nn.Module], tuple(self))
        return cast(Tensor, relu(norm(pointwise(conv, parts))))


def predictor(inputs: int, width: int, outputs: int, bias: bool = True) -> nn.Sequential:
    """The paper's form for both heads: 3x3 BN ReLU, 3x3 BN ReLU, 1x1."""
    return nn.Sequential(
        ConvBNReLU(inputs, width),
        ConvBNReLU(width, width),
        nn.Conv2d(width, outputs, 1, bias=bias),
    )


class Head(nn.Module):
    """The contract above."""

    features: int  # channels that attention looks at
    bias = False  # in the last layers, as in the official code
    contextual = False

    def forward(
        self, levels: list[Tensor], attended: bool = True, context: Tensor | None = None
    ) -> Reading:
        raise NotImplementedError


class PlainHead(Head):
    """Levels summed on the finest grid, then the paper's semantic predictor."""

    bias = True

    def __init__(self, channels: list[int], classes: int, width: int = 128) -> None:
        super().__init__()
        # A 1x1 convolution of the concatenated levels, written as a sum: it commutes with bilinear
        # resizing, so each level is reduced to `width` on its own small grid first.
        self.reduce = nn.ModuleList(nn.Conv2d(c, width, 1, bias=False) for c in channels)
        self.norm = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(inplace=True))
        self.semantic = predictor(width, width, classes)
        self.features = width

    def forward(
        self, levels: list[Tensor], attended: bool = True, context: Tensor | None = None
    ) -> Reading:
        grid = levels[0].shape[-2:]
        reduced = [reduce(level) for reduce, level in zip(self.reduce, levels, strict=True)]
        features = self.norm(sum(resize(level, grid) for level in reduced))
        return Reading(features, self.semantic(features))


class StackedHead(Head):
    """Levels stacked on the finest grid as they are: the official code's head without OCR."""

    def __init__(self, channels: list[int], classes: int, width: int = 256) -> None:
        super().__init__()
        self.features = sum(channels)
        self.semantic = predictor(self.features, width, classes, bias=False)

    def forward(
        self, levels: list[Tensor], attended: bool = True, context: Tensor | None = None
    ) -> Reading:
        features = torch.cat([resize(level, levels[0].shape[-2:]) for level in levels], 1)
        return Reading(features, self.semantic(features))


class OCRHead(Head):
    """Object-contextual representations: each pixel also sees the regions that it belongs to.

    Source: Yuan, Chen, Wang, "Object-Contextual Representations for Semantic Segmentation", 2020,
    with the numbers of the official multi-scale attention code.
    Context: one vector per class, `[B,2*width,K,1]`.
    """

    contextual = True

    def __init__(self, channels: list[int], classes: int, width: int = 256) -> None:
        super().__init__()
        inputs, middle = sum(channels), 2 * width
        self.aux = nn.Sequential(
            ConvBNReLU(inputs, inputs, 1, bias=True), nn.Conv2d(inputs, classes, 1)
        )
        self.pixels = ConvBNReLU(inputs, middle, bias=True)
        self.query = nn.Sequential(ConvBNReLU(middle, width, 1), ConvBNReLU(width, width, 1))
        self.key = nn.Sequential(ConvBNReLU(middle, width, 1), ConvBNReLU(width, width, 1))
        self.value = ConvBNReLU(middle, width, 1)
        self.context = ConvBNReLU(width, middle, 1)
        self.merge = ConvBNReLU(2 * middle, middle, 1)
        self.dropout = nn.Dropout2d(0.05)
        self.semantic = nn.Conv2d(middle, classes, 1)
        self.features = middle

    def forward(
        self, levels: list[Tensor], attended: bool = True, context: Tensor | None = None
    ) -> Reading:
        grid = levels[0].shape[-2:]
        # While nothing is to be learnt, everything goes by bands of rows: the stacked levels, and
        # what is made of them, are by far the largest maps of the network.
        learning = self.training or torch.is_grad_enabled()
        cuts = list(bands(grid[0], grid[0] if learning else ROWS))
        aux, pixels = together(grid[0], (self._pixels(levels, cut) for cut in cuts))
        if context is None:
            # The mean of each class's pixels, weighted by how surely they are of it
            share = aux.flatten(2).softmax(2)  # [B,K,hw]
            context = (share @ pixels.flatten(2).mT).mT[..., None]
        key, value = self.key(context).flatten(2), self.value(context).flatten(2).mT
        logits, *features = together(
            grid[0],
            (self._in_context(pixels[..., a:b, :], key, value, attended) for a, b in cuts),
        )
        return Reading(features[0] if attended else None, logits, aux, context)

    def _pixels(self, levels: list[Tensor], band: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Rows of the auxiliary logits, and of the pixels' features, which see a row beyond."""
        height, width = levels[0].shape[-2:]
        start, stop = band
        first, last = max(0, start - 1), min(height, stop + 1)
        stacked = torch.cat(
            [Resized(Whole(level), (height, width)).rows(first, last) for level in levels], 1
        )
        inner = slice(start - first, stop - first)
        return self.aux(stacked[..., inner, :]), self.pixels(stacked)[..., inner, :]

    def _in_context(
        self, pixels: Tensor, key: Tensor, value: Tensor, attended: bool
    ) -> tuple[Tensor, ...]:
        """Logits and, if need be, features of pixels that know what region they belong to."""
        query = self.query(pixels).flatten(2).mT
        belongs = (query @ key / query.shape[-1] ** 0.5).softmax(2)  # [B,hw,K]
        context = self.context((belongs @ value).mT.unflatten(2, pixels.shape[-2:]))
        features = self.dropout(self.merge.of_parts([context, pixels]))
        logits = self.semantic(features)
        return (logits, features) if attended else (logits,)


class DeepLabHead(Head):
    """DeepLabV3+: the coarsest level seen at several dilations, beside the finest one.

    Source: Chen et al., "Encoder-Decoder with Atrous Separable Convolution for Semantic Image
    Segmentation", 2018, with the numbers of the official multi-scale attention code.
    Context: the mean of the coarsest level, `[B,C,1,1]`.
    """

    contextual = True
    RATES = (12, 24, 36)  # for a trunk dilated to stride 8
    FINE = 48  # channels that the finest level is reduced to

    def __init__(self, channels: list[int], classes: int, width: int = 256) -> None:
        super().__init__()
        deep = channels[-1]
        self.pooled = ConvBNReLU(deep, width, 1)
        self.dilated = nn.ModuleList(
            [ConvBNReLU(deep, width, 1), *(ConvBNReLU(deep, width, 3, r) for r in self.RATES)]
        )
        self.reduce = nn.Conv2d(width * (len(self.RATES) + 2), width, 1, bias=False)
        self.reduce_fine = nn.Conv2d(channels[0], self.FINE, 1, bias=False)
        self.features = self.FINE + width
        self.semantic = predictor(self.features, width, classes, bias=False)

    def forward(
        self, levels: list[Tensor], attended: bool = True, context: Tensor | None = None
    ) -> Reading:
        fine, deep = levels[0], levels[-1]
        if context is None:
            context = deep.mean((2, 3), keepdim=True)
        pooled = self.pooled(context)  # [B,width,1,1], for every place
        seen = pointwise(self.reduce, [pooled, *(branch(deep) for branch in self.dilated)])
        features = torch.cat([self.reduce_fine(fine), resize(seen, fine.shape[-2:])], 1)
        return Reading(features, self.semantic(features), context=context)


def together(height: int, parts: Iterable[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Bands of rows of some maps as those maps, with no second copy of the bands."""
    done, whole = 0, None
    for part in parts:
        rows = part[0].shape[2]
        if rows == height:
            return part
        if whole is None:
            whole = tuple(
                each.new_empty(*each.shape[:2], height, each.shape[3]).contiguous(
                    memory_format=torch.channels_last
                )
                for each in part
            )
        for target, each in zip(whole, part, strict=True):
            target[:, :, done : done + rows] = each
        done += rows
    assert whole is not None
    return whole


def pointwise(conv: nn.Conv2d, parts: list[Tensor]) -> Tensor:
    """A 1x1 convolution without bias of stacked maps, unstacked: no copy is kept for backward.

    parts `[B,C_i,h,w]`, the C_i adding up to the convolution's inputs; a part of 1x1 is everywhere.
    """
    weights = conv.weight.split([part.shape[1] for part in parts], dim=1)
    first, *others = (F.conv2d(part, w) for part, w in zip(parts, weights, strict=True))
    for each in others:
        first = first + each
    return first


def resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    """R: bilinear, corners not aligned; `[B,C,h,w]` -> `[B,C,*size]`, itself if it fits already."""
    if maps.shape[-2:] == tuple(size):
        return maps
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)
