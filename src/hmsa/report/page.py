"""One kind of offline page: a title, one sentence, facts, and sections that any room fills.

All that it needs is inside its one file; its content policy forbids the browser to fetch anything.
`page.html.j2` draws it. A colour is three numbers in 0..255.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from numpy.typing import NDArray
from PIL import Image

from .. import __version__
from ..runs import InputError, command_line, replace
from .pictures import heat

SIDE = 640  # longest side of an embedded image, in pixels: ten of them stay near half a megabyte
DASH = "–"  # where there is no number
_MADE_HERE = b'<meta name="generator" content="hmsa">'

Colour = Sequence[int] | NDArray[np.uint8]
Named = Sequence[tuple[str, Colour]]


@dataclass
class Cell:
    """kind: any of best (bold), none (grey), up (green), down (red), left (aligned), wrap (a long
    first cell), other (a grey bar). bar: length 0..1 of a bar below the text, or of its parts.
    shade: 0..1, of the background. link: relative address."""

    text: str
    kind: str = ""
    colour: Colour | None = None
    bar: float | Sequence[float] | NDArray[np.floating] | None = None
    shade: float | None = None
    link: str = ""


@dataclass
class Table:
    """Rows of equal length, each with its head first. kind: "matrix" for upright column heads;
    "total": the last row sums up the others; "facts": a plain list of names and values; "bars":
    names with a bar. key: for the parts of the bars."""

    columns: Sequence[str | Cell]
    rows: Sequence[Sequence[str | Cell]]
    kind: Literal["", "matrix", "total", "facts", "bars"] = ""
    key: Named = ()


@dataclass
class Chart:
    """A curve of points `[N,2]` over two axes with numbers. x, y: their ends; default: the curve's.
    stages: where each begins on the x axis, its name. bars: (left, right, height, opacity, text
    under the pointer), behind the curve. curves: (name, colour, points `[N,2]`) to draw instead of
    one line; `points` then only say how far the axes go. marks: vertical lines as (x, CSS class,
    text under the pointer). colour: of the area below the curve. small: one of many.
    """

    title: str
    summary: str
    axis: str  # name of the x axis
    points: NDArray[np.float64]
    x: tuple[float, float] | None = None
    y: tuple[float, float] | None = None
    stages: Sequence[tuple[float, str]] = ()
    bars: Sequence[tuple[float, float, float, float, str]] = ()
    marks: Sequence[tuple[float, str, str]] = ()
    colour: Colour | None = None
    dashed: bool = False
    small: bool = False
    curves: Sequence[tuple[str, Colour, NDArray[np.float64]]] = ()

    def __post_init__(self) -> None:
        columns = [(float(each.min()), float(each.max())) for each in self.points.T]
        self.left, right = self.x or columns[0]
        self.right, self.y_ticks = max(right, self.left + 1), ticks(*(self.y or columns[1]))
        steps = ticks(self.left, self.right)
        self.x_ticks = [t for t in steps if self.left <= t <= self.right and abs(t % 1) < 1e-9]
        self.width, self.height = (200, 150) if self.small else (480, 250)

    def place(self, x: float, y: float) -> tuple[float, float]:
        """A point as coordinates in a box of `width` x `height`."""
        low, high = self.y_ticks[0], self.y_ticks[-1]
        across, up = (x - self.left) / (self.right - self.left), (y - low) / (high - low)
        top, bottom, right = 24, self.height - 36, self.width - 14
        return round(46 + (right - 46) * across, 1), round(bottom - (bottom - top) * up, 1)


@dataclass
class Figure:
    """An image `[H,W,3]`. Colours of a "label" are those of the page, so the pointer names them."""

    caption: str
    image: NDArray[np.uint8]
    kind: Literal["photo", "label", "map"] = "photo"  # whose colours need not stay exact
    wrong: bool = False  # outlined in red


@dataclass
class Card:
    """A framed item: title, a text beside it, reasons, and strips of images below each other; with
    columns: side by side, each with so many images in a row. level: colours a message."""

    title: str
    strips: Sequence[Sequence[Figure]] = ()
    text: str = ""
    reasons: Sequence[str] = ()
    columns: Sequence[int] = ()
    level: Literal["", "error", "warning", "note"] = ""


Block = str | Table | Chart | Card  # a str is a short paragraph


@dataclass
class Section:
    """A heading with blocks; those of an inner sequence stand side by side. Empty: left out."""

    title: str
    blocks: Sequence[Block | Sequence[Block]]
    note: str = ""


@dataclass
class Legend:
    """Colours in view while the sections after it are scrolled; ramp: what those of `heat` mean."""

    colours: Named
    keys: Sequence[tuple[str, Named]] = ()  # further ones by heading
    ramp: str = ""


@dataclass
class Page:
    """Sections of an inner sequence stand side by side, the facts beside the first one."""

    title: str
    verdict: str
    facts: Sequence[tuple[str, str]]
    sections: Sequence[Section | Sequence[Section] | Legend]
    colours: Named = ()  # of label images
    command: str = field(default_factory=command_line)


def require_page(path: Path) -> None:
    """Raises InputError if `path` is a file that is no page, which a page must not replace."""
    if path.is_dir() or (path.is_file() and _MADE_HERE not in path.read_bytes()[:1000]):
        raise InputError(f"{path} is not a page of hmsa; name another file for the page")


def write_page(path: Path, page: Page) -> None:
    """Write one HTML file; an existing page is replaced whole or left as it was."""
    require_page(path)
    facts = [*page.facts, ("Version", made_by()), ("Command", page.command)]
    about = Section("Details", [Table((), [each for each in facts if each[1]], "facts")])
    sections = [[*page.sections[:1], about], *page.sections[1:]]
    ramp = heat(np.linspace(0, 1, 8))
    replace(path, render("page.html.j2", page=page, sections=sections, ramp=ramp))


def made_by() -> str:
    """The version of hmsa, and now."""
    return f"hmsa {__version__}, {datetime.now():%Y-%m-%d %H:%M}"


def render(template: str, **values: Any) -> str:
    """The HTML of a template of this folder."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined,
        autoescape=True, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"css": css, "uri": uri, "kind": lambda block: type(block).__name__}
    return environment.get_template(template).render(values)


def css(colour: Colour) -> str:
    """`#rrggbb`."""
    return f"#{bytes(map(int, colour)).hex()}"


def uri(figure: Figure, side: int = SIDE) -> str:
    """The image as a data URI, at most `side` pixels long; only a photo loses exact colours."""
    image, stream, photo = Image.fromarray(figure.image), io.BytesIO(), figure.kind == "photo"
    way = Image.Resampling.LANCZOS if photo else Image.Resampling.NEAREST
    image.thumbnail((side, side), way)
    image.save(stream, "WEBP", lossless=not photo, quality=85)
    return f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"


def ticks(low: float, high: float) -> list[float]:
    """Round values (1, 2 or 5 times a power of ten), about five, from below low to above high."""
    rough = ((high - low) or abs(high) or 1.0) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, max(last, first + 1) + 1)]
