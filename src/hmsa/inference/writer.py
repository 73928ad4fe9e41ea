"""The files of one picture, each there whole or not at all."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..data.images import OpenImage, rasterio
from ..data.labels import IGNORE, spread
from ..model.pretrained import Card
from ..report.pictures import colorize, heat, palette_png, panel, tinted
from ..runs.errors import InputError
from ..runs.files import replace
from .geotiff import write_geotiff
from .result import Prediction
from .rle import coco

Bytes = NDArray[np.uint8]

KINDS = {
    "label": "labels/{name}.png",  # palette PNG of class indices
    "overlay": "overlay/{name}.jpg",  # shrunk by a whole number where there are over 2^26 pixels
    "confidence": "confidence/{name}.png",  # 8 bits, floor of 255 p
    "weights": "weights/{part}/{name}.png",  # 8 bits, 255 times the share of a scale
    "panel": "panel/{name}.png",
    "npz": "npz/{name}.npz",  # label, confidence, scales [S] and weights [S,H,W] in 0..1
    "rle": "rle/{name}.json",  # a COCO file with the mask of every class
    "probabilities": "probabilities/{name}.npz",  # probabilities [K,H,W] float16, classes [K]
    "entropy": "entropy/{name}.png",  # 8 bits, floor of 255 times entropy / log K
    "geotiff": "geotiff/{part}/{name}.tif",  # label and confidence, where the picture lies
}
DEFAULT = ("label", "overlay", "confidence")
_MAPS = ("label", "confidence")  # parts of geotiff
_ROWS = 1 << 21  # pixels drawn at once
_OVERLAY, _CELL = 1 << 26, 1 << 21  # pixels drawn at most, in a file and in one cell of a panel
_SIDE = 65500  # the longest that JPEG has


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
        if "geotiff" in save:
            rasterio()  # or else said now, not after hours of pictures
        self.out, self.names, self.scales = out, card.names, sorted(scales)
        self.save = [kind for kind in KINDS if kind in save]
        self.palette = np.array(card.palette or spread(len(card.names)), np.uint8)
        # What a predictor must tell
        self.detail = not {"weights", "panel", "npz"}.isdisjoint(save)
        self.probabilities, self.entropy = "probabilities" in save, "entropy" in save

    def files(self, name: str) -> list[Path]:
        """All that `write` makes of the picture `name`."""
        parts = {"weights": [f"{s:g}" for s in self.scales], "geotiff": _MAPS}
        return [
            self.out / KINDS[kind].format(name=name, part=part)
            for kind in self.save
            for part in parts.get(kind, [""])
        ]

    def write(self, name: str, source: Path, image: OpenImage, seen: Prediction) -> None:
        """The picture, what was seen in it, and the file it came from."""
        files = iter(self.files(name))
        for kind in self.save:
            for maker in self._make(kind, source, image, seen):  # one at a time: they may be large
                replace(next(files), maker)

    def tint(self, image: Bytes, label: Bytes) -> Bytes:
        """Image [H,W,3] under the colours of its label [H,W]."""
        return tinted(image, label, self.palette)

    def _make(
        self, kind: str, source: Path, image: OpenImage, seen: Prediction
    ) -> Iterator[Callable[[Path], Any]]:
        """What makes each file of one kind, in the order of `files`."""
        if kind == "label":
            yield _picture(palette_png(seen.label, self.palette))
        elif kind == "overlay":
            yield _jpeg(self._overlay(image, seen, _OVERLAY))
        elif kind == "confidence":
            yield _picture(Image.fromarray(seen.confidence))
        elif kind == "weights":
            for scale in self.scales:
                share = np.rint(seen.weights[scale] * np.float32(255)).astype(np.uint8)
                yield _picture(Image.fromarray(share))
        elif kind == "panel":
            yield _picture(self._panel(image, seen))
        elif kind == "npz":
            yield seen.write_npz
        elif kind == "probabilities":
            yield lambda temporary: _probabilities(temporary, seen, self.names)
        elif kind == "entropy":
            yield _picture(Image.fromarray(_told(seen.entropy)))
        elif kind == "geotiff":
            yield partial(
                write_geotiff, values=seen.label, source=source, nodata=IGNORE,
                palette=self.palette, names=self.names,
            )  # fmt: skip
            # The maximum of fewer than 255 probabilities is never below 1 / 255
            yield partial(write_geotiff, values=seen.confidence, source=source, nodata=0)
        else:
            content = json.dumps(coco(seen.label, source.name, self.names))
            yield lambda temporary: temporary.write_text(content)

    def _overlay(self, image: OpenImage, seen: Prediction, most: int) -> Image.Image:
        def tinted(rows: slice) -> Bytes:
            return self.tint(image.read(rows, slice(None)), seen.label[rows])

        return _drawn(image.size, tinted, most)

    def _panel(self, image: OpenImage, seen: Prediction) -> Image.Image:
        def cell(values: NDArray[Any], color: Callable[[NDArray[Any]], Bytes]) -> Bytes:
            return np.asarray(_drawn(image.size, lambda rows: color(values[rows]), _CELL))

        def colors(label: Bytes) -> Bytes:
            return colorize(label, self.palette)

        given = _drawn(image.size, lambda rows: image.read(rows, slice(None)), _CELL)
        rows = [
            [("image", np.asarray(given)),
             ("fused", np.asarray(self._overlay(image, seen, _CELL))),
             ("confidence", cell(seen.confidence, lambda part: heat(part / np.float32(255))))],
            [(f"prediction at {s:g}", cell(one, colors)) for s, one in seen.single.items()],
            [(f"weight of {s:g}", cell(weight, heat)) for s, weight in seen.weights.items()],
        ]  # fmt: skip
        return panel([row for row in rows if row])


def _drawn(size: tuple[int, int], draw: Callable[[slice], Bytes], most: int) -> Image.Image:
    """A picture of `draw(rows)` [h,W,3], some rows at a time; shrunk by a whole number where it
    would have more than `most` pixels, or a side longer than JPEG has.
    """
    height, width = size
    by = max(1, math.ceil(math.sqrt(height * width / most)), math.ceil(max(size) / _SIDE))
    sheet = Image.new("RGB", (math.ceil(width / by), math.ceil(height / by)))
    step = max(1, _ROWS // width // by) * by
    for top in range(0, height, step):
        rows = Image.fromarray(draw(slice(top, min(top + step, height))))
        sheet.paste(rows.reduce(by) if by > 1 else rows, (0, top // by))
    return sheet


def _picture(picture: Image.Image) -> Callable[[Path], None]:
    return lambda temporary: picture.save(temporary, format="PNG")


def _jpeg(picture: Image.Image) -> Callable[[Path], Any]:
    """Through memory: on a full disk Pillow cuts a JPEG short and says nothing."""
    content = io.BytesIO()
    picture.save(content, format="JPEG", quality=92)
    return lambda temporary: temporary.write_bytes(content.getbuffer())


def _probabilities(file: Path, seen: Prediction, names: Sequence[str]) -> None:
    with file.open("wb") as stream:
        np.savez_compressed(
            stream, probabilities=_told(seen.probabilities), classes=np.array(names)
        )


def _told(found: NDArray[Any] | None) -> NDArray[Any]:
    assert found is not None, "the predictor was not asked for it"
    return found
