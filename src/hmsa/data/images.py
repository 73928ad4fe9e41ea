"""Any picture file -> upright uint8 RGB, whole or by windows.

Grayscale, palette, alpha, 16-bit, float, CMYK and EXIF-rotated files all mean what a viewer shows.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from ..runs.errors import InputError
from . import rasters
from .rasters import Raster, exceeds, to_8_bits

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".gif"} | rasters.SUFFIXES
MAX_PIXELS = 1 << 28  # decoded at once, unless the environment's LIMIT says how many
LIMIT = "HMSA_MAX_PIXELS"
_ORIENTATION = 0x0112  # EXIF tag; 5..8 lie on their side
_SIZE = (256, 257)  # TIFF tags: width, height
_AT_ONCE = 1 << 21  # pixels converted at once
_ALL = slice(None)


class Picture(Protocol):
    """A picture of any size, of which windows can be had; from one thread at a time."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width as shown."""

    def read(self, rows: slice, cols: slice) -> NDArray[np.uint8]:
        """`[h,w,3]` RGB; not to be written to. InputError where the file is damaged there."""


class OpenPicture(Picture, AbstractContextManager["OpenPicture"], Protocol):
    """One of a file."""

    @property
    def mode(self) -> str:
        """How the file holds it: Pillow's name, or bands and type."""


@dataclass(frozen=True)
class Whole:
    """Pixels `[H,W,3]` in memory as a `Picture`; windows are views of them."""

    pixels: NDArray[np.uint8]
    mode: str = "RGB"

    @property
    def size(self) -> tuple[int, int]:
        return self.pixels.shape[0], self.pixels.shape[1]

    def read(self, rows: slice, cols: slice) -> NDArray[np.uint8]:
        return self.pixels[rows, cols]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        """Nothing is held."""


def open_image(path: Path) -> OpenPicture:
    """A TIFF is read by windows, of any size, where rasterio is installed; any other picture is
    decoded here, and by it InputError is raised for more than `pixel_limit()`.
    """
    if (raster := _open_raster(path)) is not None:
        return raster
    with open_picture(path) as picture:
        mode = picture.mode
        return Whole(to_rgb(picture), mode)


def read_image(path: Path | str, content: bytes | None = None) -> NDArray[np.uint8]:
    """`[H,W,3]` uint8 RGB; InputError for more than `pixel_limit()`.

    content: of the file, if it was read already; `path` is then only what it is called.
    """
    if content is None:
        return read_whole(Path(path)).pixels
    with open_picture(path, content) as picture:
        return to_rgb(picture)


def read_whole(path: Path) -> Whole:
    """The same, and how the file holds it."""
    with open_image(path) as picture:
        _check(path, picture.size, pixel_limit())
        return Whole(picture.read(_ALL, _ALL), picture.mode)


def read_size(path: Path) -> tuple[int, int]:
    """Height and width as shown, from the header alone."""
    if (raster := _open_raster(path)) is not None:
        with raster:
            return raster.size
    with _opened(path) as picture:
        width, height = picture.size
        if isinstance(picture, TiffImageFile):  # some versions of Pillow turn it, some do not yet
            width, height = (picture.tag_v2[tag] for tag in _SIZE)
        # Not the method of the PNG class, which decodes all pixels to look for EXIF behind them
        lying = Image.Image.getexif(picture).get(_ORIENTATION, 1) >= 5
    return (width, height) if lying else (height, width)


@contextmanager
def open_picture(path: Path | str, content: bytes | None = None) -> Iterator[Image.Image]:
    """`PIL.Image.open` whose every failure, also a late one while decoding, is one clear line; the
    limit on pixels is ours, not Pillow's.

    content: of the file, if it was read already; `path` is then only what it is called.
    """
    with _opened(path, content) as picture:
        _check(path, picture.size[::-1], pixel_limit())
        yield picture


def pixel_limit() -> int:
    """Pixels that a picture may have to be decoded whole: a small file may hold any number."""
    text = os.environ.get(LIMIT, str(MAX_PIXELS))
    if not text.isdecimal():
        raise InputError(f"{LIMIT}={text!r} in the environment is not a number of pixels")
    return int(text)


def pictures_below(folder: Path) -> list[Path]:
    """Every file below `folder` whose suffix says picture, in sorted order."""
    found = (p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    return sorted(p for p in found if p.is_file() and not p.name.startswith("."))


def to_rgb(picture: Image.Image) -> NDArray[np.uint8]:
    """`[H,W,3]` uint8 RGB from a Pillow image of any mode."""
    picture.load()  # a PNG may have its orientation at its end
    if picture.getexif().get(_ORIENTATION, 1) != 1:  # else it would be copied all the same
        picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I") or picture.mode == "F":
        gray = np.asarray(picture)
        found, exceeding = np.empty((*gray.shape, 3), np.uint8), exceeds(gray)
        step = max(1, _AT_ONCE // max(1, gray.shape[1]))
        for top in range(0, len(gray), step):
            rows = slice(top, top + step)
            found[rows] = to_8_bits(gray[rows], exceeding)[..., None]
        return found
    return np.array(picture if picture.mode == "RGB" else picture.convert("RGB"))


def _open_raster(path: Path) -> Raster | None:
    if not rasters.is_raster(path) or not rasters.is_there():
        return None
    try:
        return Raster(path)
    except OSError:  # a compression that only Pillow knows, or else it will say why
        return None


@contextmanager
def _opened(path: Path | str, content: bytes | None = None) -> Iterator[Image.Image]:
    try:
        # Not by its name: Pillow would map the file, and so garble a gray TIFF on its side
        with Path(path).open("rb") if content is None else BytesIO(content) as file:
            with _UNLIMITED:
                picture = Image.open(file)
            if not all(picture.size):
                raise InputError(f"{path} is a picture without pixels; replace or remove it")
            yield picture
    except UnidentifiedImageError:
        raise InputError(f"{path} is not a picture that can be read; {_mend(path)}") from None
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} cannot be decoded ({error}); {_mend(path)}") from None


def _mend(path: Path | str) -> str:
    if rasters.is_raster(Path(path)) and not rasters.is_there():
        return 'rasterio reads more kinds of TIFF: pip install "hmsa[geo]"'
    return "replace or remove it"


def _check(path: Path | str, size: tuple[int, int], limit: int) -> None:
    height, width = size
    if height * width > limit:
        by_windows = rasters.is_raster(Path(path)) and not rasters.is_there()
        way = ', or pip install "hmsa[geo]" to read it by windows' if by_windows else ""
        raise InputError(
            f"{path} is {width}x{height}, {height * width} pixels, and at most {limit} are decoded "
            f"at once; if you trust it, set {LIMIT}={height * width} in the environment{way}"
        )


class _Unlimited:
    """Pillow's own limit, one for the whole process, is off inside; from any number of threads."""

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0
        self._limit: int | None = None

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                Image.MAX_IMAGE_PIXELS = self._limit


_UNLIMITED = _Unlimited()
