"""Labels, weights and errors as colours, and images side by side with captions."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

from ..data.labels import IGNORE, LabelSet

Bytes = NDArray[np.uint8]

# From night blue to yellow with rising luminance: it reads in grey, for every kind of colour vision
_ANCHORS = [
    (8, 10, 28), (34, 26, 84), (86, 32, 120), (146, 42, 118),
    (200, 62, 92), (238, 104, 56), (252, 164, 44), (255, 232, 96),
]  # fmt: skip
_STEPS = [np.interp(np.linspace(0, 7, 256), range(8), each) for each in np.transpose(_ANCHORS)]
_HEAT: Bytes = np.stack(_STEPS, 1).round().astype(np.uint8)
RIGHT, WRONG, UNKNOWN = (222, 226, 230), (208, 24, 36), (72, 74, 78)


def shown(image: Bytes) -> Bytes:
    """Image `[H,W,C]` -> `[H,W,3]`: of more bands the first three, of fewer the first as gray."""
    return image[..., :3] if image.shape[2] > 2 else image[..., [0, 0, 0]]


def palette_png(label: Bytes, palette: Bytes) -> Image.Image:
    """Label `[H,W]` as a "P" image: its values are train ids (or 255), viewers see colours."""
    image = Image.fromarray(label)
    if any(image.histogram()[len(palette) : IGNORE]):
        raise ValueError(f"a label has values without one of the {len(palette)} colours")
    image.putpalette(np.asarray(palette, np.uint8).tobytes().ljust(768, b"\0"))
    return image


def colorize(label: Bytes, palette: Bytes) -> Bytes:
    """Label `[H,W]` and palette `[K,3]` -> colours `[H,W,3]`; ignored pixels are black."""
    return np.array(palette_png(label, palette).convert("RGB"))


def overlay(image: Bytes, label: Bytes, palette: Bytes, alpha: float = 0.5) -> Bytes:
    """Image `[H,W,3]` tinted by a label; alpha 0 is the image, 1 the colours, 255 untinted."""
    colours = palette_png(label, palette).convert("RGB")
    mixed = np.array(Image.blend(Image.fromarray(image), colours, alpha))  # in whole numbers
    np.copyto(mixed, image, where=(label == IGNORE)[..., None])
    return mixed


def heat(weight: NDArray[np.floating]) -> Bytes:
    """Weight `[..]` in 0..1 -> colours `[..,3]`, dark blue = 0, bright yellow = 1."""
    level = np.nan_to_num(np.clip(weight, 0, 1) * 255).round().astype(np.uint8)
    colours: Bytes = _HEAT[level]
    return colours


def error(pred: Bytes, label: Bytes) -> Bytes:
    """Prediction against truth `[H,W]` -> `[H,W,3]`: right pale, wrong red, ignored dark grey."""
    colours: Bytes = np.array([RIGHT, WRONG, UNKNOWN], np.uint8)
    return colours[np.where(label == IGNORE, 2, pred != label)]


def thin(image: NDArray[Any], side: int = 1280) -> NDArray[Any]:
    """Every n-th pixel of `[H,W,..]`, so that at least `side` of the longer side are left; by
    default twice as many as a page shows, so that large images cost no time."""
    step = max(1, max(image.shape[:2]) // side)
    return image[::step, ::step]


def panel(rows: list[list[tuple[str, Bytes]]], width: int = 320) -> Image.Image:
    """Rows of (caption, image `[H,W,3]`) -> one image; every cell `width` pixels wide."""
    gap, size = max(4, width // 40), max(11, width // 20)
    font = ImageFont.load_default(size=size)

    def cell(caption: str, pixels: Bytes) -> Image.Image:
        image = Image.fromarray(pixels)
        # Enlarging must not invent colours between two classes; reducing has to average
        way = Image.Resampling.NEAREST if width > image.width else Image.Resampling.LANCZOS
        image = image.resize((width, max(1, round(width * image.height / image.width))), way)
        made = ImageOps.expand(image, (0, size + gap, 0, 0), "white")
        ImageDraw.Draw(made).text((0, 0), _fitted(caption, font, width), (32, 34, 38), font)
        return made

    cells = [[cell(*each) for each in row] for row in rows]
    heights = [gap + max(each.height for each in row) for row in cells]
    right = gap + max(map(len, rows)) * (width + gap)
    sheet, top = Image.new("RGB", (right, gap + sum(heights)), "white"), gap
    for row, height in zip(cells, heights, strict=True):
        for column, each in enumerate(row):
            sheet.paste(each, (gap + column * (width + gap), top))
        top += height
    return sheet


def _fitted(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, room: int) -> str:
    """Text of at most `room` pixels; cut in the middle, where file names differ least."""
    text = cut = text.replace("×", "x")  # not in Pillow's own font
    keep = len(text)
    while font.getlength(cut) > room and keep > 1:
        keep -= 1
        cut = f"{text[: (keep + 1) // 2]}...{text[len(text) - keep // 2 :]}"
    return cut


def label_image(label: Bytes, labels: LabelSet) -> Image.Image:
    """Label [H,W] of train ids as a "P" image that holds `labels.raw`; 255 stays 255."""
    raw = np.full(256, IGNORE, np.uint8)
    raw[: len(labels.raw)] = labels.raw
    palette = np.zeros((max(labels.raw) + 1, 3), np.uint8)
    palette[list(labels.raw)] = labels.palette
    return palette_png(raw[label], palette)


def png_bytes(image: Image.Image) -> bytes:
    """The content of a PNG file."""
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()
