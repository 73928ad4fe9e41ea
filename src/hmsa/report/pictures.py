"""Labels, weights and errors as colours, and images side by side with captions."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ..data.labels import IGNORE

Bytes = NDArray[np.uint8]

# Seven equal steps from night blue over violet and orange to yellow. Chosen so that luminance rises
# all the way: the map still reads in grey and for every kind of colour vision.
_HEAT_ANCHORS = [
    (8, 10, 28), (34, 26, 84), (86, 32, 120), (146, 42, 118),
    (200, 62, 92), (238, 104, 56), (252, 164, 44), (255, 232, 96),
]  # fmt: skip
_PIXELS = 1 << 18  # tinted at once: blending needs 30 times the memory of an image
RIGHT, WRONG, UNKNOWN = (222, 226, 230), (208, 24, 36), (72, 74, 78)


def ramp(anchors: list[tuple[int, int, int]], count: int) -> Bytes:
    """`count` colours [count,3] from the first anchor to the last, evenly along the way."""
    where, known = np.linspace(0, len(anchors) - 1, count), np.arange(len(anchors))
    channels = [np.interp(where, known, channel) for channel in zip(*anchors, strict=True)]
    return np.stack(channels, axis=1).round().astype(np.uint8)


_HEAT = ramp(_HEAT_ANCHORS, 256)


def _table(label: Bytes, palette: Bytes) -> Bytes:
    """[256,3] colour of every pixel value; ValueError for a label without a colour."""
    count = enumerate(Image.fromarray(label).histogram())  # needs no more memory than the label
    strange = [value for value, pixels in count if pixels and len(palette) <= value != IGNORE]
    if strange:
        raise ValueError(
            f"label {strange[0]} has no colour: the palette has {len(palette)} classes "
            f"(0..{len(palette) - 1}) and {IGNORE} is ignore"
        )
    table = np.zeros((256, 3), np.uint8)
    table[: len(palette)] = palette
    table[IGNORE] = 0
    return table


def colorize(label: Bytes, palette: Bytes) -> Bytes:
    """Label [H,W] and palette [K,3] -> colours [H,W,3]; ignored pixels are black."""
    return _table(label, palette)[label]


def overlay(image: Bytes, label: Bytes, palette: Bytes, alpha: float = 0.5) -> Bytes:
    """Image [H,W,3] tinted by label [H,W]; alpha 0 is the image, 1 the colours, 255 untinted."""
    table, mixed = _table(label, palette), np.empty_like(image)
    step = max(1, _PIXELS // max(1, image.shape[1]))
    for top in range(0, len(image), step):
        below, ids = image[top : top + step], label[top : top + step]
        tinted = ((1 - alpha) * below + alpha * table[ids]).round()
        mixed[top : top + step] = np.where((ids == IGNORE)[..., None], below, tinted)
    return mixed


def heat(weight: NDArray[np.floating]) -> Bytes:
    """Weight [H,W] in 0..1 -> colours [H,W,3], dark blue = 0, bright yellow = 1."""
    level: Bytes = np.nan_to_num(np.clip(weight, 0, 1) * 255).round().astype(np.uint8)
    return _HEAT[level]


def error(pred: Bytes, label: Bytes) -> Bytes:
    """Prediction against truth [H,W] -> [H,W,3]: right is pale, wrong red, ignored dark grey."""
    colours: Bytes = np.array([RIGHT, WRONG, UNKNOWN], np.uint8)
    return colours[np.where(label == IGNORE, 2, pred != label)]


def palette_png(label: Bytes, palette: Bytes) -> Image.Image:
    """Label [H,W] as a "P" image: pixel values are train ids (255 = ignore), viewers see colour."""
    image = Image.fromarray(label)
    image.putpalette(_table(label, palette).tobytes())
    return image


def thin(image: NDArray[Any], side: int) -> NDArray[Any]:
    """Every n-th pixel of [H,W,..], so that at least `side` of the longer side are left."""
    step = max(1, max(image.shape[:2]) // side)
    return image[::step, ::step]


def panel(rows: list[list[tuple[str, Bytes]]], width: int = 320) -> Image.Image:
    """Rows of (caption, image [H,W,3]) -> one image; every cell `width` pixels wide."""
    gap, size = max(4, width // 40), max(11, width // 20)
    font, bar = ImageFont.load_default(size=size), size + gap
    cells = [[(text, _fitted(image, width)) for text, image in row] for row in rows]
    heights = [max((cell.height for _, cell in row), default=0) + bar + gap for row in cells]
    columns = max(map(len, rows))
    sheet = Image.new("RGB", (gap + columns * (width + gap), gap + sum(heights)), "white")
    draw, top = ImageDraw.Draw(sheet), gap
    for row, height in zip(cells, heights, strict=True):
        for column, (text, cell) in enumerate(row):
            left = gap + column * (width + gap)
            draw.text((left, top), _caption(text, font, width), fill=(32, 34, 38), font=font)
            sheet.paste(cell, (left, top + bar))
        top += height
    return sheet


def _fitted(image: Bytes, width: int) -> Image.Image:
    """Enlarging must not invent colours between two classes; reducing has to average."""
    way = Image.Resampling.NEAREST if width > image.shape[1] else Image.Resampling.LANCZOS
    height = round(width * image.shape[0] / image.shape[1])
    return Image.fromarray(image).resize((width, height), way)


def _caption(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, room: int) -> str:
    """Text that fits into `room` pixels; cut in the middle, where file names differ least."""
    text = text.replace("×", "x")  # not in Pillow's own font
    cut, keep = text, len(text)
    while font.getlength(cut) > room and keep > 1:
        keep -= 1
        cut = text[: (keep + 1) // 2] + "..." + text[len(text) - keep // 2 :]
    return cut


tinted = overlay
