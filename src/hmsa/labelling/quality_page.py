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
    Block,
    Card,
    Cell,
    Chart,
    Colour,
    Figure,
    Legend,
    Page,
    Section,
    Table,
    write_page,
)
from ..report.pictures import RIGHT, UNKNOWN, WRONG, colorize, error, heat, thin
from ..report.tables import matrix, percent
from .labelled import Labelled
from .quality import LEVELS, Doubt, Drift, Truth, confidence, kept_at

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
        counts = self.labelled.counts.sum(0)
        parts = [
            f"{len(self.labelled.rows):,} images labelled, mean confidence "
            f"{confidence(counts):.1%}; {kept_at(counts, 0.9):.0%} of the pixels have at least 0.9."
        ]
        if self.truth:
            parts.append(f"Against true labels: {100 * self.truth.confusion.miou():.1f} mIoU.")
        if self.drift:
            name = self.drift.before.out.name
            parts.append(f"{self.drift.share:.1%} of the pixels changed since {name}.")
        if people := len(self.labelled.by_people):
            parts.append(f"{people:,} corrected by people.")
        return " ".join(parts)

    @cached_property
    def named(self) -> list[tuple[str, NDArray[np.uint8]]]:
        """Class names with their colours."""
        labels = self.labelled.labels
        return [*zip(labels.names, np.array(labels.palette, np.uint8), strict=True)]

    def classes(self) -> Table:
        """Class by class: shares, confidence, what thresholds keep, how much of it is right."""
        counts = self.labelled.counts
        auto = counts.sum(1)
        people = self.people.dataset.frequencies() if self.people else None
        shares = [each / max(1, each.sum()) for each in (auto, people) if each is not None]
        top, rows = max(each.max() for each in shares) or 1, []
        for k, (name, colour) in enumerate(self.named):
            row = [Cell(name, colour=colour)]
            if people is not None:
                times = f"{auto[k] / people[k]:.3g}×" if people[k] else "–"
                share = shares[1][k]
                row += [Cell(f"{100 * share:.2f}", "other", bar=share / top), Cell(times)]
            row.append(Cell(f"{100 * shares[0][k]:.2f}", bar=shares[0][k] / top))
            numbers = [float(confidence(counts[k])), *(kept_at(counts[k], t) for t in LEVELS)]
            row += [percent(number if auto[k] else None) for number in numbers]
            rows.append(row)
        columns = ["class", *(["by people", "times"] if self.people else []), "auto"]
        return Table([*columns, "confidence", *(f"from {t:g}" for t in LEVELS)], rows)

    def write(self, path: Path, command: str) -> None:
        """Write the page."""
        sections: list[Section | Sequence[Section] | Legend] = [
            Section("Classes", [self.classes()], "In per cent: share of the pixels, mean "
                    "confidence, and the share that each threshold keeps."),
            Section("What a threshold keeps", [self._curves()], "Pixels whose confidence is at "
                    "least the threshold, in per cent; lines: proposed thresholds."),
        ]  # fmt: skip
        sections += [self._truth(self.truth)] if self.truth else []
        sections += [self._drift(self.drift)] if self.drift else []
        keys = [("error, change:", (("same", RIGHT), ("different", WRONG), ("no label", UNKNOWN)))]
        legend: list[tuple[str, Colour]] = [*self.named, ("no label", (0, 0, 0))]
        ramp = "confidence, agreement"
        sections.append(Legend(legend, keys if self.truth or self.drift else [], ramp))
        sections += [self._changed(self.drift)] if self.drift else []
        sections += [self._doubtful()] if self.queue else []
        title = f"{self.labelled.out.resolve().name}: auto-labels"
        write_page(path, Page(title, self.verdict, self.facts, sections, self.named, command))

    def _curves(self) -> list[Chart]:
        counts, levels = self.labelled.counts, np.arange(0, 256, 3) / 255
        pixels, charts = counts.sum(1), []
        for k in np.argsort(-pixels, kind="stable")[: (pixels > 0).sum()]:
            name, colour = self.named[k]
            marks = [
                (100 * numbers[name], rule,
                 f"{rule} {numbers[name]:.2f} keeps {kept_at(counts[k], numbers[name]):.0%}")
                for rule, numbers in self.labelled.thresholds.items() if name in numbers
            ]  # fmt: skip
            points = 100 * np.array([(level, kept_at(counts[k], level)) for level in levels])
            summary, axes = "\n".join(["", *(text for *_, text in marks)]), (0.0, 100.0)
            charts.append(Chart(name, summary, "threshold, %", points, axes, axes, marks=marks,
                                colour=colour, small=True))  # fmt: skip
        return charts

    def _truth(self, truth: Truth) -> Section:
        whole, sure = truth.confusion, truth.reach(0.9).T
        columns = [whole.iou(), whole.precision(), whole.recall(), *sure]
        rows = [
            [Cell(name, colour=colour), *(percent(float(column[k])) for column in columns)]
            for k, (name, colour) in enumerate(self.named)
        ]
        heads = ["class", "IoU", "precision", "recall", "kept at 0.9", "precision there"]
        note = f"The stored labels of {truth.images:,} images that have true ones; in per cent."
        charts = calibration_charts(truth.calibration)
        return Section("Against true labels", [Table(heads, rows), charts], note)

    def _drift(self, drift: Drift) -> Section:
        names, colours = zip(*self.named, strict=True)
        note = (
            f"In the {len(drift.changed):,} images that both have, in per cent: what each earlier "
            "class (row) is now (column)."
        )
        table = matrix(names, colours, drift.moved)
        return Section(f"Changed since {drift.before.out.name}", [table], note)

    def _changed(self, drift: Drift) -> Section:
        cards, changed = [], drift.changed
        for name in sorted(filter(changed.get, changed), key=lambda n: -changed[n])[:CHANGED]:
            was, now = drift.before.label(name), self.labelled.label(name)
            strip = [
                self._image(name),
                self._label(drift.before.out.name, was),
                self._label(self.labelled.out.name, now),
                _error("change", now, np.where(now == IGNORE, now, was)),
            ]
            cards.append(Card(name, [strip], f"{changed[name]:.1%} changed"))
        return Section("Changed most", cards)

    def _doubtful(self) -> Section:
        rows = [
            [Cell(d.name, "wrap"), percent(d.doubt), Cell("; ".join(d.reasons), "left")]
            for d in self.queue[DOUBTFUL:LISTED]
        ]
        table = Table(["image", "doubt", Cell("reasons", "left")], rows)
        note = (
            "Doubt: what is missing to full confidence and agreement, mean over the image. "
            "hmsa review --export writes the first of them as tasks for CVAT or Label Studio."
        )
        blocks: list[Block] = [*map(self._card, self.queue[:DOUBTFUL])]
        blocks += [table] if rows else []
        return Section("To check by people, most doubtful first", blocks, note)

    def _card(self, doubt: Doubt) -> Card:
        labelled, name = self.labelled, doubt.name
        label, strip = labelled.label(name), [self._image(name)]
        if self.people and labelled.has_same_image(self.people, name):
            strip.append(self._label("by people", labelled.label_in(self.people, name)))
        strip.append(self._label("auto label", label))
        for kind in ("confidence", "agreement"):
            if kind in labelled.rows[name] and (level := labelled.level(kind, name)) is not None:
                strip.append(Figure(kind, heat(thin(level) / 255), "map"))
        if self.true and (true := labelled.label_in(self.true, name)) is not None:
            strip += [self._label("truth", true), _error("error", label, true)]
        text = f"confidence {100 * doubt.confidence:.1f} %"
        if doubt.agreement is not None:
            text += f", agreement {100 * doubt.agreement:.1f} %"
        return Card(name, [strip], text, doubt.reasons)

    def _image(self, name: str) -> Figure:
        return Figure("image", thin(self.labelled.image(name)))

    def _label(self, caption: str, label: Any) -> Figure:
        palette = np.stack([colour for _, colour in self.named])
        return Figure(caption, colorize(thin(label), palette), "label")


def _error(caption: str, label: Any, true: Any) -> Figure:
    return Figure(caption, error(thin(label), thin(true)), "map")
