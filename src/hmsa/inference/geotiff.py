"""One band of bytes as a GeoTIFF that lies where the picture lies that it was seen in.

Tiled and compressed, written some rows at a time. Needs rasterio, the extra `geo`.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from ..data.images import is_raster, open_pillow, rasterio
from ..runs.errors import InputError

Bytes = NDArray[np.uint8]

_TILE = 512  # pixels of a side; also the rows that are written at once
_DRIVERS = {  # the last ones may have a world file beside them
    ".tif": "GTiff", ".tiff": "GTiff",
    ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".bmp": "BMP", ".gif": "GIF", ".webp": "WEBP",
}  # fmt: skip
_ORIENTATION = 0x0112  # EXIF tag


def write_geotiff(
    file: Path,
    values: Bytes,
    source: Path,
    nodata: int,
    palette: Bytes | None = None,
    names: Sequence[str] = (),
) -> None:
    """Values [H,W]; CRS, transform or ground control points are those of the picture `source`, if
    it has any, and where it has no data, by nodata, mask or alpha, `nodata` is written.

    palette: [K,3]. names: what its values mean, kept as the tag CLASSES, in JSON. OSError where
    the file is not whole in the end.
    """
    height, width = values.shape
    module = rasterio()
    with _origin(module, source, values.shape) as origin:
        try:
            with module.open(
                file, "w", driver="GTiff", count=1, dtype="uint8", height=height, width=width,
                tiled=True, blockxsize=_TILE, blockysize=_TILE, compress="deflate",
                bigtiff="if_safer", nodata=nodata, **_place(origin),
            ) as target:  # fmt: skip
                if palette is not None:
                    colors = dict(enumerate(palette.tolist())) | {nodata: (0, 0, 0, 0)}
                    target.write_colormap(1, colors)
                    target.update_tags(CLASSES=json.dumps(list(names)))
                written = 0
                for window, band in _bands(module, values, origin, nodata):
                    target.write(band, 1, window=window)
                    written = crc32(band.data, written)
            there = 0  # GDAL keeps to itself what it could not write as it closed the file
            with module.open(file) as target:
                for window in _windows(module, values.shape):
                    there = crc32(target.read(1, window=window), there)
        except OSError:  # rasterio's, which has no errno
            written, there = 0, 1
    if written != there:
        raise OSError(errno.EIO, "a GeoTIFF did not get there whole; is the disk full?")


@contextmanager
def _origin(module: Any, source: Path, size: tuple[int, ...]) -> Iterator[Any]:
    """`source` open in rasterio; None where that cannot say where its upright pixels lie."""
    try:
        if not is_raster(source):
            with open_pillow(source) as picture:
                if picture.getexif().get(_ORIENTATION, 1) != 1:
                    raise InputError("its pixels are turned")
        opened = module.open(source, driver=_DRIVERS[source.suffix.lower()])
    except (InputError, OSError, KeyError):
        yield None
        return
    with opened:
        yield opened if opened.shape == size else None


def _place(origin: Any) -> dict[str, Any]:
    if origin is None:
        return {}
    points, system = origin.gcps
    if points:
        return {"gcps": points, "crs": system}
    moved = {} if origin.transform.is_identity else {"transform": origin.transform}
    return moved | ({"crs": origin.crs} if origin.crs else {})


def _bands(module: Any, values: Bytes, origin: Any, nodata: int) -> Iterator[tuple[Any, Bytes]]:
    """Some rows after the other, as they are written."""
    everywhere = origin is None or all(
        flags == [module.enums.MaskFlags.all_valid] for flags in origin.mask_flag_enums
    )
    for window in _windows(module, values.shape):
        band = np.ascontiguousarray(values[window.row_off : window.row_off + window.height])
        if not everywhere:
            seen = origin.dataset_mask(window=window) > 0
            band = np.where(seen, band, np.uint8(nodata))
        yield window, band


def _windows(module: Any, size: tuple[int, ...]) -> Iterator[Any]:
    height, width = size
    for top in range(0, height, _TILE):
        yield module.windows.Window(0, top, width, min(_TILE, height - top))
