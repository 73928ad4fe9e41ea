"""Numbers and labels in, one offline HTML page out.

Knows nothing about models: whatever it shows was computed before.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..evaluation.calibration import Calibration
from . import pictures
from .old import View, css, line_chart, render, uri, write

POINTS = 400  # most points of a curve: more than one per pixel only hides the line in its own noise
# Coarse is blue and fine orange, so that the order of the scales can be seen.
SCALE_ANCHORS = [(58, 96, 158), (66, 152, 168), (134, 186, 120), (228, 186, 80), (222, 120, 64)]


@dataclass
class Example:
    """One image [H,W,3] with its labels [H,W] and the effective weight [H,W] of every scale."""

    name: str
    image: NDArray[np.uint8]
    label: NDArray[np.uint8] | None
    single: dict[float, NDArray[np.uint8]]
    fused: NDArray[np.uint8]
    weights: dict[float, NDArray[np.float32]]
    miou: float | None  # of `fused` on this image, 0..1


@dataclass
class Repair:
    """A window where fusion mended what one scale alone got wrong; `gained` is a share, net."""

    name: str
    scale: float
    example: Example
    gained: float


@dataclass
class Trusted:
    """How far the network's confidence is to be trusted; every share is in 0..1.

    confidence, accuracy [B] and pixels [B] of bins of confidence, nan where one is empty;
    kept, right [256]: with pixels below a threshold dropped, the share left and how much is right.
    """

    ece: float
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    pixels: NDArray[np.int64]
    kept: NDArray[np.float64]
    right: NDArray[np.float64]

    @classmethod
    def of(cls, calibration: Calibration) -> Trusted:
        bins, kept = calibration.reliability(), calibration.risk_coverage()
        arrays = (*bins, kept.kept, kept.accuracy)
        return cls(calibration.ece(), *(each.cpu().numpy() for each in arrays))


@dataclass
class Report:
    """All that one page shows; an empty list, dict or None leaves its section out."""

    title: str
    facts: list[tuple[str, str]]
    names: list[str]
    palette: NDArray[np.uint8]  # [K,3]
    matrices: dict[str, NDArray[np.int64]]  # "0.5", .., "hierarchical" -> [K,K], rows = truth
    weights: NDArray[np.floating] | None  # [K,S], mean over the pixels of each true class
    scales: list[float]
    curves: Sequence[Mapping[str, float | str]]  # rows of metrics.csv; val_miou in 0..1
    examples: list[Example]
    repairs: list[Repair]
    scores: list[tuple[str, float]] = field(default_factory=list)  # beside IoU: name, 0..1
    trusted: Trusted | None = None


def iou(matrix: NDArray[np.int64]) -> NDArray[np.float64]:
    """Confusion [K,K] -> IoU [K] in 0..1; nan for a class neither in the truth nor predicted."""
    hit = np.diag(matrix).astype(np.float64)
    union = matrix.sum(0) + matrix.sum(1) - hit
    return np.where(union > 0, hit / np.maximum(union, 1), np.nan)


def _mean(values: NDArray[np.float64]) -> float:
    """Mean of what is known; nan, without numpy's warning, when nothing is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan


def _title(key: str) -> str:
    return f"{float(key):g}×" if key[0].isdigit() else key.capitalize()


def verdict(matrices: Mapping[str, NDArray[np.int64]]) -> str:
    """One sentence: how far fusion by attention is above or below what it has to beat."""
    exact = {key: _mean(iou(matrix)) for key, matrix in matrices.items()}
    # Rounded before they are compared: a reader who subtracts must find what the sentence says.
    scores = {key: round(100 * score, 1) for key, score in exact.items() if not math.isnan(score)}
    if not scores:
        return "No score: none of the pixels seen had a label."
    ours = _learnt(scores)
    if ours is None:
        best = max(scores, key=scores.__getitem__)
        return f"{_title(best)} is best: {scores[best]} mIoU; no attention was run."
    rivals = []
    if singles := [key for key in scores if key[0].isdigit()]:
        best = max(singles, key=scores.__getitem__)
        rivals.append((f"the best single scale ({_title(best)}, {scores[best]})", scores[best]))
    if "average" in scores:
        rivals.append((f"average pooling ({scores['average']})", scores["average"]))
    parts = [] if rivals else ["with nothing to compare it with"]
    for rival, score in rivals:
        gap = round(scores[ours] - score, 1)
        size = f"{abs(gap)} {'above' if gap > 0 else 'below'}" if gap else "level with"
        parts.append(f"{size} {rival}")
    name = ours.capitalize() + ("" if "attention" in ours else " attention")
    return f"{name}: {scores[ours]} mIoU, {' and '.join(parts)}."


def _learnt(names: Iterable[str]) -> str | None:
    """The fusion that is neither a scale nor pooling."""
    return next((n for n in names if not n[0].isdigit() and n not in ("average", "max")), None)


def _class_table(report: Report, scores: dict[str, NDArray[np.float64]]) -> View:
    """Rows of class x fusion in percent, and the means below them."""
    truth = next(iter(report.matrices.values())).sum(1)
    heads, own = list(scores), _learnt(scores)
    gain = own is not None and "average" in scores
    rows: list[View] = []
    for k, name in enumerate([*report.names, "mean"]):
        last = k == len(report.names)
        exact = [_mean(score) if last else float(score[k]) for score in scores.values()]
        cells = [None if math.isnan(value) else round(100 * value, 1) for value in exact]
        row: View = {"name": name, "cells": cells, "gain": None}
        row["best"] = max((value for value in cells if value is not None), default=None)
        row["colour"] = None if last else css(report.palette[k])
        row["share"] = 100 if last else 100 * truth[k] / max(1, truth.sum())
        if own and gain:
            ours, other = cells[heads.index(own)], cells[heads.index("average")]
            row["gain"] = None if ours is None or other is None else round(ours - other, 1)
        rows.append(row)
    return {"heads": [_title(head) for head in heads], "rows": rows, "gain": gain}


def _trust(report: Report) -> View | None:
    """Stacked bars of weight per class; the classes that lean on the finest scale come first."""
    if report.weights is None or not np.isfinite(report.weights).any():
        return None
    order = np.argsort(report.scales)  # drawn coarse to fine, in whatever order they were run
    weights = report.weights[:, order]
    known = [k for k in range(len(report.names)) if np.isfinite(weights[k]).all()]
    colours = [css(colour) for colour in pictures.ramp(SCALE_ANCHORS, len(order))]
    return {
        "key": [(f"{report.scales[s]:g}×", c) for s, c in zip(order, colours, strict=True)],
        "rows": [
            (
                report.names[k],
                css(report.palette[k]),
                list(zip(100 * weights[k], colours, strict=True)),
            )
            for k in sorted(known, key=lambda k: -weights[k, -1])
        ],
        "absent": [report.names[k] for k in range(len(report.names)) if k not in known],
    }


def _chart(report: Report, key: str, title: str, factor: float, peak: bool) -> View | None:
    """One metric against the step, as SVG coordinates in a 480 x 250 box."""

    def number(row: Mapping[str, float | str], name: str) -> float:
        value = row.get(name)
        return float(value) if isinstance(value, int | float) else math.nan

    data = np.array([(number(row, "step"), factor * number(row, key)) for row in report.curves])
    data = data[np.isfinite(data).all(axis=1)] if len(data) else data
    if len(data) < 2:
        return None
    top = data[data[:, 1].argmax()]
    summary = f"best {top[1]:.1f} at step {top[0]:.0f}" if peak else f"last {data[-1, 1]:.3g}"
    bucket = math.ceil(len(data) / POINTS)
    if bucket > 1:
        cuts = range(0, len(data), bucket)
        data = np.array([data[cut : cut + bucket].mean(axis=0) for cut in cuts])
        summary += f"; each point is the mean of {bucket} rows"
    # Both charts share the whole run's axis, so that they can be read one above the other.
    steps = [step for row in report.curves if math.isfinite(step := number(row, "step"))]
    stages: list[tuple[float, str]] = []
    for row in report.curves:
        stage, step = str(row.get("stage") or ""), number(row, "step")
        if stage and math.isfinite(step) and (not stages or stages[-1][1] != stage):
            stages.append((step, stage))
    return line_chart(title, summary, "step", data, min(steps), max(steps), stages)


def trust_charts(trusted: Trusted) -> list[View]:
    """A reliability diagram, and what it costs to keep more, as `_chart` draws."""

    def place(x: float, y: float) -> tuple[float, float]:  # percent both
        return 46 + 4.2 * x, 214 - 1.9 * y

    ticks = range(0, 101, 20)
    frame = {
        "dots": [], "stages": [],
        "x": [(place(t, 0)[0], f"{t}") for t in ticks],
        "y": [(place(0, t)[1], f"{t}") for t in ticks],
    }  # fmt: skip
    bins, share = len(trusted.pixels), trusted.pixels / max(1, trusted.pixels.sum())
    bars = []
    for i, accuracy in enumerate(100 * trusted.accuracy):
        if share[i] > 0:
            (x, y), told = place(100 * i / bins, accuracy), f"{accuracy:.1f} % right"
            width, height = 420 / bins - 2, max(1.0, 214 - y)
            told = f"{share[i]:.1%} of the pixels, {told}"
            # Pale where hardly a pixel lies, so that a single one does not shout
            bars.append(
                (x + 1, y, width, height, 0.12 + 0.6 * min(1, bins * share[i]) ** 0.5, told)
            )
    known = np.isfinite(trusted.right) & (trusted.kept > 0)
    curve = [place(*point) for point in 100 * np.stack([trusted.kept, trusted.right], 1)[known]]
    half = trusted.right[known][np.abs(trusted.kept[known] - 0.5).argmin()] if curve else math.nan
    return [
        frame
        | {"title": "Right against claimed", "axis": "confidence, %", "bars": bars, "line": ""}
        | {"summary": f"in %; expected calibration error {100 * trusted.ece:.1f}"}
        | {"rule": [*place(0, 0), *place(100, 100)]},
        frame
        | {"title": "Right among what is kept", "axis": "pixels kept, the surest first, %"}
        | {"summary": f"in %; {100 * half:.1f} of the surest half"}
        | {"line": " ".join(f"{x:.1f},{y:.1f}" for x, y in curve)},
    ]


def _example(example: Example, report: Report, wrong: float | None = None) -> View:
    """Pictures of one example: [input, truth, fused, error] and per scale [label], [weight]."""

    def shot(caption: str, picture: NDArray[np.uint8], kind: str = "label") -> View:
        embedded = uri(picture, kind == "photo")
        return {"caption": caption, "uri": embedded, "kind": kind, "wrong": False}

    def drawn(label: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return pictures.colorize(label, report.palette)

    main = [shot("input", example.image, "photo")]
    if example.label is not None:
        main.append(shot("truth", drawn(example.label)))
    main.append(shot("fused", drawn(example.fused)))
    if example.label is not None:
        main.append(shot("error of fused", pictures.error(example.fused, example.label), "error"))
    single = []
    for scale, label in sorted(example.single.items()):
        single.append(shot(f"{scale:g}× alone", drawn(label)) | {"wrong": scale == wrong})
    weights = [
        shot(f"weight of {scale:g}×", pictures.heat(weight), "weight")
        for scale, weight in sorted(example.weights.items())
    ]
    name, miou = example.name, example.miou
    return {"name": name, "miou": miou, "main": main, "single": single, "weights": weights}


def _page(report: Report) -> str:
    scores = {key: iou(matrix) for key, matrix in report.matrices.items()}
    own = next(reversed(report.matrices), "")  # the network's own fusion comes last
    matrix = report.matrices.get(own)
    charts = [
        _chart(report, "loss", "Training loss", 1.0, peak=False),
        _chart(report, "val_miou", "Validation mIoU", 100.0, peak=True),
    ]
    return render(
        "report.html.j2",
        enlarge=bool(report.repairs or report.examples),
        report=report,
        verdict=verdict(report.matrices) if scores else None,
        bars=[(key, _title(key), 100 * _mean(score)) for key, score in scores.items()],
        classes=_class_table(report, scores) if scores else None,
        trust=_trust(report),
        charts=[chart for chart in charts if chart],
        trusted=trust_charts(report.trusted) if report.trusted else [],
        own=own,
        confusion=None if matrix is None else 100 * matrix / np.maximum(matrix.sum(1), 1)[:, None],
        repairs=[(r, _example(r.example, report, wrong=r.scale)) for r in report.repairs],
        examples=[_example(example, report) for example in report.examples],
        legend=[(n, css(c)) for n, c in zip(report.names, report.palette, strict=True)],
        error_key={"right": pictures.RIGHT, "wrong": pictures.WRONG, "no label": pictures.UNKNOWN},
        heat_key=pictures.heat(np.linspace(0, 1, 8)[None])[0],
    )


def write_report(path: Path, report: Report) -> None:
    """Writes the page as one file; an existing page is replaced whole or left as it was."""
    write(path, _page(report))
