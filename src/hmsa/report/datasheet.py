"""What a check of a dataset found -> one offline HTML page, the worst first.

Reads no picture: those that it shows were drawn before.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..check.findings import LEVELS, Findings, Part, Problem
from ..data.labels import IGNORE
from .old import css, render, uri, write
from .pictures import WRONG

MOST_VALUES = 300  # rows of the table of values; a photograph taken for a label has more


@dataclass
class Shot:
    """A picture [H,W,3]. kind: a "photo" has many colours, which need not stay exact; those of a
    "label" are named in the legend, those of a "map" are not."""

    caption: str
    picture: NDArray[np.uint8]
    kind: str = "photo"


Strip = list[Shot]  # side by side


@dataclass
class Datasheet:
    """All that one page shows."""

    title: str
    facts: list[tuple[str, str]]
    found: Findings
    cases: list[tuple[Problem, list[Strip]]]  # problems that have pictures, or not
    examples: list[tuple[str, Strip]]  # name of a pair, and what it looks like


def views(strips: Sequence[Strip]) -> list[list[dict[str, object]]]:
    return [
        [
            {
                "caption": shot.caption,
                "uri": uri(shot.picture, shot.kind == "photo"),
                "kind": shot.kind,
                "wrong": False,
            }
            for shot in strip
        ]
        for strip in strips
    ]


def _classes(found: Findings) -> list[dict[str, object]]:
    """Rows of class x split: share in per cent, length of its bar, pictures; and void below."""
    parts, names = list(found.parts.values()), found.labels.names
    top = max((int(part.pixels.max()) / part.total for part in parts), default=0) or 1

    def cell(part: Part, pixels: int, pictures: int | None) -> dict[str, object]:
        share = pixels / part.total
        return {"share": 100 * share, "bar": min(100, 100 * share / top), "pictures": pictures}

    rows: list[dict[str, object]] = [
        {
            "name": name,
            "colour": css(found.labels.palette[k]),
            "cells": [cell(part, int(part.pixels[k]), int(part.pictures[k])) for part in parts],
        }
        for k, name in enumerate(names)
    ]
    rows.append(
        {"name": "void", "colour": None, "cells": [cell(part, part.void, None) for part in parts]}
    )
    if any(part.unknown for part in parts):
        cells = [cell(part, part.unknown, None) for part in parts]
        rows.append({"name": "unknown", "colour": css(WRONG), "cells": cells})
    return rows


def _values(found: Findings) -> list[tuple[str, str, str, list[int]]]:
    """Raw value, what it means, its colour, pixels in each split."""
    known, parts = found.labels.train_ids(), found.parts.values()
    rows = []
    for value in sorted(set().union(*(part.values for part in parts)))[:MOST_VALUES]:
        train_id = known.get(value)
        meaning, colour = "unknown", css(WRONG)
        if train_id is not None:
            meaning, colour = "ignored", css((0, 0, 0))
        if train_id not in (None, IGNORE):
            meaning, colour = found.labels.names[train_id], css(found.labels.palette[train_id])
        pixels = [part.values[value] for part in parts]
        rows.append((found.labels.value_name(value), meaning, colour, pixels))
    return rows


def write_datasheet(path: Path, sheet: Datasheet) -> None:
    found = sheet.found
    order = sorted(sheet.cases, key=lambda case: LEVELS.index(case[0].level))
    legend = [(n, css(c)) for n, c in zip(found.labels.names, found.labels.palette, strict=True)]
    page = render(
        "datasheet.html.j2",
        enlarge=bool(sheet.examples or any(strips for _, strips in sheet.cases)),
        sheet=sheet,
        problems=[
            (problem, found.short(problem.message), views(strips)) for problem, strips in order
        ],
        classes=_classes(found),
        values=_values(found),
        examples=[(name, views([strip])[0]) for name, strip in sheet.examples],
        legend=[*legend, ("unknown value", css(WRONG))],
    )
    write(path, page)
