"""What one evaluation found: a sentence, a table, and a page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ..inference.predictor import Predictor
from ..report.page import Block, Card, Cell, Chart, Figure, Legend, Page, Section, Table, write_page
from ..report.pictures import RIGHT, UNKNOWN, WRONG, colorize, error, heat, shown
from ..report.tables import difference, matrix, percent, percents
from ..runs.folder import read_curves
from ..runs.machine import describe_machine
from .calibration import Calibration
from .measure import Evaluation, Window

EXAMPLES, WINDOWS = 8, 2  # half of the examples are the worst; windows: of each scale
CURVES = (("Training loss", "loss", 1), ("Validation mIoU", "val_miou", 100))
POINTS = 400  # most points of a curve: more than one per pixel only hides the line in its own noise


def verdict(found: Evaluation) -> str:
    """One sentence: how far the own fusion is above or below what it has to beat."""
    scores = {name: each.miou() for name, each in found.confusion.items()}
    own = scores[found.own]
    if math.isnan(own):
        return "No score: no pixel has a label."
    single = max(map("{:g}".format, found.scales), key=scores.__getitem__)

    def gap(name: str, rival: str) -> str:
        return (
            f"{difference(own, scores[name]).text} against {rival} ({percent(scores[name]).text})"
        )

    gaps = (
        gap(single, f"the best single scale, {_title(single)}"),
        gap("average", "average pooling"),
    )
    return f"{_title(found.own)}: {percent(own).text} mIoU, {' and '.join(gaps)}."


def class_table(found: Evaluation) -> Table:
    """IoU of each class by each fusion, the gain over average pooling, and the class's share.

    The own fusion comes first, where it is seen on a small screen, too.
    """
    pixels = found.confusion[found.own].matrix.sum(1)
    shares = [*(pixels / pixels.sum()).tolist(), None]
    order = sorted(found.confusion, key=lambda name: (name != found.own, name[0].isdigit()))
    scored = {name: found.confusion[name] for name in order}
    columns = {name: [*each.iou().tolist(), each.miou()] for name, each in scored.items()}
    gains = map(difference, columns[found.own], columns["average"])
    classes = zip(found.names, found.dataset.labels.palette, strict=True)
    heads = [*(Cell(name, colour=colour) for name, colour in classes), Cell("mean")]
    every = zip(heads, shares, gains, *columns.values(), strict=True)
    rows = []
    for head, share, gain, *iou in every:
        own, *others = percents(iou)
        rows.append([head, own, gain, *others, percent(share, 2)])
    first, *rest = map(_title, columns)
    return Table(["class", first, "vs average", *rest, "truth %"], rows, "total")


def write_evaluation(path: Path, found: Evaluation, predictor: Predictor, source: Path) -> None:
    """Write the page of the checkpoint `source`; its examples are predicted once more."""
    texts = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())
    labels, data, split = found.dataset.labels, found.dataset.source, found.dataset.split
    own, run = found.own, source if source.is_dir() else source.parent

    def section(name: str, *blocks: Block | Sequence[Block]) -> Section:
        return Section(texts[name]["title"].format(own=own), blocks, texts[name].get("note", ""))

    bars: list[list[str | Cell]] = [
        [_title(name), Cell(percent(each.miou()).text, "best" * (name == own), bar=each.miou())]
        for name, each in found.confusion.items()
    ]
    summary = found.summary()
    further = [
        [name, percent(reduce(getitem, keys[1:], summary[keys[0]][own])).text]
        for name, keys in texts["scores"].items()
        if keys[0] in summary
    ]
    windows = [_card(found, predictor, each.index, each) for each in best_windows(found)]
    examples = [_card(found, predictor, index) for index in worst_first(found.mious)]
    colours = list(zip(found.names, labels.palette, strict=True))
    errors = [("right", RIGHT), ("wrong", WRONG), ("no label", UNKNOWN)]
    counts = found.confusion[own].matrix.numpy()
    sections: list[Section | list[Section] | Legend] = [
        section("bars", Table((), bars, "bars")),
        section("further", Table((), further, "facts")),
        [section("classes", class_table(found)), section("weights", *_weights(found))],
        section("training", training_charts(run)),
        section("trust", calibration_charts(found.calibration)),
        section("confusion", matrix(found.names, labels.palette, counts)),
        Legend(colours, [("error:", errors)], "weight:"),
        section("windows", *windows),
        section("examples", *examples),
    ]
    name = data.parent.name if data.stem == "dataset" else data.stem
    parameters = sum(each.numel() for each in predictor.model.parameters()) / 1e6
    facts = [
        ("Checkpoint", f"{source}, {parameters:.2f} M parameters"),
        ("Trained on", _listed(predictor.model.card.trained_on)),
        ("Data", f"{data}, split {split}, {len(found.dataset)} images"),
        ("Settings", _listed(predictor.settings)),
        ("Hardware", describe_machine(predictor.device)),
    ]
    write_page(path, Page(f"{name}, {split}", verdict(found), facts, sections, colours))


def _listed(facts: Mapping[str, Any]) -> str:
    """`dataset a, gate (share 0.2, ..)`"""
    known = ((key, value) for key, value in facts.items() if value is not None)
    each = ((key, f"({_listed(v)})" if isinstance(v, dict) else v) for key, v in known)
    return ", ".join(f"{key} {value}" for key, value in each)


def _title(fusion: str) -> str:
    return f"{fusion}×" if fusion[0].isdigit() else fusion.capitalize()


def _weights(found: Evaluation) -> list[Table]:
    """Bars of weight per class; the classes that lean on the finest scale come first."""
    if not found.weights.any() or len(found.scales) == 1:
        return []
    weights, heads = found.mean_weights().numpy(), [row[0] for row in class_table(found).rows]
    colours = heat(np.linspace(0.3, 0.9, len(found.scales)))  # of rising luminance
    key = [(f"{scale:g}×", colour) for scale, colour in zip(found.scales, colours, strict=True)]
    order = [k for k in np.argsort(-weights[:, -1]) if np.isfinite(weights[k, -1])]
    return [Table((), [[heads[k], Cell("", bar=weights[k])] for k in order], "bars", key)]


def training_charts(run: Path) -> list[Chart]:
    """Loss and validation mIoU against the step, as far as the run folder has them."""
    rows, charts = read_curves(run), []
    steps, stages = [row["step"] for row in rows], stages_of(rows)
    for title, name, unit in CURVES:
        points = curve(rows, name, unit)
        if len(points) > 1:
            (step, best), last = points[points[:, 1].argmax()], points[-1, 1]
            summary = f"last {last:.3g}, highest {best:.3g} at step {step:.0f}"
            means, axis = averaged(points, POINTS), (min(steps), max(steps))
            charts.append(Chart(title, summary, "step", means, axis, stages=stages))
    return charts


def curve(rows: Sequence[Mapping[str, Any]], name: str, unit: float = 1) -> NDArray[np.float64]:
    """Step and value `[N,2]`, in multiples of 1 / unit, of the rows that have this value."""
    pairs = [(row["step"], unit * row[name]) for row in rows if isinstance(row.get(name), float)]
    return np.array([pair for pair in pairs if math.isfinite(pair[1])]).reshape(-1, 2)


def averaged(points: NDArray[np.float64], most: int) -> NDArray[np.float64]:
    """At most so many points `[N,2]`, each the mean of some in a row."""
    parts = np.array_split(points, min(len(points), most)) if len(points) else []
    return np.array([part.mean(0) for part in parts]).reshape(-1, 2)


def stages_of(rows: Sequence[Mapping[str, Any]]) -> list[tuple[float, str]]:
    """Where each stage begins, and its name."""
    starts = {row.get("stage"): row["step"] for row in rows[::-1]}
    return sorted((step, stage) for stage, step in starts.items() if stage)


def calibration_charts(calibration: Calibration) -> list[Chart]:
    """A reliability diagram, and how much is right if the least confident pixels are dropped."""
    _, accuracy, pixels = (each.numpy() for each in calibration.reliability())
    kept, right = (100 * each.numpy() for each in calibration.risk_coverage())
    if not pixels.any():
        return []
    share, width, whole = pixels / pixels.sum(), 100 / len(pixels), (0.0, 100.0)
    opacity = 0.12 + 0.6 * np.minimum(1, len(pixels) * share) ** 0.5  # pale with hardly a pixel
    bars = []
    for k in np.flatnonzero(pixels):
        text = f"{share[k]:.1%} of the pixels, {100 * accuracy[k]:.1f} % right"
        bars.append((width * k, width * (k + 1), 100 * accuracy[k], opacity[k], text))
    ece = f"in %; expected calibration error {100 * calibration.ece():.1f}"
    half = f"in %; {right[np.abs(kept - 50).argmin()]:.1f} of the most confident half"
    line, curve = np.array([[0, 0], [100, 100]]), np.stack([kept, right], 1)[kept > 0]
    axes = "confidence, %", "pixels kept, most confident first, %"
    return [
        Chart("Right against claimed", ece, axes[0], line, whole, whole, bars=bars, dashed=True),
        Chart("Right among what is kept", half, axes[1], curve, whole, whole),
    ]


def best_windows(found: Evaluation) -> list[Window]:
    """The windows of each scale where fusion gained most."""
    gains = sorted((w for w in found.windows if w.gained > 0), key=lambda w: -w.gained)
    return [w for scale in found.scales for w in [w for w in gains if w.scale == scale][:WINDOWS]]


def worst_first(mious: list[float]) -> list[int]:
    """Images to show: the worst, then some spread evenly over the rest, in rising order."""
    order = sorted((i for i, m in enumerate(mious) if not math.isnan(m)), key=mious.__getitem__)
    half = EXAMPLES // 2
    spread = np.linspace(half, len(order) - 1, half).astype(int).tolist()
    return [order[i] for i in sorted({*range(half), *spread}) if 0 <= i < len(order)]


def _card(
    found: Evaluation, predictor: Predictor, index: int, window: Window | None = None
) -> Card:
    """Image, truth, prediction and each scale by itself; of all an image also error and weights."""
    image, label = found.dataset.read(index)
    prediction, place = predictor(image, detail=True), window.place if window else ...
    palette = np.array(found.dataset.labels.palette, np.uint8)

    def drawn(caption: str, ids: NDArray[np.uint8], wrong: bool = False) -> Figure:
        return Figure(caption, colorize(ids[place], palette), "label", wrong)

    name, wrong = found.dataset.pairs[index].name, window.scale if window else None
    main = [
        Figure("input", shown(image)[place]),
        drawn("truth", label),
        drawn("fused", prediction.label),
    ]
    single = [drawn(f"{s:g}× alone", ids, s == wrong) for s, ids in prediction.single.items()]
    if window:
        main.insert(0, Figure("whole image", _marked(shown(image), window.place)))
        text = f"{100 * window.gained:.1f} % of the window"
        return Card(name, [main, single], text, columns=(2, len(found.scales)))
    main.append(Figure("error of fused", error(prediction.label, label), "map"))
    maps = prediction.weights.items()
    weights = [Figure(f"weight of {s:g}×", heat(weight), "map") for s, weight in maps]
    text, columns = f"{100 * found.mious[index]:.1f} mIoU", (2, len(found.scales))
    return Card(name, [main, single + weights], text, columns=columns)


def _marked(image: NDArray[np.uint8], place: tuple[slice, slice]) -> NDArray[np.uint8]:
    """The image with the outline of a window."""
    marked = Image.fromarray(image)
    (rows, columns), width = place, max(2, max(image.shape) // 100)
    corners = (columns.start, rows.start, columns.stop - 1, rows.stop - 1)
    ImageDraw.Draw(marked).rectangle(corners, outline=(255, 220, 0), width=width)
    return np.asarray(marked)
