"""What a network saw in a picture: label, confidence and, if asked for, more."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..data.images import OpenImage, read_image, to_rgb
from ..data.labels import spread
from ..report.pictures import palette_png, tinted
from ..runs.errors import InputError
from ..runs.files import replace

_IN_MEMORY = 1 << 28  # bytes of a map, above which it is kept in a file


Readable = Path | str | Image.Image | NDArray[np.uint8] | OpenImage


@dataclass(frozen=True)
class Prediction:
    """What was seen. With `detail`, also what each scale saw by itself and how far it counted."""

    label: NDArray[np.uint8]  # [H,W] class indices
    confidence: NDArray[np.uint8]  # [H,W] floor(255 * softmax maximum)
    single: dict[float, NDArray[np.uint8]] = field(default_factory=dict)  # scale -> label
    pooled: dict[str, NDArray[np.uint8]] = field(default_factory=dict)  # "average", "max" -> label
    # "plain", "mirrored" -> label of each look by itself, where there were both
    flips: dict[str, NDArray[np.uint8]] = field(default_factory=dict)
    # scale -> [H,W], 0..1; none for a network that pools by maximum, where no scale has a weight
    weights: dict[float, NDArray[np.float32]] = field(default_factory=dict)
    probabilities: NDArray[np.float16] | None = None  # [K,H,W]
    entropy: NDArray[np.uint8] | None = None  # [H,W] floor(255 * entropy / log K)
    computed: dict[float, float] = field(default_factory=dict)  # scale -> share, behind a gate
    cost: float = 1.0  # of pixels the network looked at, to all scales seen whole
    palette: Sequence[tuple[int, int, int]] = ()  # K colours, RGB

    def overlay(self, image: Readable, alpha: float = 0.5) -> Image.Image:
        """The picture that was looked at, under the colours of its label."""
        pixels = as_array(image)
        if pixels.shape[:2] != self.label.shape:
            raise InputError(
                f"overlay: the picture is {pixels.shape[0]}x{pixels.shape[1]}, its label "
                f"{self.label.shape[0]}x{self.label.shape[1]}; give the picture that was labelled"
            )
        return Image.fromarray(tinted(pixels, self.label, self._colours(), alpha))

    def save(self, file: Path | str) -> None:
        """Write the label, a palette PNG of class indices; or, as .npz, every map that there is."""
        file = Path(file)
        if file.suffix == ".png":
            picture = palette_png(self.label, self._colours())
            replace(file, lambda temporary: picture.save(temporary, format="PNG"))
        elif file.suffix == ".npz":
            maps = {"probabilities": self.probabilities, "entropy": self.entropy}
            further = {name: each for name, each in maps.items() if each is not None}
            replace(file, lambda temporary: self.write_npz(temporary, **further))
        else:
            raise InputError(f"{file}: a result is saved as .png (label) or .npz (all of it)")

    def write_npz(self, file: Path, **further: Any) -> None:
        """label, confidence, scales `[S]`, weights `[S,H,W]` and what is further, compressed."""
        scales = sorted(self.weights)
        weights = np.array([self.weights[s] for s in scales], np.float16)
        with file.open("wb") as stream:  # a name would be given the suffix .npz
            np.savez_compressed(
                stream, label=self.label, confidence=self.confidence,
                scales=np.array(scales, np.float64), weights=weights,
                **further,
            )  # fmt: skip

    def _colours(self) -> NDArray[np.uint8]:
        palette = self.palette or spread(int(self.label.max(initial=0)) + 1)
        return np.array(palette, np.uint8)


def as_array(image: Readable) -> NDArray[np.uint8]:
    """`[H,W,3]` uint8 RGB."""
    if isinstance(image, Path | str):
        return read_image(Path(image))
    if isinstance(image, Image.Image):
        return to_rgb(image)
    return image if isinstance(image, np.ndarray) else image.read(slice(None), slice(None))


class Filling:
    """One picture's maps, filled band by band."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size
        self.maps: dict[tuple[str, Any], NDArray[Any]] = {}

    def put(self, rows: range, parts: dict[tuple[str, Any], Tensor]) -> None:
        for name, part in parts.items():
            array = part.cpu().numpy()
            if name not in self.maps:
                self.maps[name] = _room((*array.shape[:-2], *self.size), array.dtype)
            self.maps[name][..., rows.start : rows.stop, :] = array

    def segmentation(
        self, computed: dict[float, float], cost: float, palette: Sequence[tuple[int, int, int]]
    ) -> Prediction:
        kinds = ("single", "pooled", "flips", "weights", "map")
        groups: dict[str, dict[Any, Any]] = {kind: {} for kind in kinds}
        for (group, name), array in self.maps.items():
            groups[group][name] = array
        plain: dict[str, Any] = groups.pop("map")
        further: dict[str, Any] = {**groups}
        return Prediction(**plain, **further, computed=computed, cost=cost, palette=palette)


def _room(shape: tuple[int, ...], kind: Any) -> NDArray[Any]:
    """An empty array, in a file that nobody else sees where memory is no place for it."""
    if math.prod(shape) * np.dtype(kind).itemsize <= _IN_MEMORY:
        return np.empty(shape, kind)
    with tempfile.TemporaryFile() as file:  # the map holds it open
        return np.memmap(file, kind, "w+", shape=shape)
