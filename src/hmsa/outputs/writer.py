"""The files of one picture, each there whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..checkpoint import Card
from ..data.labels import spread
from ..errors import InputError
from ..files import replace
from ..pictures import colorize, heat, palette_png, panel, tinted
from ..segmentation import Segmentation
from .rle import coco

Bytes = NDArray[np.uint8]

KINDS = {
    "label": "labels/{name}.png",  # palette PNG of class indices
    "overlay": "overlay/{name}.jpg",
    "confidence": "confidence/{name}.png",  # 8 bits, floor of 255 p
    "weights": "weights/{scale:g}/{name}.png",  # 8 bits, 255 times the share of a scale
    "panel": "panel/{name}.png",
    "npz": "npz/{name}.npz",  # label, confidence, scales [S] and weights [S,H,W] in 0..1
    "rle": "rle/{name}.json",  # a COCO file with the mask of every class
}
DEFAULT = ("label", "overlay", "confidence")


class Writer:
    """Writes below `out` what is in `save`, keys of `KINDS`, for a network's card and scales."""

    def __init__(
        self, out: Path, save: Collection[str], card: Card, scales: Sequence[float]
    ) -> None:
        if "weights" in save and card.network.get("fusion") == "max":
            raise InputError(
                "--save weights: the network takes the maximum over scales, none has a weight; "
                "leave weights out"
            )
        self.out, self.names, self.scales = out, card.names, sorted(scales)
        self.save = [kind for kind in KINDS if kind in save]
        self.palette = np.array(card.palette or spread(len(card.names)), np.uint8)
        self.detail = not {"weights", "panel", "npz"}.isdisjoint(save)  # what a predictor must tell

    def files(self, name: str) -> list[Path]:
        """All that `write` makes of the picture `name`."""
        found = []
        for kind in self.save:
            scales = self.scales if kind == "weights" else self.scales[:1]
            found += [self.out / KINDS[kind].format(name=name, scale=scale) for scale in scales]
        return found

    def write(self, name: str, source: Path, image: Bytes, seen: Segmentation) -> None:
        """image: [H,W,3], what was seen in it, and the file it came from."""
        makers = [m for kind in self.save for m in self._make(kind, source, image, seen)]
        for file, maker in zip(self.files(name), makers, strict=True):
            replace(file, maker)

    def tint(self, image: Bytes, label: Bytes) -> Bytes:
        """Image [H,W,3] under the colours of its label [H,W]."""
        return tinted(image, label, self.palette)

    def _make(
        self, kind: str, source: Path, image: Bytes, seen: Segmentation
    ) -> Iterator[Callable[[Path], Any]]:
        """What makes each file of one kind, in the order of `files`."""
        if kind == "label":
            yield _picture(palette_png(seen.label, self.palette))
        elif kind == "overlay":
            yield _picture(Image.fromarray(self.tint(image, seen.label)), "JPEG")
        elif kind == "confidence":
            yield _picture(Image.fromarray(seen.confidence))
        elif kind == "weights":
            for scale in self.scales:
                share = np.rint(seen.weights[scale] * np.float32(255)).astype(np.uint8)
                yield _picture(Image.fromarray(share))
        elif kind == "panel":
            yield _picture(self._panel(image, seen))
        elif kind == "npz":
            yield lambda temporary: _npz(temporary, seen)
        else:
            content = json.dumps(coco(seen.label, source.name, self.names))
            yield lambda temporary: temporary.write_text(content)

    def _panel(self, image: Bytes, seen: Segmentation) -> Image.Image:
        rows = [
            [("image", image), ("fused", self.tint(image, seen.label)),
             ("confidence", heat(seen.confidence / np.float32(255)))],
            [(f"prediction at {s:g}", colorize(one, self.palette))
             for s, one in seen.single.items()],
            [(f"weight of {s:g}", heat(weight)) for s, weight in seen.weights.items()],
        ]  # fmt: skip
        return panel([row for row in rows if row])


def _picture(picture: Image.Image, form: str = "PNG") -> Callable[[Path], None]:
    return lambda temporary: picture.save(temporary, format=form, quality=92)


def _npz(file: Path, seen: Segmentation) -> None:
    scales = sorted(seen.weights)
    weights = np.array([seen.weights[s] for s in scales], np.float16)
    with file.open("wb") as stream:  # a name would be given the suffix .npz
        np.savez_compressed(
            stream, label=seen.label, confidence=seen.confidence,
            scales=np.array(scales, np.float64), weights=weights,
        )  # fmt: skip
