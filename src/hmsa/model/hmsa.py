"""The network: trunk and head at each scale, attention, and the fold of `fusion`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .fusion import Fold, ScaleOutput, chain, effective_weights, ordered, resize, wide
from .heads import DeepLabHead, Head, OCRHead, PlainHead, Reading, StackedHead, predictor
from .pretrained import Card, Pretrained
from .trunk import Trunk

Size = tuple[int, int]  # height, width


class Grid(NamedTuple):
    """Maps on the trunk's grid, and the pixels that the grid stands for."""

    maps: Tensor  # [B,C,h,w]
    padded: Size
    size: Size  # of the image at this scale, without the padding

    def pixels(self, channels: slice = slice(None), size: Size | None = None) -> Tensor:
        """Some channels at each pixel of the image at this scale, `[B,C,*self.size]`.

        With `size`, these resized once more: one axis after the other, so that a map of scale 2
        never exists in full; but for rounding the result is the same.
        """
        maps, (height, width) = wide(self.maps[:, channels]), self.size
        if size is None or size == self.size:
            return resize(maps, self.padded)[..., :height, :width]
        cells = maps.shape[2]
        if (height, width) == (2 * size[0], 2 * size[1]) and self._by_fours():
            # Each result is the mean of two pixels between the same two cells: one step leads there
            half = self.padded[0] // 2, self.padded[1] // 2
            return resize(maps, half)[..., : size[0], : size[1]]
        maps = resize(resize(maps, (cells, self.padded[1]))[..., :width], (cells, size[1]))
        return resize(resize(maps, (self.padded[0], size[1]))[..., :height, :], size)

    def _by_fours(self) -> bool:
        """Whether a cell is a multiple of four pixels, in height and in width."""
        cells = self.maps.shape[-2:]
        return not any(n % (4 * m) for n, m in zip(self.padded, cells, strict=True))

    def onto(self, target: Grid) -> Tensor:
        """On the grid of another scale, `[B,C,h,w]`, place by place of the image; both grids may
        reach past it, each by its own padding."""
        grid = target.maps.shape[-2:]
        reach = [
            max(1, round(cells * padded * size / (whole * own)))
            for cells, padded, size, whole, own in zip(
                grid, self.padded, target.size, target.padded, self.size, strict=True
            )
        ]
        maps = resize(self.maps, reach)[..., : grid[0], : grid[1]]
        down, right = (n - m for n, m in zip(grid, maps.shape[-2:], strict=True))
        return F.pad(maps, (0, right, 0, down), "replicate") if down or right else maps


class Encoded(NamedTuple):
    """One scale before attention, on the trunk's grid: all that the network has to compute."""

    features: Tensor | None  # [B,C,h,w]; None at the finest scale, which needs no attention
    logits: Tensor  # [B,K,h,w]
    aux: Tensor | None  # [B,K,h,w]
    padded: Size  # pixels that the grid stands for
    size: Size  # of the image at this scale, without the padding

    def grid(self, maps: Tensor) -> Grid:
        """`maps`, which lie on the same grid as the logits."""
        return Grid(maps, self.padded, self.size)


class Attended(NamedTuple):
    """One scale after attention, on the trunk's grid."""

    logits: Grid  # K channels
    attention: Grid | None  # in (0,1); None at the finest scale
    aux: Grid | None  # K channels


class Output(NamedTuple):
    """What `HMSA.forward` returns: small maps, of which pixels are made on access.

    Fusion acts on each class by itself: `channels` are the classes to make, by default all.
    """

    scales: dict[float, Attended]  # ascending
    size: Size  # of the image
    fold: Fold = chain

    @property
    def logits(self) -> Tensor:
        """Fused, `[B,K,*self.size]`."""
        return self.fused()

    @property
    def maps(self) -> dict[float, ScaleOutput]:
        """Of each scale, on the grid of the image at that scale."""
        return self._maps(slice(None))

    def fused(self, channels: slice = slice(None)) -> Tensor:
        return self.fold(self._maps(channels), self.size)

    def aux(self) -> Output | None:
        """The same for auxiliary logits, fused by the same attention; None without that head."""
        scales = {s: one._replace(logits=one.aux) for s, one in self.scales.items() if one.aux}
        return self._replace(scales=scales) if scales else None

    @property
    def classes(self) -> int:
        return next(iter(self.scales.values())).logits.maps.shape[1]

    def weights(self) -> dict[float, Tensor]:
        """Effective weight `[B,1,*self.size]` of each scale in the logits."""
        attention = [one.attention for one in self.scales.values() if one.attention]
        needed = max([1, *(grid.maps.shape[1] for grid in attention)])
        return effective_weights(self._maps(slice(0, needed)), self.size, self.fold)

    def _maps(self, channels: slice) -> dict[float, ScaleOutput]:
        def trust(grid: Grid | None) -> Tensor | None:  # of all classes together, or of each
            return grid and grid.pixels(slice(None) if grid.maps.shape[1] == 1 else channels)

        return {
            scale: ScaleOutput(one.logits.pixels(channels), trust(one.attention))
            for scale, one in self.scales.items()
        }


HEADS: dict[str, Callable[[list[int], int, int], Head]]
HEADS = {"plain": PlainHead, "stacked": StackedHead, "ocr": OCRHead, "deeplab": DeepLabHead}


class HMSA(Pretrained):
    """One network for every scale; `forward` folds any list of them.

    classes: K. trunk, pretrained, stride, official: see `Trunk`. head: a key of `HEADS`.
    width: channels inside the head; the paper has 256.
    mean, std: per channel of an RGB image in 0..1; default: as the trunk's ImageNet weights want
    them. They are buffers, so that they travel with the weights. in_channels: of images; 3 for RGB.
    """

    fusion = "hierarchical"
    tiles = True  # whether tiles of an image may be computed one by one
    fold: Fold = staticmethod(chain)
    maps = 1  # of attention: one for all classes, or K
    classes: int
    trunk: Any  # image -> what the head takes; has `multiple` and `strides`
    head: Head
    attention: nn.Sequential | None  # [B,features,h,w] -> [B,maps,h,w], before its sigmoid
    mean: Tensor
    std: Tensor
    prior: Tensor  # [2], of attention before its sigmoid: at scale 1, and more at each doubling

    def __init__(
        self,
        classes: int,
        trunk: str = "hrnet_w18_small_v2",
        pretrained: bool | str = False,
        stride: int = 4,
        head: str = "plain",
        width: int = 128,
        official: bool = False,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if head not in HEADS:
            raise ValueError(f"head {head!r} is not one of {', '.join(HEADS)}")
        # What rebuilds it, but for the weights that it began with
        self.card = Card(
            network={
                "fusion": self.fusion, "classes": classes, "trunk": trunk, "stride": stride,
                "head": head, "width": width, "official": official,
            } | ({"in_channels": in_channels} if in_channels != 3 else {}),
            names=[f"class {k}" for k in range(classes)],
        )  # fmt: skip
        self.classes = classes
        # DeepLab's decoder wants the fine level beside the dilated ones
        finest = 4 if head == "deeplab" else None
        levels = Trunk(trunk, pretrained, stride, finest, official, in_channels)
        self.trunk, self.head = levels, HEADS[head](levels.channels, classes, width)
        self.attention = predictor(self.head.features, width, 1, self.head.bias)
        self._register(mean or levels.mean, std or levels.std)
        if levels.origin:
            self.card.trained_on = {"trunk": levels.origin}

    def _register(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Numbers that travel with the weights and are not learned by gradients."""
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("prior", torch.zeros(2))
        self.register_load_state_dict_pre_hook(_without_prior)

    @property
    def channels(self) -> int:
        """Of the images that it takes."""
        return self.mean.shape[1]

    def forward(self, image: Tensor, scales: Sequence[float] = (1.0,)) -> Output:
        """image `[B,3,H,W]`, uint8 or float in 0..1, any size; scales in any order, any number.

        The paper trains with (0.5, 1.0); inference chains any list. Raises ValueError for a scale
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
        """Those of the ascending `scales` whose features attention needs: all but the finest."""
        return scales[:-1]

    def attend(self, encoded: Mapping[float, Encoded], size: Sequence[int]) -> Output:
        """The cheap half: the attention head on what `encode` returned; the fold is left to do."""
        attention = self.attention_grids(encoded)
        scales = {}
        for scale, one in encoded.items():
            aux = None if one.aux is None else one.grid(one.aux)
            scales[scale] = Attended(one.grid(one.logits), attention.get(scale), aux)
        height, width = size
        return Output(scales, (height, width), self.fold)

    def attention_grids(self, encoded: Mapping[float, Encoded]) -> dict[float, Grid]:
        """The attention of each scale that has one, in (0,1), `[B,maps,h,w]`."""
        grids = {}
        for scale, one in encoded.items():
            if self.attention and one.features is not None:
                trust = self.attention(one.features)
                if not torch.is_grad_enabled():  # in training, autocast's precision is enough
                    trust = wide(trust)
                trust = trust + self.prior[0] + math.log2(scale) * self.prior[1]
                grids[scale] = one.grid(resize(torch.sigmoid(trust), one.logits.shape[-2:]))
        return grids

    def normalise(self, image: Tensor) -> Tensor:
        if image.dtype == torch.uint8:
            image = image.to(self.mean.dtype).div_(255)
        return (image.to(self.mean.dtype) - self.mean).div_(self.std)

    def at_scale(self, image: Tensor, scale: float, attended: bool = True) -> Encoded:
        """image `[B,3,H,W]`, normalised: trunk and head at one scale."""
        size, padded = self.frame(image.shape[-2:], scale)
        beyond = (0, padded[1] - size[1], 0, padded[0] - size[0])
        reading = self.see(F.pad(resize(image, size), beyond, "replicate"), attended)
        # Auxiliary logits serve training alone
        aux = reading.aux if self.training else None
        features = reading.features if attended else None
        return Encoded(features, reading.logits, aux, padded, size)

    def frame(self, size: Sequence[int], scale: float) -> tuple[Size, Size]:
        """Pixels of an image of `size` at one scale; the same padded to what the trunk takes."""
        height, width = (max(1, math.floor(n * scale)) for n in size)
        return (height, width), (height + -height % self.multiple, width + -width % self.multiple)

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


def _without_prior(model: HMSA, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Checkpoints by older versions, and official ones, have no prior: it adds nothing."""
    state.setdefault(f"{prefix}prior", torch.zeros_like(model.prior))
