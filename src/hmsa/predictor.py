"""Predictor: uint8 picture -> uint8 label and confidence. The one inference path.

Knows nothing of datasets, palettes, metrics or pages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from .data.images import read_image, to_rgb
from .model import HMSA, Output, average, maximum
from .model.bands import bands
from .model.heads import resize
from .model.hmsa import ordered
from .runtime import Precision, autocast, best_device

ROWS = 64  # of a band, in pixels of the picture


@dataclass(frozen=True)
class Segmentation:
    """What was seen. With `detail`, also what each scale saw by itself and how far it counted."""

    label: NDArray[np.uint8]  # [H,W] class indices
    confidence: NDArray[np.uint8]  # [H,W] floor(255 * softmax maximum)
    single: dict[float, NDArray[np.uint8]] = field(default_factory=dict)  # scale -> label
    pooled: dict[str, NDArray[np.uint8]] = field(default_factory=dict)  # "average", "max" -> label
    # scale -> [H,W], 0..1; none for a network that pools by maximum, where no scale has a weight
    weights: dict[float, NDArray[np.float32]] = field(default_factory=dict)
    probabilities: NDArray[np.float16] | None = None  # [K,H,W]
    entropy: NDArray[np.uint8] | None = None  # [H,W] floor(255 * entropy / log K)


class Predictor:
    """A network with a chain of scales, a device and a precision.

    scales: any positive numbers. flip: also look at the mirrored picture, and average the logits.
    long_edge: bring a picture to this many pixels first; labels come back at its own size.
    precision: "auto" is bf16 where the device is fast at it.
    """

    def __init__(
        self,
        model: HMSA,
        scales: Sequence[float],
        precision: Precision = "auto",
        device: torch.device | str | None = None,
        flip: bool = False,
        long_edge: int | None = None,
    ) -> None:
        self.scales, self.flip, self.long_edge = ordered(scales), flip, long_edge
        self.device = torch.device(device) if device else best_device()
        self.precision = precision
        self.model = model.to(self.device).to(memory_format=torch.channels_last).eval()

    @classmethod
    def load(
        cls,
        source: Path | str,
        scales: Sequence[float] | None = None,
        precision: Precision = "auto",
        flip: bool | None = None,
        device: torch.device | str | None = None,
    ) -> Predictor:
        """source: as `HMSA.from_pretrained` takes it; scales and flip: those it was made for."""
        model = HMSA.from_pretrained(source)
        card = model.card
        flip = card.flip if flip is None else flip
        return cls(model, scales or card.scales, precision, device, flip, card.long_edge)

    @torch.inference_mode()
    def __call__(
        self, image: Path | str | Image.Image | NDArray[np.uint8], detail: bool = False
    ) -> Segmentation:
        """image: a file, a Pillow image, or `[H,W,3]` uint8 RGB; any size."""
        if isinstance(image, Path | str):
            image = read_image(Path(image))
        elif isinstance(image, Image.Image):
            image = to_rgb(image)
        size = image.shape[:2]
        pixels = torch.from_numpy(image).to(self.device).permute(2, 0, 1)[None]
        if self.long_edge:
            factor = self.long_edge / max(size)
            grid = [max(1, round(side * factor)) for side in size]
            pixels = F.interpolate(pixels.float() / 255, grid, mode="bilinear", antialias=True)
        passes = [pixels, pixels.flip(-1)] if self.flip else [pixels]
        if not detail and self.model.fusion == HMSA.fusion:
            return self._in_bands(passes, size)
        return self._whole([self._look(each) for each in passes], size, detail)

    def _in_bands(self, passes: list[Tensor], size: tuple[int, int]) -> Segmentation:
        """Logits of a few rows at a time; those of the whole picture never exist."""
        with autocast(self.device, self.precision):
            nodes = [self.model.banded(each, self.scales, size) for each in passes]
        found = Segmentation(np.empty(size, np.uint8), np.empty(size, np.uint8))
        for start, stop in bands(size[0], ROWS):
            logits = [node.rows(start, stop) for node in nodes]
            _decide(_mean(logits), found, slice(start, stop))
        return found

    def _whole(self, passes: list[Output], size: tuple[int, int], detail: bool) -> Segmentation:
        def mean(maps: list[Tensor]) -> Tensor:  # one of each pass
            return _mean([resize(each, size) for each in maps])

        found = Segmentation(np.empty(size, np.uint8), np.empty(size, np.uint8))
        _decide(mean([seen.logits for seen in passes]), found, slice(None))
        if not detail:
            return found
        for scale in self.scales:
            alone = mean([seen.maps[scale].logits for seen in passes])
            found.single[scale] = _to_uint8(alone.argmax(1))
        for name, fold in (("average", average), ("max", maximum)):
            pooled = mean([fold(seen.maps, seen.logits.shape[-2:]) for seen in passes])
            found.pooled[name] = _to_uint8(pooled.argmax(1))
        if self.model.fold is not maximum:
            weights = [seen.weights() for seen in passes]
            for scale in self.scales:
                weight = mean([each[scale] for each in weights])
                found.weights[scale] = weight[0, 0].float().cpu().numpy()
        return found

    def _look(self, pixels: Tensor) -> Output:
        with autocast(self.device, self.precision):
            return self.model(pixels, self.scales)  # type: ignore[no-any-return]


def _mean(passes: list[Tensor]) -> Tensor:
    """Of a picture's maps, or of those and its mirror image's."""
    first, *mirrored = passes
    return (first + mirrored[0].flip(-1)) / 2 if mirrored else first


def _decide(logits: Tensor, found: Segmentation, rows: slice) -> None:
    confidence, label = logits.softmax(1).max(1)
    found.label[rows] = _to_uint8(label)
    found.confidence[rows] = _to_uint8((confidence * 255).floor())


def _to_uint8(maps: Tensor) -> NDArray[np.uint8]:
    return maps[0].to(torch.uint8).cpu().numpy()  # type: ignore[no-any-return]
