"""`hmsa autolabel`: labels, confidences and a manifest of many pictures, thresholds by rule."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table

from ..checkpoint.files import fingerprint, require_classes, require_unseen
from ..data.coarse import Coarse
from ..data.datasets import Dataset, open_dataset
from ..data.descriptions import read_classes
from ..data.labels import LabelSet, spread
from ..evaluation.calibration import Calibration, precise, surest
from ..inference.predictor import Predictor
from ..model.pretrained import Card
from ..runs.errors import InputError
from ..runs.machine import Precision, in_use
from ..runs.progress import Progress
from .cluster import Cluster
from .labelling import Crew, Labelling, locked
from .out import SPLIT, settings_of
from .rows import Row, is_done, total


@dataclass(frozen=True)
class Rules:
    """How thresholds are chosen; all shares in 0..1."""

    threshold: float = 0.5  # fixed; the paper's on Cityscapes
    keep: float = 0.5  # quantile: share of each class's pixels
    held_out: Path | Dataset | None = None  # labels to measure precision on
    split: str = "val"  # where held_out is a path
    target: float = 0.95  # that precision


def autolabel(
    source: Path,
    images: Path | str,
    out: Path | str,
    scales: Sequence[float] | None = None,
    *,
    flip: bool | None = None,
    precision: Precision = "auto",
    overwrite: bool = False,
    raw: Path | None = None,
    coarse: Path | Dataset | None = None,
    coarse_split: str = "train",
    fill: Sequence[str] | None = None,
    agreement: bool = False,
    grow: int = 0,
    rules: Rules = Rules(),
    workers: int | None = None,
    cluster: str | None = None,
    **further: Any,
) -> tuple[dict[str, Any], Table, list[str]]:
    """Label the pictures below `images` with the teacher `source`, as `Labelling` says.

    raw: a dataset whose values the files shall hold. coarse: a dataset with labels by people, that
    count wherever they speak and `grow` pixels around, or with `fill` where they say one of these
    classes. agreement: also store how many of the scales say so by themselves. workers: processes,
    each with a network of its own; GPUs are dealt out in turn. cluster: label with Ray, at its
    address or, if local, with one of this machine; images and out may then be all that
    `autolabel.sources` takes. further: as `Predictor.load` takes it. Returns the JSON object, the
    table for people, and one line for each picture that could not be labelled.
    """
    teacher = fingerprint(source)
    predictor = Predictor.load(source, scales, precision, flip, **further)
    card = predictor.model.card
    held_out = by_people = None
    if rules.held_out:
        held_out = _opened(rules.held_out, rules.split)
        require_classes(card, held_out.labels.names, held_out.source, source)
        require_unseen(card, held_out.source, held_out.split, source, "--held-out")
    if coarse:
        people = _opened(coarse, coarse_split)
        require_classes(card, people.labels.names, people.source, source)
        by_people = Coarse(
            people,
            None if fill is None else frozenset(people.labels.index(n, "--fill") for n in fill),
            grow,
        )
    device = next(predictor.model.parameters()).device
    came = in_use(device, precision)
    written = _written(card, raw, source)
    at = os.path.abspath(source) if source.exists() else str(source)  # or a name on the hub
    load = partial(_load, at, teacher, scales, precision, flip, further)
    job: Labelling | Cluster
    if cluster:
        look = settings_of(predictor, teacher, came, written, by_people, agreement)
        job = Cluster(
            cluster, load, look, _absolute(images), _absolute(out), written, workers, by_people,
            agreement,
        )  # fmt: skip
        job.check()  # this and the next refuse what they must before there is any OUT
        hold = job.hold()
    else:
        job = Labelling(
            predictor, teacher, Path(images), Path(out), written, came, by_people, agreement
        )
        job.check()
        hold = locked(job.out)
    with hold as lock:
        if isinstance(job, Cluster):
            new = job.run(overwrite)
        else:
            new = job.run(overwrite, Crew(workers, load, lock) if workers and workers > 1 else None)
        judged = calibrate(predictor, held_out) if held_out else None
        failed: list[str] = []
        spent = {"seconds": 0.0}
        counts = total(_apart(job.rows(), failed, spent), len(card.names))
        found, unreached = _thresholds(counts, rules, judged)
        content = {
            rule: dict(zip(card.names, numbers, strict=True)) for rule, numbers in found.items()
        }
        count = job.finish(json.dumps(content, indent=1))
    summary = {
        "images": count, "new": new, "failed": len(failed), "teacher": teacher,
        "dataset": job.dataset, "split": SPLIT, "thresholds": content,
        "unreached": [card.names[k] for k in unreached],
        "kept": {rule: _shares(card.names, counts, numbers) for rule, numbers in found.items()},
        "seconds": round(spent["seconds"], 3),
    }  # fmt: skip
    told = [f"fixed {rules.threshold:g}", f"the surest {rules.keep:.0%} of each class"]
    if held_out:
        told.append(f"precision {rules.target:.0%} on {held_out.source}, split {held_out.split}")
    table = _table(card.names, counts, found, unreached, "; ".join(told))
    return summary, table, failed


def _load(
    source: str,
    teacher: str,
    scales: Sequence[float] | None,
    precision: Precision,
    flip: bool | None,
    further: dict[str, Any],
    device: torch.device | None = None,
) -> Predictor:
    """The teacher in another process, maybe on another machine. InputError: it is not the same."""
    if fingerprint(source) != teacher:
        raise InputError(f"{source} is another file on {platform.node()}; give all machines one")
    if device:  # this worker's own
        further = further | {"device": device}
    return Predictor.load(source, scales, precision, flip, **further)


def _absolute(place: Path | str) -> str:
    """A path as every process sees it; an address as it is."""
    return str(place) if "://" in str(place) else os.path.abspath(place)


def _apart(rows: Iterable[Row], failed: list[str], spent: dict[str, float]) -> Iterator[Row]:
    """The rows with labels; of the others the reasons go to `failed`. The time of all is added."""
    for row in rows:
        spent["seconds"] += row.get("seconds") or 0.0
        if is_done(row):
            yield row
        else:
            failed.append(row["reason"])


def calibrate(predictor: Predictor, dataset: Dataset) -> Calibration:
    """How often the predictor is right on a labelled split, by class and confidence."""
    calibration = Calibration(len(dataset.labels.names))
    with Progress("held-out", len(dataset)) as meter:
        for index in range(len(dataset)):
            image, label = dataset.read(index)
            seen = predictor(image)
            found = (label, seen.label, seen.confidence)
            calibration.add(*(torch.from_numpy(each) for each in found))
            meter.advance()
    return calibration


def _opened(dataset: Path | Dataset, split: str) -> Dataset:
    return dataset if isinstance(dataset, Dataset) else open_dataset(dataset, split)


def _written(card: Card, raw: Path | None, source: Path) -> LabelSet:
    """What the values of the label files mean."""
    if raw is None:
        k = len(card.names)
        palette = tuple(card.palette) or tuple(spread(k))
        return LabelSet(tuple(card.names), palette, tuple(range(k)))
    labels = read_classes(raw)
    require_classes(card, labels.names, raw, source)
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


def _shares(
    names: Sequence[str], counts: NDArray[np.int64], numbers: Sequence[float]
) -> dict[str, Any]:
    """What thresholds `[K]` keep: of `all` pixels, and of each `class`, null where it has none."""
    sure = np.arange(256) / 255 >= np.array(numbers)[:, None]
    kept, pixels = (counts * sure).sum(1), counts.sum(1)
    each = [int(n) / int(of) if of else None for n, of in zip(kept, pixels, strict=True)]
    whole = int(pixels.sum())
    return {
        "all": int(kept.sum()) / whole if whole else None,
        "class": dict(zip(names, each, strict=True)),
    }


def _table(
    names: Sequence[str],
    counts: NDArray[np.int64],
    found: dict[str, list[float]],
    unreached: list[int],
    told: str,
) -> Table:
    """Class by rule: threshold, and the share of the class's pixels that it keeps."""
    table = Table(title="Thresholds, and the share of pixels kept", title_justify="left")
    for column in ("class", "share of all", *(each for rule in found for each in (rule, "kept"))):
        table.add_column(column, justify="left" if column == "class" else "right")
    pixels = counts.sum(1)
    kept = {rule: _shares(names, counts, numbers)["class"] for rule, numbers in found.items()}
    for k, name in enumerate(names):
        cells = [f"{pixels[k] / max(1, pixels.sum()):.1%}"]
        for rule, numbers in found.items():
            missed = rule == "precision" and k in unreached
            cells.append("never" if missed else f"{numbers[k]:.4f}")
            cells.append(f"{kept[rule][name]:.1%}" if pixels[k] else "")
        table.add_row(name, *cells)
    table.caption, table.caption_justify = told, "left"
    return table
