"""What a network predicts for an image: label, confidence and, on request, more."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..data.images import read_image, to_rgb
from ..data.labels import spread
from ..data.rasters import OpenImage
from ..data.stretch import Stretch
from ..report.pictures import palette_png, png_bytes, shown
from ..runs import InputError, replace

Readable = Path | str | Image.Image | NDArray[np.uint8] | OpenImage
_SHOWN = 480  # pixels of the longer side in a notebook


@dataclass(frozen=True, repr=False)
class Prediction:
    """Maps of one image; `single` to `weights` with `detail` only, no weights with fusion max."""

    label: NDArray[np.uint8]  # [H,W] class indices
    confidence8: NDArray[np.uint8]  # [H,W] floor(255 * softmax maximum)
    single: dict[float, NDArray[np.uint8]] = field(default_factory=dict)  # scale -> its own label
    pooled: dict[str, NDArray[np.uint8]] = field(default_factory=dict)  # "average", "max" -> label
    flips: dict[str, NDArray[np.uint8]] = field(default_factory=dict)  # plain, mirrored -> label
    weights: dict[float, NDArray[np.float32]] = field(default_factory=dict)  # scale -> [H,W] 0..1
    probabilities: NDArray[np.float16] | None = None  # [K,H,W]
    entropy8: NDArray[np.uint8] | None = None  # [H,W] floor(255 * entropy / log K)
    computed: dict[float, float] = field(default_factory=dict)  # scale -> share, behind a gate
    cost: float = 1.0  # pixels that were computed, as a share of those of all scales
    palette: Sequence[tuple[int, int, int]] = ()  # K colours, RGB
    names: Sequence[str] = ()  # of the K classes
    image: Readable | None = None  # what was predicted: a file, a Pillow image or an array

    @property
    def confidence(self) -> NDArray[np.float32]:
        """[H,W] probability of the label, 0..1, rounded down to steps of 1/255."""
        return np.divide(self.confidence8, 255, dtype=np.float32)

    @property
    def entropy(self) -> NDArray[np.float32] | None:
        """[H,W] of the probabilities, 0..1 (1: all alike), rounded down to steps of 1/255."""
        if self.entropy8 is None:
            return None
        return np.divide(self.entropy8, 255, dtype=np.float32)

    @property
    def attention(self) -> dict[float, NDArray[np.float32]]:
        """Scale -> [H,W] in 0..1, the trust in this scale against the finer ones; none of the
        finest. With `detail` only; read off the weights, so the mean where classes differ.
        """
        found, rest = dict[float, NDArray[np.float32]](), np.zeros((), np.float32)
        for scale in sorted(self.weights, reverse=True):
            weight = self.weights[scale]
            rest = weight + rest  # of this scale and all finer ones
            found[scale] = np.divide(weight, rest, np.ones_like(weight), where=rest > 0)
        return dict(sorted(found.items())[:-1])

    @property
    def colours(self) -> NDArray[np.uint8]:
        """[K,3] RGB: the palette, or generated where there is none."""
        count = max(len(self.names), int(self.label.max(initial=0)) + 1)
        return np.array(self.palette or spread(count), np.uint8)

    @property
    def _classes(self) -> list[str]:
        """K names; numbers where there are none."""
        return [*self.names, *map(str, range(len(self.names), len(self.colours)))]

    def to_pil(self) -> Image.Image:
        """The label as a palette image, whose values are the class indices."""
        return palette_png(self.label, self.colours)

    def areas(self) -> list[dict[str, Any]]:
        """A row for each class in the label, the largest first, as `pandas.DataFrame` takes it:
        class, pixels, share (of the image) and confidence (mean), both in 0..1.
        """
        pixels = np.bincount(self.label.ravel())
        sure = np.bincount(self.label.ravel(), self.confidence8.ravel()) / 255
        names = self._classes
        return [
            {"class": names[k], "pixels": int(pixels[k]), "share": float(pixels[k] / pixels.sum()),
             "confidence": float(sure[k] / pixels[k])}
            for k in np.argsort(-pixels, kind="stable")[: np.count_nonzero(pixels)]
        ]  # fmt: skip

    def masks(self) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Class indices [N] and a mask of each [N,H,W], for torchvision's draw_segmentation_masks
        or supervision's `Detections(mask_to_xyxy(masks), masks, class_id=indices)`."""
        indices = np.unique(self.label).astype(np.int64)
        return indices, self.label == indices[:, None, None].astype(np.uint8)

    def segments(self) -> list[dict[str, Any]]:
        """What `pipeline("image-segmentation")` of transformers returns: label, score (mean
        confidence, 0..1) and mask (a Pillow image, 255 there and 0 elsewhere) of each class."""
        return [
            {"label": self._classes[k], "score": float(self.confidence[mask].mean()),
             "mask": Image.fromarray(mask * np.uint8(255))}
            for k, mask in zip(*self.masks(), strict=True)
        ]  # fmt: skip

    def rle(self) -> dict[int, dict[str, Any]]:
        """Class index -> mask as COCO's run lengths; needs `pip install "hmsa[coco]"`."""
        from pycocotools import mask

        runs = {
            k: mask.encode(np.asfortranarray(self.label == k, np.uint8))
            for k in np.unique(self.label).tolist()
        }
        return {k: each | {"counts": each["counts"].decode()} for k, each in runs.items()}

    def __repr__(self) -> str:
        height, width = self.label.shape
        rows = self.areas()
        shares = ", ".join(f"{row['class']} {row['share']:.0%}" for row in rows[:5])
        return f"Prediction({width}x{height}: {shares}{', ...' * (len(rows) > 5)})"

    def _repr_png_(self) -> bytes:
        """In a notebook: the overlay, or the label where the image is not known."""
        whole = self.to_pil().convert("RGB") if self.image is None else self.overlay()
        whole.thumbnail((_SHOWN, _SHOWN))
        return png_bytes(whole.quantize(128))  # a quarter of the bytes, all of the label's colours

    def _repr_html_(self) -> str:
        """The same with a legend."""
        colours = dict(zip(self._classes, self.colours.tolist(), strict=True))
        rows = "".join(
            f"<tr><td style='background:rgb{tuple(colours[row['class']])}'>&emsp;</td>"
            f"<td style='text-align:left'>{escape(row['class'])}</td><td>{row['share']:.1%}</td>"
            f"<td>{row['confidence']:.2f}</td></tr>"
            for row in self.areas()
        )
        source = b64encode(self._repr_png_()).decode()
        return (
            f"<img alt='prediction' src='data:image/png;base64,{source}'><table><tr><th></th>"
            f"<th>class</th><th>share</th><th>confidence</th></tr>{rows}</table>"
        )

    def overlay(self, image: Readable | None = None, alpha: float = 0.5) -> Image.Image:
        """The image, tinted by the label; alpha: 0 the image, 1 the colours.

        image: what was predicted; needed if that was a tensor. Raises InputError without it.
        """
        image = self.image if image is None else image
        if image is None:
            raise InputError("overlay: give the image, as a tensor is not kept")
        pixels = shown(as_array(image))
        if pixels.shape[:2] != self.label.shape:
            sizes = f"image {pixels.shape}, label {self.label.shape}"
            raise InputError(f"overlay: {sizes}; give the image that was predicted")
        return Image.blend(Image.fromarray(pixels), self.to_pil().convert("RGB"), alpha)

    def save(self, file: Path | str) -> None:
        """Write the label as a .png (palette, class indices), or all maps as .npz."""
        writers = {".png": self.write_png, ".npz": self.write_npz}
        if (suffix := Path(file).suffix) not in writers:
            raise InputError(f"{file}: give a name that ends in .png (label) or .npz (all maps)")
        replace(Path(file), writers[suffix])

    def write_png(self, file: Path) -> None:
        """Write the label as a palette PNG, whatever the suffix of `file`."""
        self.to_pil().save(file, format="PNG")

    def write_npz(self, file: Path) -> None:
        """label, confidence, scales `[S]`, weights `[S,H,W]`; probabilities and entropy if any."""
        scales = sorted(self.weights)
        maps = {
            "label": self.label, "confidence": self.confidence8, "scales": np.array(scales, float),
            "weights": np.array([self.weights[scale] for scale in scales], np.float16),
            "probabilities": self.probabilities, "entropy": self.entropy8,
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
