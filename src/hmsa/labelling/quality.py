"""The quality of stored labels: which to check first, agreement with true ones, what changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ..data.coarse import Coarse
from ..data.labels import IGNORE
from ..evaluation.calibration import Calibration
from ..evaluation.confusion import Confusion
from ..runs import InputError, Progress
from .labelled import Labelled

LEVELS = (0.0, 0.5, 0.7, 0.9, 0.95)  # thresholds at which labels are compared with true ones
PRESENT = 0.01  # a class counts as present in an image from this share of its pixels on
NOTABLE = 0.02  # a share of an image, or a difference of confidence, that is worth a reason
RARE = 0.02  # a class is rare if at most this share of the images has it
VALUES = np.arange(256) / 255

Counts = NDArray[np.int64]  # pixels by stored confidence, `[...,256]`


class Doubt(NamedTuple):
    """One image of the queue; all numbers in 0..1."""

    name: str
    doubt: float
    confidence: float  # mean over its pixels
    agreement: float | None  # likewise; None if it was not stored
    reasons: tuple[str, ...]


def queue(labelled: Labelled) -> list[Doubt]:
    """Images that no person has corrected, the most doubtful first.

    Doubt is 1 less the mean confidence or, if agreement was stored, 1 less the mean of confidence
    and agreement.
    """
    usual = class_confidence(labelled.counts)
    held = np.array([row["pixels"] for row in labelled.rows.values()])
    images = (held >= PRESENT * held.sum(1, keepdims=True)).sum(0)  # [K] that have each class
    both, found = labelled.agreement_known, []
    for name, row in labelled.rows.items():
        if name in labelled.by_people:
            continue
        pixels = np.array(row["pixels"])
        means = np.array([mean or 0.0 for mean in row["mean_confidence"]])
        confidence = float((means * pixels).sum() / pixels.sum())
        agreement = float(row["mean_agreement"]) if both else None
        doubt = 1 - confidence if agreement is None else 1 - (confidence + agreement) / 2
        reasons = _reasons(labelled, row, means, usual, images, agreement)
        found.append(Doubt(name, doubt, confidence, agreement, tuple(reasons)))
    return sorted(found, key=lambda each: (-each.doubt, each.name))


def _reasons(
    labelled: Labelled,
    row: dict[str, Any],
    means: NDArray[np.float64],
    usual: NDArray[np.float64],
    images: NDArray[np.int64],
    agreement: float | None,
) -> list[str]:
    names, pixels = labelled.labels.names, np.array(row["pixels"])
    reasons = [] if agreement is None else [f"scales disagree on {1 - agreement:.0%} of it"]
    if (below := 1 - row["kept"][0]) >= NOTABLE:
        reasons.append(f"confidence below 0.5 on {below:.0%} of it")
    present = np.flatnonzero(pixels >= PRESENT * pixels.sum())
    least = min(present, key=lambda k: means[k] - usual[k])
    if means[least] < usual[least] - NOTABLE:
        reasons.append(
            f"low confidence in {names[least]}: {means[least]:.2f}, usually {usual[least]:.2f}"
        )
    for k in present:
        if images[k] <= max(1, RARE * len(labelled.rows)):
            reasons.append(f"{names[k]}: in {images[k]} of {len(labelled.rows)} images")
    return reasons


@dataclass
class Truth:
    """Stored labels against true ones, for the images that have them."""

    calibration: Calibration
    at: list[Confusion]  # of what is left at each of LEVELS
    miou: dict[str, float]  # of each image

    def miou_at(self, place: int) -> float:
        """mIoU of what is left at LEVELS[place]; a class of which nothing is left has 0."""
        iou, whole = self.at[place].iou(), self.at[0].matrix
        gone = iou.isnan() & (whole.sum(0) + whole.sum(1) > 0)
        return float(iou.masked_fill(gone, 0).nanmean())

    def kept(self, place: int) -> float:
        """Share of the pixels that is left at LEVELS[place]."""
        return int(self.at[place].matrix.sum()) / max(1, int(self.at[0].matrix.sum()))

    def summary(self, names: tuple[str, ...]) -> dict[str, Any]:
        """As JSON: coverage, accuracy and mIoU at each of LEVELS, scores of each class."""
        whole = self.at[0]
        columns = zip(names, whole.iou(), whole.precision(), whole.recall(), strict=True)
        return {
            "images": len(self.miou), "miou": whole.miou(), "accuracy": whole.accuracy(),
            "ece": self.calibration.ece(),
            "at": {
                f"{level:g}": {
                    "kept": self.kept(place), "accuracy": self.at[place].accuracy(),
                    "miou": self.miou_at(place),
                }
                for place, level in enumerate(LEVELS)
            },
            "class": {
                name: {"iou": float(iou), "precision": float(precision), "recall": float(recall)}
                for name, iou, precision, recall in columns
            },
        }  # fmt: skip


def against(labelled: Labelled, truth: Coarse) -> Truth:
    """Compare the stored files with true labels; pixels that a person left open do not count."""
    k = len(labelled.labels.names)
    found = Truth(Calibration(k), [Confusion(k) for _ in LEVELS], {})
    names = [name for name in labelled.rows if labelled.place(truth, name) is not None]
    with Progress("compare with true labels", len(names)) as progress:
        for name in names:
            true, stored = labelled.label_in(truth, name), labelled.label(name)
            confidence = labelled.level("confidence", name)
            assert true is not None
            if confidence is None or not confidence.shape == stored.shape == true.shape:
                raise InputError(
                    f"{labelled.out}: label and confidence of {name} differ in size; run the same "
                    "hmsa autolabel again"
                )
            true[stored == IGNORE] = IGNORE
            arrays = [torch.from_numpy(each) for each in (true, stored, confidence)]
            found.calibration.add(*arrays)
            for level, confusion in zip(LEVELS, found.at, strict=True):
                kept = np.where(VALUES[confidence] >= level, true, IGNORE).astype(np.uint8)
                confusion.add(torch.from_numpy(kept), arrays[1])
            alone = Confusion(k)
            alone.add(arrays[0], arrays[1])
            found.miou[name] = alone.miou()
            progress.advance()
    return found


@dataclass
class Drift:
    """What differs from an earlier round, in the images that both have."""

    before: Labelled
    moved: NDArray[np.int64]  # [K,K] pixels: rows the class before, columns the class now
    changed: dict[str, float]  # share of each image's pixels
    confidence: NDArray[np.float64]  # [2,K] mean of each class before and now; nan without pixels

    @property
    def share(self) -> float:
        """Share of all pixels whose class is another now."""
        return float(1 - np.trace(self.moved) / max(1, self.moved.sum()))

    def summary(self, names: tuple[str, ...]) -> dict[str, Any]:
        """As JSON."""
        was, same = self.moved.sum(1), np.diag(self.moved)
        return {
            "since": str(self.before.out), "images": len(self.changed), "share": self.share,
            "class": {
                name: {
                    "lost": float(1 - same[k] / was[k]) if was[k] else None,
                    "before": int(was[k]),
                    "now": int(self.moved[:, k].sum()),
                    "confidence": [float(part[k]) for part in self.confidence],
                }
                for k, name in enumerate(names)
            },
        }  # fmt: skip


def drift(before: Labelled, now: Labelled) -> Drift:
    """Compare two rounds. Raises InputError for other classes or no common image."""
    if before.labels.names != now.labels.names:
        raise InputError(f"{before.out} and {now.out} have other classes; they cannot be compared")
    same = [
        name for name, row in now.rows.items()
        if name in before.rows and before.rows[name]["sha256"] == row["sha256"]
    ]  # fmt: skip
    if not same:
        raise InputError(f"{before.out} and {now.out} have no image in common")
    pair, changed = Confusion(len(now.labels.names)), {}
    with Progress("compare", len(same)) as progress:
        for name in same:
            was, current = before.label(name), now.label(name)
            known = (was != IGNORE) & (current != IGNORE)
            pair.add(torch.from_numpy(np.where(known, was, IGNORE)), torch.from_numpy(current))
            changed[name] = float((was != current)[known].mean()) if known.any() else 0.0
            progress.advance()
    means = np.stack([class_confidence(each.count(same)) for each in (before, now)])
    return Drift(before, pair.matrix.numpy(), changed, means)


def kept(counts: Counts) -> NDArray[np.float64]:
    """The share that each threshold v / 255 keeps, `[...,256]`; 0 without pixels."""
    from_on = counts[..., ::-1].cumsum(-1)[..., ::-1]
    share: NDArray[np.float64] = from_on / np.maximum(from_on[..., :1], 1)
    return share


def kept_at(counts: Counts, threshold: float) -> float:
    """Share of all the pixels whose confidence is at least the threshold."""
    return float(counts[..., threshold <= VALUES].sum() / max(1, counts.sum()))


def mean_confidence(counts: Counts) -> float:
    """Mean over all pixels; 0 without pixels."""
    return float((counts @ VALUES).sum() / max(1, counts.sum()))


def class_confidence(counts: Counts) -> NDArray[np.float64]:
    """`[K]` mean confidence; nan for a class without pixels."""
    pixels = counts.sum(1)
    return np.where(pixels > 0, counts @ VALUES / np.maximum(pixels, 1), np.nan)
