"""TIFFs by windows: any size, number of bands and type -> RGB, and never the whole file at once.

Needs rasterio, the extra `geo`. What means something else to it than to Pillow (CMYK, bits inverted
or fewer than 8, an orientation, multiplied alpha) is not taken here.
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ..runs.errors import InputError

SUFFIXES = {".tif", ".tiff"}
_BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER, _ORIENTATION, _EXTRA = 258, 259, 262, 266, 274, 338
_WANTED = {_BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER, _ORIENTATION, _EXTRA}
_GRAY, _RGB, _PALETTE, _MULTIPLIED, _IN_JPEG = 1, 2, 3, 1, ([6], [7])  # values of those tags
_SHORT = 3  # the type of all of them
_MODES = {
    (1, "uint8"): "L", (1, "uint16"): "I;16", (1, "float32"): "F",
    (2, "uint8"): "LA", (3, "uint8"): "RGB", (4, "uint8"): "RGBA",
}  # fmt: skip
_AT_ONCE = 1 << 21  # pixels converted at once
_CACHE = 256  # MiB of decoded blocks that GDAL keeps, for all pictures together


def rasterio() -> Any:
    """The module; InputError that says how to get it."""
    try:
        import rasterio
        from rasterio.errors import NotGeoreferencedWarning
    except ImportError:
        raise InputError(
            'GeoTIFF needs rasterio, which is missing: pip install "hmsa[geo]"'
        ) from None
    warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)  # most pictures are not
    return rasterio


def is_there() -> bool:
    """Whether rasterio is installed."""
    return find_spec("rasterio") is not None


@contextmanager
def gdal() -> Iterator[Any]:
    """rasterio, with a bound on the memory of GDAL."""
    module = rasterio()
    with module.Env(GDAL_CACHEMAX=_CACHE):
        yield module


def is_raster(path: Path) -> bool:
    """Whether it is a TIFF whose pixels are what its bands say."""
    try:
        tags = _tags(path) if path.suffix.lower() in SUFFIXES else {}
    except (OSError, struct.error, KeyError):
        return False
    bits, kind = set(tags.get(_BITS, ())), tags.get(_PHOTOMETRIC)
    return (
        (kind in ([_GRAY], [_RGB], [_PALETTE]) or (kind, tags.get(_COMPRESSION)) == _IN_JPEG)
        and len(bits) == 1
        and bits <= ({8} if kind == [_PALETTE] else {8, 16, 32, 64})
        and _MULTIPLIED not in tags.get(_EXTRA, ())
        and tags.get(_FILL_ORDER, [1]) == tags.get(_ORIENTATION, [1]) == [1]
    )


def _tags(path: Path) -> dict[int, list[int]]:
    """Those numbers of the first directory that have 16 bits; TIFF 6.0, or BigTIFF."""
    with path.open("rb") as file:

        def numbers(form: str) -> tuple[int, ...]:
            return struct.unpack(order + form, file.read(struct.calcsize(order + form)))

        order = {b"II": "<", b"MM": ">"}[file.read(2)]
        long, offset = {42: ("I", "I"), 43: ("Q", "4xQ")}[numbers("H")[0]]
        file.seek(numbers(offset)[0])
        (count,) = numbers("H" if long == "I" else "Q")
        found, outside = {}, {}
        for _ in range(count):
            tag, kind, number = numbers("HH" + long)
            value = file.read(struct.calcsize(long))
            if kind == _SHORT and tag in _WANTED:
                if number * 2 <= len(value):
                    found[tag] = list(struct.unpack_from(f"{order}{number}H", value))
                else:
                    outside[tag] = (struct.unpack(order + long, value)[0], number)
        for tag, (offset_of, number) in outside.items():
            file.seek(offset_of)
            found[tag] = list(numbers(f"{number}H"))
    return found


class Raster:
    """A picture read by windows, `[h,w,3]` uint8; see `data.images.Picture`.

    One or two bands are gray, of more the first three are RGB. 8 bits are taken as they are; of
    wider types the largest value of the whole decides, see `to_8_bits`, and nodata is black. For
    one thread at a time.
    """

    def __init__(self, path: Path) -> None:
        """OSError where rasterio cannot open it, InputError where it holds no picture."""
        self.path = path
        with gdal() as module:
            self._source = module.open(path, driver="GTiff")
        self.size: tuple[int, int] = self._source.shape
        self._type = np.dtype(self._source.dtypes[0])
        count = self._source.count
        if self._type.kind == "c":
            raise InputError(f"{path} holds complex numbers; give their amplitude instead")
        self._bands = [1, 2, 3] if count > 2 else [1]
        self._exceeds: bool | None = None
        self._palette = self._colors() if self._source.colorinterp[0].name == "palette" else None
        held = "P" if self._palette is not None else _MODES.get((count, self._type.name))
        self.mode = held or f"{count} band(s) of {self._type}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._source.close()

    def read(self, rows: slice, cols: slice) -> NDArray[np.uint8]:
        """InputError where that part of the file is damaged."""
        (top, bottom, _), (left, right, _) = rows.indices(self.size[0]), cols.indices(self.size[1])
        found = np.empty((max(0, bottom - top), max(0, right - left), 3), np.uint8)
        step = max(1, _AT_ONCE // max(1, found.shape[1]))
        for start in range(top, bottom if found.size else top, step):
            stop = min(start + step, bottom)
            bands = self._read(start, stop, left, right)
            found[start - top : stop - top] = np.moveaxis(self._to_rgb(bands), 0, -1)
        return found

    def _to_rgb(self, bands: NDArray[Any]) -> NDArray[np.uint8]:
        """[n,h,w] -> [3,h,w], or [1,h,w] that stands for all three."""
        if self._palette is not None:
            return self._palette[:, bands[0]]
        if self._type == np.uint8:
            return bands
        if self._exceeds is None:
            self._exceeds = self._look_for_more()
        if self._type == np.uint16 and len(bands) == 3 and self._exceeds:
            return (bands >> 8).astype(np.uint8)  # as Pillow takes 16-bit colours
        return to_8_bits(bands, self._exceeds)

    def _look_for_more(self) -> bool:
        """Whether any value is beyond what `to_8_bits` takes as it is; reads until one is found."""
        height, width = self.size
        step = max(1, _AT_ONCE // width)
        return any(
            exceeds(self._read(top, min(top + step, height), 0, width))
            for top in range(0, height, step)
        )

    def _read(self, top: int, bottom: int, left: int, right: int) -> NDArray[Any]:
        """Bands [n,h,w] as they are stored, but 0 for the nodata of wider types."""
        with gdal() as module:
            window = module.windows.Window(left, top, right - left, bottom - top)
            try:
                bands: NDArray[Any] = self._source.read(self._bands, window=window)
            except OSError as error:
                why = " ".join(str(error.__cause__ or error).split())
                raise InputError(
                    f"{self.path} cannot be decoded ({why}); replace or remove it"
                ) from None
        if self._type != np.uint8:
            for band, nothing in zip(bands, self._source.nodatavals, strict=False):
                if nothing is not None:
                    band[band == nothing] = 0
        return bands

    def _colors(self) -> NDArray[np.uint8]:
        """[3,256] colour of every value."""
        table = np.zeros((256, 3), np.uint8)
        for value, color in self._source.colormap(1).items():
            table[value] = color[:3]
        return np.ascontiguousarray(table.T)


def exceeds(values: NDArray[Any]) -> bool:
    """Whether any is more than 1 if they are floats, more than 255 if not."""
    most = 1 if values.dtype.kind == "f" else 255
    return bool(np.fmax.reduce(values, axis=None, initial=0) > most)


def to_8_bits(values: NDArray[Any], exceeding: bool) -> NDArray[np.uint8]:
    """16-bit by its high byte; float in 0..1, or in 0..255 where it goes beyond 1.

    exceeding: what `exceeds` says of the whole picture.
    """
    if values.dtype.kind == "f":
        wide = np.nan_to_num(values.astype(np.float32).astype(np.float64))
        wide = wide if exceeding else wide * 255
    else:
        wide = values.astype(np.float64)
        wide = wide / 257 if exceeding else wide
    return np.clip(np.round(wide), 0, 255).astype(np.uint8)
