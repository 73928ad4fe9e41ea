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
    cells, known = [percent(share) for share in shares], [_rounded(share) for share in shares]
    best = max((value for value in known if value is not None), default=None)
    for cell, value in zip(cells, known, strict=True):
        if value is not None and value == best:
            cell.kind = "best"
    return cells


def difference(share: Share, other: Share) -> Cell:
    """How far `share` is above `other`; equal to the difference of the two written numbers."""
    first, second = _rounded(share), _rounded(other)
    if first is None or second is None:
        return Cell(DASH, "none")
    gap = round(first - second, 1)
    if not gap:
        return Cell("0.0")
    return Cell(signed(gap), "up" if gap > 0 else "down")


def signed(value: float) -> str:
    """One digit after the point, with a plus or a true minus sign."""
    return f"{value:+.1f}".replace("-", "−")


def matrix(names: Sequence[str], palette: Sequence[Colour], counts: NDArray[np.int64]) -> Table:
    """Counts `[K,K]` as a table: each row in per cent of its sum, the larger the darker."""
    shares = counts / np.maximum(counts.sum(1), 1)[:, None]

    def cell(row: int, column: int) -> Cell:
        share = float(shares[row, column])
        text = f"{100 * share:.0f}" if share >= 0.005 else "·" if share else ""
        shade = 0.85 * share**0.6 if share >= 0.005 else None
        return Cell(text, "hit" if row == column else "", shade=shade)

    places = range(len(names))
    rows = [
        [Cell(names[row], colour=palette[row]), *(cell(row, column) for column in places)]
        for row in places
    ]
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


def _rounded(share: Share) -> float | None:
    return None if share is None or math.isnan(share) else round(100 * share, 1)
