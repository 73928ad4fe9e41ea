"""What one evaluation found: a sentence, a table, and a page."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from ..inference.predictor import Predictor
from ..report.page import Block, Card, Cell, Chart, Figure, Legend, Page, Section, Table, write_page
from ..report.pictures import RIGHT, UNKNOWN, WRONG, colorize, error, heat, ramp
from ..report.tables import difference, matrix, percent, percents, signed
from ..runs.machine import describe_machine
from .calibration import Calibration
from .measure import Evaluation, Window

EXAMPLES, WINDOWS = 8, 2  # half of the examples are the worst; windows: of each scale
POINTS = 400  # most points of a curve: more than one per pixel only hides the line in its own noise
# Coarse is blue and fine orange, so that the order of the scales can be seen.
SCALE_ANCHORS = [(58, 96, 158), (66, 152, 168), (134, 186, 120), (228, 186, 80), (222, 120, 64)]
ERRORS = [("right", RIGHT), ("wrong", WRONG), ("no label", UNKNOWN)]


def verdict(found: Evaluation) -> str:
    """One sentence: how far fusion by attention is above or below what it has to beat."""
    # Rounded before they are compared: a reader who subtracts must find what the sentence says.
    scores = {name: round(100 * column[-1], 1) for name, column in found.columns().items()}
    own, best = found.own, max(scores, key=scores.__getitem__)
    if math.isnan(scores[own]):
        return "No score: no pixel has a label."
    if own in ("average", "max"):
        return f"{_title(best)} is best: {scores[best]} mIoU; this network has no attention."
    single = max((f"{scale:g}" for scale in found.scales), key=scores.__getitem__)
    parts = []
    for name, rival in ((single, f"the best single scale ({_title(single)}, {scores[single]})"),
                        ("average", f"average pooling ({scores['average']})")):  # fmt: skip
        gap = round(scores[own] - scores[name], 1)
        parts.append(f"{abs(gap)} {'above' if gap > 0 else 'below'} {rival}")
        if not gap:
            parts[-1] = f"level with {rival}"
    attention = own.capitalize() + ("" if "attention" in own else " attention")
    return f"{attention}: {scores[own]} mIoU, {' and '.join(parts)}."


def class_table(found: Evaluation) -> Table:
    """IoU of each class by each fusion, and the means below."""
    classes = zip(found.names, found.dataset.labels.palette, strict=True)
    heads = [*(Cell(name, colour=colour) for name, colour in classes), Cell("mean")]
    columns = found.columns()
    rows = [[head, *percents(row)] for head, *row in zip(heads, *columns.values(), strict=True)]
    return Table(["class", *map(_title, columns)], rows, "total")


def write_evaluation(path: Path, found: Evaluation, predictor: Predictor, source: Path) -> None:
    """Write the page of the checkpoint `source`; its examples are predicted once more."""
    texts = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())
    labels, data, own = found.dataset.labels, found.dataset.source, found.own
    run = source if source.is_dir() else source.parent

    def section(name: str, *blocks: Block | Sequence[Block]) -> Section:
        return Section(texts[name]["title"].format(own=own), blocks, texts[name].get("note", ""))

    colours = list(zip(found.names, labels.palette, strict=True))
    counts, further = found.confusion[own].matrix.numpy(), _further(found, texts["scores"])
    sections: list[Section | list[Section] | Legend] = [
        section("bars", _bars(found)),
        section("further", further),
        [section("classes", _classes(found)), section("weights", *_weights(found))],
        section("training", training_charts(run / "metrics.csv")),
        section("trust", calibration_charts(found.calibration)),
        section("confusion", matrix(found.names, labels.palette, counts)),
        Legend(colours, [("error:", ERRORS)], "weight:"),
        section("windows", *(_window(found, predictor, each) for each in best_windows(found))),
        section("examples", *(_example(found, predictor, i) for i in worst_first(found.mious))),
    ]
    title = f"{data.parent.name if data.stem == 'dataset' else data.stem}, {found.dataset.split}"
    model, settings = predictor.model, predictor.settings.items()
    parameters = sum(each.numel() for each in model.parameters()) / 1e6
    facts = [
        ("Checkpoint", f"{source}, {parameters:.2f} M parameters"),
        ("Trained on", ", ".join(f"{k} {v}" for k, v in model.card.trained_on.items())),
        ("Data", f"{data}, split {found.dataset.split}, {len(found.dataset)} images"),
        ("Settings", ", ".join(f"{name} {value}" for name, value in settings)),
        ("Hardware", describe_machine(predictor.device)),
    ]
    write_page(path, Page(title, verdict(found), facts, sections, colours))


def _title(fusion: str) -> str:
    return f"{fusion}×" if fusion[0].isdigit() else fusion.capitalize()


def _bars(found: Evaluation) -> Table:
    scores = {name: column[-1] for name, column in found.columns().items()}
    rows = [
        [Cell(_title(name)), Cell(f"{100 * miou:.1f}", "best" * (name == found.own), bar=miou)]
        for name, miou in scores.items()
        if not math.isnan(miou)
    ]
    return Table((), rows, "bars")


def _further(found: Evaluation, names: Mapping[str, Sequence[str]]) -> Table:
    """Scores of the own fusion beside IoU. names: of each, with its keys in the summary."""
    summary, rows = found.summary(), []
    for name, (key, *inner) in names.items():
        if key in summary:
            score = summary[key][found.own]
            for part in inner:
                score = score[part]
            if isinstance(score, dict):
                score = np.nanmean(np.array([*score.values()], np.float64))
            rows.append([name, percent(score).text])
    return Table((), rows, "facts")


def _classes(found: Evaluation) -> Table:
    """The class table with the frequency of each class and the gain over average pooling."""
    table, columns = class_table(found), found.columns()
    pixels = found.confusion[found.own].matrix.sum(1)
    shares = [*(pixels / pixels.sum()).tolist(), None]
    gains = map(difference, columns[found.own], columns["average"])
    further = zip(table.rows, shares, gains, strict=True)
    table.rows = [[head, percent(share, 2), *row, gain] for (head, *row), share, gain in further]
    table.columns = ["class", "truth %", *table.columns[1:], "vs average"]
    return table


def _weights(found: Evaluation) -> list[Block]:
    """Bars of weight per class; the classes that lean on the finest scale come first."""
    weights = found.weights
    if weights is None or len(found.scales) == 1:
        return []
    order = [int(k) for k in np.argsort(-weights[:, -1]) if np.isfinite(weights[k]).all()]
    colours = ramp(SCALE_ANCHORS, len(found.scales))
    key = [(f"{scale:g}×", colour) for scale, colour in zip(found.scales, colours, strict=True)]
    heads = [row[0] for row in class_table(found).rows]
    bars = Table((), [[heads[k], Cell("", bar=weights[k])] for k in order], "bars", key)
    absent = [name for k, name in enumerate(found.names) if k not in order]
    return [bars, f"Without pixels: {', '.join(absent)}."] if absent else [bars]


def training_charts(metrics: Path) -> list[Chart]:
    """Loss and validation mIoU against the step, as far as the CSV file has them."""
    lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.is_file() else []
    rows = list(csv.DictReader(lines))

    def column(name: str) -> NDArray[np.float64]:
        return np.array([float(row.get(name) or "nan") for row in rows])

    steps, losses, mious = column("step"), column("loss"), 100 * column("val_miou")
    starts = {row.get("stage"): step for row, step in zip(rows[::-1], steps[::-1], strict=True)}
    stages = sorted((step, stage) for stage, step in starts.items() if stage)
    charts = []
    for title, values in (("Training loss", losses), ("Validation mIoU", mious)):
        points = np.stack([steps, values], 1)[np.isfinite(steps + values)]
        if len(points) > 1:
            step, best = points[points[:, 1].argmax()]
            last = f"last {points[-1, 1]:.3g}"
            summary = f"best {best:.1f} at step {step:.0f}" if values is mious else last
            parts = np.array_split(points, min(len(points), POINTS))
            points = np.array([part.mean(0) for part in parts])
            axis = (np.nanmin(steps), np.nanmax(steps))  # of both charts, to compare them
            charts.append(Chart(title, summary, "step", points, axis, stages=stages))
    return charts


def calibration_charts(calibration: Calibration) -> list[Chart]:
    """A reliability diagram, and how much is right if the least confident pixels are dropped."""
    _, accuracy, pixels = (each.numpy() for each in calibration.reliability())
    kept, right = (100 * each.numpy() for each in calibration.risk_coverage())
    if not pixels.any():
        return []
    share, width, whole = pixels / pixels.sum(), 100 / len(pixels), (0.0, 100.0)
    bars = [
        (
            width * k, width * (k + 1), 100 * accuracy[k],
            0.12 + 0.6 * min(1, len(pixels) * share[k]) ** 0.5,  # pale where hardly a pixel lies
            f"{share[k]:.1%} of the pixels, {100 * accuracy[k]:.1f} % right",
        )
        for k in np.flatnonzero(pixels)
    ]  # fmt: skip
    return [
        Chart(
            "Right against claimed",
            f"in %; expected calibration error {100 * calibration.ece():.1f}", "confidence, %",
            np.array([[0, 0], [100, 100]]), whole, whole, bars=bars, dashed=True,
        ),
        Chart(
            "Right among what is kept",
            f"in %; {right[np.abs(kept - 50).argmin()]:.1f} of the most confident half",
            "pixels kept, most confident first, %",
            np.stack([kept, right], 1)[kept > 0], whole, whole,
        ),
    ]  # fmt: skip


def best_windows(found: Evaluation) -> list[Window]:
    """The windows of each scale where fusion gained most."""
    gains = sorted((w for w in found.windows if w.gained > 0), key=lambda w: -w.gained)
    return [w for scale in found.scales for w in [w for w in gains if w.scale == scale][:WINDOWS]]


def worst_first(mious: list[float]) -> list[int]:
    """Images to show: the worst, then some spread evenly over the rest, in rising order."""
    order = sorted((i for i, m in enumerate(mious) if not math.isnan(m)), key=mious.__getitem__)
    worst, rest = order[: EXAMPLES // 2], order[EXAMPLES // 2 :]
    spread = np.linspace(0, len(rest) - 1, min(len(rest), EXAMPLES - len(worst))).round()
    return worst + [rest[int(i)] for i in spread]


def _figures(
    found: Evaluation, predictor: Predictor, index: int, place: Any = ..., wrong: float = 0
) -> tuple[list[Figure], list[Figure], list[Figure]]:
    """Of one image, or a place in it: image, truth, prediction and its error; the prediction of
    each scale, `wrong` outlined; the weight of each scale."""
    image, label = found.dataset.read(index)
    prediction = predictor(image, detail=True)
    palette = np.array(found.dataset.labels.palette, np.uint8)

    def drawn(caption: str, ids: NDArray[np.uint8], wrong: bool = False) -> Figure:
        return Figure(caption, colorize(ids[place], palette), "label", wrong)

    weights, errors = prediction.weights.items(), error(prediction.label, label)[place]
    return (
        [Figure("input", image[place]), drawn("truth", label), drawn("fused", prediction.label),
         Figure("error of fused", errors, "map")],
        [drawn(f"{s:g}× alone", ids, s == wrong) for s, ids in prediction.single.items()],
        [Figure(f"weight of {s:g}×", heat(weight[place]), "map") for s, weight in weights],
    )  # fmt: skip


def _example(found: Evaluation, predictor: Predictor, index: int) -> Card:
    main, single, weights = _figures(found, predictor, index)
    name, text = found.dataset.pairs[index].name, f"{100 * found.mious[index]:.1f} mIoU"
    return Card(name, [main, single + weights], text, columns=(2, len(found.scales)))


def _window(found: Evaluation, predictor: Predictor, window: Window) -> Card:
    main, single, _ = _figures(found, predictor, window.index, window.place, window.scale)
    name, gained = found.dataset.pairs[window.index].name, signed(100 * window.gained)
    return Card(name, [[*main[:2], *single, main[2]]], f"{gained} % of the window")
