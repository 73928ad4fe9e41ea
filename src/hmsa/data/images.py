"""Any picture file -> upright uint8 RGB.

Grayscale, palette, alpha, 16-bit, float, CMYK and EXIF-rotated files all mean what a viewer shows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import InputError

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".gif"}
_ORIENTATION = 0x0112  # EXIF tag; 5..8 lie on their side


@contextmanager
def open_picture(path: Path | str, content: bytes | None = None) -> Iterator[Image.Image]:
    """`PIL.Image.open` whose every failure, also a late one while decoding, is one clear line.

    content: of the file, if it was read already; `path` is then only what it is called.
    """
    try:
        with Image.open(path if content is None else BytesIO(content)) as picture:
            yield picture
    except UnidentifiedImageError:
        raise InputError(
            f"{path} is not a picture that can be read; replace or remove it"
        ) from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise InputError(f"{path} cannot be decoded ({error}); replace or remove it") from None


def pictures_below(folder: Path) -> list[Path]:
    """Every file below `folder` whose suffix says picture, in sorted order."""
    found = (p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    return sorted(p for p in found if p.is_file() and not p.name.startswith("."))


def read_image(path: Path | str, content: bytes | None = None) -> NDArray[np.uint8]:
    """`[H,W,3]` uint8 RGB; path and content as `open_picture` takes them."""
    with open_picture(path, content) as picture:
        return to_rgb(picture)


def to_rgb(picture: Image.Image) -> NDArray[np.uint8]:
    """`[H,W,3]` uint8 RGB from a Pillow image of any mode."""
    picture.load()  # a PNG may have its orientation at its end
    if picture.getexif().get(_ORIENTATION, 1) != 1:  # else it would be copied all the same
        picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I") or picture.mode == "F":
        return np.repeat(_to_8_bits(np.asarray(picture))[..., None], 3, axis=2)
    return np.array(picture if picture.mode == "RGB" else picture.convert("RGB"))


def read_size(path: Path) -> tuple[int, int]:
    """Height and width as shown, from the header alone."""
    with open_picture(path) as picture:
        width, height = picture.size
        # Not the method of the PNG class, which decodes all pixels to look for EXIF behind them
        lying = Image.Image.getexif(picture).get(_ORIENTATION, 1) >= 5
    return (width, height) if lying else (height, width)


def _to_8_bits(gray: NDArray[np.generic]) -> NDArray[np.uint8]:
    """16-bit by its high byte; float in 0..1, or in 0..255 where it goes beyond 1."""
    values = np.nan_to_num(gray.astype(np.float64))
    if gray.dtype.kind == "f":
        values = values * 255 if values.max(initial=0) <= 1 else values
    elif values.max(initial=0) > 255:
        values = values / 257
    return np.clip(np.round(values), 0, 255).astype(np.uint8)
