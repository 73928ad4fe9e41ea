"""What stored labels are worth: where to look first, how they meet the truth, what has changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from ..data.coarse import Coarse
from ..data.labels import IGNORE
from ..evaluation.calibration import Calibration
from ..evaluation.confusion import Confusion
from ..runs.errors import InputError
from ..runs.progress import Progress
from .labelled import Labelled

LEVELS = (0.0, 0.5, 0.7, 0.9, 0.95)  # thresholds at which labels are held against the truth
_SEEN = 0.01  # share of a picture from which on a class in it is worth a word
_MUCH = 0.02  # share of a picture, or of confidence, from which on it is worth a word
_RARE = 0.02  # share of the pictures up to which a class that they have is rare
_VALUE = np.arange(256) / 255

Key = TypeVar("Key")
Value = TypeVar("Value")


class Doubt(NamedTuple):
    """One image of the queue; all numbers in 0..1."""

    name: str
    doubt: float
    confidence: float  # mean over its pixels
    agreement: float | None  # the same
    why: tuple[str, ...]


def queue(labelled: Labelled) -> list[Doubt]:
    """Images that no person has seen, the most doubtful first.

    Doubt is 1 less the mean confidence; where the agreement of the scales was stored, the mean of
    this and 1 less the mean agreement.
    """
    names, counts = labelled.labels.names, labelled.counts
    usual = _means(counts)
    held = np.array([row["pixels"] for row in labelled.rows.values()])
    pictures = (held >= _SEEN * held.sum(1, keepdims=True)).sum(0)
    both, found = labelled.agreement_known, []
    for name, row in labelled.rows.items():
        if name in labelled.by_people:
            continue
        pixels = np.array(row["pixels"])
        means = np.array([0.0 if mean is None else mean for mean in row["mean_confidence"]])
        confidence = float((means * pixels).sum() / pixels.sum())
        agreement = float(row["mean_agreement"]) if both else None
        why = [] if agreement is None else [f"scales disagree on {1 - agreement:.0%} of it"]
        if (unsure := 1 - row["kept"][0]) >= _MUCH:
            why.append(f"{unsure:.0%} of it less than 0.5 sure")
        seen = np.flatnonzero(pixels >= _SEEN * pixels.sum())
        least = min(seen, key=lambda k: means[k] - usual[k])
        if means[least] < usual[least] - _MUCH:
            why.append(f"unsure of {names[least]}: {means[least]:.2f}, usually {usual[least]:.2f}")
        for k in seen:
            if pictures[k] <= max(1, _RARE * len(labelled.rows)):
                why.append(f"{names[k]}: in {pictures[k]} of {len(labelled.rows)} pictures")
        doubt = 1 - confidence if agreement is None else 1 - (confidence + agreement) / 2
        found.append(Doubt(name, doubt, confidence, agreement, tuple(why)))
    return sorted(found, key=lambda each: (-each.doubt, each.name))


@dataclass
class Truth:
    """Stored labels against true ones, of the pictures that have them."""

    calibration: Calibration
    at: list[Confusion]  # of what is left at each of LEVELS
    miou: dict[str, float]  # of each picture

    def miou_at(self, place: int) -> float:
        """mIoU of what is left at LEVELS[place]; a class of which nothing is left has 0."""
        iou, whole = self.at[place].iou(), self.at[0].matrix
        gone = iou.isnan() & (whole.sum(0) + whole.sum(1) > 0)
        return float(iou.masked_fill(gone, 0).nanmean())


def against(labelled: Labelled, truth: Coarse) -> Truth:
    """The stored files alone are read; what people said counts as it is stored, with 255."""
    k = len(labelled.labels.names)
    found = Truth(Calibration(k), [Confusion(k) for _ in LEVELS], {})
    names = [name for name in labelled.rows if labelled.place(truth, name) is not None]

    def read(name: str) -> tuple[NDArray[np.uint8], ...]:
        true, stored = labelled.beside_label(truth, name), labelled.label(name)
        confidence = labelled.level("confidence", name)
        assert true is not None
        if confidence is None or not confidence.shape == stored.shape == true.shape:
            raise InputError(f"{labelled.out}: label and confidence of {name} do not fit; run the "
                             "same hmsa autolabel again")  # fmt: skip
        true[stored == IGNORE] = IGNORE
        return true, stored, confidence

    with Progress("against the truth", len(names)) as meter:
        for name, (true, stored, confidence) in _ahead(read, names):
            arrays = [torch.from_numpy(each) for each in (true, stored, confidence)]
            found.calibration.add(*arrays)
            for level, confusion in zip(LEVELS, found.at, strict=True):
                kept = np.where(_VALUE[confidence] >= level, true, IGNORE).astype(np.uint8)
                confusion.add(torch.from_numpy(kept), arrays[1])
            alone = Confusion(k)
            alone.add(arrays[0], arrays[1])
            found.miou[name] = alone.miou()
            meter.advance()
    return found


@dataclass
class Drift:
    """What another round changed, in the pictures that both have."""

    before: Labelled
    moved: NDArray[np.int64]  # [K,K] pixels: rows what they were, columns what they are
    changed: dict[str, float]  # share of each picture's pixels
    confidence: NDArray[np.float64]  # [2,K] mean of each class before and now; nan without pixels


def drift(before: Labelled, now: Labelled) -> Drift:
    """InputError: other classes, or no picture in common."""
    if before.labels.names != now.labels.names:
        raise InputError(f"{before.out} and {now.out} have other classes; they cannot be compared")
    same = [
        name
        for name, row in now.rows.items()
        if name in before.rows and before.rows[name]["sha256"] == row["sha256"]
    ]
    if not same:
        raise InputError(f"{before.out} and {now.out} have no picture in common")
    pair = Confusion(len(now.labels.names))
    changed = {}

    def read(name: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        was, is_now = before.label(name), now.label(name)
        was[is_now == IGNORE] = IGNORE
        return was, is_now

    with Progress("compare", len(same)) as meter:
        for name, (was, is_now) in _ahead(read, same):
            pair.add(torch.from_numpy(was), torch.from_numpy(is_now))
            known = was != IGNORE
            changed[name] = float((was != is_now)[known].mean()) if known.any() else 0.0
            meter.advance()
    means = np.stack([_means(each.count(same)) for each in (before, now)])
    return Drift(before, pair.matrix.numpy(), changed, means)


def kept(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Counts `[...,256]` -> the share that each threshold v / 255 leaves; 0 without pixels."""
    from_on = counts[..., ::-1].cumsum(-1)[..., ::-1]
    share: NDArray[np.float64] = from_on / np.maximum(from_on[..., :1], 1)
    return share


def kept_at(counts: NDArray[np.int64], threshold: float) -> float:
    """Share of the pixels `[...,256]` that are at least so sure."""
    return float(counts[..., threshold <= _VALUE].sum() / max(1, counts.sum()))


def mean_confidence(counts: NDArray[np.int64]) -> float:
    return float((counts @ _VALUE).sum() / max(1, counts.sum()))


def summary_of(truth: Truth, names: tuple[str, ...]) -> dict[str, Any]:
    """The JSON of it: coverage, accuracy and mIoU at each of LEVELS, scores of each class."""
    whole, pixels = truth.at[0], int(truth.at[0].matrix.sum())
    scores = zip(names, whole.iou(), whole.precision(), whole.recall(), strict=True)
    return {
        "images": len(truth.miou),
        "miou": whole.miou(),
        "accuracy": whole.accuracy(),
        "ece": truth.calibration.ece(),
        "at": {
            f"{level:g}": {
                "kept": int(part.matrix.sum()) / max(1, pixels),
                "accuracy": part.accuracy(),
                "miou": truth.miou_at(place),
            }
            for place, (level, part) in enumerate(zip(LEVELS, truth.at, strict=True))
        },
        "class": {
            name: {"iou": float(iou), "precision": float(precision), "recall": float(recall)}
            for name, iou, precision, recall in scores
        },
    }


def _means(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """`[K]` mean confidence; nan for a class without pixels."""
    pixels = counts.sum(1)
    return np.where(pixels > 0, counts @ _VALUE / np.maximum(pixels, 1), np.nan)


def _ahead(read: Callable[[Key], Value], keys: Iterable[Key]) -> Iterator[tuple[Key, Value]]:
    """Each key with what is read of it; a few are read ahead while the caller computes."""
    coming = iter(keys)
    with ThreadPoolExecutor(2) as pool:
        waiting = [(key, pool.submit(read, key)) for key in islice(coming, 4)]
        while waiting:
            key, value = waiting.pop(0)
            waiting += [(more, pool.submit(read, more)) for more in islice(coming, 1)]
            yield key, value.result()
