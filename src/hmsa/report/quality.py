"""What was found of auto-labels -> one offline HTML page. Reads no file and draws no picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..labelling.findings import LEVELS, Doubt, Drift, Truth, kept, kept_at, mean_confidence
from ..labelling.labelled import Labelled
from .datasheet import Strip, views
from .evaluation import Trusted, trust_charts
from .old import css, render, write
from .pictures import RIGHT, UNKNOWN, WRONG, heat

LISTED = 100  # rows of the queue's table
View = dict[str, Any]


@dataclass
class Case:
    """One image to look at: `told` beside its name, `why` it is shown, and pictures of it."""

    name: str
    told: str
    why: Sequence[str]
    strip: Strip


@dataclass
class People:
    """Labels by people that the auto-labels are held beside."""

    title: str  # dataset and split
    pixels: NDArray[np.int64]  # [K]
    void: int


@dataclass
class Sheet:
    """All that one page shows; what is None or empty leaves its section out."""

    title: str
    facts: list[tuple[str, str]]
    labelled: Labelled
    queue: list[Doubt]
    doubtful: list[Case]  # the head of the queue
    examples: list[Case]
    people: People | None = None
    truth: Truth | None = None
    drift: Drift | None = None
    changed: Sequence[Case] = ()


def verdict(sheet: Sheet) -> str:
    """What the page says, in a few sentences."""
    counts, rows = sheet.labelled.counts, sheet.labelled.rows
    told = [
        f"{len(rows):,} pictures labelled, {mean_confidence(counts):.1%} sure on average; "
        f"{kept_at(counts, 0.9):.0%} of the pixels are at least 0.9 sure."
    ]
    if sheet.truth:
        told.append(f"Against the truth: {100 * sheet.truth.at[0].miou():.1f} mIoU.")
    if sheet.drift:
        since = sheet.drift.before.out.name
        told.append(f"{_moved(sheet.drift):.1%} of the pixels changed since {since}.")
    if people := len(sheet.labelled.by_people):
        told.append(f"{people:,} corrected by people.")
    return " ".join(told)


def write_sheet(path: Path, sheet: Sheet) -> None:
    labels, truth, drift = sheet.labelled.labels, sheet.truth, sheet.drift
    legend = [(n, css(c)) for n, c in zip(labels.names, labels.palette, strict=True)]
    page = render(
        "quality.html.j2",
        enlarge=True,
        legend=legend,
        sheet=sheet,
        verdict=verdict(sheet),
        classes=_classes(sheet),
        curves=_curves(sheet.labelled),
        absent=[n for n, c in zip(labels.names, sheet.labelled.counts, strict=True) if not c.sum()],
        trusted=trust_charts(Trusted.of(truth.calibration)) if truth else [],
        scores=_scores(truth) if truth else [],
        levels=_levels(truth) if truth else [],
        moved=_moves(drift) if drift else [],
        matrix=_shares(drift.moved) if drift else None,
        listed=sheet.queue[:LISTED],
        examples=[_view(case) for case in sheet.examples],
        doubtful=[_view(case) for case in sheet.doubtful],
        changed=[_view(case) for case in sheet.changed],
        error_key={"same": RIGHT, "another": WRONG, "no label": UNKNOWN},
        heat_key=heat(np.linspace(0, 1, 8)[None])[0],
    )
    write(path, page)


def _view(case: Case) -> View:
    (strip,) = views([case.strip])
    return {"name": case.name, "told": case.told, "why": case.why, "strip": strip}


def _classes(sheet: Sheet) -> list[View]:
    """Shares in per cent with the length of their bars; how many times the pixels of people."""
    counts, people = sheet.labelled.counts, sheet.people
    pixels = counts.sum(1)
    share = 100 * pixels / max(1, pixels.sum())
    before = 100 * people.pixels / max(1, people.pixels.sum()) if people else None
    top = max(share.max(), before.max() if before is not None else 0) or 1
    rows = []
    for k, (name, colour) in enumerate(
        zip(sheet.labelled.labels.names, sheet.labelled.labels.palette, strict=True)
    ):
        row: View = {
            "name": name, "colour": css(colour), "share": share[k], "bar": 100 * share[k] / top,
            "before": None, "times": None, "pixels": int(pixels[k]),
            "sure": 100 * mean_confidence(counts[k]) if pixels[k] else None,
            "kept": [100 * kept_at(counts[k], t) if pixels[k] else None for t in LEVELS[1:]],
        }  # fmt: skip
        if people and before is not None:
            row |= {"before": before[k], "before_bar": 100 * before[k] / top}
            row["times"] = pixels[k] / people.pixels[k] if people.pixels[k] else None
        rows.append(row)
    return rows


def _curves(labelled: Labelled) -> list[View]:
    """Of all classes, then of each: share kept against threshold, in a box of 220 x 100."""

    def place(x: float, y: float) -> tuple[float, float]:
        return 6 + 208 * x, 92 - 84 * y

    def curve(name: str, colour: str | None, counts: NDArray[np.int64], of: float) -> View:
        share = kept(counts)
        steps = range(0, 256, 3)
        points = " ".join("{:.1f},{:.1f}".format(*place(v / 255, share[v])) for v in steps)
        marks = []
        for rule, thresholds in labelled.thresholds.items():
            if name in thresholds:
                at = thresholds[name]
                marks.append((rule, at, place(at, 0)[0], 100 * kept_at(counts, at)))
        return {"name": name, "colour": colour, "of": 100 * of, "points": points, "marks": marks}

    counts = labelled.counts
    pixels = counts.sum(1)
    table = zip(labelled.labels.names, labelled.labels.palette, counts, strict=True)
    each = [curve(n, css(c), own, own.sum() / pixels.sum()) for n, c, own in table if own.sum()]
    whole = curve("all classes", None, counts.sum(0), 1.0)
    return [whole, *sorted(each, key=lambda view: -view["of"])]


def _scores(truth: Truth) -> list[list[float | None]]:
    """Rows of each class, in per cent; None where there is no such number."""
    whole, sure = truth.at[0], truth.at[LEVELS.index(0.9)]
    pixels = whole.matrix.sum(1).double()
    left = sure.matrix.sum(0) / whole.matrix.sum(0)
    columns = [pixels / pixels.sum(), whole.iou(), whole.precision(), whole.recall(), left,
               sure.precision()]  # fmt: skip
    return [[_percent(float(column[k])) for column in columns] for k in range(len(pixels))]


def _levels(truth: Truth) -> list[tuple[float, list[float | None]]]:
    """Threshold -> share kept, right among it, mIoU of it, all in per cent."""
    pixels, rows = max(1, int(truth.at[0].matrix.sum())), []
    for place, (level, part) in enumerate(zip(LEVELS, truth.at, strict=True)):
        numbers = (int(part.matrix.sum()) / pixels, part.accuracy(), truth.miou_at(place))
        rows.append((level, [_percent(number) for number in numbers]))
    return rows


def _moved(drift: Drift) -> float:
    return float(1 - np.trace(drift.moved) / max(1, drift.moved.sum()))


def _moves(drift: Drift) -> list[list[float | None]]:
    """Of each class, in per cent: share before and now, of it changed away, of it new, both
    confidences."""
    was, now, same = drift.moved.sum(1), drift.moved.sum(0), np.diag(drift.moved)
    total = max(1, drift.moved.sum())
    with np.errstate(invalid="ignore"):
        columns = [was / total, now / total, 1 - same / was, 1 - same / now, *drift.confidence]
    return [[_percent(float(column[k])) for column in columns] for k in range(len(was))]


def _shares(matrix: NDArray[np.int64]) -> NDArray[np.float64]:
    shares: NDArray[np.float64] = 100 * matrix / np.maximum(matrix.sum(1), 1)[:, None]
    return shares


def _percent(share: float) -> float | None:
    return None if np.isnan(share) else 100 * share
