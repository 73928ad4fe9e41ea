"""One pass over a labelled split: every fusion, every score, and where fusion mended a scale."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..checkpoint.files import GatePoint
from ..data.datasets import Dataset
from ..data.labels import IGNORE
from ..inference.predictor import Predictor
from ..inference.result import Prediction
from ..inference.tiles import Gate
from ..runs import InputError, Progress, replace
from .boundary import Boundary
from .calibration import Calibration
from .confusion import Confusion, InstanceConfusion

SHARES = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7)  # of an image, where finer scales are computed


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

    def columns(self) -> dict[str, list[float]]:
        """IoU of each class and the mean, by fusion."""
        return {name: [*each.iou().tolist(), each.miou()] for name, each in self.confusion.items()}

    def summary(self) -> dict[str, Any]:
        """The JSON object; scripts rely on its keys. What has no score is null."""
        own, names = self.confusion[self.own], self.names
        scores = {name: each.miou() for name, each in self.confusion.items()}
        single = {f"{scale:g}": scores.pop(f"{scale:g}") for scale in self.scales}
        of_own: dict[str, Any] = {
            "iou": _named(names, own.iou()),
            "accuracy": own.accuracy(),
            "mean_accuracy": own.mean_accuracy(),
            "weighted_iou": own.weighted_iou(),
            "boundary": {"f1": self.boundary.mean_f1(), "iou": self.boundary.mean_iou()},
            "calibration": {"ece": self.calibration.ece()},
        }
        if groups := self.dataset.categories:
            place = {k: number for number, ids in enumerate(groups.values()) for k in ids}
            merged = own.grouped([place[k] for k in range(len(names))])
            of_own["category_iou"] = _named(groups, merged.iou())
        if self.instances:
            each = _named(names, self.instances.iou())
            of_own["instance_iou"] = {"mean": self.instances.miou(), "class": each}
        summary = {"miou": {"single": single} | scores, "images": len(self.mious)}
        summary |= {key: {self.own: value} for key, value in of_own.items()}
        if self.weights is not None:
            rows = zip(names, self.weights, strict=True)
            summary["weight"] = {name: _named(single, row) for name, row in rows}
        plain: dict[str, Any] = json.loads(json.dumps(summary), parse_constant=lambda _: None)
        return plain


def _named(names: Iterable[str], scores: Tensor | NDArray[np.float64]) -> dict[str, float]:
    return dict(zip(names, scores.tolist(), strict=True))


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


def writer(dataset: Dataset, folder: Path) -> Callable[[int, Prediction], None]:
    """A function that writes a prediction in the dataset's own label values, named like its image.

    Raises InputError for two images of one name, or labels that are colours.
    """
    stem, count = Counter(pair.image.stem for pair in dataset.pairs).most_common(1)[0]
    if count > 1 or dataset.labels.encoding != "index":
        why = f"{count} images are named {stem}" if count > 1 else "its labels are colours"
        raise InputError(f"no submission of {dataset.source}, split {dataset.split}: {why}")

    def write(index: int, prediction: Prediction) -> None:
        image = Image.fromarray(dataset.labels.to_raw(prediction.label))
        file = folder / f"{dataset.pairs[index].image.stem}.png"
        replace(file, lambda temporary: image.save(temporary, format="PNG"))

    return write


def score(predictor: Predictor, dataset: Dataset, rank: int = 0, processes: int = 1) -> Confusion:
    """The fused prediction alone, on this process's share of the images."""
    confusion = Confusion(len(dataset.labels.names))
    for index in range(rank, len(dataset), processes):
        image, label = dataset.read(index)
        confusion.add(label, predictor(image).label)
    return confusion


def gate_curve(
    predictor: Predictor, dataset: Dataset, shares: Sequence[float] = SHARES
) -> list[GatePoint]:
    """What each share of the finer scales costs and reaches; every tile is computed for real."""
    before, pixels = predictor.gate, 0
    shares = sorted({0.0, *shares, 1.0})
    confusion = {share: Confusion(len(dataset.labels.names)) for share in shares}
    cost, same = dict.fromkeys(shares, 0.0), dict.fromkeys(shares, 0)
    with Progress("gate", len(dataset)) as progress:
        for index in range(len(dataset)):
            image, label = dataset.read(index)
            predictor.gate = None
            whole = predictor(image).label
            pixels += whole.size
            for share in shares:
                predictor.gate = Gate(share)
                prediction = predictor(image)
                confusion[share].add(label, prediction.label)
                cost[share] += prediction.cost / len(dataset)
                same[share] += int((prediction.label == whole).sum())
            progress.advance()
    predictor.gate = before
    return [
        GatePoint(share=s, cost=cost[s], miou=confusion[s].miou(), agreement=same[s] / pixels)
        for s in shares
    ]


def _mended(prediction: Prediction, label: NDArray[np.uint8], scale: float, index: int) -> Window:
    """The square of this image where the fused label is right most where `scale` is wrong."""
    gain = (prediction.label == label) * 1.0 - (prediction.single[scale] == label)
    side = max(1, min(label.shape) // 3)
    sums = np.pad(np.cumsum(np.cumsum(gain * (label != IGNORE), 0), 1), ((1, 0), (1, 0)))
    boxes = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    y, x = (int(place) for place in np.unravel_index(boxes.argmax(), boxes.shape))
    place = (slice(y, y + side), slice(x, x + side))
    return Window(float(boxes[y, x]) / side**2, index, scale, place)
