"""Images open in memory, and TIFFs (with rasterio, the extra `geo`) of which only windows are."""

from __future__ import annotations

import math
import os
import struct
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from ..runs import InputError, first_line, say_once
from .stretch import Range, Sample, Stretch, require_bands, sample, settled, usual_ranges

TIFF, JPEG_2000 = {".tif", ".tiff"}, {".jp2", ".j2k"}
MAX_PIXELS = 1 << 28  # decoded at once, unless the environment variable LIMIT says how many
LIMIT = "HMSA_MAX_PIXELS"
ALL = slice(None)
MEND = "replace or remove it"
WIDTH, HEIGHT, ORIENTATION = 256, 257, 274  # tags; the last also in EXIF: 5..8 lie on their side
_BITS, _COMPRESSION, _COLORS, _FILL_ORDER, _SAMPLES, _PLANAR = 258, 259, 262, 266, 277, 284
_EXTRA, _FORMAT = 338, 339
_STRIP_ROWS, _STRIP_BYTES, _TILE_WIDTH, _TILE_HEIGHT, _TILE_BYTES = 278, 279, 322, 323, 325
_SMALLEST = 100_000  # bytes that a byte of any compression stands for, at most
_AT_ONCE = 1 << 21  # pixels of a wide type that are stretched at once
_MODES = {"1 uint8": "L", "1 uint16": "I;16", "3 uint8": "RGB", "4 uint8": "RGBA"}
_NAN = -(1 << 31)  # stands for nodata that is not a number

# Of damaged tags; whether the file can be decoded is said in an InputError
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")


def is_raster(path: Path) -> bool:
    """Whether it is a TIFF whose bands hold the pixels as they are to be shown."""
    return _shown_as_stored(_tags(path, None))


def _shown_as_stored(tags: Any) -> bool:
    if not tags or not tags.get(_BITS) or not tags.get(_COLORS):  # not `in`: may be undecodable
        return False
    bits, colors = {*tags[_BITS]}, tags[_COLORS]
    return (
        len(bits) == 1
        and bits <= {*range(8, 17), 32, 64}
        and (colors in (1, 2) or (colors, tags.get(_COMPRESSION)) == (6, 7))  # or YCbCr in JPEG
        and {*tags.get(_FORMAT, (1,))} <= {1, 2, 3}  # no complex numbers
        and 1 not in tags.get(_EXTRA, ())  # alpha that colours are multiplied by
        and tags.get(_FILL_ORDER, 1) == tags.get(ORIENTATION, 1) == 1
    )


def _can_hold(tags: Any, length: int) -> bool:
    """Whether a file of `length` bytes can hold the pixels that its tags claim.

    Blocks may be missing as a whole, which means that they are empty.
    """
    try:
        width, height = tags[WIDTH], tags[HEIGHT]
        samples, bits = tags.get(_SAMPLES, 1), tags.get(_BITS, (1,))[0]
        rows, columns = tags.get(_STRIP_ROWS, height), width
        rows, columns = tags.get(_TILE_HEIGHT, rows), tags.get(_TILE_WIDTH, columns)
        stored = tags[_TILE_BYTES] if _TILE_WIDTH in tags else tags[_STRIP_BYTES]
        blocks = math.ceil(height / rows) * math.ceil(width / columns)
        blocks *= samples if tags.get(_PLANAR, 1) == 2 else 1
        there = sum(map(bool, stored)) / max(1, blocks)
        claimed = there * width * height * samples * bits / 8
        ratio = 2 if tags.get(_COMPRESSION, 1) == 1 else _SMALLEST  # 2: the last one may be short
        return bool(len(stored) >= blocks and claimed <= ratio * min(sum(stored), length))
    except (KeyError, TypeError, ArithmeticError):
        return True  # whoever decodes it says what is wrong


def _tags(path: Path, content: bytes | None) -> Any:
    """Tags of the first page; none if it is no TIFF."""
    if path.suffix.lower() not in TIFF:
        return {}
    try:
        with path.open("rb") if content is None else BytesIO(content) as file:
            header = file.read(8)
            header += file.read(8 * (43 in header[2:4]))  # BigTIFF
            tags = ImageFileDirectory_v2(header)
            file.seek(tags.next)
            tags.load(file)
            return tags
    except (OSError, SyntaxError, ValueError, struct.error, KeyError):
        return {}


def open_by_gdal(path: Path, driver: str, content: bytes | None = None) -> Any:
    """The file in rasterio; content: of `path`, if it is elsewhere. Raises OSError."""
    if content is not None:
        return rasterio().open(BytesIO(content), driver=driver)
    with path.open("rb") as file:  # by its number: GDAL takes names in UTF-8 alone
        utf8 = str(path).encode("utf-8", "replace") == os.fsencode(path)
        return rasterio().open(path if utf8 else f"/dev/fd/{file.fileno()}", driver=driver)


def rasterio() -> Any:
    """The module, with a bound on GDAL's cache. Raises InputError if it is not installed."""
    os.environ.setdefault("GDAL_CACHEMAX", "256")  # MiB of decoded blocks, for all files together
    try:
        import rasterio
        from rasterio.errors import NotGeoreferencedWarning
    except ImportError:
        raise InputError(
            'GeoTIFF needs rasterio, which is missing: pip install "hmsa[geo]"'
        ) from None
    warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)  # most images are not
    return rasterio


class Stored(NamedTuple):
    """A label file as it is stored."""

    values: NDArray[np.integer]  # [H,W] or [H,W,n]
    mode: str  # as of `OpenImage`
    rgb: Callable[[], NDArray[np.uint8]]  # [H,W,3] that a viewer shows
    nodata: int | None = None  # value that means "no data"
    lossy: bool = False  # a format that may change values


class OpenImage:
    """An image of any size, here `[H,W,C]` in memory; for a `with` block and one thread at a time.

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
        """`[h,w,C]`, RGB or the bands that were chosen; not to be written to.

        Raises InputError if the file is damaged there, or for more than LIMIT pixels.
        """
        return self._pixels[rows, cols]


class Raster(OpenImage):
    """A file that rasterio reads, of which only windows are in memory.

    Unless bands are chosen, those called red, green and blue are RGB, or else the first three; of
    one or two bands the first is gray. Nodata of wide types is black.
    """

    def __init__(
        self, path: Path, stretch: Stretch = Stretch(), content: bytes | None = None
    ) -> None:
        """Raises OSError if rasterio cannot open it, InputError if it lacks a band."""
        driver = "GTiff" if path.suffix.lower() in TIFF else "JP2OpenJPEG"
        self.path, self._source = path, open_by_gdal(path, driver, content)
        self.size, count = self._source.shape, self._source.count
        colors = [color.name for color in self._source.colorinterp]
        named = [colors.index(c) + 1 for c in ("red", "green", "blue") if c in colors]
        shown = (named if len(named) == 3 else [1, 2, 3]) if count > 2 else [1]
        self._bands, self._stretch = [*(stretch.bands or shown)], stretch
        require_bands(path, stretch, count)
        self.type = np.dtype(self._source.dtypes[self._bands[0] - 1])
        self.mode = _MODES.get(f"{count} {self.type}", f"{count} band(s) of {self.type}")
        if pages := self._source.subdatasets:
            say_pages(path, len(pages))

    def __exit__(self, *_: object) -> None:
        self._source.close()

    def read(self, rows: slice = ALL, cols: slice = ALL) -> NDArray[np.uint8]:
        (top, bottom, _), (left, right, _) = rows.indices(self.size[0]), cols.indices(self.size[1])
        height, width = max(0, bottom - top), max(0, right - left)
        check_size(self.path, height, width)
        image = np.empty((height, width, self._stretch.channels), np.uint8)
        step = max(1, height if self.type == np.uint8 else _AT_ONCE // max(1, width))
        for start in range(0, height if width else 0, step):
            part = image[start : start + step]
            window = slice(top + start, top + start + len(part)), slice(left, right)
            part[:] = self._decided.apply(self._load(*window))
        return image

    @cached_property
    def _decided(self) -> Stretch:
        sample = self.sample()
        return settled(self._stretch, self.path, sample) if sample else self._stretch

    def sample(self) -> Sample | None:
        """Pixels that decide a range; None if it has 8 bits."""
        return None if self.type == np.uint8 else sample(self.size, self._load, self._usual)

    def stored(self) -> Stored:
        """All bands as those of a label file."""
        check_size(self.path, *self.size)
        bands = self._read(None)
        values = bands[0] if len(bands) == 1 else np.moveaxis(bands, 0, -1)
        whole, nodata = whole_numbers(values, self.path, self._source.nodata)

        def rgb() -> NDArray[np.uint8]:
            if whole.min() < 0 or whole.max() > 255:
                raise InputError(f"{self.path} is {self.mode}; labels in colours have 8 bits")
            colors = whole[..., :3] if whole.ndim == 3 and whole.shape[2] > 2 else whole[..., None]
            return np.broadcast_to(colors.astype(np.uint8), (*self.size, 3))

        return Stored(whole, self.mode, rgb, nodata)

    def _load(self, rows: slice, cols: slice) -> NDArray[Any]:
        """Bands `[h,w,n]`: 8 bits as they are stored, wider types scaled, with NaN for nodata."""
        wide = self.type != np.uint8
        window = ((rows.start, rows.stop), (cols.start, cols.stop))
        bands = self._read(self._bands, window=window, masked=wide)
        if wide:
            with np.errstate(over="ignore"):
                bands = np.ma.filled(bands.astype(np.float32), np.nan)
            for band, (scale, offset) in zip(bands, self._scales, strict=True):
                if (scale, offset) != (1, 0):
                    band *= scale
                    band += offset
        return np.moveaxis(bands, 0, -1)

    def _read(self, bands: list[int] | None, **options: Any) -> Any:
        try:
            return self._source.read(bands, **options)
        except OSError as error:
            why = first_line(error.__cause__ or error)
            raise InputError(f"{self.path} cannot be decoded ({why}); {MEND}") from None

    @property
    def _scales(self) -> list[tuple[float, float]]:
        """Factor and summand that turn stored into real values, of each band."""
        return [(self._source.scales[b - 1], self._source.offsets[b - 1]) for b in self._bands]

    @property
    def _usual(self) -> tuple[Range, ...]:
        if {*self._scales} != {(1.0, 0.0)}:
            return usual_ranges(np.dtype(float))
        tags, found = self._source.tags(), list(usual_ranges(self.type))
        with suppress(KeyError, ValueError):
            ends = (float(tags[f"TIFFTAG_{end}SAMPLEVALUE"]) for end in ("MIN", "MAX"))
            found.append((next(ends), next(ends)))
        with suppress(KeyError, ValueError):
            bits = self._source.tags(self._bands[0], ns="IMAGE_STRUCTURE")["NBITS"]
            found.append((0, 2 ** int(bits) - 1))
        return tuple(found)


def open_raster(
    path: Path, stretch: Stretch = Stretch(), content: bytes | None = None
) -> Raster | None:
    """Open in rasterio, if that shows it as it is to be shown; None: Pillow does.

    Raises InputError for a TIFF that is too short for the pixels that its header claims.
    """
    if tags := _tags(path, content):
        length = path.stat().st_size if content is None else len(content)
        if not _can_hold(tags, length):
            raise false_claim(path, tags[WIDTH], tags[HEIGHT], length)
    jpeg_2000 = path.suffix.lower() in JPEG_2000
    if not (jpeg_2000 or _shown_as_stored(tags)) or not find_spec("rasterio"):
        return None
    try:
        raster = Raster(path, stretch, content)
    except OSError:  # a compression that only Pillow knows, or else Pillow says why
        return None
    return None if jpeg_2000 and raster.type == np.uint8 else raster


def whole_numbers(
    values: NDArray[Any], path: Path, nodata: float | None = None
) -> tuple[NDArray[np.integer], int | None]:
    """Values of a label, and that for "no data". Raises InputError for others than integers."""
    if values.dtype.kind == "f":
        missing = np.isnan(values) if nodata is not None and np.isnan(nodata) else False
        wrong = ~(np.isfinite(values) & (values == np.round(values)) | missing)
        if wrong.any():
            raise InputError(
                f"{path} holds {values[wrong][0]:g}, which is not a whole number; a label has a "
                "whole number for each pixel, and this looks like an image or probabilities"
            )
        values = np.where(missing, _NAN, values).astype(np.int64)
        nodata = _NAN if np.any(missing) else nodata
    return values, None if nodata is None or np.isnan(nodata) else int(nodata)


def false_claim(path: Path | str, width: int, height: int, length: int) -> InputError:
    return InputError(
        f"{path} cannot be decoded: it has {length} bytes, too few for the {width}x{height} pixels "
        f"that its header claims; {MEND}"
    )


def say_pages(path: Path | str, pages: int) -> None:
    say_once(f"{path} has {pages} pages; of such files only the first page is read", "pages")


def check_size(path: Path | str, height: int, width: int) -> None:
    """Raise InputError for too many pixels to decode at once: a small file may hold any number."""
    pixels, limit = height * width, os.environ.get(LIMIT, str(MAX_PIXELS))
    if not limit.isdecimal():
        raise InputError(f"{LIMIT}={limit!r} in the environment is not a number of pixels")
    if pixels > int(limit):
        raise InputError(
            f"{path} is {width}x{height}, {pixels} pixels, and at most {limit} are decoded at "
            f"once; if you trust it, set {LIMIT}={pixels} in the environment{geo_hint(path)}"
        )


def geo_hint(path: Path | str) -> str:
    if Path(path).suffix.lower() not in TIFF or find_spec("rasterio"):
        return ""
    return '; rasterio reads more TIFFs, and large ones by windows: pip install "hmsa[geo]"'
