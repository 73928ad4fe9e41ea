"""Any image file -> upright uint8, RGB or the bands of a `Stretch`, whole or by windows.

Grayscale, palette, alpha, 16-bit, float, CMYK and EXIF-rotated files all mean what a viewer shows.
TIFFs are read by windows, whatever their size and number of bands, if rasterio (the extra `geo`) is
there; those that it and Pillow interpret differently (CMYK, palettes, inverted or packed bits, an
orientation, premultiplied alpha) are left to Pillow, as is every other file.
"""

from __future__ import annotations

import os
import struct
import threading
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from ..runs import InputError, say, say_once
from .rasters import (
    HEIGHT,
    JPEG_2000,
    MEND,
    ORIENTATION,
    TIFF,
    WIDTH,
    OpenImage,
    Stored,
    check_size,
    false_claim,
    geo_hint,
    open_raster,
    say_pages,
    whole_numbers,
)
from .stretch import Sample, Stretch, require_bands, sample_of, settle, settled

_DENSEST = 10_000  # pixels a byte, more than the formats below can hold
_DENSE = {"PNG", "JPEG", "GIF", "BMP", "PPM", "TGA"}
_PAGED = {"TIFF", "GIF", "PNG", "WEBP", "AVIF"}
_PLAIN = {"L", "LA", "RGB", "RGBA"}  # whose bands can be chosen
_MAY_BE_WIDE = TIFF | JPEG_2000 | {".png", ".pgm", ".ppm"}
_FILES = 64  # at most, that decide a range
_PILLOW = threading.Lock()


def open_image(path: Path, stretch: Stretch = Stretch(), content: bytes | None = None) -> OpenImage:
    """An image file, for a `with` block: by windows where possible, else decoded here.

    content: bytes of the file if they are in memory already; `path` is then used in messages only.
    Raises InputError if it cannot be decoded, lacks a band or has more than LIMIT pixels.
    """
    if (raster := open_raster(path, stretch, content)) is not None:
        return raster
    with open_pillow(path, content) as image:
        mode = image.mode
        return OpenImage(to_rgb(image, path, stretch), mode)


def read_image(
    path: Path | str, content: bytes | None = None, stretch: Stretch = Stretch()
) -> NDArray[np.uint8]:
    """`[H,W,C]` uint8, RGB or the bands of `stretch`. Arguments and errors as of `open_image`."""
    with open_image(Path(path), stretch, content) as opened:
        return opened.read()


def read_size(path: Path) -> tuple[int, int]:
    """Height and width as shown, from the header alone."""
    (height, width), orientation = _header(path)
    return (width, height) if orientation >= 5 else (height, width)


def is_turned(path: Path) -> bool:
    """Whether EXIF turns the image."""
    return _header(path)[1] != 1


def require_one_size(image: Path, label: Path) -> None:
    """Raise InputError unless an image as shown and its label have one size.

    Says so where EXIF turns the image and sizes cannot tell whether the label is turned, too.
    """
    (stored, orientation), drawn = _header(image), read_size(label)
    shown = stored[::-1] if orientation >= 5 else stored
    if shown == drawn[::-1] != drawn:  # a PNG may have its orientation at its end
        height, width, _ = read_image(image).shape
        shown = height, width
    if shown != drawn:
        why = "an image and its label must have one size"
        if orientation != 1:
            why = (
                f"EXIF turns the image (orientation {orientation}), but not its label: turn the "
                "label, or save the image upright, without EXIF"
            )
        raise InputError(
            f"{image} is {shown[1]}x{shown[0]} but {label} is {drawn[1]}x{drawn[0]} "
            f"(width x height); {why}"
        )
    if orientation in (2, 3, 4) or (orientation > 4 and shown[0] == shown[1]):
        say_once(
            f"{image} is turned by EXIF (orientation {orientation}), and sizes cannot tell whether "
            "its label is turned, too: such labels are taken to be drawn on the upright image",
            "turned by EXIF",
        )


def read_stored(path: Path) -> Stored:
    """The values of a label file. Raises InputError, also if they are not whole numbers."""
    if (raster := open_raster(path)) is not None:
        with raster:
            return raster.stored()
    with open_pillow(path) as image:
        image.load()
        values, _ = whole_numbers(np.asarray(image), path)
        rgb, lossy = (lambda: np.asarray(image.convert("RGB"))), image.format == "JPEG"
        return Stored(values, image.mode, rgb, lossy=lossy)


def decide(files: Sequence[Path], stretch: Stretch = Stretch()) -> Stretch:
    """`stretch` with a range for all `files`, if some of them have more than 8 bits; says which.

    Parts of some files are read; one that cannot be is left to whoever reads it as a whole.
    """

    def sample(file: Path) -> Sample | None:
        if file.suffix.lower() not in _MAY_BE_WIDE:
            return None
        with suppress(InputError):
            if (raster := open_raster(file, stretch)) is not None:
                with raster:
                    return raster.sample()
            with open_pillow(file) as image:
                if _bits_above_8(image):
                    return sample_of(_values(image, file, stretch))
        return None

    chosen = () if stretch.ranges else files[:: len(files) // _FILES + 1]
    with ThreadPoolExecutor() as pool:
        samples = [found for found in pool.map(sample, chosen) if found]
    thin = len(samples) // 4 * 2 + 1
    decided = settle(stretch, [replace(s, values=s.values[::thin]) for s in samples])
    if samples:
        say(
            f"images have more than 8 bits: {decided.text} becomes 0..255, by {len(samples)} of "
            f"{len(files)} files; --stretch MIN,MAX, or stretch in a dataset's description, sets it"
        )
    return decided


@contextmanager
def open_pillow(
    path: Path | str, content: bytes | None = None, limited: bool = True
) -> Iterator[Image.Image]:
    """`PIL.Image.open` that raises InputError for every failure, also while decoding in the block.

    content: as for `open_image`. limited: refuse more than LIMIT pixels, or than the file can hold.
    """
    try:
        # Not by its name: Pillow would map the file, and so garble a gray TIFF that is turned
        with Path(path).open("rb") if content is None else BytesIO(content) as file:
            length = file.seek(0, os.SEEK_END)
            file.seek(0)
            file.read(1)  # fills its buffer, so that the lock is held for no slow disk
            file.seek(0)
            with _PILLOW:  # whose own limit, one for the whole process, is lifted for this file
                limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
                try:
                    image = Image.open(file)
                finally:
                    Image.MAX_IMAGE_PIXELS = limit
            if not all(image.size):
                raise InputError(f"{path} is an image without pixels; {MEND}")
            if limited:
                check_size(path, image.height, image.width)
                if image.format in _DENSE and image.height * image.width > _DENSEST * length:
                    raise false_claim(path, image.width, image.height, length)
                if image.format in _PAGED and (pages := getattr(image, "n_frames", 1)) > 1:
                    say_pages(path, pages)
            yield image
    except InputError:
        raise
    except (OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, struct.error,
            zlib.error, Image.DecompressionBombError) as error:  # fmt: skip
        unknown = isinstance(error, UnidentifiedImageError)
        why = "is not an image that can be read" if unknown else f"cannot be decoded ({error})"
        raise InputError(f"{path} {why}; {MEND}{geo_hint(path)}") from None


def to_rgb(
    image: Image.Image, path: Path | str = "the image", stretch: Stretch = Stretch()
) -> NDArray[np.uint8]:
    """`[H,W,C]` uint8 from a Pillow image of any mode; see `read_image`. path: for messages."""
    values = _values(image, path, stretch)
    if values.dtype != np.uint8:
        stretch = settled(stretch, path, sample_of(values))
    pixels = stretch.apply(values)
    return pixels if pixels.shape[2] == stretch.channels else np.repeat(pixels, 3, 2)


def _header(path: Path) -> tuple[tuple[int, int], int]:
    """Height and width as stored, and the orientation."""
    if (raster := open_raster(path)) is not None:
        with raster:
            return raster.size, 1
    with open_pillow(path, limited=False) as image:
        width, height = image.size
        if isinstance(image, TiffImageFile):  # some versions of Pillow turn it, some do not yet
            width, height = image.tag_v2[WIDTH], image.tag_v2[HEIGHT]
        return (height, width), _orientation(image)


def _orientation(image: Image.Image) -> int:
    # Not the method of the PNG class, which decodes all pixels to find EXIF behind them
    return int(Image.Image.getexif(image).get(ORIENTATION, 1))


def _bits_above_8(image: Image.Image) -> bool:
    """By its header, before it is loaded."""
    return image.mode[0] in "IF" or any(";16" in str(tile) for tile in getattr(image, "tile", ()))


def _values(image: Image.Image, path: Path | str, stretch: Stretch) -> NDArray[Any]:
    """`[H,W,n]`, upright: the chosen bands; else RGB of 8 bits, or gray or RGB of wider types."""
    if image.mode[0] not in "IF" and _bits_above_8(image):  # Pillow would drop the lower 8
        pixels, orientation = _read_deep(image, path), _orientation(image)
    else:
        image.load()  # a PNG may have its orientation at its end
        orientation = _orientation(image)
        if image.mode[0] not in "IF" and not (stretch.bands and image.mode in _PLAIN):
            image = image if image.mode == "RGB" else image.convert("RGB")
        pixels = np.array(image)
    pixels = pixels if pixels.ndim == 3 else pixels[..., None]
    if stretch.bands:
        require_bands(path, stretch, pixels.shape[2])
        pixels = pixels[..., [band - 1 for band in stretch.bands]]
    elif pixels.dtype != np.uint8:
        pixels = pixels[..., : 3 if pixels.shape[2] > 2 else 1]
    if orientation == 1:
        return pixels
    pixels = pixels.swapaxes(0, 1) if orientation >= 5 else pixels
    down, across = (-1 if orientation in those else 1 for those in ((3, 4, 7, 8), (2, 3, 6, 7)))
    return np.ascontiguousarray(pixels[::down, ::across])


def _read_deep(image: Image.Image, path: Path | str) -> NDArray[np.uint16]:
    """Colours of 16 bits, `[H,W,n]`."""
    if image.format != "PNG":
        raise InputError(f"{path} has colours of 16 bits; save it as PNG{geo_hint(path)}")
    import torch
    from torchvision.io import decode_image

    file: Any = image.fp  # type: ignore[attr-defined]
    file.seek(0)
    content = torch.frombuffer(bytearray(_plain_png(file.read(), path)), dtype=torch.uint8)
    return np.ascontiguousarray(decode_image(content).permute(1, 2, 0).numpy())


def _plain_png(content: bytes, path: Path | str) -> bytes:
    """A PNG of 16 bits without what is not needed, and complete: of damaged ones torchvision's
    decoder may crash. Raises InputError if it is damaged or interlaced."""
    chunks, at = {b"IHDR": b"", b"IDAT": b"", b"IEND": b""}, 8
    while at + 8 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, at)
        if kind in chunks:
            chunks[kind] += content[at + 8 : at + 8 + length]
        at += 12 + length
    width, height, _, color, _, _, interlaced = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    if interlaced:
        raise InputError(f"{path} is an interlaced PNG of 16 bits; save it without interlacing")
    row = 1 + width * 2 * {2: 3, 4: 2, 6: 4}[color]
    rows = zlib.decompressobj().decompress(chunks[b"IDAT"], row * height)
    if len(rows) < row * height or max(rows[::row]) > 4:  # each begins with its filter
        raise InputError(f"{path} cannot be decoded (its pixels are incomplete); {MEND}")
    chunks |= {b"IDAT": zlib.compress(rows, 1), b"IEND": b""}
    return content[:8] + b"".join(
        struct.pack(">I", len(part)) + kind + part + struct.pack(">I", zlib.crc32(kind + part))
        for kind, part in chunks.items()
    )
