"""The page of a check, and the tables that the terminal shows, too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..data.images import open_picture, read_image
from ..report.page import DASH, SIDE, Card, Cell, Figure, Page, Section, Table
from ..report.pictures import WRONG, colorize, overlay, thin
from .check import Case, Findings, Part, Problem

_EXAMPLES = 3  # pairs of each split
_CASES = 4  # of a problem
_VALUES = 300  # rows of the table of values; a photograph in place of a label has more


def page(found: Findings, command: str) -> Page:
    """Everything that was found, with examples."""
    facts = {"Dataset": found.source, "Folder": found.root, "Encoding": found.classes.encoding}
    partners = {path: pair for part in found.parts for pair in part.pairs for path in pair}
    problems = [_card(found, p, partners) for p in found.of()]
    colours = list(zip(found.classes.names, found.classes.palette, strict=True))
    examples = [card for part in found.parts for card in _examples(found, part)]
    sections = [
        Section(
            "Splits",
            [splits(found)],
            "Mean and deviation of red, green and blue, 0..1, over all pixels of the images.",
        ),
        Section("What was found, the worst first", problems),
        Section(
            "Classes",
            [classes(found)],
            "Per cent of a split's pixels; in brackets, how many labels have the class. Red: none.",
        ),
        Section("Values in the label files", [_values(found)]),
        Section(
            "Images with their labels",
            examples,
            "Click an image to enlarge it; over an enlarged label the pointer names the class.",
        ),
    ]
    return Page(
        f"{found.source} · check",
        found.verdict(),
        [(name, str(fact)) for name, fact in facts.items()] + [("Files", str(len(found.scans)))],
        [section for section in sections if section.blocks],
        [*colours, ("unknown value", WRONG)],
        command,
    )


def splits(found: Findings) -> Table:
    """Files, sizes and colours of each split."""
    columns, rows = ["split", "images", "labels", "pairs", "sizes", "void %", "mean", "std"], []
    for part in found.parts:
        numbers = {key: by_split[part.name] for key, by_split in found.numbers.items()}
        sizes = [f"{size} ({n})" for size, n in numbers["sizes"].items()]
        more = [f"and {len(sizes) - 3} more"] if len(sizes) > 3 else []
        counts = [str(n) for n in numbers["pairs"].values()]
        void = f"{100 * numbers['void']['share']:.2f}"
        colours = [" ".join(f"{v:.3f}" for v in numbers[key]) for key in ("mean", "std")]
        rows.append([part.name, *counts, "\n".join(sizes[:3] + more), void, *colours])
    return Table(columns, rows)


def classes(found: Findings) -> Table:
    """Share of the pixels by class and split, and how many labels have the class."""
    frequencies = found.numbers["frequencies"]
    top = max(each["share"] for split in frequencies.values() for each in split.values()) or 1

    def cell(share: float, pictures: int | None = None) -> Cell:
        small, kind = "" if pictures is None else f"({pictures})", "down" if pictures == 0 else ""
        return Cell(f"{100 * share:.2f}", kind, small=small, bar=min(1, share / top))

    rows = [
        [
            Cell(name, colour=colour),
            *(cell(each[name]["share"], each[name]["pictures"]) for each in frequencies.values()),
        ]
        for name, colour in zip(found.classes.names, found.classes.palette, strict=True)
    ]
    for name, colour in (("void", None), ("unknown", WRONG)):
        shares = [each["share"] for each in found.numbers[name].values()]
        if name == "void" or any(shares):
            rows.append([Cell(name, colour=colour), *map(cell, shares)])
    return Table(["% of pixels (labels)", *frequencies], rows)


def _values(found: Findings) -> Table:
    """What each value in the label files means, and how many pixels have it."""
    table, by_split = found.classes, found.numbers["values"]
    meanings = {table.value_name(value): ("ignored", (0, 0, 0)) for value in table.ignored}
    for raw, name, colour in zip(table.raw, table.names, table.palette, strict=True):
        meanings[table.value_name(raw)] = name, colour
    rows = []
    for value in list(dict.fromkeys(value for split in by_split.values() for value in split))[
        :_VALUES
    ]:
        name, colour = meanings.get(value, ("unknown", WRONG))
        counts = [split.get(value, 0) for split in by_split.values()]
        cells = [Cell(f"{n:,}") if n else Cell(DASH, "none") for n in counts]
        rows.append([value, Cell(name, "left", colour), *cells])
    return Table(["value", Cell("means", "left"), *(f"{name}, pixels" for name in by_split)], rows)


def _card(found: Findings, problem: Problem, partners: dict[Path, Case]) -> Card:
    cases = problem.cases or [partners.get(path, (path,)) for path in problem.files[:_CASES]]
    strips = [
        [_figure(found, path) for path in case if not found.scans[path].broken]
        for case in cases[:_CASES]
    ]
    title, text = f"{problem.level}: {problem.kind}", found.short(problem.message)
    return Card(title, [strip for strip in strips if strip], text, level=problem.level)


def _examples(found: Findings, part: Part) -> Iterator[Card]:
    scans = found.scans
    good = [
        (image, label)
        for image, label in part.pairs
        if scans[label].values
        and not scans[label].foreign
        and scans[image].size == scans[label].size
    ]
    for at in np.linspace(0, len(good) - 1, min(_EXAMPLES, len(good))).astype(int):
        image, label = (_figure(found, path) for path in good[at])
        over = Figure("label over it", overlay(image.image, *_label(found, good[at][1])))
        yield Card(f"{part.name}: {found.short(good[at][0])}", [[image, over, label]])


def _figure(found: Findings, path: Path) -> Figure:
    """An image, or a label in its colours; a label in another encoding is shown as an image."""
    scan = found.scans[path]
    caption = f"{found.short(path)}, {scan.width_x_height}"
    if scan.values and not scan.foreign:
        return Figure(caption, colorize(*_label(found, path)), "label")
    return Figure(caption, thin(read_image(path), 2 * SIDE))


def _label(found: Findings, path: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Train ids `[H,W]`, K for unknown values, not much larger than a page shows; their colours."""
    with open_picture(path) as picture:
        raw = thin(found.classes.raw_of(picture, path), 2 * SIDE)
    values, where = np.unique(raw, return_inverse=True)
    known, unknown = found.classes.train_ids(), len(found.classes.names)
    ids = np.array([known.get(int(value), unknown) for value in values], np.uint8)
    return ids[where].reshape(raw.shape), np.array([*found.classes.palette, WRONG], np.uint8)
