"""Arrays in, pictures out: labels, weights and errors as colour, and grids of them with captions.

Knows nothing about models or files: everything is a uint8 array or a Pillow image in memory.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Bytes = NDArray[np.uint8]

# Seven equal steps from night blue over violet and orange to yellow. Chosen so that luminance rises
# all the way: the map still reads in grey and for every kind of colour vision.
_HEAT_ANCHORS = [
    (8, 10, 28),
    (34, 26, 84),
    (86, 32, 120),
    (146, 42, 118),
    (200, 62, 92),
    (238, 104, 56),
    (252, 164, 44),
    (255, 232, 96),
]

_BAND = 1 << 18  # pixels tinted at once; blending needs 30 times the memory of a picture
_AT_ONCE = 256  # rows
RIGHT, WRONG, UNKNOWN = (222, 226, 230), (208, 24, 36), (72, 74, 78)


def ramp(anchors: list[tuple[int, int, int]], count: int) -> Bytes:
    """`count` colours [count,3] from the first anchor to the last, evenly along the way."""
    where, known = np.linspace(0, len(anchors) - 1, count), np.arange(len(anchors))
    channels = [np.interp(where, known, channel) for channel in zip(*anchors, strict=True)]
    return np.stack(channels, axis=1).round().astype(np.uint8)


_HEAT = ramp(_HEAT_ANCHORS, 256)


def _table(label: Bytes, palette: Bytes, ignore: int) -> Bytes:
    """[256,3] colour of every pixel value; refuses a label the palette has no colour for."""
    count = np.zeros(256, np.int64)
    for top in range(0, len(label), _AT_ONCE):  # counting takes eight times the memory of a label
        count += np.bincount(label[top : top + _AT_ONCE].ravel(), minlength=256)
    strange = np.flatnonzero(count)
    strange = strange[(strange >= len(palette)) & (strange != ignore)]
    if strange.size:
        raise ValueError(
            f"label {strange[0]} has no colour: the palette has {len(palette)} classes "
            f"(0..{len(palette) - 1}) and {ignore} is ignore"
        )
    table = np.zeros((256, 3), np.uint8)
    table[: len(palette)] = palette
    table[ignore] = 0
    return table


def colorize(label: Bytes, palette: Bytes, ignore: int = 255) -> Bytes:
    """Label [H,W] and palette [K,3] -> colours [H,W,3]; ignored pixels are black."""
    return _table(label, palette, ignore)[label]


def overlay(image: Bytes, label: Bytes, palette: Bytes, alpha: float = 0.5) -> Bytes:
    """Image [H,W,3] tinted by label [H,W]; alpha 0 is the image, 1 the colours, 255 untinted."""
    mixed = (1 - alpha) * image + alpha * colorize(label, palette)
    return np.where((label == 255)[..., None], image, mixed.round()).astype(np.uint8)


def tinted(image: Bytes, label: Bytes, palette: Bytes, alpha: float = 0.5) -> Bytes:
    """`overlay` of a picture that may be large: no map of floats is ever as large as it."""
    made, step = np.empty_like(image), max(1, _BAND // max(1, image.shape[1]))
    for top in range(0, len(image), step):
        rows = slice(top, top + step)
        made[rows] = overlay(image[rows], label[rows], palette, alpha)
    return made


def heat(weight: NDArray[np.floating]) -> Bytes:
    """Weight [H,W] in 0..1 -> colours [H,W,3], dark blue = 0, bright yellow = 1."""
    level: Bytes = np.nan_to_num(np.clip(weight, 0, 1) * 255).round().astype(np.uint8)
    return _HEAT[level]


def error(pred: Bytes, label: Bytes, ignore: int = 255) -> Bytes:
    """Prediction against truth [H,W] -> [H,W,3]: right is pale, wrong red, ignored dark grey."""
    colours: Bytes = np.array([RIGHT, WRONG, UNKNOWN], np.uint8)
    kind: NDArray[np.intp] = np.where(label == ignore, 2, pred != label)
    return colours[kind]


def palette_png(label: Bytes, palette: Bytes) -> Image.Image:
    """Label [H,W] as a "P" image: pixel values are train ids (255 = ignore), viewers see colour."""
    picture = Image.fromarray(label)
    picture.putpalette(_table(label, palette, 255).tobytes())
    return picture


def _caption(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, room: int) -> str:
    """Text that fits into `room` pixels; cut in the middle, where file names differ least."""
    text = text.replace("×", "x")  # not in Pillow's own font
    cut, keep = text, len(text)
    while font.getlength(cut) > room and keep > 1:
        keep -= 1
        cut = text[: (keep + 1) // 2] + "..." + text[len(text) - keep // 2 :]
    return cut


def panel(rows: list[list[tuple[str, Bytes]]], width: int = 320) -> Image.Image:
    """Rows of (caption, picture [H,W,3]) -> one image; every cell `width` pixels wide."""
    gap, size = max(4, width // 40), max(11, width // 20)
    bar = size + gap
    font = ImageFont.load_default(size=size)
    heights = [
        max((round(width * picture.shape[0] / picture.shape[1]) for _, picture in row), default=0)
        for row in rows
    ]
    columns = max(map(len, rows))
    sheet = Image.new(
        "RGB",
        (gap + columns * (width + gap), gap + sum(height + bar + gap for height in heights)),
        "white",
    )
    draw = ImageDraw.Draw(sheet)
    top = gap
    for row, height in zip(rows, heights, strict=True):
        for column, (text, picture) in enumerate(row):
            left = gap + column * (width + gap)
            draw.text((left, top), _caption(text, font, width), fill=(32, 34, 38), font=font)
            # Enlarging must not invent colours between two classes; reducing has to average.
            grows = width > picture.shape[1]
            cell = Image.fromarray(picture).resize(
                (width, round(width * picture.shape[0] / picture.shape[1])),
                Image.Resampling.NEAREST if grows else Image.Resampling.LANCZOS,
            )
            sheet.paste(cell, (left, top + bar))
        top += height + bar + gap
    return sheet
