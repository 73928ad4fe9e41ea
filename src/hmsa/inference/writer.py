"""The files that prediction writes for one image, each complete or absent."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..data.images import Picture
from ..data.labels import IGNORE, spread
from ..data.rasters import rasterio
from ..model.pretrained import Card
from ..report.pictures import colorize, heat, palette_png, panel, tinted
from ..runs import InputError, replace
from .geotiff import write_geotiff
from .result import Prediction, save_npz

Bytes = NDArray[np.uint8]
Make = Callable[[Path], Any]  # writes one file

KINDS = {
    "label": "labels/{name}.png",  # palette PNG of class indices
    "overlay": "overlay/{name}.jpg",  # reduced by a whole factor above 2^26 pixels
    "confidence": "confidence/{name}.png",  # 8 bits, floor of 255 p
    "weights": "weights/{part}/{name}.png",  # 8 bits, 255 times the weight of a scale
    "panel": "panel/{name}.png",
    "npz": "npz/{name}.npz",  # label, confidence, scales [S] and weights [S,H,W] in 0..1
    "rle": "rle/{name}.json",  # a COCO file with the mask of each class
    "probabilities": "probabilities/{name}.npz",  # probabilities [K,H,W] float16, classes [K]
    "entropy": "entropy/{name}.png",  # 8 bits, floor of 255 times entropy / log K
    "geotiff": "geotiff/{part}/{name}.tif",  # label and confidence with the image's georeference
}
DEFAULT = ("label", "overlay", "confidence")
_ROWS = 1 << 21  # pixels drawn at once
_OVERLAY, _CELL = 1 << 26, 1 << 21  # most pixels of a file, and of one cell of a panel
_SIDE = 65500  # the longest side that JPEG has


class Writer:
    """Writes below `out` the kinds of files in `save`, for a network's card and scales.

    Raises InputError for an unknown kind, and for one that the network or this machine lacks.
    """

    def __init__(
        self, out: Path, save: Collection[str], card: Card, scales: Sequence[float]
    ) -> None:
        if unknown := [kind for kind in save if kind not in KINDS]:
            raise InputError(f"--save: {unknown[0]!r} is not one of {', '.join(KINDS)}")
        if "weights" in save and card.network.get("fusion") == "max":
            raise InputError("--save weights: a network with fusion max has none; leave them out")
        if "geotiff" in save:
            rasterio()  # better refused now than after hours
        if "rle" in save:
            _pycocotools()
        self.out, self.names, self.scales = out, card.names, sorted(scales)
        self.save = [kind for kind in KINDS if kind in save]
        self.palette = np.array(card.palette or spread(len(card.names)), np.uint8)
        needs = {kind: kind in save for kind in ("probabilities", "entropy")}
        needs["detail"] = not {"weights", "panel", "npz"}.isdisjoint(save)
        self.needs = {name: True for name, needed in needs.items() if needed}  # of a predictor

    def files(self, name: str) -> list[Path]:
        """All files of the image `name`, in the order in which they are written."""
        parts = {"weights": [f"{s:g}" for s in self.scales], "geotiff": ["label", "confidence"]}
        return [
            self.out / KINDS[kind].format(name=name, part=part)
            for kind in self.save
            for part in parts.get(kind, [""])
        ]

    def write(self, name: str, source: Path, image: Picture, prediction: Prediction) -> None:
        """Write all files of an image that was read from `source`."""
        makers = self._makers(source, image, prediction)
        flat = [make for kind in self.save for make in makers[kind]]
        for file, make in zip(self.files(name), flat, strict=True):
            replace(file, make)

    def tint(self, image: Bytes, label: Bytes) -> Bytes:
        """Image [H,W,3] under the colours of its label [H,W]."""
        return tinted(image, label, self.palette)

    def _makers(self, source: Path, image: Picture, made: Prediction) -> dict[str, list[Make]]:
        """What writes the files of each kind; nothing large exists before it is called."""
        return {
            "label": [_png(lambda: palette_png(made.label, self.palette))],
            "overlay": [lambda file: _jpeg(file, self._overlay(image, made, _OVERLAY))],
            "confidence": [_png(lambda: Image.fromarray(made.confidence))],
            "weights": [_png(partial(_weight, made, scale)) for scale in self.scales],
            "panel": [_png(lambda: self._panel(image, made))],
            "npz": [made.write_npz],
            "rle": [lambda file: _coco(file, made.label, source.name, self.names)],
            "probabilities": [partial(
                save_npz, probabilities=np.asarray(made.probabilities), classes=np.array(self.names)
            )],
            "entropy": [_png(lambda: Image.fromarray(np.asarray(made.entropy)))],
            "geotiff": [
                partial(
                    write_geotiff, values=made.label, source=source, nodata=IGNORE,
                    colours=dict(enumerate(self.palette.tolist())), tags=json.dumps(self.names),
                ),
                # The maximum of fewer than 255 probabilities is never below 1 / 255
                partial(write_geotiff, values=made.confidence, source=source, nodata=0),
            ],
        }  # fmt: skip

    def _overlay(self, image: Picture, made: Prediction, most: int) -> Image.Image:
        def rows_of(rows: slice) -> Bytes:
            return self.tint(image.read(rows, slice(None)), made.label[rows])

        return _drawn(image.size, rows_of, most)

    def _panel(self, image: Picture, made: Prediction) -> Image.Image:
        def cell(values: NDArray[Any], color: Callable[[NDArray[Any]], Bytes]) -> Bytes:
            return np.asarray(_drawn(image.size, lambda rows: color(values[rows]), _CELL))

        colors = partial(colorize, palette=self.palette)
        original = _drawn(image.size, lambda rows: image.read(rows, slice(None)), _CELL)
        rows = [
            [("image", np.asarray(original)),
             ("fused", np.asarray(self._overlay(image, made, _CELL))),
             ("confidence", cell(made.confidence, lambda part: heat(part / np.float32(255))))],
            [(f"prediction at {s:g}", cell(one, colors)) for s, one in made.single.items()],
            [(f"weight of {s:g}", cell(weight, heat)) for s, weight in made.weights.items()],
        ]  # fmt: skip
        return panel([row for row in rows if row])


def _drawn(size: tuple[int, int], draw: Callable[[slice], Bytes], most: int) -> Image.Image:
    """An image of `draw(rows)` [h,W,3], some rows at a time; reduced by a whole factor where it
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


def _png(draw: Callable[[], Image.Image]) -> Make:
    return lambda file: draw().save(file, format="PNG")


def _jpeg(file: Path, image: Image.Image) -> None:
    """Through memory: on a full disk Pillow cuts a JPEG short without an error."""
    content = io.BytesIO()
    image.save(content, format="JPEG", quality=92)
    file.write_bytes(content.getbuffer())


def _weight(made: Prediction, scale: float) -> Image.Image:
    return Image.fromarray(np.rint(made.weights[scale] * np.float32(255)).astype(np.uint8))


def _coco(file: Path, label: Bytes, name: str, classes: Sequence[str]) -> None:
    """A COCO file of the image `name`: one annotation for each class in it; ids are indices."""
    mask, (height, width) = _pycocotools(), label.shape
    annotations: list[dict[str, Any]] = []
    for k in np.unique(label).tolist():
        runs = mask.encode(np.asfortranarray(label == k, np.uint8))
        annotations.append({
            "id": len(annotations) + 1, "image_id": 1, "category_id": k, "iscrowd": 0,
            "area": int(mask.area(runs)), "bbox": mask.toBbox(runs).tolist(),
            "segmentation": {"size": [height, width], "counts": runs["counts"].decode()},
        })  # fmt: skip
    content = {
        "images": [{"id": 1, "file_name": name, "height": height, "width": width}],
        "annotations": annotations,
        "categories": [{"id": k, "name": each} for k, each in enumerate(classes)],
    }
    file.write_text(json.dumps(content))


def _pycocotools() -> Any:
    try:
        from pycocotools import mask
    except ImportError:
        raise InputError('--save rle needs pycocotools: pip install "hmsa[coco]"') from None
    return mask
