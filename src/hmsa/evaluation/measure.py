"""One pass over a labelled split: every fusion, every score, and where fusion mended a scale."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..checkpoint.files import GatePoint
from ..data.datasets import Dataset
from ..data.labels import IGNORE
from ..inference.predictor import Predictor
from ..inference.result import Prediction
from ..inference.tiles import Gate
from ..runs.progress import Progress
from .boundary import BoundaryF1, BoundaryIoU
from .calibration import Calibration
from .confusion import Confusion
from .instances import InstanceConfusion

SHARES = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7)  # of a picture, where finer scales are looked at


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
    outlines: tuple[BoundaryF1, BoundaryIoU]  # of the own fusion, as is all below
    calibration: Calibration
    categories: dict[str, float]  # IoU
    instances: InstanceConfusion | None
    # [K,S] mean effective weight of each scale on each true class
    weights: NDArray[np.float64] | None
    mious: list[float]  # of the fused label, per picture
    windows: list[Window]

    def summary(self, names: Sequence[str]) -> dict[str, Any]:
        """The JSON object; keys are relied upon by scripts."""
        scores = {name: confusion.miou() for name, confusion in self.confusion.items()}
        single = {f"{s:g}": scores.pop(f"{s:g}") for s in self.scales}
        own = self.confusion[self.own]
        iou = zip(names, own.iou().tolist(), strict=True)
        f1, band = self.outlines
        summary: dict[str, Any] = {
            "miou": {"single": single} | scores,
            "iou": {self.own: dict(iou)},
            "accuracy": {self.own: own.accuracy()},
            "mean_accuracy": {self.own: own.mean_accuracy()},
            "weighted_iou": {self.own: own.weighted_iou()},
            "boundary": {self.own: {"f1": f1.mf1(), "iou": band.miou()}},
            "calibration": {self.own: {"ece": self.calibration.ece()}},
            "images": len(self.mious),
        }
        if self.categories:
            summary["category_iou"] = {self.own: self.categories}
        if self.instances:
            each = dict(zip(names, self.instances.iou().tolist(), strict=True))
            summary["instance_iou"] = {self.own: {"mean": self.instances.miou(), "class": each}}
        if self.weights is not None:
            summary["weight"] = {
                name: {f"{s:g}": w for s, w in zip(self.scales, row.tolist(), strict=True)}
                for name, row in zip(names, self.weights, strict=True)
            }
        told: dict[str, Any] = _without_nan(summary)
        return told


def measure(
    predictor: Predictor,
    dataset: Dataset,
    each: Callable[[int, Prediction], object] | None = None,
) -> Evaluation:
    """One pass over the split: everything but pictures, in memory that does not grow with it.

    each: also called with the number of every picture and what was seen of it.
    """
    k, scales = len(dataset.labels.names), predictor.scales
    own = predictor.model.fusion
    fusions = [*(f"{s:g}" for s in scales), "average", "max", own]
    confusion = {name: Confusion(k) for name in fusions}
    outlines, calibration = (BoundaryF1(k), BoundaryIoU(k)), Calibration(k)
    instances = None
    if dataset.instance_sizes and all(pair.instances for pair in dataset.pairs):
        instances = InstanceConfusion(dataset.instance_sizes)
    weights = np.zeros((len(scales), k))
    mious: list[float] = []
    windows: list[Window] = []
    with Progress("evaluate", len(dataset)) as meter:
        for index in range(len(dataset)):
            image, label = dataset.read(index)
            seen = predictor(image, detail=True)
            alone = Confusion(k)
            truth, guess = torch.from_numpy(label), torch.from_numpy(seen.label)
            alone.add(truth, guess)
            mious.append(alone.miou())
            alone_or_pooled = {f"{s:g}": one for s, one in seen.single.items()} | seen.pooled
            for name, predicted in (alone_or_pooled | {own: seen.label}).items():
                confusion[name].add(truth, torch.from_numpy(predicted))
            for outline in outlines:
                outline.add(truth, guess)
            calibration.add(truth, guess, torch.from_numpy(seen.confidence))
            ids = dataset.read_instances(index) if instances else None
            if instances and ids is not None:
                instances.add(truth, guess, torch.from_numpy(ids))
            if each:
                each(index, seen)
            for row, scale in enumerate(seen.weights):
                heavy = np.bincount(label.ravel(), seen.weights[scale].ravel(), minlength=256)
                weights[row] += heavy[:k]
            windows += [_mended(seen, label, scale, index) for scale in scales]
            meter.advance()
    with np.errstate(invalid="ignore"):
        pixels = confusion[own].matrix.sum(1).numpy()
        mean_weights = (weights / pixels).T if weights.any() else None
    categories = {}
    if dataset.categories:
        group = {i: n for n, ids in enumerate(dataset.categories.values()) for i in ids}
        scores = confusion[own].grouped([group[i] for i in range(k)]).iou().tolist()
        categories = dict(zip(dataset.categories, scores, strict=True))
    return Evaluation(
        scales, own, confusion, outlines, calibration, categories, instances, mean_weights, mious,
        windows,
    )  # fmt: skip


def gate_curve(
    predictor: Predictor, dataset: Dataset, shares: Sequence[float] = SHARES
) -> list[GatePoint]:
    """What each share of the finer scales costs and reaches; every tile is computed for real."""
    classes, before = len(dataset.labels.names), predictor.gate
    shares = sorted({0.0, *shares, 1.0})
    confusion = {share: Confusion(classes) for share in shares}
    cost, agreement, pixels = dict.fromkeys(shares, 0.0), dict.fromkeys(shares, 0), 0
    with Progress("gate", len(dataset)) as meter:
        for index in range(len(dataset)):
            image, label = dataset.read(index)
            predictor.gate = None
            whole = predictor(image).label
            pixels += whole.size
            for share in shares:
                predictor.gate = Gate(share)
                seen = predictor(image)
                confusion[share].add(torch.from_numpy(label), torch.from_numpy(seen.label))
                cost[share] += seen.cost / len(dataset)
                agreement[share] += int((seen.label == whole).sum())
            meter.advance()
    predictor.gate = before
    return [
        GatePoint(share=s, cost=cost[s], miou=confusion[s].miou(), agreement=agreement[s] / pixels)
        for s in shares
    ]


def score(predictor: Predictor, dataset: Dataset, rank: int = 0, processes: int = 1) -> Confusion:
    """The fused prediction alone, on this process's share of the pictures."""
    confusion = Confusion(len(dataset.labels.names))
    for index in range(rank, len(dataset), processes):
        image, label = dataset.read(index)
        confusion.add(torch.from_numpy(label), torch.from_numpy(predictor(image).label))
    return confusion


def _mended(seen: Prediction, label: NDArray[np.uint8], scale: float, index: int) -> Window:
    """The square of this picture where the fused label is right most where `scale` is wrong."""
    valid = label != IGNORE
    gain = (seen.label == label) * 1.0 - (seen.single[scale] == label) * 1.0
    side = max(1, min(label.shape) // 3)
    sums = np.pad(np.cumsum(np.cumsum(gain * valid, 0), 1), ((1, 0), (1, 0)))
    boxes = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    y, x = np.unravel_index(int(boxes.argmax()), boxes.shape)
    place = (slice(int(y), int(y) + side), slice(int(x), int(x) + side))
    return Window(float(boxes[y, x]) / side**2, index, scale, place)


def _without_nan(value: Any) -> Any:
    """JSON has no nan: what could not be scored is null."""
    if isinstance(value, dict):
        return {key: _without_nan(each) for key, each in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
