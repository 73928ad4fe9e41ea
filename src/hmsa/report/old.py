"""The pages before `page.py`; goes with the last of datasheet.py, quality.py and rounds.py."""

import base64
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from numpy.typing import NDArray
from PIL import Image

from ..runs.files import replace

SIDE = 640  # longest side of an embedded picture, in pixels: ten of them stay near half a megabyte

View = dict[str, Any]  # what a template draws


def css(colour: Sequence[float] | NDArray[Any]) -> str:
    return "#" + "".join(f"{round(float(part)):02x}" for part in colour)


def uri(picture: NDArray[np.uint8], photo: bool) -> str:
    """Picture [H,W,3] -> data URI. What is not a photo has few colours and keeps each exactly."""
    shrink = min(1.0, SIDE / max(picture.shape[:2]))
    size = (round(picture.shape[1] * shrink) or 1, round(picture.shape[0] * shrink) or 1)
    stream = io.BytesIO()
    if photo:
        small = Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS)
        small.save(stream, "JPEG", quality=85)
    else:
        flat = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.NEAREST))
        codes, index = np.unique(flat @ np.array([1 << 16, 1 << 8, 1]), return_inverse=True)
        colours = np.stack([codes >> 16, codes >> 8 & 255, codes & 255], axis=1).astype(np.uint8)
        small = Image.fromarray(index.reshape(flat.shape[:2]).astype(np.uint8))
        small.putpalette(colours.tobytes())
        small.save(stream, "PNG", optimize=True)
    kind = "jpeg" if photo else "png"
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"


def line_chart(
    title: str,
    summary: str,
    axis: str,
    points: NDArray[np.float64],
    start: float,
    end: float,
    stages: Sequence[tuple[float, str]] = (),
) -> View:
    """points [N,2] as SVG coordinates in a 480 x 250 box, for the template's `chart`.

    start, end: of the axis, whose ticks are whole numbers. stages: where each begins, its name.
    """
    y_ticks = _ticks(points[:, 1].min(), points[:, 1].max())
    end = max(end, start + 1)

    def x(place: float) -> float:
        return 46 + 420 * (place - start) / (end - start)

    def y(value: float) -> float:
        return 214 - 190 * (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])

    whole = [t for t in _ticks(start, end) if start <= t <= end and abs(t - round(t)) < 1e-9]
    return {
        "title": title,
        "summary": summary,
        "axis": axis,
        "line": " ".join(f"{x(place):.1f},{y(value):.1f}" for place, value in points),
        "dots": [(x(place), y(value)) for place, value in points] if len(points) <= 40 else [],
        "y": [(y(tick), f"{tick:.6g}") for tick in y_ticks],
        "x": [(x(tick), f"{tick:.6g}") for tick in whole],
        "stages": [(x(place), name) for place, name in stages],
    }


def _ticks(low: float, high: float) -> list[float]:
    """Round values (1, 2 or 5 times a power of ten), about four, from below low to above high."""
    span = (high - low) or abs(high) or 1.0
    rough = span / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, max(last, first + 1) + 1)]


def render(template: str, enlarge: bool, **shown: Any) -> str:
    """enlarge: whether a click on a picture shows it large; needs `legend`, (name, css) pairs."""
    house = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    house.filters["css"] = css
    return house.get_template(template).render(enlarge=enlarge, **shown)


def write(path: Path, page: str) -> None:
    """As one file; an existing page is replaced whole or left as it was."""
    replace(path, lambda temporary: temporary.write_text(page, encoding="utf-8"))
