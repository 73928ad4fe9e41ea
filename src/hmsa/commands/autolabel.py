"""`hmsa autolabel`: labels, confidences and a manifest of many pictures, thresholds by rule."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table

from ..autolabel import SPLIT, THRESHOLD_FILE, Labelling, locked, total
from ..checkpoint import Card, fingerprint
from ..data.coarse import Coarse
from ..data.datasets import Dataset, open_dataset
from ..data.descriptions import read_classes
from ..data.labels import LabelSet, spread
from ..errors import InputError
from ..files import replace
from ..metrics import Calibration, precise, surest
from ..predictor import Predictor
from ..runtime import Meter, Precision, use_bf16


@dataclass(frozen=True)
class Rules:
    """How thresholds are chosen; all shares in 0..1."""

    threshold: float = 0.5  # fixed; the paper's on Cityscapes
    keep: float = 0.5  # quantile: share of each class's pixels
    held_out: Path | None = None  # dataset with labels to measure precision on
    split: str = "val"
    target: float = 0.95  # that precision


def autolabel(
    source: Path,
    images: Path,
    out: Path,
    scales: Sequence[float] | None = None,
    *,
    flip: bool | None = None,
    precision: Precision = "auto",
    overwrite: bool = False,
    raw: Path | None = None,
    coarse: Path | None = None,
    coarse_split: str = "train",
    fill: Sequence[str] | None = None,
    grow: int = 0,
    rules: Rules = Rules(),
) -> tuple[dict[str, Any], Table, list[str]]:
    """Label the pictures below `images` with the teacher `source`, as `Labelling` says.

    raw: a dataset whose values the files shall hold. coarse: a dataset with labels by people, that
    count wherever they speak and `grow` pixels around, or with `fill` where they say one of these
    classes. Returns the JSON object, the table for people, and one line for each picture that could
    not be labelled.
    """
    teacher = fingerprint(source)
    predictor = Predictor.load(source, scales, precision, flip)
    card = predictor.model.card
    held_out = by_people = None
    if rules.held_out:
        held_out = open_dataset(rules.held_out, rules.split)
        card.refuse_others(held_out.labels.names, held_out.source, source)
        _not_learnt(card, held_out, source)
    if coarse:
        further = open_dataset(coarse, coarse_split)
        card.refuse_others(further.labels.names, further.source, source)
        by_people = Coarse(
            further,
            None if fill is None else frozenset(further.labels.index(n, "--fill") for n in fill),
            grow,
        )
    device = next(predictor.model.parameters()).device
    labelling = Labelling(
        predictor, teacher, images, out, _written(card, raw, source),
        "bf16" if use_bf16(device, precision) else "fp32", by_people,
    )  # fmt: skip
    count = len(labelling.files)  # refuses what it must before there is any OUT
    with locked(out):
        new = labelling.run(overwrite)
        judged = calibrate(predictor, held_out) if held_out else None
        counts = total(labelling.rows(), len(card.names))
        found, unreached = _thresholds(counts, rules, judged)
        content = {
            rule: dict(zip(card.names, numbers, strict=True)) for rule, numbers in found.items()
        }
        text = json.dumps(content, indent=1)
        replace(out / THRESHOLD_FILE, lambda file: file.write_text(text))
        failed = [row for row in labelling.rows() if row["status"] != "done"]
        labelling.finish()
    summary = {
        "images": count, "new": new, "failed": len(failed), "teacher": teacher,
        "dataset": str(out / "dataset.yaml"), "split": SPLIT, "thresholds": content,
        "unreached": [card.names[k] for k in unreached],
    }  # fmt: skip
    table = _table(card.names, counts, found, unreached, rules)
    return summary, table, [row["reason"] for row in failed]


def calibrate(predictor: Predictor, dataset: Dataset) -> Calibration:
    """How often the predictor is right on a labelled split, by class and confidence."""
    calibration = Calibration(len(dataset.labels.names))
    with Meter("held-out", len(dataset)) as meter:
        for index in range(len(dataset)):
            image, label = dataset.read(index)
            seen = predictor(image)
            found = (label, seen.label, seen.confidence)
            calibration.add(*(torch.from_numpy(each) for each in found))
            meter.advance()
    return calibration


def _not_learnt(card: Card, dataset: Dataset, source: Path) -> None:
    """InputError if the teacher learnt from this split, as main or as extra set."""
    trained = card.trained_on
    learnt = [(trained.get("dataset"), trained.get("split"))]
    for extra in card.recipe.get("sampling", {}).get("extra", []):
        learnt.append((extra.get("dataset") or trained.get("dataset"), extra["split"]))
    for name, split in learnt:
        # A folder stands for the dataset.yaml in it
        called = {Path(str(name)).stem, "dataset"} if name and not Path(name).suffix else {name}
        if split == dataset.split and called & {dataset.source.name, dataset.source.stem}:
            raise InputError(
                f"--held-out: {source} was trained on {dataset.source.name}, split {split}, so it "
                "cannot be judged there; name a split that it has not seen"
            )


def _written(card: Card, raw: Path | None, source: Path) -> LabelSet:
    """What the values of the label files mean."""
    if raw is None:
        k = len(card.names)
        palette = tuple(card.palette) or tuple(spread(k))
        return LabelSet(tuple(card.names), palette, tuple(range(k)))
    labels = read_classes(raw)
    card.refuse_others(labels.names, raw, source)
    if labels.encoding != "index" or not all(0 <= value <= 255 for value in labels.raw):
        raise InputError(
            f"--raw: {raw} has labels that are not single values in 0..255; leave --raw out"
        )
    return labels


def _thresholds(
    counts: NDArray[np.int64], rules: Rules, calibration: Calibration | None
) -> tuple[dict[str, list[float]], list[int]]:
    """Thresholds of each class by rule, and the classes whose precision is never as wanted.

    Of those only pixels of confidence 255 stay, such as what people said.
    """
    found = {
        "fixed": [rules.threshold] * len(counts),
        "quantile": surest(torch.from_numpy(counts), rules.keep),
    }
    if calibration is None:
        return found, []
    lowest = precise(calibration.counts, rules.target)
    found["precision"] = [1.0 if number is None else number for number in lowest]
    return found, [k for k, number in enumerate(lowest) if number is None]


def _table(
    names: Sequence[str],
    counts: NDArray[np.int64],
    found: dict[str, list[float]],
    unreached: list[int],
    rules: Rules,
) -> Table:
    """Class by rule: threshold, and the share of the class's pixels that it keeps."""
    table = Table(title="Thresholds, and the share of pixels kept", title_justify="left")
    for column in ("class", "share of all", *(each for rule in found for each in (rule, "kept"))):
        table.add_column(column, justify="left" if column == "class" else "right")
    value, pixels = np.arange(256) / 255, counts.sum(1)
    for k, name in enumerate(names):
        cells = [f"{pixels[k] / max(1, pixels.sum()):.1%}"]
        for rule, numbers in found.items():
            kept = counts[k, value >= numbers[k]].sum()
            missed = rule == "precision" and k in unreached
            cells.append("never" if missed else f"{numbers[k]:.4f}")
            cells.append(f"{kept / pixels[k]:.1%}" if pixels[k] else "")
        table.add_row(name, *cells)
    told = [f"fixed {rules.threshold:g}", f"the surest {rules.keep:.0%} of each class"]
    if rules.held_out:
        told.append(f"precision {rules.target:.0%} on {rules.held_out}, split {rules.split}")
    table.caption, table.caption_justify = "; ".join(told), "left"
    return table
