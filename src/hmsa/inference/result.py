"""What a network predicts for an image: label, confidence and, on request, more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..data.images import read_image, to_rgb
from ..data.labels import spread
from ..data.rasters import OpenImage
from ..data.stretch import Stretch
from ..report.pictures import palette_png, shown
from ..runs import InputError, replace

Readable = Path | str | Image.Image | NDArray[np.uint8] | OpenImage


@dataclass(frozen=True)
class Prediction:
    """Maps of one image; `single` to `weights` with `detail` only, no weights with fusion max."""

    label: NDArray[np.uint8]  # [H,W] class indices
    confidence: NDArray[np.uint8]  # [H,W] floor(255 * softmax maximum)
    single: dict[float, NDArray[np.uint8]] = field(default_factory=dict)  # scale -> its own label
    pooled: dict[str, NDArray[np.uint8]] = field(default_factory=dict)  # "average", "max" -> label
    flips: dict[str, NDArray[np.uint8]] = field(default_factory=dict)  # plain, mirrored -> label
    weights: dict[float, NDArray[np.float32]] = field(default_factory=dict)  # scale -> [H,W] 0..1
    probabilities: NDArray[np.float16] | None = None  # [K,H,W]
    entropy: NDArray[np.uint8] | None = None  # [H,W] floor(255 * entropy / log K)
    computed: dict[float, float] = field(default_factory=dict)  # scale -> share, behind a gate
    cost: float = 1.0  # pixels that were computed, as a share of those of all scales
    palette: Sequence[tuple[int, int, int]] = ()  # K colours, RGB

    @property
    def colours(self) -> NDArray[np.uint8]:
        """[K,3] RGB: the palette, or generated where there is none."""
        return np.array(self.palette or spread(int(self.label.max(initial=0)) + 1), np.uint8)

    def overlay(self, image: Readable, alpha: float = 0.5) -> Image.Image:
        """The image of this prediction, tinted by its label; alpha: 0 the image, 1 the colours."""
        pixels = shown(as_array(image))
        if pixels.shape[:2] != self.label.shape:
            sizes = f"image {pixels.shape}, label {self.label.shape}"
            raise InputError(f"overlay: {sizes}; give the image that was predicted")
        tint = palette_png(self.label, self.colours).convert("RGB")
        return Image.blend(Image.fromarray(pixels), tint, alpha)

    def save(self, file: Path | str) -> None:
        """Write the label as a .png (palette, class indices), or all maps as .npz."""
        writers = {".png": self.write_png, ".npz": self.write_npz}
        if (suffix := Path(file).suffix) not in writers:
            raise InputError(f"{file}: give a name that ends in .png (label) or .npz (all maps)")
        replace(Path(file), writers[suffix])

    def write_png(self, file: Path) -> None:
        """Write the label as a palette PNG, whatever the suffix of `file`."""
        palette_png(self.label, self.colours).save(file, format="PNG")

    def write_npz(self, file: Path) -> None:
        """label, confidence, scales `[S]`, weights `[S,H,W]`; probabilities and entropy if any."""
        scales = sorted(self.weights)
        maps = {
            "label": self.label, "confidence": self.confidence, "scales": np.array(scales, float),
            "weights": np.array([self.weights[scale] for scale in scales], np.float16),
            "probabilities": self.probabilities, "entropy": self.entropy,
        }  # fmt: skip
        save_npz(file, **{name: each for name, each in maps.items() if each is not None})


def save_npz(file: Path, **arrays: NDArray[Any]) -> None:
    """A compressed .npz under exactly this name: numpy itself would add a suffix."""
    with file.open("wb") as stream:
        np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]


def as_array(image: Readable, stretch: Stretch = Stretch()) -> NDArray[np.uint8]:
    """`[H,W,C]` uint8; RGB, or the bands of `stretch` if it is a file."""
    if isinstance(image, Path | str):
        return read_image(Path(image), stretch=stretch)
    if isinstance(image, Image.Image):
        return to_rgb(image)
    return image if isinstance(image, np.ndarray) else image.read(slice(None), slice(None))
