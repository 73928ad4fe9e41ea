"""One band of bytes as a GeoTIFF with the georeference of the image that it was predicted from.

Tiled and compressed, written some rows at a time. Needs rasterio, the extra `geo`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.images import open_picture
from ..data.rasters import gdal, is_raster
from ..runs import InputError

Bytes = NDArray[np.uint8]
Colours = Mapping[int, Sequence[int]] | None

_TILE = 512  # pixels of a side; also the rows that are written at once
_DRIVERS = ["GTiff", "PNG", "JPEG", "BMP", "GIF", "WEBP"]  # all but the first: with a world file
_ORIENTATION = 0x0112  # EXIF tag


def write_geotiff(
    file: Path, values: Bytes, source: Path, nodata: int, colours: Colours = None, tags: str = ""
) -> None:
    """Values [H,W], with CRS and transform or ground control points of the image `source`, if any.

    Where that has no data (nodata, mask or alpha), `nodata` is written. colours: value -> RGB.
    tags: kept as the tag CLASSES. Raises OSError if the file is not complete.
    """
    height, width = values.shape
    with gdal() as module, _georeferenced(module, source, values.shape) as origin:
        tops = range(0, height, _TILE)
        try:
            with module.open(
                file, "w", driver="GTiff", count=1, dtype="uint8", height=height, width=width,
                tiled=True, blockxsize=_TILE, blockysize=_TILE, compress="deflate",
                bigtiff="if_safer", nodata=nodata, **_place(origin),
            ) as target:  # fmt: skip
                if colours:
                    target.write_colormap(1, colours)
                    target.update_tags(CLASSES=tags)
                for window, band in (_band(module, values, origin, nodata, top) for top in tops):
                    target.write(band, 1, window=window)
            with module.open(file) as target:  # GDAL reports no error of closing, as on a full disk
                parts = (_band(module, values, origin, nodata, top) for top in tops)
                whole = all((target.read(1, window=w) == band).all() for w, band in parts)
        except OSError:  # rasterio's own, without errno
            whole = False
    if not whole:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))


def _georeferenced(module: Any, source: Path, size: tuple[int, ...]) -> AbstractContextManager[Any]:
    """`source` open in rasterio; None where it cannot tell the place of the upright pixels."""
    with suppress(InputError, OSError):
        if _is_upright(source):
            origin: AbstractContextManager[Any] = module.open(source, driver=_DRIVERS)
            return origin if origin.shape == size else nullcontext()  # type: ignore[attr-defined]
    return nullcontext()


def _is_upright(source: Path) -> bool:
    if is_raster(source):
        return True
    with open_picture(source) as image:
        return bool(image.getexif().get(_ORIENTATION, 1) == 1)


def _place(origin: Any) -> dict[str, Any]:
    if origin is None:
        return {}
    points, system = origin.gcps
    if points:
        return {"gcps": points, "crs": system}
    moved = {} if origin.transform.is_identity else {"transform": origin.transform}
    return moved | {"crs": origin.crs}


def _band(module: Any, values: Bytes, origin: Any, nodata: int, top: int) -> tuple[Any, Bytes]:
    """Window and values of the rows from `top` on."""
    band = np.ascontiguousarray(values[top : top + _TILE])
    window = module.windows.Window(0, top, *band.shape[::-1])
    if origin is not None:
        band = np.where(origin.dataset_mask(window=window) > 0, band, np.uint8(nodata))
    return window, band
