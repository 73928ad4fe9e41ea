"""The quality of stored labels: which to check first, agreement with true ones, what changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..data.coarse import Coarse
from ..data.labels import IGNORE
from ..evaluation.calibration import Calibration
from ..evaluation.confusion import Confusion
from ..runs import InputError, Progress
from .labelled import Labelled
from .sources import Row

LEVELS = (0.5, 0.7, 0.9, 0.95)  # thresholds of which tables say what they keep
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
    reasons: list[str]


def queue(labelled: Labelled) -> list[Doubt]:
    """Images that no person has corrected, the most doubtful first.

    Doubt is 1 less the mean confidence or, if agreement was stored, 1 less the mean of confidence
    and agreement.
    """
    usual = confidence(labelled.counts)
    images = np.sum([_present(row) for row in labelled.rows.values()], 0)
    found = []
    for name in labelled.rows.keys() - labelled.by_people:
        row, pixels = labelled.rows[name], np.array(labelled.rows[name]["pixels"])
        means = np.array([mean or 0.0 for mean in row["mean_confidence"]])
        parts = [float(means @ pixels / pixels.sum())]
        parts += [float(row["mean_agreement"])] if labelled.agreement_known else []
        reasons = [f"scales disagree on {1 - agreement:.0%} of it" for agreement in parts[1:]]
        if (below := 1 - row["kept"][0]) >= NOTABLE:
            reasons.append(f"confidence below 0.5 on {below:.0%} of it")
        reasons += _classes_in_doubt(labelled, np.flatnonzero(_present(row)), means, usual, images)
        agreement = parts[1] if parts[1:] else None
        found.append(Doubt(name, 1 - sum(parts) / len(parts), parts[0], agreement, reasons))
    return sorted(found, key=lambda each: (-each.doubt, each.name))


def _present(row: Row) -> Any:
    """`[K]`: which classes an image has."""
    pixels = np.array(row["pixels"])
    return pixels >= PRESENT * pixels.sum()


def _classes_in_doubt(
    labelled: Labelled,
    present: NDArray[np.int64],
    means: NDArray[np.float64],
    usual: NDArray[np.float64],
    images: NDArray[np.int64],
) -> list[str]:
    """The class that is least sure here, and those that few images have."""
    names, count, reasons = labelled.labels.names, len(labelled.rows), []
    least = min(present, key=lambda k: means[k] - usual[k])
    if means[least] < usual[least] - NOTABLE:
        usually = f"{means[least]:.2f}, usually {usual[least]:.2f}"
        reasons.append(f"low confidence in {names[least]}: {usually}")
    rare = [k for k in present if images[k] <= max(1, RARE * count)]
    return reasons + [f"{names[k]}: in {images[k]} of {count} images" for k in rare]


@dataclass
class Truth:
    """Stored labels against true ones, for the images that have them."""

    images: int
    confusion: Confusion
    calibration: Calibration

    def reach(self, level: float) -> NDArray[np.float64]:
        """`[K,2]` by predicted class: the share of its pixels that a threshold keeps, and how much
        of that is right; nan without pixels."""
        counts = self.calibration.counts.numpy()
        pixels, left = counts.sum((1, 2)), counts[:, level <= VALUES].sum(1)
        with np.errstate(invalid="ignore"):
            return np.stack([left.sum(1) / pixels, left[:, 1] / left.sum(1)], 1)

    def summary(self, names: tuple[str, ...]) -> dict[str, Any]:
        """As JSON: scores of all and of each class, coverage and accuracy at each of LEVELS."""
        whole = self.confusion
        columns = zip(names, whole.iou(), whole.precision(), whole.recall(), strict=True)
        kept, right = self.calibration.risk_coverage()
        places = [int(np.searchsorted(VALUES, level)) for level in LEVELS]
        return {
            "images": self.images, "miou": whole.miou(), "accuracy": whole.accuracy(),
            "ece": self.calibration.ece(),
            "at": {
                f"{level:g}": {"kept": float(kept[v]), "accuracy": float(right[v])}
                for level, v in zip(LEVELS, places, strict=True)
            },
            "class": {
                name: {"iou": float(iou), "precision": float(precision), "recall": float(recall)}
                for name, iou, precision, recall in columns
            },
        }  # fmt: skip


def against(labelled: Labelled, truth: Coarse) -> Truth:
    """Compare the stored files with true labels; pixels that a person left open do not count."""
    names = [name for name in labelled.rows if labelled.place(truth, name) is not None]
    k = len(labelled.labels.names)
    found = Truth(len(names), Confusion(k), Calibration(k))
    with Progress("compare with true labels", len(names)) as progress:
        for name in names:
            true, stored = labelled.label_in(truth, name), labelled.label(name)
            level = labelled.level("confidence", name)
            assert true is not None
            if level is None or not level.shape == stored.shape == true.shape:
                raise InputError(
                    f"{labelled.out}: label and confidence of {name} differ in size; run the same "
                    "hmsa autolabel again"
                )
            true[stored == IGNORE] = IGNORE
            found.calibration.add(true, stored, level)
            found.confusion.add(true, stored)
            progress.advance()
    return found


@dataclass
class Drift:
    """What differs from an earlier round, in the images that both have."""

    before: Labelled
    moved: NDArray[np.int64]  # [K,K] pixels: rows the class before, columns the class now
    changed: dict[str, float]  # share of each image's pixels

    @property
    def share(self) -> float:
        """Share of all pixels whose class is another now."""
        return float(1 - np.trace(self.moved) / max(1, self.moved.sum()))

    def summary(self, names: tuple[str, ...]) -> dict[str, Any]:
        """As JSON; lost: share of the class's earlier pixels that have another class now."""
        was, now, same = self.moved.sum(1), self.moved.sum(0), np.diag(self.moved)
        classes = {
            name: {"lost": float(1 - same[k] / was[k]) if was[k] else None,
                   "before": int(was[k]), "now": int(now[k])}
            for k, name in enumerate(names)
        }  # fmt: skip
        since = {"since": str(self.before.out), "images": len(self.changed), "share": self.share}
        return since | {"class": classes}


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
            pair.add(np.where(known, was, IGNORE), current)
            changed[name] = float((was != current)[known].mean()) if known.any() else 0.0
            progress.advance()
    return Drift(before, pair.matrix.numpy(), changed)


def kept_at(counts: Counts, threshold: float) -> float:
    """Share of all the pixels whose confidence is at least the threshold."""
    return float(counts[..., threshold <= VALUES].sum() / max(1, counts.sum()))


def confidence(counts: Counts) -> NDArray[np.float64]:
    """Mean over the last axis; nan without pixels."""
    pixels = counts.sum(-1)
    return counts @ VALUES / np.where(pixels > 0, pixels, np.nan)
