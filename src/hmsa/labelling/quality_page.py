"""The quality page of auto-labels, and its table of classes for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.coarse import Coarse
from ..data.labels import IGNORE
from ..evaluation.page import calibration_charts
from ..report.page import (
    SIDE,
    Card,
    Cell,
    Curve,
    Figure,
    Legend,
    Page,
    Section,
    Table,
    write_page,
)
from ..report.pictures import RIGHT, UNKNOWN, WRONG, colorize, error, heat
from ..report.tables import matrix, percent
from .labelled import Labelled
from .quality import LEVELS, Doubt, Drift, Truth, kept, kept_at, mean_confidence

DOUBTFUL, CHANGED, LISTED = 8, 6, 100  # images shown of each kind; rows of the queue


@dataclass
class Quality:
    """All that the page shows; what is None leaves its section out."""

    labelled: Labelled
    queue: list[Doubt]
    people: Coarse | None = None  # labels by people, of these images or others
    true: Coarse | None = None
    truth: Truth | None = None
    drift: Drift | None = None
    facts: list[tuple[str, str]] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """The result in a few sentences."""
        counts, rows = self.labelled.counts, self.labelled.rows
        parts = [
            f"{len(rows):,} images labelled, mean confidence {mean_confidence(counts):.1%}; "
            f"{kept_at(counts, 0.9):.0%} of the pixels have at least 0.9."
        ]
        if self.truth:
            parts.append(f"Against true labels: {100 * self.truth.at[0].miou():.1f} mIoU.")
        if self.drift:
            name = self.drift.before.out.name
            parts.append(f"{self.drift.share:.1%} of the pixels changed since {name}.")
        if people := len(self.labelled.by_people):
            parts.append(f"{people:,} corrected by people.")
        return " ".join(parts)

    @cached_property
    def named(self) -> list[tuple[str, Any]]:
        """Class names with their colours."""
        labels = self.labelled.labels
        return [
            (n, np.array(c, np.uint8)) for n, c in zip(labels.names, labels.palette, strict=True)
        ]

    @cached_property
    def people_pixels(self) -> NDArray[np.int64] | None:
        """`[K]` pixels of each class in the labels by people."""
        return self.people.dataset.class_pixels() if self.people else None

    def classes(self) -> Table:
        """Class by class: shares, confidence, and what thresholds keep."""
        counts, people = self.labelled.counts, self.people_pixels
        share = counts.sum(1) / max(1, counts.sum())
        before = people / max(1, people.sum()) if people is not None else None
        top = max(share.max(), before.max() if before is not None else 0) or 1
        rows = []
        for k, (name, colour) in enumerate(self.named):
            row = [Cell(name, colour=colour)]
            if before is not None and people is not None:
                times = f"{counts[k].sum() / people[k]:.3g}×" if people[k] else "–"
                row += [Cell(f"{100 * before[k]:.2f}", "other", bar=before[k] / top), Cell(times)]
            row.append(Cell(f"{100 * share[k]:.2f}", bar=share[k] / top))
            numbers = [mean_confidence(counts[k]), *(kept_at(counts[k], t) for t in LEVELS[1:])]
            row += [percent(number if counts[k].any() else None) for number in numbers]
            rows.append(row)
        columns = ["class", *(["by people", "times"] if people is not None else []), "auto"]
        return Table([*columns, "confidence", *(f"from {t:g}" for t in LEVELS[1:])], rows)

    def write(self, path: Path, command: str) -> None:
        """Write the page."""
        sections: list[Section | Sequence[Section] | Legend] = [
            Section("Classes", [self.classes()], "In per cent: share of the pixels, mean "
                    "confidence, and the share that each threshold keeps."),
            Section("What a threshold keeps", [self._curves()], "Share of a class's pixels "
                    "(upwards) whose confidence is at least the threshold (to the right, 0 to 1); "
                    "lines: proposed thresholds."),
        ]  # fmt: skip
        sections += [self._truth()] if self.truth else []
        sections += [self._drift()] if self.drift else []
        keys = [("error, change:", (("same", RIGHT), ("different", WRONG), ("no label", UNKNOWN)))]
        legend = [*self.named, ("no label", (0, 0, 0))]
        ramp = "confidence, agreement"
        sections.append(Legend(legend, keys if self.truth or self.drift else [], ramp))
        sections += self._galleries()
        title = f"{self.labelled.out.resolve().name}: auto-labels"
        write_page(path, Page(title, self.verdict, self.facts, sections, self.named, command))

    def _curves(self) -> list[Curve]:
        counts = self.labelled.counts
        pixels, order = counts.sum(1), np.argsort(-counts.sum(1), kind="stable")
        steps = np.arange(0, 256, 3)

        def curve(name: str, colour: Any, own: NDArray[np.int64], notes: list[str]) -> Curve:
            marks = []
            for rule, thresholds in self.labelled.thresholds.items():
                if name in thresholds:
                    share = kept_at(own, thresholds[name])
                    note = f"{rule} {thresholds[name]:.2f} keeps {share:.0%}"
                    marks.append((thresholds[name], rule, note))
            points = np.stack([steps / 255, kept(own)[steps]], 1)
            return Curve(name, points, [*notes, *(mark[2] for mark in marks)], colour, marks)

        curves = [curve("all classes", None, counts.sum(0), [])]
        for k in order[pixels[order] > 0]:
            share = f"{100 * pixels[k] / pixels.sum():.2f} % of all"
            curves.append(curve(*self.named[k], counts[k], [share]))
        return curves

    def _truth(self) -> Section:
        assert self.truth
        truth, sure = self.truth, self.truth.at[LEVELS.index(0.9)]
        whole = truth.at[0]
        pixels = whole.matrix.sum(1).double()
        left = sure.matrix.sum(0) / whole.matrix.sum(0)
        columns = [pixels / pixels.sum(), whole.iou(), whole.precision(), whole.recall(), left,
                   sure.precision()]  # fmt: skip
        rows = [
            [Cell(name, colour=colour), *(percent(float(column[k])) for column in columns)]
            for k, (name, colour) in enumerate(self.named)
        ]
        heads = ["class", "share", "IoU", "precision", "recall", "kept at 0.9", "precision there"]
        note = f"The stored labels of {len(truth.miou):,} images that have true ones; in per cent."
        charts = calibration_charts(truth.calibration)
        return Section("Against true labels", [Table(heads, rows), charts], note)

    def _drift(self) -> Section:
        assert self.drift
        names, colours = zip(*self.named, strict=True)
        note = (
            f"In the {len(self.drift.changed):,} images that both have, in per cent: what each "
            "earlier class (row) is now (column)."
        )
        table = matrix(names, colours, self.drift.moved)
        return Section(f"Changed since {self.drift.before.out.name}", [table], note)

    def _galleries(self) -> list[Section]:
        found = []
        if self.drift:
            changed = self.drift.changed
            most = sorted(changed, key=lambda name: -changed[name])[:CHANGED]
            cards = [self._change(name) for name in most if changed[name]]
            found += [Section("Changed most", cards)] if cards else []
        if self.queue:
            blocks: list[Any] = [self._card(d, d.reasons) for d in self.queue[:DOUBTFUL]]
            rows = [
                [Cell(d.name, "wrap"), percent(d.doubt), percent(d.confidence),
                 percent(d.agreement), Cell("; ".join(d.reasons), "left")]
                for d in self.queue[DOUBTFUL:LISTED]
            ]  # fmt: skip
            heads = ["image", "doubt", "confidence", "agreement", Cell("reasons", "left")]
            blocks += [Table(heads, rows)] if rows else []
            note = (
                "Doubt: what is missing to full confidence and agreement, mean over the image. "
                "hmsa review --export writes the first of them as tasks for CVAT or Label Studio."
            )
            found.append(Section("To check by people, most doubtful first", blocks, note))
        return found

    def _card(self, doubt: Doubt, reasons: Sequence[str]) -> Card:
        labelled, name = self.labelled, doubt.name
        label, strip = labelled.label(name), [Figure("image", _thin(labelled.image(name)))]
        if self.people and labelled.has_same_image(self.people, name):
            strip.append(self._figure("by people", labelled.label_in(self.people, name)))
        strip.append(self._figure("auto label", label))
        for kind in ("confidence", "agreement"):
            if kind in labelled.rows[name] and (level := labelled.level(kind, name)) is not None:
                strip.append(Figure(kind, heat(_thin(level) / 255), "map"))
        if self.true and (true := labelled.label_in(self.true, name)) is not None:
            strip.append(self._figure("truth", true))
            label[true == IGNORE] = 0  # error() takes the colour from the truth there
            strip.append(Figure("error", error(_thin(label), _thin(true)), "map"))
        text = f"confidence {100 * doubt.confidence:.1f} %"
        if doubt.agreement is not None:
            text += f", agreement {100 * doubt.agreement:.1f} %"
        return Card(name, [strip], text, reasons)

    def _change(self, name: str) -> Card:
        assert self.drift
        was, now = self.drift.before.label(name), self.labelled.label(name)
        strip = [
            Figure("image", _thin(self.labelled.image(name))),
            self._figure(self.drift.before.out.name, was),
            self._figure(self.labelled.out.name, now),
            Figure("change", error(_thin(now), _thin(np.where(now == IGNORE, now, was))), "map"),
        ]
        return Card(name, [strip], f"{self.drift.changed[name]:.1%} changed")

    def _figure(self, caption: str, label: Any) -> Figure:
        palette = np.stack([colour for _, colour in self.named])
        return Figure(caption, colorize(_thin(label), palette), "label")


def _thin(image: Any) -> Any:
    """Not many more pixels `[H,W,..]` than a page shows, so that large images cost no time."""
    step = max(1, max(image.shape[:2]) // (2 * SIDE))
    return image[::step, ::step]
