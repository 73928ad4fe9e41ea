"""Any image file -> upright uint8 RGB, whole or by windows.

Grayscale, palette, alpha, 16-bit, float, CMYK and EXIF-rotated files all mean what a viewer shows.
TIFFs are read by windows, whatever their size and number of bands, if rasterio (the extra `geo`) is
there; those that it and Pillow interpret differently (CMYK, palettes, inverted or packed bits, an
orientation, premultiplied alpha) are left to Pillow, as is every other file.
"""

from __future__ import annotations

import os
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import ImageFileDirectory_v2, TiffImageFile

from ..runs import InputError, first_line

TIFF = {".tif", ".tiff"}
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".gif"} | TIFF
MAX_PIXELS = 1 << 28  # decoded at once, unless the environment variable LIMIT says how many
LIMIT = "HMSA_MAX_PIXELS"
ALL = slice(None)
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _COLORS, _FILL_ORDER = 256, 257, 258, 259, 262, 266  # tags
_ORIENTATION, _EXTRA, _FORMAT = 274, 338, 339  # the first also in EXIF: 5..8 lie on their side
_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # of so many bands of 8 bits
_AT_ONCE = 1 << 21  # pixels converted at once
_MEND = "replace or remove it"
_PILLOW = threading.Lock()


class OpenImage:
    """An image of any size, here `[H,W,3]` in memory; for a `with` block and one thread at a time.

    size: height and width as shown. mode: how the file holds it, Pillow's name or bands and type.
    """

    def __init__(self, pixels: NDArray[np.uint8], mode: str = "RGB") -> None:
        self._pixels, self.mode = pixels, mode
        self.size: tuple[int, int] = (pixels.shape[0], pixels.shape[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is open."""

    def read(self, rows: slice = ALL, cols: slice = ALL) -> NDArray[np.uint8]:
        """`[h,w,3]` RGB, not to be written to.

        Raises InputError if the file is damaged there, or for more than `pixel_limit()` pixels.
        """
        return self._pixels[rows, cols]


class Raster(OpenImage):
    """A TIFF of which only windows are in memory.

    One or two bands are gray; of more, the first three are RGB. 8 bits are taken as they are; wider
    types are scaled by the largest value of the whole file, see `to_8_bits`, and nodata is black.
    """

    def __init__(self, path: Path) -> None:
        """Raises OSError if rasterio cannot open it."""
        self.path, self._source = path, rasterio().open(path, driver="GTiff")
        self.size, count = self._source.shape, self._source.count
        self._type = np.dtype(self._source.dtypes[0])
        self._bands = [1, 2, 3] if count > 2 else [1]
        known = self._type == np.uint8 and count in _MODES
        self.mode = _MODES[count] if known else f"{count} band(s) of {self._type}"

    def __exit__(self, *_: object) -> None:
        self._source.close()

    def read(self, rows: slice = ALL, cols: slice = ALL) -> NDArray[np.uint8]:
        (top, bottom, _), (left, right, _) = rows.indices(self.size[0]), cols.indices(self.size[1])
        height, width = max(0, bottom - top), max(0, right - left)
        _check_size(self.path, height, width)
        image = np.empty((height, width, 3), np.uint8)
        for start, stop in _row_ranges(height if width else 0, width):
            bands = self._load(top + start, top + stop, left, right)
            image[start:stop] = np.moveaxis(self._to_rgb(bands), 0, -1)
        return image

    def _to_rgb(self, bands: NDArray[Any]) -> NDArray[np.uint8]:
        """`[n,h,w]` -> `[3,h,w]`, or `[1,h,w]` for all three."""
        if self._type == np.uint8:
            return bands
        if self._type == np.uint16 and len(bands) == 3 and self._exceeds:
            return (bands >> 8).astype(np.uint8)  # as Pillow reads 16-bit colours
        return to_8_bits(bands, self._exceeds)

    @cached_property
    def _exceeds(self) -> bool:
        """`exceeds` of the whole file, which is read until a value does."""
        height, width = self.size
        return any(
            exceeds(self._load(start, stop, 0, width)) for start, stop in _row_ranges(height, width)
        )

    def _load(self, top: int, bottom: int, left: int, right: int) -> NDArray[Any]:
        """Bands `[n,h,w]` as they are stored, but 0 for the nodata of wider types."""
        window = ((top, bottom), (left, right))
        try:
            bands: NDArray[Any] = self._source.read(self._bands, window=window)
        except OSError as error:
            why = first_line(error.__cause__ or error)
            raise InputError(f"{self.path} cannot be decoded ({why}); {_MEND}") from None
        for band, nodata in zip(bands, self._source.nodatavals, strict=False):
            if nodata is not None and self._type != np.uint8:
                band[band == nodata] = 0
        return bands


def open_image(path: Path) -> OpenImage:
    """An image file, for a `with` block: by windows where possible, else decoded here.

    Raises InputError if it cannot be decoded or that needs more than `pixel_limit()` pixels.
    """
    if (raster := _open_raster(path)) is not None:
        return raster
    with open_pillow(path) as image:
        mode = image.mode
        return OpenImage(to_rgb(image), mode)


def read_image(path: Path | str, content: bytes | None = None) -> NDArray[np.uint8]:
    """`[H,W,3]` uint8 RGB. Raises InputError as `open_image`.

    content: bytes of the file if they are in memory already; `path` is then used in messages only.
    """
    if content is None:
        with open_image(Path(path)) as opened:
            return opened.read()
    with open_pillow(path, content) as image:
        return to_rgb(image)


def read_size(path: Path) -> tuple[int, int]:
    """Height and width as shown, from the header alone."""
    if (raster := _open_raster(path)) is not None:
        with raster:
            return raster.size
    with open_pillow(path, limited=False) as image:
        width, height = image.size
        if isinstance(image, TiffImageFile):  # some versions of Pillow turn it, some do not yet
            width, height = image.tag_v2[_WIDTH], image.tag_v2[_HEIGHT]
        # Not the method of the PNG class, which decodes all pixels to find EXIF behind them
        turned = Image.Image.getexif(image).get(_ORIENTATION, 1) >= 5
    return (width, height) if turned else (height, width)


@contextmanager
def open_pillow(
    path: Path | str, content: bytes | None = None, limited: bool = True
) -> Iterator[Image.Image]:
    """`PIL.Image.open` that raises InputError for every failure, also while decoding in the block.

    content: as for `read_image`. limited: refuse more than `pixel_limit()` pixels.
    """
    try:
        # Not by its name: Pillow would map the file, and so garble a gray TIFF that is turned
        with Path(path).open("rb") if content is None else BytesIO(content) as file:
            file.read(1)  # fills its buffer, so that the lock is held for no slow disk
            file.seek(0)
            with _PILLOW:  # whose own limit, one for the whole process, is lifted for this file
                limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
                try:
                    image = Image.open(file)
                finally:
                    Image.MAX_IMAGE_PIXELS = limit
            if not all(image.size):
                raise InputError(f"{path} is an image without pixels; {_MEND}")
            if limited:
                _check_size(path, image.height, image.width)
            yield image
    except InputError:
        raise
    except UnidentifiedImageError:
        raise InputError(
            f"{path} is not an image that can be read; {_MEND}{_geo_hint(path)}"
        ) from None
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} cannot be decoded ({error}); {_MEND}{_geo_hint(path)}") from None


def to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """`[H,W,3]` uint8 RGB from a Pillow image of any mode."""
    image.load()  # a PNG may have its orientation at its end
    if image.getexif().get(_ORIENTATION, 1) != 1:  # else it would be copied all the same
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        gray = np.asarray(image)
        return np.stack([to_8_bits(gray, exceeds(gray))] * 3, -1)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def to_8_bits(values: NDArray[Any], exceeding: bool) -> NDArray[np.uint8]:
    """Integers by their high byte; floats from 0..1, or from 0..255 where they go beyond 1.

    exceeding: `exceeds` of the whole image; small integers are then taken as they are.
    """
    scaled: NDArray[Any]
    if values.dtype.kind == "f":
        scaled = np.nan_to_num(values.clip(0, 255)) * (1 if exceeding else 255)
    else:
        scaled = values.astype(np.float32) / (257 if exceeding else 1)
    return scaled.round().clip(0, 255).astype(np.uint8)


def exceeds(values: NDArray[Any]) -> bool:
    """Whether any is above 1 if they are floats, above 255 if they are integers."""
    most = 1 if values.dtype.kind == "f" else 255
    return bool(np.fmax.reduce(values, axis=None, initial=0) > most)


def images_below(folder: Path) -> list[Path]:
    """Every image file below `folder`, by its suffix, in sorted order."""
    found = (p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    return sorted(p for p in found if p.is_file() and not p.name.startswith("."))


def pixel_limit() -> int:
    """Pixels that may be decoded at once: a small file may hold any number."""
    text = os.environ.get(LIMIT, str(MAX_PIXELS))
    if not text.isdecimal():
        raise InputError(f"{LIMIT}={text!r} in the environment is not a number of pixels")
    return int(text)


def is_raster(path: Path) -> bool:
    """Whether it is a TIFF whose bands hold the pixels as they are to be shown."""
    if path.suffix.lower() not in TIFF:
        return False
    try:
        with path.open("rb") as file:
            header = file.read(8)
            header += file.read(8 * (43 in header[2:4]))  # BigTIFF
            tags = ImageFileDirectory_v2(header)
            file.seek(tags.next)
            tags.load(file)
        bits, colors = {*tags[_BITS]}, tags[_COLORS]
    except (OSError, SyntaxError, struct.error, KeyError):
        return False
    return (
        len(bits) == 1
        and bits <= {8, 16, 32, 64}
        and (colors in (1, 2) or (colors, tags.get(_COMPRESSION)) == (6, 7))  # or YCbCr in JPEG
        and {*tags.get(_FORMAT, (1,))} <= {1, 2, 3}  # no complex numbers
        and 1 not in tags.get(_EXTRA, ())  # alpha that colours are multiplied by
        and tags.get(_FILL_ORDER, 1) == tags.get(_ORIENTATION, 1) == 1
    )


def rasterio() -> Any:
    """The module, with a bound on GDAL's cache. Raises InputError if it is not installed."""
    os.environ.setdefault("GDAL_CACHEMAX", "256")  # MiB of decoded blocks, for all files together
    try:
        import rasterio
        from rasterio.errors import NotGeoreferencedWarning
    except ImportError:
        raise InputError('GeoTIFF needs rasterio: pip install "hmsa[geo]"') from None
    warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)  # most images are not
    return rasterio


def _open_raster(path: Path) -> Raster | None:
    try:
        return Raster(path) if is_raster(path) and find_spec("rasterio") else None
    except OSError:  # a compression that only Pillow knows, or else Pillow says why
        return None


def _row_ranges(height: int, width: int) -> Iterator[tuple[int, int]]:
    """First row and end of parts with a bounded number of pixels."""
    step = max(1, _AT_ONCE // max(1, width))
    return ((start, min(start + step, height)) for start in range(0, height, step))


def _check_size(path: Path | str, height: int, width: int) -> None:
    pixels = height * width
    if pixels > (limit := pixel_limit()):
        raise InputError(
            f"{path} is {width}x{height}, {pixels} pixels, and at most {limit} are decoded at "
            f"once; if you trust it, set {LIMIT}={pixels} in the environment{_geo_hint(path)}"
        )


def _geo_hint(path: Path | str) -> str:
    if Path(path).suffix.lower() not in TIFF or find_spec("rasterio"):
        return ""
    return '; rasterio reads more TIFFs, and large ones by windows: pip install "hmsa[geo]"'
