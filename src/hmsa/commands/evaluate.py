"""`hmsa evaluate`: every single scale, pooling over scales and attention, in one run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from .. import __version__
from ..data.datasets import Dataset, open_dataset
from ..data.labels import IGNORE
from ..errors import InputError
from ..metrics import Confusion
from ..predictor import Predictor, Segmentation
from ..record import read_curves
from ..report import Example, Repair, Report, verdict, write_report
from ..runtime import Meter, Precision, describe_machine, say, use_bf16

EXAMPLES = 8  # shown in the report: half of them the worst
REPAIRS_PER_SCALE = 2


@dataclass(frozen=True)
class Window:
    """A square of one picture where fusion mended what one scale got wrong."""

    gained: float  # mended less spoilt, as a share of its pixels
    index: int
    scale: float
    place: tuple[slice, slice]


@dataclass
class Evaluation:
    """What one pass over a split found.

    Fusions: each scale ("0.5"), "average", "max", and the network's own, "hierarchical" as a rule.
    """

    scales: list[float]
    own: str  # name of the network's own fusion
    confusion: dict[str, Confusion]
    weights: (
        NDArray[np.float64] | None
    )  # [K,S] mean effective weight of each scale on each true class
    mious: list[float]  # of the fused label, per picture
    windows: list[Window]

    def summary(self, names: Sequence[str]) -> dict[str, Any]:
        """The JSON object; keys are relied upon by scripts."""
        scores = {name: confusion.miou() for name, confusion in self.confusion.items()}
        single = {f"{s:g}": scores.pop(f"{s:g}") for s in self.scales}
        own = self.confusion[self.own]
        iou = zip(names, own.iou().tolist(), strict=True)
        summary = {
            "miou": {"single": single} | scores,
            "iou": {self.own: {name: None if math.isnan(v) else v for name, v in iou}},
            "accuracy": {self.own: own.accuracy()},
            "images": len(self.mious),
        }
        if self.weights is not None:
            summary["weight"] = {
                name: {
                    f"{s:g}": None if math.isnan(w) else w
                    for s, w in zip(self.scales, row.tolist(), strict=True)
                }
                for name, row in zip(names, self.weights, strict=True)
            }
        return summary


def evaluate(
    source: Path,
    data: Path,
    split: str,
    scales: Sequence[float] | None = None,
    *,
    pictures: Path | None = None,
    report: Path | None = None,
    precision: Precision = "auto",
    flip: bool | None = None,
    command: str = "",
) -> tuple[dict[str, Any], Table]:
    """Checkpoint `source` on a split of the dataset `data`; writes the report page if one is named.

    Returns the JSON object and the table for people. pictures: where the dataset's files are.
    """
    predictor = Predictor.load(source, scales, precision, flip)
    card = predictor.model.card
    dataset = open_dataset(data, split, pictures)
    if dataset.labels.names != tuple(card.names):
        raise InputError(
            f"{source} knows {len(card.names)} classes ({', '.join(card.names[:4])}, ...), {data} "
            f"has {len(dataset.labels.names)} ({', '.join(dataset.labels.names[:4])}, ...); "
            "both must name the same classes in the same order"
        )
    found = measure(predictor, dataset)
    summary = found.summary(card.names) | {
        "split": split,
        "checkpoint": str(source),
        "dataset": str(data),
        "scales": predictor.scales,
        "flip": predictor.flip,
    }
    if report:
        page = Report(
            title=f"{data.parent.name if data.stem == 'dataset' else data.stem}, {split}",
            facts=[
                ("Checkpoint", f"{source}, {_parameters(predictor)}"),
                ("Trained on", ", ".join(f"{k} {v}" for k, v in card.trained_on.items())),
                ("Data", f"{data}, split {split}, {len(dataset)} pictures"),
                ("Scales", _looked(predictor)),
                ("Scored", "one pooled confusion matrix, at the size of each label"),
                ("Precision", "bf16" if use_bf16(predictor.device, precision) else "fp32"),
                ("Hardware", describe_machine(predictor.device)),
                ("Versions", f"hmsa {__version__}, {datetime.now():%Y-%m-%d %H:%M}"),
                ("Command", command),
            ],
            names=card.names,
            palette=np.array(card.palette, np.uint8),
            matrices={k: c.matrix.cpu().numpy() for k, c in found.confusion.items()},
            weights=found.weights if len(predictor.scales) > 1 else None,
            scales=predictor.scales,
            curves=read_curves(source if source.is_dir() else source.parent),
            examples=[
                example(predictor, dataset, i, found.mious[i]) for i in worst_first(found.mious)
            ],
            repairs=[repair(predictor, dataset, window) for window in best(found.windows)],
        )
        write_report(report, page)
        summary["report"] = str(report)
    return summary, score_table(found, card.names, split)


def measure(predictor: Predictor, dataset: Dataset) -> Evaluation:
    """One pass over the split: everything but pictures, in memory that does not grow with it."""
    k, scales = len(dataset.labels.names), predictor.scales
    own = predictor.model.fusion
    fusions = [*(f"{s:g}" for s in scales), "average", "max", own]
    confusion = {name: Confusion(k) for name in fusions}
    weights, pixels = np.zeros((len(scales), k)), np.zeros(k)
    mious: list[float] = []
    windows: list[Window] = []
    with Meter("evaluate", len(dataset)) as meter:
        for index in range(len(dataset)):
            image, label = dataset.read(index)
            seen = predictor(image, detail=True)
            alone = Confusion(k)
            alone.add(torch.from_numpy(label), torch.from_numpy(seen.label))
            mious.append(alone.miou())
            alone_or_pooled = {f"{s:g}": one for s, one in seen.single.items()} | seen.pooled
            for name, predicted in (alone_or_pooled | {own: seen.label}).items():
                confusion[name].add(torch.from_numpy(label), torch.from_numpy(predicted))
            for row, scale in enumerate(seen.weights):
                heavy = np.bincount(label.ravel(), seen.weights[scale].ravel(), minlength=256)
                weights[row] += heavy[:k]
            pixels += np.bincount(label.ravel(), minlength=256)[:k]
            windows += [_mended(seen, label, scale, index) for scale in scales]
            meter.advance()
    with np.errstate(invalid="ignore"):
        mean_weights = (weights / pixels).T if weights.any() else None
    return Evaluation(scales, own, confusion, mean_weights, mious, windows)


def score(predictor: Predictor, dataset: Dataset, rank: int = 0, processes: int = 1) -> Confusion:
    """The fused prediction alone, on this process's share of the pictures."""
    confusion = Confusion(len(dataset.labels.names))
    for index in range(rank, len(dataset), processes):
        image, label = dataset.read(index)
        confusion.add(torch.from_numpy(label), torch.from_numpy(predictor(image).label))
    return confusion


def _mended(seen: Segmentation, label: NDArray[np.uint8], scale: float, index: int) -> Window:
    """The square of this picture where the fused label is right most where `scale` is wrong."""
    valid = label != IGNORE
    gain = (seen.label == label) * 1.0 - (seen.single[scale] == label) * 1.0
    side = max(1, min(label.shape) // 3)
    sums = np.pad(np.cumsum(np.cumsum(gain * valid, 0), 1), ((1, 0), (1, 0)))
    boxes = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    y, x = np.unravel_index(int(boxes.argmax()), boxes.shape)
    place = (slice(int(y), int(y) + side), slice(int(x), int(x) + side))
    return Window(float(boxes[y, x]) / side**2, index, scale, place)


def best(windows: list[Window]) -> list[Window]:
    """The strongest few of each scale."""
    chosen = []
    for scale in sorted({w.scale for w in windows}):
        mended = [w for w in windows if w.scale == scale and w.gained > 0]
        chosen += sorted(mended, key=lambda w: -w.gained)[:REPAIRS_PER_SCALE]
    return chosen


def worst_first(mious: list[float]) -> list[int]:
    """Pictures to show: the worst, then some spread evenly over the rest, in rising order."""
    order = sorted((i for i, m in enumerate(mious) if not math.isnan(m)), key=mious.__getitem__)
    worst, rest = order[: EXAMPLES // 2], order[EXAMPLES // 2 :]
    spread = np.linspace(0, len(rest) - 1, min(len(rest), EXAMPLES - len(worst))).round()
    return worst + [rest[int(i)] for i in spread]


def example(predictor: Predictor, dataset: Dataset, index: int, miou: float | None) -> Example:
    image, label = dataset.read(index)
    seen, name = predictor(image, detail=True), dataset.pairs[index].name
    return Example(name, image, label, seen.single, seen.label, seen.weights, miou)


def repair(predictor: Predictor, dataset: Dataset, window: Window) -> Repair:
    whole, at = example(predictor, dataset, window.index, None), window.place
    assert whole.label is not None
    cropped = Example(
        whole.name,
        whole.image[at],
        whole.label[at],
        {s: label[at] for s, label in whole.single.items()},
        whole.fused[at],
        {s: weight[at] for s, weight in whole.weights.items()},
        None,
    )
    return Repair(whole.name, window.scale, cropped, window.gained)


def score_table(found: Evaluation, names: Sequence[str], split: str) -> Table:
    """IoU in per cent, class by fusion, best of each row in bold."""
    table = Table(title=f"IoU in %, {split}, {len(found.mious)} pictures", title_justify="left")
    table.add_column("class")
    for name in found.confusion:
        table.add_column(name, justify="right")
    table.caption = verdict({k: c.matrix.cpu().numpy() for k, c in found.confusion.items()})
    table.caption_justify = "left"
    columns = [c.iou().tolist() for c in found.confusion.values()]
    rows = [*zip(*columns, strict=True), tuple(c.miou() for c in found.confusion.values())]
    for name, row in zip([*names, "mean"], rows, strict=True):
        top = max((v for v in row if not math.isnan(v)), default=math.nan)
        cells = [f"[bold]{v:.1%}[/]" if v == top else f"{v:.1%}" for v in row]
        if name == "mean":
            table.add_section()
        table.add_row(name, *(c.replace("%", "") for c in cells))
    return table


def print_result(summary: dict[str, Any], table: Table) -> None:
    """The table on stdout, for people; where the page is on stderr."""
    Console().print(table)
    if "report" in summary:
        say(f"report: {summary['report']}")


def _looked(predictor: Predictor) -> str:
    size = f"long edge {predictor.long_edge}" if predictor.long_edge else "whole picture"
    flip = "flip" if predictor.flip else "no flip"
    return f"{', '.join(f'{s:g}' for s in predictor.scales)}; {flip}; {size}"


def _parameters(predictor: Predictor) -> str:
    return f"{sum(p.numel() for p in predictor.model.parameters()) / 1e6:.2f} M parameters"
