"""Thresholds that are proposed for auto-labels, by three rules, and what each of them keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import rich.table
import torch
from numpy.typing import NDArray

from ..config.options import Rules
from ..data.datasets import Dataset
from ..inference.predictor import Predictor
from ..report.page import Cell, Table
from ..report.tables import percent, terminal
from .calibration import Calibration, precise, surest
from .measure import read_all


def calibrate(predictor: Predictor, dataset: Dataset) -> Calibration:
    """How often the predictor is right on a labelled split, by class and confidence."""
    dataset = dataset.stretched(predictor.stretch)
    calibration = Calibration(len(dataset.labels.names))
    for _, image, label in read_all(dataset, "held-out"):
        prediction = predictor(image)
        calibration.add(label, prediction.label, prediction.confidence8)
    return calibration


@dataclass(frozen=True)
class Proposal:
    """Thresholds in 0..1 by rule and class.

    counts: `[K,256]` pixels of the auto-labels by class and stored confidence. unreached: classes
    whose precision never is as high as it shall be; 1 keeps of them what people labelled, only.
    """

    names: Sequence[str]
    counts: NDArray[np.int64]
    thresholds: dict[str, dict[str, float]]
    unreached: list[str]

    def kept(self) -> dict[str, dict[str, Any]]:
        """Share of the pixels that each rule keeps: `all`, and by `class`, None without pixels."""
        pixels, found = self.counts.sum(1), {}
        for rule, numbers in self.thresholds.items():
            sure = np.arange(256) / 255 >= np.array([*numbers.values()])[:, None]
            kept = (self.counts * sure).sum(1)
            each = zip([*kept, kept.sum()], [*pixels, pixels.sum()], strict=True)
            *shares, whole = [int(k) / int(n) if n else None for k, n in each]
            found[rule] = {"all": whole, "class": dict(zip(self.names, shares, strict=True))}
        return found

    def table(self, rules: Rules, held_out: str) -> rich.table.Table:
        """Class by rule: threshold, and the share of the class's pixels that it keeps."""
        caption = f"fixed {rules.threshold:g}; the surest {rules.keep:.0%} of each class"
        if "precision" in self.thresholds:
            caption += f"; precision {rules.precision_target:.0%} on {held_out}"
        columns = ["class", "of all %", *(c for rule in self.thresholds for c in (rule, "kept %"))]
        pixels, kept, rows = self.counts.sum(1), self.kept(), []
        for name, count in zip(self.names, pixels, strict=True):
            row: list[str | Cell] = [name, percent(count / max(1, pixels.sum()))]
            for rule, numbers in self.thresholds.items():
                never = rule == "precision" and name in self.unreached
                row.append("never" if never else f"{numbers[name]:.4f}")
                row.append(percent(kept[rule]["class"][name]))
            rows.append(row)
        return terminal(Table(columns, rows), "Thresholds, and what they keep", caption)


def propose(
    names: Sequence[str], counts: NDArray[np.int64], rules: Rules, held_out: Calibration | None
) -> Proposal:
    """Thresholds by the rules; that of precision needs labels of held-out images."""
    found = {
        "fixed": [rules.threshold] * len(names),
        "quantile": surest(torch.from_numpy(counts), rules.keep),
    }
    unreached = []
    if held_out:
        lowest = precise(held_out.counts, rules.precision_target)
        found["precision"] = [1.0 if number is None else number for number in lowest]
        unreached = [name for name, n in zip(names, lowest, strict=True) if n is None]
    thresholds = {rule: dict(zip(names, n, strict=True)) for rule, n in found.items()}
    return Proposal(names, counts, thresholds, unreached)
