"""The files that prediction writes for one image, each complete or absent."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..data.images import open_pillow
from ..data.labels import IGNORE
from ..data.rasters import OpenImage, is_raster, open_by_gdal, rasterio
from ..model.pretrained import Card
from ..report.pictures import colorize, heat, overlay, panel, shown, thin
from ..runs import InputError, replace
from .result import Prediction, save_npz
from .video import SUFFIXES

Bytes = NDArray[np.uint8]
_Plan = dict[Path, Callable[[Path], Any]]

KINDS = (  # each is written into a folder of this name
    "label", "overlay", "confidence", "weights", "panel", "npz", "rle", "probabilities",
    "entropy", "geotiff",
)  # fmt: skip
_ROWS, _CELL, _OVERLAY = 1 << 21, 1 << 21, 1 << 26  # pixels: drawn at once; at most in an image
_SIDE, _JPEG = 1024, 65500  # pixels: at least of a map in a panel; at most of a JPEG
_TILE = 512  # side of the tiles of a GeoTIFF
_DRIVERS = {
    ".tif": "GTiff",
    ".tiff": "GTiff",
    ".jpg": "JPEG",
    ".jp2": "JP2OpenJPEG",
}  # else the suffix is the name


class Writer:
    """Writes below `out` the kinds of files in `save`, for a network's card and scales.

    needs: keyword arguments that make a `Predictor` return what is written.
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
        if "rle" in save and not find_spec("pycocotools"):
            raise InputError('--save rle needs pycocotools: pip install "hmsa[coco]"')
        self.out, self.names, self.scales = out, card.names, sorted(scales)
        self.save = [kind for kind in KINDS if kind in save]
        self.needs: dict[str, Any] = {kind: kind in save for kind in ("probabilities", "entropy")}
        self.needs["detail"] = not {"weights", "panel", "npz"}.isdisjoint(save)

    def files(self, name: str, source: Path) -> list[Path]:
        """All result files of an image; of a video its overlay."""
        if video := SUFFIXES.get(source.suffix.lower()):
            return [self.out / "overlay" / f"{name}{video[0]}"]
        return list(self._plan(name))

    def write(self, name: str, source: Path, image: OpenImage, made: Prediction) -> None:
        """Write all files of an image that was read from `source`."""
        for file, write in self._plan(name, source, image, made).items():
            replace(file, write)

    def _plan(self, name: str, source: Any = None, image: Any = None, made: Any = None) -> _Plan:
        """What writes each file; nothing large exists before that is called."""
        plan: dict[str, Callable[[Path], Any]] = {
            f"label/{name}.png": lambda file: made.write_png(file),
            f"overlay/{name}.jpg": _image("JPEG", lambda: _overlay(image, made, _OVERLAY)),
            f"confidence/{name}.png": _image("PNG", lambda: made.confidence8),
            **{f"weights/{s:g}/{name}.png": _image("PNG", lambda s=s: np.rint(  # type: ignore[misc]
                made.weights[s] * np.float32(255)).astype(np.uint8)) for s in self.scales},
            f"panel/{name}.png": _image("PNG", lambda: _panel(image, made)),
            f"npz/{name}.npz": lambda file: made.write_npz(file),
            f"rle/{name}.json": lambda file: write_coco(file, made, source.name, self.names),
            f"probabilities/{name}.npz": lambda file: save_npz(
                file, probabilities=made.probabilities, classes=np.array(self.names)),
            f"entropy/{name}.png": _image("PNG", lambda: made.entropy8),
            f"geotiff/label/{name}.tif": lambda file: write_geotiff(
                file, made.label, source, IGNORE, made.colours, self.names),
            # The maximum of fewer than 255 probabilities is never below 1 / 255
            f"geotiff/confidence/{name}.tif": lambda file: write_geotiff(
                file, made.confidence8, source, 0),
        }  # fmt: skip
        return {self.out / p: write for p, write in plan.items() if p.split("/")[0] in self.save}


def _image(form: str, draw: Callable[[], Bytes]) -> Callable[[Path], Any]:
    def write(file: Path) -> None:
        content = io.BytesIO()  # on a full disk Pillow itself cuts a JPEG short without an error
        Image.fromarray(draw()).save(content, form, quality=92)
        file.write_bytes(content.getbuffer())

    return write


def _panel(image: OpenImage, made: Prediction) -> Bytes:
    confidence = thin(made.confidence8, _SIDE) / np.float32(255)
    rows = [
        [("image", _drawn(image, _CELL, lambda pixels, _: pixels)),
         ("fused", _overlay(image, made, _CELL)), ("confidence", heat(confidence))],
        [(f"prediction at {scale:g}", colorize(thin(label, _SIDE), made.colours))
         for scale, label in made.single.items()],
        [(f"weight of {scale:g}", heat(thin(weight, _SIDE)))
         for scale, weight in made.weights.items()],
    ]  # fmt: skip
    return np.asarray(panel([row for row in rows if row]))


def _overlay(image: OpenImage, made: Prediction, most: int) -> Bytes:
    return _drawn(image, most, lambda pixels, rows: overlay(pixels, made.label[rows], made.colours))


def _drawn(image: OpenImage, most: int, draw: Callable[[Bytes, slice], Bytes]) -> Bytes:
    """`draw(pixels [h,W,3], rows)` by bands; reduced, by a whole factor, to `most` and to JPEG."""
    height, width = image.size
    by = max(1, math.ceil(math.sqrt(height * width / most)), math.ceil(max(image.size) / _JPEG))
    step = max(1, _ROWS // width // by) * by
    bands = [slice(top, min(top + step, height)) for top in range(0, height, step)]
    drawn = (draw(shown(image.read(rows)), rows) for rows in bands)
    return np.concatenate([np.asarray(Image.fromarray(band).reduce(by)) for band in drawn])


def write_coco(file: Path, made: Prediction, name: str, classes: Sequence[str]) -> None:
    """A COCO file of the image `name`: one annotation for each class in it; ids are indices."""
    from pycocotools import mask

    annotations = [
        {"id": number, "image_id": 1, "category_id": k, "iscrowd": 0, "segmentation": runs,
         "area": int(mask.area(runs)), "bbox": mask.toBbox(runs).tolist()}
        for number, (k, runs) in enumerate(made.rle().items(), 1)
    ]  # fmt: skip
    height, width = made.label.shape
    image = {"id": 1, "file_name": _text(name), "height": height, "width": width}
    categories = [{"id": k, "name": each} for k, each in enumerate(classes)]
    content = {"images": [image], "annotations": annotations, "categories": categories}
    file.write_text(json.dumps(content))


def _text(name: str) -> str:
    """A file's name in UTF-8: bytes that are none are escaped."""
    return name.encode("utf-8", "backslashreplace").decode()


def write_geotiff(
    file: Path, values: Bytes, source: Path, nodata: int, colours: Any = (), names: Any = ()
) -> None:
    """Values [H,W], with CRS and transform or ground control points of the image `source`, if any.

    Where that has no data (nodata, mask or alpha), `nodata` is written. colours: [K,3] of the
    classes `names`, which are kept as the tag CLASSES.
    """
    height, width = values.shape
    options = {"height": height, "width": width, "nodata": nodata, "bigtiff": "if_safer"}
    options |= {"tiled": True, "blockxsize": _TILE, "blockysize": _TILE, "compress": "deflate"}
    module = rasterio()
    with (
        _georeferenced(source, values.shape) as origin,
        module.MemoryFile() as memory,  # GDAL reports no error of a full disk when it closes a file
    ):
        options |= _place(origin) if origin else {}
        with memory.open(driver="GTiff", count=1, dtype="uint8", **options) as target:
            if len(names):
                target.write_colormap(1, dict(enumerate(colours.tolist())))
                target.update_tags(CLASSES=json.dumps(names))
            for top in range(0, height, _TILE):
                band = np.ascontiguousarray(values[top : top + _TILE])
                window = module.windows.Window(0, top, width, len(band))
                if origin:
                    band = np.where(origin.dataset_mask(window=window), band, np.uint8(nodata))
                target.write(band, 1, window=window)
        file.write_bytes(memory.getbuffer())


def _georeferenced(source: Path, size: tuple[int, ...]) -> Any:
    """`source` open in rasterio; None where it cannot tell the place of the upright pixels."""
    with suppress(InputError, OSError):
        with nullcontext() if is_raster(source) else open_pillow(source) as image:
            upright = image is None or image.getexif().get(0x0112, 1) == 1  # orientation
        suffix = source.suffix.lower()
        origin = open_by_gdal(source, _DRIVERS.get(suffix, suffix[1:].upper()))
        if upright and origin.shape == size:
            return origin
    return nullcontext()


def _place(origin: Any) -> dict[str, Any]:
    points, system = origin.gcps
    place = {"crs": origin.crs, "transform": origin.transform}
    return {"gcps": points, "crs": system} if points else place
