"""The page of a check, and its table, which the terminal shows, too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..data.images import read_image, read_stored
from ..report.page import SIDE, Card, Cell, Figure, Page, Section, Table
from ..report.pictures import WRONG, colorize, overlay, panel, shown, thin
from .check import Findings, Part, Problem

_EXAMPLES = 3  # pairs of each split
_CASES = 4  # of a problem


def page(found: Findings) -> Page:
    """Everything that was found, with examples."""
    names, palette = found.classes.names, found.classes.palette
    note = "Click an image to enlarge it; over an enlarged label the pointer names the class."
    sections = [
        Section("Splits", [table(found)]),
        Section("What was found, the worst first", [_card(found, p) for p in found.problems]),
        Section("Images with their labels", _examples(found), note),
    ]
    return Page(
        f"{found.source} · check",
        found.verdict(),
        [("Dataset", str(found.source)), ("Folder", str(found.root)),
         ("Encoding", found.classes.encoding), ("Files", str(len(found.scans)))],
        [section for section in sections if section.blocks],
        [*zip(names, palette, strict=True), ("unknown", WRONG)],
    )  # fmt: skip


def table(found: Findings) -> Table:
    """Files, sizes and colours of each split; share of each class, and how many labels have it."""
    numbers = [part.numbers for part in found.parts]
    rows: list[list[str | Cell]] = [
        [kind, *(Cell(f"{each['pairs'][kind]:,}", "left") for each in numbers)]
        for kind in numbers[0]["pairs"]
    ]
    rows.append(["sizes", *(Cell(_sizes(each["sizes"]), "left") for each in numbers)])
    for name, colour in zip(found.classes.names, found.classes.palette, strict=True):
        each_split = [each["frequencies"][name] for each in numbers]
        rows.append([Cell(name, colour=colour), *map(_share, each_split)])
    for key in ("void", "unknown"):
        rows.append([key, *(_share(each[key]) for each in numbers)])
    heads = (Cell(part.name, "left") for part in found.parts)
    return Table(["% of pixels (labels)", *heads], rows)


def _sizes(counts: dict[str, int]) -> str:
    sizes = [f"{size} ({count})" for size, count in counts.items()]
    return "\n".join(sizes[:3] + ["and others"] * (len(sizes) > 3))


def _share(found: dict[str, Any]) -> Cell:
    labels = f" ({found['pictures']})" if "pictures" in found else ""
    kind = "" if found.get("pictures", 1) else "down"
    return Cell(f"{100 * found['share']:.2f}{labels}", kind, bar=found["share"])


def _card(found: Findings, problem: Problem) -> Card:
    partners = {path: pair for part in found.parts for pair in part.pairs for path in pair}
    cases = problem.cases or [partners.get(path, (path,)) for path in problem.files[:_CASES]]
    strips = [
        [_figure(found, path) for path in case if not found.scans[path].broken]
        for case in cases[:_CASES]
    ]
    title, text = f"{problem.level}: {problem.kind}", found.short(problem.message)
    return Card(title, [strip for strip in strips if strip], text, level=problem.level)


def _examples(found: Findings) -> list[Card]:
    """A few pairs of each split, evenly over it."""
    cards = []
    for part, pair in _some_pairs(found):
        image, label = (_figure(found, path) for path in pair)
        over = overlay(image.image, *_label(found, pair[1]))
        figures = [image, Figure("label over it", over), label]
        cards.append(Card(f"{part.name}: {found.short(pair[0])}", [figures]))
    return cards


def _some_pairs(found: Findings) -> Iterator[tuple[Part, tuple[Path, Path]]]:
    scans = found.scans
    for part in found.parts:
        fit = (p for p in part.pairs if scans[p[0]].size == scans[p[1]].size)
        pairs = [p for p in fit if scans[p[1]].values and not scans[p[1]].foreign]
        for at in np.linspace(0, len(pairs) - 1, min(_EXAMPLES, len(pairs))).astype(int):
            yield part, pairs[at]


def sheet(found: Findings) -> Image.Image:
    """A few images of each split, each beside its label over it, and the colour of each class."""
    rows: dict[str, list[tuple[str, NDArray[np.uint8]]]] = {}
    for part, (image, label) in _some_pairs(found):
        pixels = shown(_figure(found, image).image)
        over = overlay(pixels, *_label(found, label), 0.6)
        rows.setdefault(part.name, []).extend(
            [(f"{part.name}: {image.name}", pixels), (label.name, over)]
        )
    classes = zip(found.classes.names, found.classes.palette, strict=True)
    keys = [(name, np.full((16, 240, 3), colour, np.uint8)) for name, colour in classes]
    return panel([*rows.values(), *(keys[at : at + 6] for at in range(0, len(keys), 6))], 240)


def _figure(found: Findings, path: Path) -> Figure:
    """An image, or a label in its colours; a label in another encoding is shown as an image."""
    scan = found.scans[path]
    caption = f"{found.short(path)}, {scan.size}"
    if scan.values and not scan.foreign:
        return Figure(caption, colorize(*_label(found, path)), "label")
    return Figure(caption, thin(read_image(path), 2 * SIDE))


def _label(found: Findings, path: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Train ids `[H,W]`, K for unknown values, not much larger than a page shows; their colours."""
    raw = thin(found.classes.raw_of(read_stored(path), path), 2 * SIDE)
    values, where = np.unique(raw, return_inverse=True)
    known, unknown = found.classes.train_ids(), len(found.classes.names)
    ids = np.array([known.get(value, unknown) for value in values.tolist()], np.uint8)
    return ids[where].reshape(raw.shape), np.array([*found.classes.palette, WRONG], np.uint8)
