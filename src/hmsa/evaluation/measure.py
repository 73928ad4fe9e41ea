"""One pass over a labelled split: every fusion, every score, and where fusion mended a scale."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.datasets import Dataset
from ..data.labels import IGNORE
from ..inference.predictor import Predictor
from ..inference.result import Prediction
from ..runs import Progress
from .boundary import Boundary
from .calibration import Calibration
from .confusion import Confusion
from .instances import InstanceConfusion


@dataclass(frozen=True)
class Window:
    """A square of one image where fusion is right and one scale is wrong."""

    gained: float  # share of its pixels that fusion mended, less those that it spoiled
    index: int
    scale: float
    place: tuple[slice, slice]


class Evaluation:
    """Scores of a network with `scales` on `dataset`, in memory that does not grow with it.

    `confusion`: for each scale ("0.5"), "average", "max", and `own`, the network's own fusion. All
    other scores are of the own fusion. `mious`: of each image.
    """

    def __init__(self, dataset: Dataset, scales: Sequence[float], own: str) -> None:
        self.dataset, self.scales, self.own, self.names = dataset, scales, own, dataset.labels.names
        k = len(self.names)
        fusions = [*map("{:g}".format, scales), "average", "max", own]
        self.confusion = {name: Confusion(k) for name in fusions}
        self.boundary, self.calibration = Boundary(k), Calibration(k)
        complete = dataset.instance_sizes and all(pair.instances for pair in dataset.pairs)
        self.instances = InstanceConfusion(dataset.instance_sizes) if complete else None
        self.mious: list[float] = []
        self.windows: list[Window] = []
        self._weights = np.zeros((k, len(scales)))

    def add(self, index: int, label: NDArray[np.uint8], prediction: Prediction) -> None:
        """label `[H,W]`: the truth of image `index`, whose prediction has all details."""
        alone = Confusion(len(self.names))
        alone.add(label, prediction.label)
        self.mious.append(alone.miou())
        single = {f"{scale:g}": predicted for scale, predicted in prediction.single.items()}
        for name, predicted in (single | prediction.pooled | {self.own: prediction.label}).items():
            self.confusion[name].add(label, predicted)
        self.boundary.add(label, prediction.label)
        self.calibration.add(label, prediction.label, prediction.confidence)
        if self.instances and (ids := self.dataset.read_instances(index)) is not None:
            self.instances.add(label, prediction.label, ids)
        for column, weight in enumerate(prediction.weights.values()):
            sums = np.bincount(label.ravel(), weight.ravel(), minlength=256)
            self._weights[:, column] += sums[: len(self.names)]
        self.windows += [_mended(prediction, label, scale, index) for scale in self.scales]

    @property
    def weights(self) -> NDArray[np.float64] | None:
        """Mean effective weight of each scale on each true class `[K,S]`; None without weights."""
        pixels = self.confusion[self.own].matrix.sum(1, keepdim=True).numpy()
        with np.errstate(invalid="ignore"):
            return self._weights / pixels if self._weights.any() else None

    @property
    def categories(self) -> dict[str, float]:
        """IoU of each category of the dataset, if it has any."""
        groups = self.dataset.categories
        place = {k: number for number, ids in enumerate(groups.values()) for k in ids}
        own = self.confusion[self.own]
        scores = own.grouped([place[k] for k in sorted(place)]).iou().tolist() if groups else []
        return dict(zip(groups, scores, strict=True))

    def summary(self) -> dict[str, Any]:
        """The JSON object; scripts rely on its keys."""
        scores = {name: confusion.miou() for name, confusion in self.confusion.items()}
        single = {f"{scale:g}": scores.pop(f"{scale:g}") for scale in self.scales}
        own, boundary = self.confusion[self.own], self.boundary
        of_own: dict[str, Any] = {
            "iou": dict(zip(self.names, own.iou().tolist(), strict=True)),
            "accuracy": own.accuracy(),
            "mean_accuracy": own.mean_accuracy(),
            "weighted_iou": own.weighted_iou(),
            "boundary": {"f1": boundary.mean_f1(), "iou": boundary.mean_iou()},
            "calibration": {"ece": self.calibration.ece()},
        }
        if self.categories:
            of_own["category_iou"] = self.categories
        if self.instances:
            each = dict(zip(self.names, self.instances.iou().tolist(), strict=True))
            of_own["instance_iou"] = {"mean": self.instances.miou(), "class": each}
        summary = {"miou": {"single": single} | scores, "images": len(self.mious)}
        summary |= {key: {self.own: value} for key, value in of_own.items()}
        if self.weights is not None:
            scales = [f"{scale:g}" for scale in self.scales]
            rows = zip(self.names, self.weights.tolist(), strict=True)
            summary["weight"] = {n: dict(zip(scales, row, strict=True)) for n, row in rows}
        shown: dict[str, Any] = _without_nan(summary)
        return shown


def measure(
    predictor: Predictor,
    dataset: Dataset,
    each: Callable[[int, Prediction], object] | None = None,
) -> Evaluation:
    """One pass over the split; each: also called with the number and prediction of every image."""
    found = Evaluation(dataset, predictor.scales, predictor.model.fusion)
    with Progress("evaluate", len(dataset)) as progress:
        for index in range(len(dataset)):
            image, label = dataset.read(index)
            prediction = predictor(image, detail=True)
            found.add(index, label, prediction)
            if each:
                each(index, prediction)
            progress.advance()
    return found


def score(predictor: Predictor, dataset: Dataset, rank: int = 0, processes: int = 1) -> Confusion:
    """The fused prediction alone, on this process's share of the images."""
    confusion = Confusion(len(dataset.labels.names))
    for index in range(rank, len(dataset), processes):
        image, label = dataset.read(index)
        confusion.add(label, predictor(image).label)
    return confusion


def _mended(prediction: Prediction, label: NDArray[np.uint8], scale: float, index: int) -> Window:
    """The square of this image where the fused label is right most where `scale` is wrong."""
    gain = (prediction.label == label) * 1.0 - (prediction.single[scale] == label)
    side = max(1, min(label.shape) // 3)
    sums = np.pad(np.cumsum(np.cumsum(gain * (label != IGNORE), 0), 1), ((1, 0), (1, 0)))
    boxes = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    y, x = (int(place) for place in np.unravel_index(boxes.argmax(), boxes.shape))
    place = (slice(y, y + side), slice(x, x + side))
    return Window(float(boxes[y, x]) / side**2, index, scale, place)


def _without_nan(value: Any) -> Any:
    """JSON has no nan: what could not be scored is null."""
    if isinstance(value, dict):
        return {key: _without_nan(each) for key, each in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
