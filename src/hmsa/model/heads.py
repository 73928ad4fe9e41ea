"""Heads: feature levels of one scale in, logits out, and the features that attention needs.

Contract: `head(levels, attended, context)` takes the levels of a `Trunk` and returns a `Reading` on
the grid of the finest level. attended: whether the features are needed. A contextual head returns
what it knows of the whole image as `context`, and takes it as an argument when its input is a tile.
Attention over scales is no part of a head: see `HMSA` and `variants`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .fusion import resize

ROWS = 32  # of a band, on the trunk's grid

Levels = list[Tensor]  # of a trunk, finest first
Context = Tensor | None  # what a contextual head knows of the whole image


class Reading(NamedTuple):
    """What a head returns for one scale."""

    features: Tensor | None  # [B,C,h,w], the input of attention; may be None where it is not needed
    logits: Tensor  # [B,K,h,w]
    aux: Tensor | None = None  # [B,K,h,w], logits of an auxiliary head, where there is one
    context: Context = None


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


def predictor(inputs: int, width: int, outputs: int, bias: bool = True) -> nn.Sequential:
    """The paper's form for both heads: 3x3 BN ReLU, 3x3 BN ReLU, 1x1."""
    first, second = ConvBNReLU(inputs, width), ConvBNReLU(width, width)
    return nn.Sequential(first, second, nn.Conv2d(width, outputs, 1, bias=bias))


class Head(nn.Module):
    """The contract above."""

    features: int  # channels of the features that attention needs
    bias = False  # in the last layers, as in the official code
    contextual = False


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

    def forward(self, levels: Levels, attended: bool = True, context: Context = None) -> Reading:
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

    def forward(self, levels: Levels, attended: bool = True, context: Context = None) -> Reading:
        features = torch.cat([resize(level, levels[0].shape[-2:]) for level in levels], 1)
        return Reading(features, self.semantic(features))


class OCRHead(Head):
    """Object-contextual representations: each pixel also gets features of its class's region.

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

    def forward(self, levels: Levels, attended: bool = True, context: Context = None) -> Reading:
        height = levels[0].shape[2]
        exported = torch.compiler.is_exporting()  # bands would then be fixed
        rows = height if self.training or torch.is_grad_enabled() or exported else ROWS
        aux, pixels = by_rows(height, rows, lambda start, stop: self._pixels(levels, start, stop))
        if context is None:
            # The mean of each class's pixels, weighted by how surely they are of it
            share = aux.flatten(2).softmax(2)  # [B,K,hw]
            context = (share @ pixels.flatten(2).transpose(1, 2)).transpose(1, 2)[..., None]
        key, value = (f(context).flatten(2) for f in (self.key, self.value))

        def classify(start: int, stop: int) -> tuple[Tensor, ...]:
            made = self._in_context(pixels[..., start:stop, :], key, value)
            return made if attended else made[:1]

        logits, *features = by_rows(height, rows, classify)
        return Reading(features[0] if attended else None, logits, aux, context)

    def _pixels(self, levels: Levels, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Rows of the auxiliary logits and of the pixels' features, whose 3x3 needs a row more."""
        height, width = levels[0].shape[-2:]
        first, last = max(0, start - 1), min(height, stop + 1)
        stacked = torch.cat([resize_rows(each, (height, width), first, last) for each in levels], 1)
        inner = slice(start - first, stop - first)
        return self.aux(stacked[..., inner, :]), self.pixels(stacked)[..., inner, :]

    def _in_context(self, pixels: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and features of pixels with the context of their region."""
        query = self.query(pixels).flatten(2).transpose(1, 2)
        belongs = (query @ key / query.shape[-1] ** 0.5).softmax(2)  # [B,hw,K]
        context = self.context((value @ belongs.transpose(1, 2)).unflatten(2, pixels.shape[-2:]))
        conv, norm, relu = cast(tuple[nn.Conv2d, nn.Module, nn.Module], tuple(self.merge))
        features = self.dropout(relu(norm(pointwise(conv, [context, pixels]))))
        return self.semantic(features), features


class DeepLabHead(Head):
    """DeepLabV3+: convolutions of the coarsest level at several dilations, beside the finest one.

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

    def forward(self, levels: Levels, attended: bool = True, context: Context = None) -> Reading:
        fine, deep = levels[0], levels[-1]
        if context is None:
            context = deep.mean((2, 3), keepdim=True)
        pooled = self.pooled(context)  # [B,width,1,1], for every place
        deep = pointwise(self.reduce, [pooled, *(branch(deep) for branch in self.dilated)])
        features = torch.cat([self.reduce_fine(fine), resize(deep, fine.shape[-2:])], 1)
        return Reading(features, self.semantic(features), context=context)


def by_rows(
    height: int, rows: int, make: Callable[[int, int], tuple[Tensor, ...]]
) -> tuple[Tensor, ...]:
    """Maps of `height` rows, made by `make(start, stop)` in bands of `rows`.

    No second copy of the bands is kept: the stacked levels, and what is made of them, are by far
    the largest maps of a network.
    """
    if height <= rows:
        return make(0, height)
    whole: list[Tensor] = []
    for start in range(0, height, rows):
        stop = min(height, start + rows)
        for index, part in enumerate(make(start, stop)):
            if not start:
                like = part[:, :, :1].expand(-1, -1, height, -1)
                whole.append(torch.empty_like(like, memory_format=torch.channels_last))
            whole[index][:, :, start:stop] = part
            del part  # before the next band is made
    return tuple(whole)


def resize_rows(maps: Tensor, size: Sequence[int], start: int, stop: int) -> Tensor:
    """Rows start:stop of `resize(maps, size)`, computed from the rows that they need."""
    if (start, stop) == (0, size[0]):
        return resize(maps, size)
    rows, lerp = interpolation(maps.shape[2], size[0], start, stop)
    return resize(lerp(maps[..., rows, :], -2), (stop - start, size[1]))


def interpolation(
    before: int, after: int, start: int, stop: int
) -> tuple[slice, Callable[[Tensor, int], Tensor]]:
    """Cells start:stop of a bilinear resize of an axis from `before` to `after` cells.

    Returns the cells that they need, and the function that makes them: (part, axis) -> part.
    """
    at = (torch.arange(start, stop, dtype=torch.float64) + 0.5) * (before / after) - 0.5
    at = at.clamp(0, before - 1)
    first, last = int(at[0]), math.ceil(at[-1].item()) + 1
    low = at.long() - first
    high = (low + 1).clamp(max=last - first - 1)

    def lerp(part: Tensor, axis: int) -> Tensor:
        weight = at.frac().to(part).view(-1, *[1] * (-1 - axis))
        one, other = (part.index_select(axis, i.to(part.device)) for i in (low, high))
        return one.lerp(other, weight)

    return slice(first, last), lerp


def pointwise(conv: nn.Conv2d, parts: list[Tensor]) -> Tensor:
    """A 1x1 convolution without bias of stacked maps, unstacked: no copy is kept for backward.

    parts `[B,C_i,h,w]`, the C_i adding up to the convolution's inputs; a part of 1x1 is everywhere.
    """
    weights = conv.weight.split([part.shape[1] for part in parts], dim=1)
    first, *others = (F.conv2d(part, w) for part, w in zip(parts, weights, strict=True))
    for each in others:
        first = first + each
    return first
