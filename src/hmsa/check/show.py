"""The page of a check, and its table, which the terminal shows, too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.images import open_pillow, read_image
from ..report.page import SIDE, Card, Cell, Figure, Page, Section, Table
from ..report.pictures import WRONG, colorize, overlay, thin
from .check import Findings, Problem

_EXAMPLES = 3  # pairs of each split
_CASES = 4  # of a problem


def page(found: Findings, command: str) -> Page:
    """Everything that was found, with examples."""
    facts = {"Dataset": found.source, "Folder": found.root, "Encoding": found.classes.encoding}
    colours = [*zip(found.classes.names, found.classes.palette, strict=True), ("unknown", WRONG)]
    note = "Click an image to enlarge it; over an enlarged label the pointer names the class."
    unknown: list[list[str | Cell]] = [
        [u["value"], u["split"], f"{u['pixels']:,}", str(u["files"]), u["diagnosis"]]
        for u in found.unknown
    ]
    heads = ["value", "split", "pixels", "labels", "probably"]
    sections = [
        Section("Splits", [table(found)], "Mean and deviation of red, green and blue are in 0..1."),
        Section("What was found, the worst first", [_card(found, p) for p in found.problems]),
        Section("Values that are no class", [Table(heads, unknown)] if unknown else []),
        Section("Images with their labels", _examples(found), note),
    ]
    return Page(
        f"{found.source} · check",
        found.verdict(),
        [(name, str(fact)) for name, fact in facts.items()] + [("Files", str(len(found.scans)))],
        [section for section in sections if section.blocks],
        colours,
        command,
    )


def table(found: Findings) -> Table:
    """Files, sizes and colours of each split; share of each class, and how many labels have it."""
    colours = dict(zip(found.classes.names, found.classes.palette, strict=True))
    columns = [list(_column(part.numbers)) for part in found.parts]
    rows = [
        [Cell(cells[0][0], colour=colours.get(cells[0][0])), *(cell for _, cell in cells)]
        for cells in zip(*columns, strict=True)
    ]
    return Table(["% of pixels (labels)", *(part.name for part in found.parts)], rows)


def _column(numbers: dict[str, Any]) -> Iterator[tuple[str, Cell]]:
    """Names and cells of one split."""
    for kind, count in numbers["pairs"].items():
        yield kind, Cell(f"{count:,}")
    sizes = [f"{size} ({count})" for size, count in numbers["sizes"].items()]
    yield "sizes", Cell("\n".join(sizes[:3] + ["and others"] * (len(sizes) > 3)))
    for key in ("mean", "std"):
        yield key, Cell(" ".join(f"{value:.3f}" for value in numbers[key]))
    shares = [
        *numbers["frequencies"].items(),
        *((key, numbers[key]) for key in ("void", "unknown")),
    ]
    for name, each in shares:
        pictures, text = each.get("pictures"), f"{100 * each['share']:.2f}"
        text += "" if pictures is None else f" ({pictures})"
        yield name, Cell(text, "down" if pictures == 0 else "", bar=each["share"])


def _card(found: Findings, problem: Problem) -> Card:
    partners = {path: pair for part in found.parts for pair in part.pairs for path in pair}
    cases = problem.cases or [partners.get(path, (path,)) for path in problem.files[:_CASES]]
    whole = [[path for path in case if not found.scans[path].broken] for case in cases[:_CASES]]
    return Card(
        f"{problem.level}: {problem.kind}",
        [[_figure(found, path) for path in case] for case in whole if case],
        found.short(problem.message),
        level=problem.level,
    )


def _examples(found: Findings) -> list[Card]:
    """A few pairs of each split, evenly over it."""
    cards = []
    for part in found.parts:
        count = len(part.examples)
        for at in np.linspace(0, count - 1, min(_EXAMPLES, count)).astype(int):
            image, label = (_figure(found, path) for path in part.examples[at])
            over = Figure(
                "label over it", overlay(image.image, *_label(found, part.examples[at][1]))
            )
            title = f"{part.name}: {found.short(part.examples[at][0])}"
            cards.append(Card(title, [[image, over, label]]))
    return cards


def _figure(found: Findings, path: Path) -> Figure:
    """An image, or a label in its colours; a label in another encoding is shown as an image."""
    scan = found.scans[path]
    caption = f"{found.short(path)}, {scan.size}"
    if scan.values and not scan.foreign:
        return Figure(caption, colorize(*_label(found, path)), "label")
    return Figure(caption, thin(read_image(path), 2 * SIDE))


def _label(found: Findings, path: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Train ids `[H,W]`, K for unknown values, not much larger than a page shows; their colours."""
    with open_pillow(path) as picture:
        raw = thin(found.classes.raw_of(picture, path), 2 * SIDE)
    values, where = np.unique(raw, return_inverse=True)
    known, unknown = found.classes.train_ids(), len(found.classes.names)
    ids = np.array([known.get(int(value), unknown) for value in values], np.uint8)
    return ids[where].reshape(raw.shape), np.array([*found.classes.palette, WRONG], np.uint8)
