"""`hmsa evaluate`: every single scale, pooling over scales and attention, in one run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.table import Table

from .. import __version__
from ..checkpoint.files import require_classes
from ..data.datasets import Dataset, open_dataset
from ..inference.predictor import Predictor
from ..inference.result import Prediction
from ..report.evaluation import Example, Repair, Report, Trusted, verdict, write_report
from ..runs.errors import InputError
from ..runs.files import replace
from ..runs.machine import Precision, describe_machine, in_use
from ..training.record import read_curves
from .measure import Evaluation, Window, measure

EXAMPLES = 8  # shown in the report: half of them the worst
REPAIRS_PER_SCALE = 2


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
    submission: Path | None = None,
    only: Sequence[int] | None = None,
    command: str = "",
    **further: Any,
) -> tuple[dict[str, Any], Table]:
    """Checkpoint `source` on a split of the dataset `data`; writes the report page if one is named.

    Returns the JSON object and the table for people. pictures: where the dataset's files are.
    submission: a folder for the predictions in the dataset's own values, one PNG for each image
    and named like it, as the Cityscapes server takes them. only: numbers of the pictures to look
    at. further: as `Predictor.load` takes it.
    """
    predictor = Predictor.load(source, scales, precision, flip, **further)
    card = predictor.model.card
    dataset = open_dataset(data, split, pictures)
    require_classes(card, dataset.labels.names, data, source)
    if only is not None:
        dataset = dataset.only(only)
    found = measure(predictor, dataset, _submit(dataset, submission) if submission else None)
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
                ("Precision", in_use(predictor.device, precision)),
                ("Hardware", describe_machine(predictor.device)),
                ("Versions", f"hmsa {__version__}, {datetime.now():%Y-%m-%d %H:%M}"),
                ("Command", command),
            ],
            names=card.names,
            palette=np.array(dataset.labels.palette, np.uint8),
            matrices={k: c.matrix.cpu().numpy() for k, c in found.confusion.items()},
            scores=_scores(found),
            trusted=Trusted.of(found.calibration),
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


def _submit(dataset: Dataset, folder: Path) -> Callable[[int, Prediction], object]:
    stems = Counter(pair.image.stem for pair in dataset.pairs)
    twice = next((stem for stem, n in stems.items() if n > 1), None)
    if twice or dataset.labels.encoding != "index":
        why = f"two images are named {twice}" if twice else "its labels are colours, not values"
        raise InputError(f"no submission of {dataset.source}, split {dataset.split}: {why}")

    def write(index: int, seen: Prediction) -> None:
        picture = Image.fromarray(dataset.labels.to_raw(seen.label))
        file = folder / f"{dataset.pairs[index].image.stem}.png"
        replace(file, lambda temporary: picture.save(temporary, format="PNG"))

    return write


def _scores(found: Evaluation) -> list[tuple[str, float]]:
    """What the page tells beside IoU: name, 0..1."""
    own, (f1, band) = found.confusion[found.own], found.outlines
    scores = [
        ("Pixel accuracy", own.accuracy()),
        ("Mean class accuracy", own.mean_accuracy()),
        ("Frequency-weighted IoU", own.weighted_iou()),
        (f"Boundary F1, within {f1.tolerance:.2%} of the diagonal", f1.mf1()),
        (f"Boundary IoU, bands of {band.width:.0%} of the diagonal", band.miou()),
    ]
    if found.categories:
        scores.append(("Category IoU", float(np.nanmean(list(found.categories.values())))))
    if found.instances:
        scores.append(("Instance-level IoU (iIoU)", found.instances.miou()))
    return scores


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


def _looked(predictor: Predictor) -> str:
    size = f"long edge {predictor.long_edge}" if predictor.long_edge else "whole picture"
    flip = "flip" if predictor.flip else "no flip"
    return f"{', '.join(f'{s:g}' for s in predictor.scales)}; {flip}; {size}"


def _parameters(predictor: Predictor) -> str:
    return f"{sum(p.numel() for p in predictor.model.parameters()) / 1e6:.2f} M parameters"
