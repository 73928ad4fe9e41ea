"""Cells and tables that several pages show. Shares come in 0..1 and are written in per cent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import rich.table
from numpy.typing import NDArray
from rich.box import HORIZONTALS
from rich.text import Text

from .page import DASH, Cell, Colour, Table

Share = float | None  # None or nan where there is no number


def percent(share: Share, digits: int = 1) -> Cell:
    """One share, or a dash."""
    if share is None or math.isnan(share):
        return Cell(DASH, "none")
    return Cell(f"{100 * share:.{digits}f}")


def percents(shares: Sequence[Share]) -> list[Cell]:
    """A row of shares, the best of them bold; those that are written alike are equally good."""
    cells = [percent(share) for share in shares]
    best = max((cell.text for cell in cells if cell.text != DASH), key=float, default="")
    for cell in cells:
        cell.kind = "best" if cell.text == best else cell.kind
    return cells


def difference(share: Share, other: Share) -> Cell:
    """How far `share` is above `other`; equal to the difference of the two written numbers."""
    pair = percent(share).text, percent(other).text
    if DASH in pair:
        return Cell(DASH, "none")
    gap = round(float(pair[0]) - float(pair[1]), 1)
    text = f"{gap:+.1f}".replace("-", "−")
    return Cell(text, "up" if gap > 0 else "down") if gap else Cell("0.0")


def matrix(names: Sequence[str], palette: Sequence[Colour], counts: NDArray[np.int64]) -> Table:
    """Counts `[K,K]` as a table: each row in per cent of its sum, the larger the darker."""
    shares = counts / np.maximum(counts.sum(1), 1)[:, None]

    def cell(share: float, hit: bool) -> Cell:
        text = f"{100 * share:.0f}" if share >= 0.005 else "·" if share else ""
        return Cell(text, "hit" if hit else "", shade=0.85 * share**0.6)

    rows = [
        [Cell(name, colour=colour), *(cell(share, k == n) for n, share in enumerate(row))]
        for k, (name, colour, row) in enumerate(zip(names, palette, shares.tolist(), strict=True))
    ]
    return Table(["", *names], rows, "matrix")


def terminal(table: Table, title: str, caption: str = "") -> rich.table.Table:
    """The same table for the terminal: text alone, the best of each row bold."""

    def text(cell: str | Cell) -> Text:
        cell = Cell(cell) if isinstance(cell, str) else cell
        return Text(cell.text, "bold" if cell.kind == "best" else "")

    look: Any = {"title_justify": "left", "caption_justify": "left"}
    look |= {"box": HORIZONTALS, "padding": (0, 1, 0, 0)}  # narrow: nine columns fit into 80
    shown = rich.table.Table(title=Text(title), **look)
    shown.caption = Text(caption) if caption else None
    for place, column in enumerate(table.columns):
        head = text(column)
        whole = table.kind == "total" and " " not in head.plain  # in tables of numbers
        shown.add_column(head, justify="right" if place else "left", no_wrap=whole)
    for row in table.rows:
        if table.kind == "total" and row is table.rows[-1]:
            shown.add_section()
        shown.add_row(*map(text, row))
    return shown
