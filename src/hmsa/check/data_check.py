"""`hmsa data check` and `hmsa data stats`: what is in a dataset, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Group
from rich.table import Table
from rich.text import Text

from ..data.images import open_pillow, read_image
from ..data.labels import LabelSet
from ..report.datasheet import Datasheet, Shot, write_datasheet
from ..report.page import SIDE
from ..report.pictures import WRONG, colorize, overlay
from ..runs.errors import InputError
from ..runs.progress import Progress
from .check import judge, plan
from .findings import LEVELS, Findings, Part
from .leaks import find_leaks
from .scan import File, Memory, Seen, scan

EXAMPLES = 3  # pictures shown of each split
STYLE = {"error": "bold red", "warning": "yellow", "note": "dim"}


def check(
    path: Path,
    splits: Sequence[str] = (),
    *,
    data: Path | None = None,
    report: Path | None = None,
    command: str = "",
) -> tuple[dict[str, Any], Group]:
    """Looks at every file of all splits, or of those named.

    data: where the pictures are, if not where the dataset's file `path` says; report: the page to
    write; command: as typed, to stand on it. What was seen of a file is kept in the user's cache
    folder until the file changes, so a second run, or one after Ctrl-C, goes on. Returns the
    summary and what to print.
    """
    found = plan(path, splits, data)
    seen = _look(found)
    judge(found, seen)
    find_leaks(found, seen)
    summary = found.summary()
    if report:
        write_datasheet(report, _sheet(found, seen, command))
        summary["report"] = str(report)
    problems = [
        Text.assemble((f"{problem.level:8}", STYLE[level]), found.short(problem.message))
        for level in LEVELS
        for problem in found.of(level)
    ]
    return summary, Group(*_tables(found), *problems, Text(found.verdict()))


def stats(
    path: Path, splits: Sequence[str] = (), data: Path | None = None
) -> tuple[dict[str, Any], Group, list[str]]:
    """Class frequencies, mean and deviation: summary, tables, and errors that make them partial."""
    found = plan(path, splits, data)
    judge(found, _look(found))
    errors = [problem.message for problem in found.of("error")]
    return found.statistics(), Group(*_tables(found)), errors


def _look(found: Findings) -> dict[Path, Seen]:
    files, seen = found.files(), {}
    with Memory(found.root) as memory, Progress("check", len(files)) as meter:
        for file, look in scan(files, memory):
            seen[file.path] = look
            meter.advance()
    return seen


def _tables(found: Findings) -> list[Table]:
    splits = Table(title=f"{found.source}: {found.root}", title_justify="left")
    for column in ("split", "images", "labels", "pairs", "size", "void %", "mean", "std"):
        splits.add_column(column, justify="left" if column == "split" else "right")
    classes = Table(title="% of pixels (pictures)", title_justify="left")
    classes.add_column("class")
    for part in found.parts.values():
        classes.add_column(Text(part.name), justify="right")
        splits.add_row(
            Text(part.name),
            *(str(len(each)) for each in (part.images, part.labels, part.pairs)),
            _size(part),
            f"{100 * part.void / part.total:.2f}",
            *(" ".join(f"{v:.3f}" for v in numbers) for numbers in (part.mean, part.std)),
        )
    for k, name in enumerate(found.labels.names):
        cells = [
            f"{100 * int(part.pixels[k]) / part.total:.2f} ({part.pictures[k]})"
            for part in found.parts.values()
        ]
        classes.add_row(Text(name), *cells)
    return [splits, classes]


def _size(part: Part) -> str:
    common = [f"{width}x{height}" for (height, width), _ in part.sizes.most_common(1)]
    more = len(part.sizes) - 1
    return "".join(common) + (f" +{more}" if more > 0 else "")


def _sheet(found: Findings, seen: Mapping[Path, Seen], command: str) -> Datasheet:
    cases = []
    for problem in found.problems:
        strips = [_shots(found, seen, case) for case in problem.cases]
        cases.append((problem, [strip for strip in strips if strip]))
    examples = []
    for part in found.parts.values():
        good = [
            (image, label)
            for image, label in part.pairs
            if not (seen[image.path].broken or seen[label.path].broken)
            and not seen[label.path].foreign
            and seen[image.path].size == seen[label.path].size
        ]
        for at in np.linspace(0, len(good) - 1, min(EXAMPLES, len(good))).astype(int):
            image, label = good[at]
            examples.append((f"{part.name}: {found.short(image.path)}", _example(image, label)))
    facts = [
        ("dataset", str(found.source)),
        ("folder", str(found.root)),
        ("encoding", found.labels.encoding),
        ("files", str(len(seen))),
        ("command", command),
    ]
    return Datasheet(f"{found.source} · check", facts, found, cases, examples)


def _example(image: File, label: File) -> list[Shot]:
    assert label.labels
    picture, (ids, palette) = _thin(read_image(image.path)), _ids(label.path, label.labels)
    return [
        Shot("image", picture),
        Shot("label over it", overlay(picture, ids, palette)),
        Shot("label", colorize(ids, palette), "label"),
    ]


def _shots(found: Findings, seen: Mapping[Path, Seen], files: Sequence[File]) -> list[Shot]:
    """Each as well as it can be drawn; what cannot be read at all is left out."""
    shots = []
    for file in files:
        with suppress(InputError):
            picture, kind = _draw(file)
            height, width = seen[file.path].size
            shots.append(Shot(f"{found.short(file.path)}, {width}x{height}", picture, kind))
    return shots


def _draw(file: File) -> tuple[NDArray[np.uint8], str]:
    """`[H,W,3]` and its kind; a label in another encoding is taken for a photo."""
    if file.labels:
        with suppress(InputError):
            return colorize(*_ids(file.path, file.labels)), "label"
    return _thin(read_image(file.path)), "photo"


def _thin(picture: NDArray[Any]) -> NDArray[Any]:
    """Not many more pixels `[H,W,..]` than a page shows, so that large ones cost no time."""
    step = max(1, max(picture.shape[:2]) // (2 * SIDE))
    return picture[::step, ::step]


def _ids(path: Path, labels: LabelSet) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Thinned train ids `[H,W]`, K for what is unknown, and the palette [K+1,3], red for that."""
    with open_pillow(path) as picture:
        raw = _thin(labels.raw_of(picture, path))
    values, where = np.unique(raw, return_inverse=True)
    known, other = labels.train_ids(), len(labels.names)
    ids = np.array([known.get(int(value), other) for value in values], np.uint8)
    return ids[where].reshape(raw.shape), np.array([*labels.palette, WRONG], np.uint8)
