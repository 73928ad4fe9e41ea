"""`hmsa review`: what auto-labels are worth, which of them people should see, what they mended."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from .. import __version__
from ..data.coarse import Coarse
from ..data.datasets import Dataset, open_dataset
from ..data.labels import IGNORE
from ..report.datasheet import Shot, Strip
from ..report.page import SIDE
from ..report.pictures import colorize, error, heat
from ..report.quality import Case, People, Sheet, verdict, write_sheet
from ..runs.errors import InputError
from .corrections import read_corrections, take
from .findings import (
    LEVELS,
    Doubt,
    Drift,
    against,
    drift,
    kept_at,
    mean_confidence,
    queue,
    summary_of,
)
from .labelled import Labelled, open_labelled
from .labelling import locked
from .tasks import export_tasks

DOUBTFUL, EXAMPLES, CHANGED = 8, 4, 6  # images shown of each kind
TOLD = 20  # images of the queue in the JSON


def review(
    out: Path,
    *,
    people: Path | None = None,
    people_split: str = "train",
    truth: Path | None = None,
    split: str = "val",
    before: Path | None = None,
    report: Path | None = None,
    command: str = "",
) -> tuple[dict[str, Any], Table]:
    """Look at `out`, which `hmsa autolabel` made; no network is run. Writes the page `report`.

    people: a dataset with labels by people, coarse ones of these pictures or others, to hold the
    classes beside. truth: one with true labels of some of these pictures. before: an earlier `out`
    of the same pictures. Returns the JSON object and the table for people.
    """
    labelled = open_labelled(out)
    drawn = open_dataset(people, people_split) if people else None
    beside = labelled.beside(drawn, others=True) if drawn else None
    true = labelled.beside(open_dataset(truth, split)) if truth else None
    changes = drift(open_labelled(before), labelled) if before else None
    found = against(labelled, true) if true else None
    order = queue(labelled)
    names = labelled.labels.names
    sheet = Sheet(
        f"{out.resolve().name}: auto-labels", _facts(labelled, people, truth, before, command),
        labelled, order, [], [], _people(drawn) if drawn else None, found, changes,
    )  # fmt: skip
    if report:
        sides = [each for each in (beside, true) if each]
        draw = _Drawing(labelled, beside, true, changes)
        sheet.doubtful = [draw.case(doubt) for doubt in order[:DOUBTFUL]]
        sheet.examples = [draw.case(doubt, why=False) for doubt in _spread(order, labelled, sides)]
        if changes:
            most = sorted(changes.changed, key=lambda name: -changes.changed[name])[:CHANGED]
            sheet.changed = [draw.change(name) for name in most if changes.changed[name]]
        write_sheet(report, sheet)
    counts, k = labelled.counts, range(len(names))
    pixels = counts.sum()
    summary: dict[str, Any] = {
        "images": len(labelled.rows),
        "failed": len(labelled.failed),
        "people": len(labelled.by_people),
        "confidence": mean_confidence(counts),
        "kept": {f"{t:g}": kept_at(counts, t) for t in LEVELS[1:]},
        "class": {
            names[i]: {
                "share": float(counts[i].sum() / max(1, pixels)),
                "confidence": mean_confidence(counts[i]) if counts[i].any() else None,
                "kept": {f"{t:g}": kept_at(counts[i], t) for t in LEVELS[1:]},
            }
            for i in k
        },
        "queue": [
            {"image": d.name, "doubt": d.doubt, "confidence": d.confidence,
             "agreement": d.agreement, "why": list(d.why)}
            for d in order[:TOLD]
        ],
    }  # fmt: skip
    if found:
        summary["truth"] = summary_of(found, names)
    if changes:
        summary["changed"] = _changes(changes, names)
    if report:
        summary["report"] = str(report)
    return _plain(summary), _table(sheet)


def export(
    out: Path, tool: str, file: Path, worst: int, url: str | None = None
) -> tuple[dict[str, Any], list[Path]]:
    """The head of the queue as tasks for `tool`, "cvat" or "labelstudio"; what was written."""
    labelled = open_labelled(out)
    names = [doubt.name for doubt in queue(labelled)[:worst]]
    if not names:
        raise InputError(f"{out}: people have seen all of its pictures; there is nothing to export")
    written = export_tasks(labelled, names, tool, file, url)
    return {"images": len(names), "files": [str(each) for each in written]}, written


def take_back(out: Path, file: Path) -> dict[str, Any]:
    """Put the labels that people made of tasks in place of those of `out`, all of them or none.

    Returns how many were new, there already, and left empty, which changes nothing.
    """
    with locked(out):
        labelled = open_labelled(out)
        with read_corrections(file, labelled) as corrections:
            taken = take(labelled, corrections)
    return {"taken": taken.new, "same": taken.same, "empty": taken.empty,
            "people": taken.people}  # fmt: skip


class _Drawing:
    """Pictures of single images, with all that is known of them side by side."""

    def __init__(
        self, labelled: Labelled, people: Coarse | None, truth: Coarse | None, drift: Drift | None
    ) -> None:
        self.labelled, self.people, self.truth, self.drift = labelled, people, truth, drift
        self.palette = np.array(labelled.labels.palette, np.uint8)

    def label(self, caption: str, label: Any) -> Shot:
        return Shot(caption, colorize(_thin(label), self.palette), "label")

    def case(self, doubt: Doubt, why: bool = True) -> Case:
        seen, name = self.labelled, doubt.name
        label, strip = seen.label(name), [Shot("image", _thin(seen.image(name)))]
        if self.people and seen.is_same_picture(self.people, name):
            strip.append(self.label("by people", seen.beside_label(self.people, name)))
        strip.append(self.label("auto label", label))
        for kind in ("confidence", "agreement"):
            if kind in seen.rows[name] and (level := seen.level(kind, name)) is not None:
                strip.append(Shot(kind, heat(_thin(level) / 255)))
        if self.truth and (true := seen.beside_label(self.truth, name)) is not None:
            strip.append(self.label("truth", true))
            label[true == IGNORE] = 0  # error() colours by the truth there
            strip.append(Shot("error", error(_thin(label), _thin(true)), "map"))
        told = f"{100 * doubt.confidence:.1f} % sure"
        if doubt.agreement is not None:
            told += f", {100 * doubt.agreement:.1f} % agreed"
        return Case(name, told, doubt.why if why else (), strip)

    def change(self, name: str) -> Case:
        assert self.drift
        was, now = self.drift.before.label(name), self.labelled.label(name)
        strip: Strip = [
            Shot("image", _thin(self.labelled.image(name))),
            self.label(self.drift.before.out.name, was),
            self.label(self.labelled.out.name, now),
            Shot("change", error(_thin(now), _thin(np.where(now == IGNORE, now, was))), "map"),
        ]
        return Case(name, f"{self.drift.changed[name]:.1%} changed", (), strip)


def _spread(order: list[Doubt], labelled: Labelled, sides: list[Coarse]) -> list[Doubt]:
    """Some from the surest to the most doubtful; of those that other labels have, if any does."""
    rest = order[DOUBTFUL:] or order
    held = [d for d in rest if any(labelled.place(side, d.name) is not None for side in sides)]
    found = held or rest
    places = np.linspace(len(found) - 1, 0, min(EXAMPLES, len(found))).round().astype(int)
    return [found[place] for place in places]


def _thin(picture: Any) -> Any:
    """Not many more pixels `[H,W,..]` than a page shows, so that large ones cost no time."""
    step = max(1, max(picture.shape[:2]) // (2 * SIDE))
    return picture[::step, ::step]


def _people(dataset: Dataset) -> People:
    counts = np.zeros(256, np.int64)
    for index in range(len(dataset)):
        counts += np.bincount(dataset.read_label(index).ravel(), minlength=256)
    return People(
        f"{dataset.source.parent.name}/{dataset.source.name}, split {dataset.split}, "
        f"{len(dataset):,} pictures",
        counts[: len(dataset.labels.names)],
        int(counts[IGNORE]),
    )


def _facts(
    labelled: Labelled, people: Path | None, truth: Path | None, before: Path | None, command: str
) -> list[tuple[str, str]]:
    settings = labelled.settings
    facts = [
        ("Auto-labels", str(labelled.out)),
        ("Pictures", f"{len(labelled.rows):,}, {len(labelled.failed):,} could not be read"),
        ("By people", f"{len(labelled.by_people):,}"),
        ("Teacher", f"sha256 {settings['teacher'][:16]}"),
        ("Scales", ", ".join(f"{s:g}" for s in settings["scales"])
         + ("; flip" if settings["flip"] else "; no flip")),
        ("Coarse labels", ", ".join(map(str, (settings.get("coarse") or {}).values())) or "none"),
        *((name, str(path)) for name, path in
          (("People", people), ("Truth", truth), ("Before", before)) if path),
        ("Versions", f"hmsa {__version__}, {datetime.now():%Y-%m-%d %H:%M}"),
        ("Command", command),
    ]  # fmt: skip
    return facts


def _changes(changes: Drift, names: Sequence[str]) -> dict[str, Any]:
    was, same = changes.moved.sum(1), np.diag(changes.moved)
    total = max(1, int(changes.moved.sum()))
    return {
        "since": str(changes.before.out),
        "images": len(changes.changed),
        "share": 1 - int(same.sum()) / total,
        "class": {
            name: {
                "lost": float(1 - same[k] / was[k]) if was[k] else None,
                "before": int(was[k]),
                "now": int(changes.moved[:, k].sum()),
                "confidence": [float(part[k]) for part in changes.confidence],
            }
            for k, name in enumerate(names)
        },
    }


def _table(sheet: Sheet) -> Table:
    """Class by what is known of it, in per cent."""
    labelled, truth, changes = sheet.labelled, sheet.truth, sheet.drift
    table = Table(title=f"{labelled.out}, in %", title_justify="left")
    shown = (0.5, 0.9)
    columns = ["class", "share", "sure", *(f"from {t:g}" for t in shown)]
    columns += ["IoU", "precision"] if truth else []
    columns += ["changed"] if changes else []
    for column in columns:
        table.add_column(column, justify="left" if column == "class" else "right")
    scores = [s.tolist() for s in (truth.at[0].iou(), truth.at[0].precision())] if truth else []
    lost = [each["lost"] for each in _changes(changes, labelled.labels.names)["class"].values()] \
        if changes else []  # fmt: skip
    pixels = max(1, labelled.counts.sum())
    for k, name in enumerate(labelled.labels.names):
        own = labelled.counts[k]
        cells = [own.sum() / pixels]
        numbers = [mean_confidence(own), *(kept_at(own, t) for t in shown)]
        cells += numbers if own.any() else [math.nan] * len(numbers)
        cells += [score[k] for score in scores]
        cells += [math.nan if lost[k] is None else lost[k]] if changes else []
        table.add_row(name, *("" if math.isnan(c) else f"{100 * c:.1f}" for c in cells))
    table.caption, table.caption_justify = verdict(sheet), "left"
    return table


def _plain(value: Any) -> Any:
    """As JSON: four digits, and null for what could not be scored."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if not isinstance(value, float):
        return value
    return None if math.isnan(value) else round(value, 4)
