"""A template and what it shows -> one offline HTML page, in the style that all pages share.

Everything a page needs is inside it, and its own content policy forbids the browser to fetch
anything else. page.html.j2 is the frame; page_parts.html.j2 what more than one page draws.
"""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from numpy.typing import NDArray
from PIL import Image

from .files import replace

SIDE = 640  # longest side of an embedded picture, in pixels: ten of them stay near half a megabyte


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
