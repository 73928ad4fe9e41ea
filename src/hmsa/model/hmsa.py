"""Hierarchical multi-scale attention: the idea of the paper on one screen.

Source: Tao, Sapra, Catanzaro, "Hierarchical Multi-Scale Attention for Semantic Segmentation",
arXiv 2005.10821, equation 1 and figure 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from ..runs.errors import InputError
from .bands import Node, Size
from .gate import Gate
from .heads import DeepLabHead, Head, OCRHead, PlainHead, Reading, StackedHead, predictor, resize
from .look import Look, Seen, chain_of, look, wide
from .pretrained import Card, Pretrained
from .tiles import Source, Tiling
from .trunk import Trunk


class ScaleOutput(NamedTuple):
    """One scale's say in the fusion, on the grid of the image at that scale."""

    logits: Tensor  # [B,K,h,w]
    attention: Tensor | None  # [B,1,h,w] in (0,1): trust in this scale against the next finer one;
    # [B,K,h,w] where each class has its own
    aux: Tensor | None = None  # [B,K,h,w], of the auxiliary head where there is one


def fuse(lo: Tensor, attention: Tensor, hi: Tensor, size: Sequence[int]) -> Tensor:
    """R(attention * lo) + (1 - R(attention)) * R(hi), with R = bilinear resize to `size`.

    lo `[B,K,h,w]`, attention `[B,1,h,w]` in (0,1), hi `[B,K,H,W]` -> `[B,K,*size]`.
    """
    return resize(attention * lo, size) + (1 - resize(attention, size)) * resize(hi, size)


def chain(maps: Mapping[float, ScaleOutput], size: Sequence[int]) -> Tensor:
    """Fold any number of scales into one map `[B,K,*size]`, the image's size.

    Each fusion happens on the grid of the scale nearest to the image's own: a scale of 1 or more
    brings the finer result down to its grid, a smaller one is brought up to the finer result.
    """
    finest, *coarser = sorted(maps, reverse=True)
    fused = maps[finest].logits
    for scale in coarser:
        lo, attention = maps[scale].logits, maps[scale].attention
        assert attention is not None, f"scale {scale} was computed without attention"
        fused = fuse(lo, attention, fused, lo.shape[-2:] if scale >= 1 else fused.shape[-2:])
    return resize(fused, size)


Fold = Callable[[Mapping[float, ScaleOutput], Sequence[int]], Tensor]


def effective_weights(
    maps: Mapping[float, ScaleOutput], size: Sequence[int], fold: Fold = chain
) -> dict[float, Tensor]:
    """What share of the fused result each scale holds, `[B,1,*size]` each; a chain's sum to 1.

    A chain is linear in its logits, so its weights are what it makes of indicator maps:
    channel i is 1 at scale i and 0 at every other scale. Where each class has an attention of its
    own, so has it such channels, and the weight is the mean over classes.
    """
    attention = [one.attention for one in maps.values() if one.attention is not None]
    count, each = len(maps), attention[0].shape[1] if attention else 1
    indicators = {}
    for index, (scale, one) in enumerate(maps.items()):
        b, _, h, w = one.logits.shape
        indicator = one.logits.new_zeros(b, count, each, h, w)
        indicator[:, index] = 1
        trust = one.attention
        if trust is not None and each > 1:
            trust = trust.repeat(1, count, 1, 1)
        indicators[scale] = ScaleOutput(indicator.flatten(1, 2), trust)
    weights = fold(indicators, size).unflatten(1, (count, each)).mean(2)
    return dict(zip(maps, weights.split(1, dim=1), strict=True))


class Encoded(NamedTuple):
    """One scale before attention, on the trunk's grid: all that the network has to compute."""

    features: Tensor | None  # [B,C,h,w]; None at the finest scale, which needs no attention
    logits: Tensor  # [B,K,h,w]
    aux: Tensor | None  # [B,K,h,w]
    padded: tuple[int, int]  # pixels that the grid stands for
    size: tuple[int, int]  # of the image at this scale, without the padding


class Output(NamedTuple):
    """What `HMSA.forward` returns."""

    logits: Tensor  # [B,K,H,W] on the image's grid
    maps: dict[float, ScaleOutput]  # per scale, ascending, on the grid of the image at that scale
    fold: Fold = chain  # what made the logits of the maps

    def aux(self) -> Tensor | None:
        """Auxiliary logits `[B,K,H,W]`, fused by the same attention; None without that head."""
        aux = {s: m._replace(logits=m.aux) for s, m in self.maps.items() if m.aux is not None}
        return self.fold(aux, self.logits.shape[-2:]) if aux else None

    def weights(self) -> dict[float, Tensor]:
        """Effective weight `[B,1,H,W]` of each scale in the logits."""
        return effective_weights(self.maps, self.logits.shape[-2:], self.fold)


HEADS: dict[str, Callable[[list[int], int, int], Head]] = {
    "plain": PlainHead,
    "stacked": StackedHead,
    "ocr": OCRHead,
    "deeplab": DeepLabHead,
}


class HMSA(Pretrained):
    """One network for every scale; `forward` folds any list of them.

    classes: K. trunk, pretrained, stride, official: see `Trunk`. head: a key of `HEADS`.
    width: channels inside the head; the paper has 256.
    mean, std: per channel of an RGB image in 0..1; buffers, so that they travel with the weights.
    """

    fusion = "hierarchical"
    tiles = True  # whether an image may be seen in parts
    fold: Fold = staticmethod(chain)
    # The same of what is made row by row
    by_rows: Callable[[Mapping[float, Seen], Size], Node] = staticmethod(chain_of)
    maps = 1  # of attention: one for all classes, or K
    classes: int
    trunk: Any  # image -> what the head takes; has `multiple` and `strides`
    head: Head
    attention: nn.Sequential | None  # [B,features,h,w] -> [B,maps,h,w], before its sigmoid
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        classes: int,
        trunk: str = "hrnet_w18_small_v2",
        pretrained: bool | str = False,
        stride: int = 4,
        head: str = "plain",
        width: int = 128,
        official: bool = False,
        mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
        std: Sequence[float] = IMAGENET_DEFAULT_STD,
    ) -> None:
        super().__init__()
        if head not in HEADS:
            raise InputError(f"head {head!r} is not one of {', '.join(HEADS)}")
        # What rebuilds it, but for the weights that it began with
        self.card = Card(
            network={
                "fusion": self.fusion, "classes": classes, "trunk": trunk, "stride": stride,
                "head": head, "width": width, "official": official,
            },
            names=[f"class {k}" for k in range(classes)],
        )  # fmt: skip
        self.classes = classes
        # DeepLab's decoder wants the fine level beside the dilated ones
        levels = Trunk(trunk, pretrained, stride, 4 if head == "deeplab" else None, official)
        self.trunk, self.head = levels, HEADS[head](levels.channels, classes, width)
        self.attention = predictor(self.head.features, width, 1, self.head.bias)
        self._normalise_by(mean, std)

    def _normalise_by(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, 3, 1, 1))

    def forward(self, image: Tensor, scales: Sequence[float] = (1.0,)) -> Output:
        """image `[B,3,H,W]`, uint8 or float in 0..1, any size; scales in any order, any number.

        The paper trains with (0.5, 1.0); inference chains any list. Raises InputError for a scale
        that is not a positive number.
        """
        return self.attend(self.encode(image, scales), image.shape[-2:])

    def encode(self, image: Tensor, scales: Sequence[float]) -> dict[float, Encoded]:
        """The expensive half of `forward`: trunk and semantic head at each scale."""
        image = self.normalise(image)
        # Coarse before fine: the coarse pass knows what the finer ones will weigh.
        scales = ordered(scales)
        attended = self.attended(scales)
        return {scale: self.at_scale(image, scale, scale in attended) for scale in scales}

    def attended(self, scales: list[float]) -> list[float]:
        """Those of the ascending `scales` whose features attention looks at: all but the finest."""
        return scales[:-1]

    def attend(self, encoded: Mapping[float, Encoded], size: Sequence[int]) -> Output:
        """The cheap half: the attention head on what `encode` saw, then the chain to `size`."""
        maps = {}
        for scale, seen in encoded.items():
            attention = None
            if self.attention and seen.features is not None:
                attention = torch.sigmoid(self.attention(seen.features))
                attention = to_pixels(resize(attention, seen.logits.shape[-2:]), seen)
            aux = None if seen.aux is None else to_pixels(seen.aux, seen)
            maps[scale] = ScaleOutput(to_pixels(seen.logits, seen), attention, aux)
        return Output(self.fold(maps, size), maps, self.fold)

    def look(
        self,
        source: Source,
        scales: Sequence[float],
        tiling: Tiling | None = None,
        gate: Gate | None = None,
    ) -> Look:
        """`forward` without a gradient to come, in rows that are made when they are asked for: in
        little memory, of an image of any size, and of finer scales what the gate chooses alone."""
        return look(self, source, ordered(scales), tiling, gate)

    def normalise(self, image: Tensor) -> Tensor:
        if image.dtype == torch.uint8:
            image = image.to(self.mean.dtype) / 255
        return (image.to(self.mean.dtype) - self.mean) / self.std

    def at_scale(self, image: Tensor, scale: float, attended: bool = True) -> Encoded:
        """image `[B,3,H,W]`, normalised: trunk and head at one scale."""
        h, w = (max(1, math.floor(n * scale)) for n in image.shape[-2:])
        image = resize(image, (h, w))
        down, right = -h % self.multiple, -w % self.multiple
        seen = self.see(F.pad(image, (0, right, 0, down), "replicate"), attended)
        # Auxiliary logits serve training alone
        aux = seen.aux if self.training else None
        features = seen.features if attended else None
        return Encoded(features, seen.logits, aux, (h + down, w + right), (h, w))

    def see(self, image: Tensor, attended: bool = True, context: Tensor | None = None) -> Reading:
        """image `[B,3,h,w]`, normalised and padded; context: see `Head`."""
        return self.head(self.trunk(image), attended, context)  # type: ignore[no-any-return]

    @property
    def multiple(self) -> int:
        """What height and width of an image are padded to a multiple of."""
        multiple: int = self.trunk.multiple
        return multiple

    @property
    def strides(self) -> tuple[int, int]:
        """Pixels a cell, of the logits and of the coarsest level that they are made of."""
        return self.trunk.strides[0], max(self.trunk.strides)


def to_pixels(maps: Tensor, seen: Encoded) -> Tensor:
    """From the trunk's grid to the pixels of the image at this scale, padding cut off."""
    h, w = seen.size
    return resize(wide(maps), seen.padded)[..., :h, :w]


def ordered(scales: Sequence[float]) -> list[float]:
    """Ascending, each once. Raises InputError for none, or for one that is no positive number."""
    if not scales:
        raise InputError("scales: none given; give one or more positive numbers, such as 0.5,1,2")
    for scale in scales:
        if not (isinstance(scale, int | float) and math.isfinite(scale) and scale > 0):
            raise InputError(f"scales: {scale!r} is not a positive number; try 0.5,1,2")
    return sorted({float(s) for s in scales})
