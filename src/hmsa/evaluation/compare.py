"""`hmsa compare`: curves, scores and differing settings of training runs on one page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoint.files import read
from ..report.page import DASH, Cell, Chart, Colour, Legend, Page, Section, Table, write_page
from ..report.tables import difference, percent, percents, terminal
from ..runs import InputError, Outcome, read_records
from ..runs.folder import flat, read_curves, show
from .page import CURVES, averaged, curve, stages_of

# All kinds of colour vision tell them apart; Okabe and Ito, "Color Universal Design", 2008
COLOURS: Sequence[Colour] = (
    (0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233),
)  # fmt: skip
POINTS = 80  # most points of a curve: the noise of single steps hides which run is lower
LONGEST = 80  # characters of a setting
CLASS = "val_iou "  # begins the score of a class in a card


@dataclass(frozen=True)
class Trained:
    """A run folder of `hmsa train` or `hmsa attend`."""

    name: str
    colour: Colour
    folder: Path
    settings: dict[str, Any]  # `a.b` and its value
    rows: list[dict[str, Any]]  # of metrics.csv
    scores: dict[str, float]  # of the best checkpoint; none before the first validation
    classes: dict[str, Colour]
    judged: str | None  # digest of the validation images

    @property
    def head(self) -> Cell:
        return Cell(self.name, colour=self.colour)

    @property
    def miou(self) -> float | None:
        return self.scores.get("val_miou")

    def last(self, column: str) -> float | None:
        """The last value of a column of metrics.csv."""
        points = curve(self.rows, column)
        return float(points[-1, 1]) if len(points) else None


def compare(folders: Sequence[Path], out: Path | None) -> Outcome:
    """Write the page `out`; default: compare.html next to the first run. Raises InputError."""
    if not 0 < len(folders) <= len(COLOURS):
        raise InputError(f"{len(folders)} runs given; name 1 to {len(COLOURS)} run folders")
    alike = len({folder.resolve().name for folder in folders}) < len(folders)
    runs = [
        _read(folder, str(folder) if alike else folder.resolve().name, colour)
        for folder, colour in zip(folders, COLOURS, strict=False)
    ]
    page, classes = out or folders[0].resolve().parent / "compare.html", _classes(runs)
    differing = _differing(runs)
    write_page(page, _page(runs, classes, differing))
    summary = {
        "runs": {run.name: {"folder": str(run.folder)} | run.scores for run in runs},
        "differ": {str(row[0]): [str(value) for value in row[1:]] for row in differing.rows},
        "page": str(page),
    }
    shown = terminal(classes, "IoU in % on the validation images, best checkpoint", _verdict(runs))
    return Outcome(summary, shown, notes=[f"page: {page}"])


def _read(folder: Path, name: str, colour: Colour) -> Trained:
    files = [folder / f"{work}.json" for work in ("train", "attend")]
    file = next((each for each in files if each.is_file()), None)
    if file is None:
        raise InputError(f"{folder} is no run of hmsa train or hmsa attend; name run folders")
    try:
        settings = dict(flat(json.loads(file.read_text())))
    except (ValueError, AttributeError):
        raise InputError(f"{file} is damaged; leave out this run") from None
    best = folder / "best.safetensors"
    card = read(best)[2] if best.is_file() else None
    classes = zip(card.names, card.palette, strict=True) if card else ()
    judged = read_records(folder, file.stem).get("data", [])[1:2]
    return Trained(
        name, colour, folder, settings, read_curves(folder),
        card.metrics if card else {}, dict(classes), judged[0]["digest"] if judged else None,
    )  # fmt: skip


def _page(runs: Sequence[Trained], classes: Table, differing: Table) -> Page:
    top = max((run.miou or 0.0 for run in runs), default=0.0)
    bars: list[list[str | Cell]] = [
        [run.head, Cell(percent(run.miou).text, "best" * (run.miou == top), bar=run.miou or 0.0)]
        for run in runs
    ]
    others = len({run.judged for run in runs}) > 1
    warning = "They were validated on different images: their scores do not compare." * others
    equal = "All settings are equal." if len(runs) > 1 else ""
    sections: list[Section | Legend] = [
        Section("Mean IoU on the validation images", [Table((), bars, "bars")], warning),
        Legend([(run.name, run.colour) for run in runs]),
        Section("Training", [_charts(runs)]),
        Section("IoU per class", [classes], "In per cent, of the best checkpoint of each run."),
        Section("Cost", [_costs(runs)]),
        Section("Settings that differ", [differing] if differing.rows else [equal]),
    ]
    facts = [(run.name, str(run.folder)) for run in runs]
    return Page(", ".join(run.name for run in runs), _verdict(runs), facts, sections)


def _verdict(runs: Sequence[Trained]) -> str:
    scored = sorted((run for run in runs if run.miou is not None), key=lambda run: -(run.miou or 0))
    if not scored:
        return "No run has a score yet."
    best, *others = scored
    text = f"{best.name}: {percent(best.miou).text} mIoU"
    for other in others[:1]:
        gap = difference(best.miou, other.miou).text
        text += f", {gap} against {other.name} ({percent(other.miou).text})"
    return f"{text}."


def _charts(runs: Sequence[Trained]) -> list[Chart]:
    """All runs in one chart each of loss and validation mIoU; stages where they begin alike."""
    stages = stages_of(runs[0].rows)
    stages = stages if all(stages_of(run.rows) == stages for run in runs) else []
    steps = [float(row["step"]) for run in runs for row in run.rows]
    charts = []
    for title, column, unit in CURVES:
        found = [(run, averaged(curve(run.rows, column, unit), POINTS)) for run in runs]
        curves = [(run.name, run.colour, points) for run, points in found if len(points) > 1]
        if curves:
            whole = np.concatenate([points for *_, points in curves])
            last = ", ".join(f"{name} {points[-1, 1]:.3g}" for name, _, points in curves)
            summary, axis = f"last: {last}", (min(steps), max(steps))
            charts.append(Chart(title, summary, "step", whole, axis, None, stages, curves=curves))
    return charts


def _classes(runs: Sequence[Trained]) -> Table:
    """IoU of each class, and their mean; of two runs also the difference."""
    colours = {name: colour for run in runs for name, colour in run.classes.items()}
    keys = [key for key in (CLASS + name for name in colours) if any(key in r.scores for r in runs)]
    rows: list[list[str | Cell]] = []
    for key in [*keys, "val_miou"]:
        scores = [run.scores.get(key) for run in runs]
        name = key.removeprefix(CLASS)
        head = Cell("mean") if key == "val_miou" else Cell(name, colour=colours[name])
        gap = [difference(scores[1], scores[0])] if len(runs) == 2 else []
        rows.append([head, *percents(scores), *gap])
    gained = ["difference"] if len(runs) == 2 else []
    return Table(["class", *(run.head for run in runs), *gained], rows, "total")


def _costs(runs: Sequence[Trained]) -> Table:
    def cell(value: float | None, form: str) -> Cell:
        return Cell(DASH, "none") if value is None else Cell(form.format(value))

    rows = []
    for run in runs:
        seconds = run.last("seconds")
        hours = None if seconds is None else seconds / 3600
        cells = [cell(run.last("step"), "{:.0f}"), cell(hours, "{:.2f}")]
        cells += [cell(run.last("images_per_s"), "{:.1f}"), cell(run.last("memory_gib"), "{:.1f}")]
        rows.append([run.head, *cells, percent(run.last("wait"))])
    return Table(["run", "steps", "hours", "images/s", "GiB", "wait for data %"], rows)


def _differing(runs: Sequence[Trained]) -> Table:
    names = dict.fromkeys(name for run in runs for name in run.settings)
    rows: list[list[str | Cell]] = []
    for name in names:
        values = [
            show(run.settings[name]) or DASH if name in run.settings else DASH for run in runs
        ]
        if len(set(values)) > 1:
            rows.append([name, *(v if len(v) <= LONGEST else f"{v[:LONGEST]}..." for v in values)])
    return Table(["setting", *(run.head for run in runs)], rows)
