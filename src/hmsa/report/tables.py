"""Cells and tables that several pages show. Shares come in 0..1 and are written in per cent."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import rich.table
from numpy.typing import NDArray
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
    best = max((float(cell.text) for cell in cells if cell.text != DASH), default=math.nan)
    for cell in cells:
        if cell.text != DASH and float(cell.text) == best:
            cell.kind = "best"
    return cells


def difference(share: Share, other: Share) -> Cell:
    """How far `share` is above `other`; equal to the difference of the two written numbers."""
    pair = percent(share).text, percent(other).text
    if DASH in pair:
        return Cell(DASH, "none")
    gap = round(float(pair[0]) - float(pair[1]), 1)
    return Cell(signed(gap), "up" if gap > 0 else "down") if gap else Cell("0.0")


def signed(value: float) -> str:
    """One digit after the point, with a plus or a true minus sign."""
    return f"{value:+.1f}".replace("-", "−")


def matrix(names: Sequence[str], palette: Sequence[Colour], counts: NDArray[np.int64]) -> Table:
    """Counts `[K,K]` as a table: each row in per cent of its sum, the larger the darker."""
    shares = counts / np.maximum(counts.sum(1), 1)[:, None]

    def cell(share: float, hit: bool) -> Cell:
        text = f"{100 * share:.0f}" if share >= 0.005 else "·" if share else ""
        return Cell(text, "hit" if hit else "", shade=0.85 * share**0.6)

    rows: list[list[Cell]] = []
    for k, (name, colour) in enumerate(zip(names, palette, strict=True)):
        cells = [cell(share, k == column) for column, share in enumerate(shares[k].tolist())]
        rows.append([Cell(name, colour=colour), *cells])
    return Table(["", *names], rows, "matrix")


def terminal(table: Table, title: str, caption: str = "") -> rich.table.Table:
    """The same table for the terminal: text alone, the best of each row bold."""
    shown = rich.table.Table(title=Text(title), title_justify="left")
    for place, column in enumerate(table.columns):
        head = column if isinstance(column, str) else column.text
        shown.add_column(Text(head), justify="right" if place else "left")
    for row in table.rows:
        if table.kind == "total" and row is table.rows[-1]:
            shown.add_section()
        cells = [Cell(cell) if isinstance(cell, str) else cell for cell in row]
        shown.add_row(*(Text(c.text, "bold" if c.kind == "best" else "") for c in cells))
    shown.caption, shown.caption_justify = Text(caption) if caption else None, "left"
    return shown
