"""`hmsa gate`: what leaving finer scales out saves and costs, measured and kept for `--budget`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from ..checkpoint.files import GateCurve, amend, require_classes, trained_on
from ..data.datasets import open_dataset
from ..inference.predictor import Predictor
from ..runs.errors import InputError
from ..runs.machine import Precision
from ..runs.progress import say
from .measure import SHARES, gate_curve


def gate(
    source: Path,
    data: Path,
    split: str,
    scales: Sequence[float] | None = None,
    *,
    shares: Sequence[float] = SHARES,
    pictures: Path | None = None,
    precision: Precision = "auto",
    flip: bool | None = None,
    device: str | None = None,
) -> tuple[dict[str, Any], Table]:
    """Measure the curve of `shares` on a split and keep it in the checkpoint's card.

    Returns the JSON object and the table for people. InputError where there is nothing to gate.
    """
    predictor = Predictor.load(source, scales, precision, flip, device=device)
    card = predictor.model.card
    if predictor.model.attention is None or not predictor.model.tiles:
        raise InputError(
            f"{source} pools by {predictor.model.fusion}: without hierarchical attention nothing "
            "tells what a finer scale will count for"
        )
    if len(predictor.scales) < 2 or predictor.scales[-1] <= 1:
        told = ",".join(f"{s:g}" for s in predictor.scales)
        raise InputError(
            f"scales {told}: a gate is for scales above 1 after a coarser one; try 0.5,1,2"
        )
    dataset = open_dataset(data, split, pictures)
    require_classes(card, dataset.labels.names, data, source)
    if trained_on(card, dataset.source, split):
        say(f"note: {source} has learnt from this split; its curve flatters")
    points = gate_curve(predictor, dataset, shares)
    curve = GateCurve(
        dataset=dataset.source.name, split=split, scales=predictor.scales, points=points
    )
    amend(source, gate=curve.model_dump())
    table = Table(title=f"Finer scales in a share of the picture, {split}", title_justify="left")
    for column in ("share", "work", "mIoU", "labels as with all of it"):
        table.add_column(column, justify="right")
    for point in points:
        table.add_row(
            f"{point.share:.0%}", f"{point.cost:.1%}", f"{point.miou:.1%}", f"{point.agreement:.2%}"
        )
    table.caption = "work: pixels that the network looks at, halos included; kept in the checkpoint"
    table.caption_justify = "left"
    return curve.model_dump() | {"checkpoint": str(source)}, table
