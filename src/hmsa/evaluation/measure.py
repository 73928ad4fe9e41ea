"""One pass over a labelled split: every fusion, every score, and where fusion mended a scale."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
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

Bytes = NDArray[np.uint8]
SHARES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)  # of an image, where finer scales are computed


@dataclass(frozen=True)
class Window:
    """A square of one image where fusion is right and one scale is wrong."""

    gained: float  # share of its pixels that fusion mended, less those that it spoiled
    index: int
    scale: float
    place: tuple[slice, slice]


class Evaluation:
    """Scores of a network with `scales` on `dataset`, of its `own` fusion but for `confusion`: for
    each scale ("0.5"), "average", "max" and `own`. `mious`: of each image."""

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
        self.weights = torch.zeros(k, len(scales), dtype=torch.float64)  # sums by true class

    def add(self, index: int, label: Bytes, prediction: Prediction) -> None:
        """label `[H,W]`: the truth of image `index`, whose prediction has all details."""
        alone = Confusion(len(self.names))
        alone.add(label, prediction.label)
        self.mious.append(alone.miou())
        single = {f"{scale:g}": predicted for scale, predicted in prediction.single.items()}
        for name, predicted in (single | prediction.pooled | {self.own: prediction.label}).items():
            self.confusion[name].add(label, predicted)
        self.boundary.add(label, prediction.label)
        self.calibration.add(label, prediction.label, prediction.confidence8)
        if self.instances and (ids := self.dataset.read_instances(index)) is not None:
            self.instances.add(label, prediction.label, ids)
        for column, weight in enumerate(prediction.weights.values()):
            sums = np.bincount(label.ravel(), weight.ravel(), minlength=256)
            self.weights[:, column] += torch.from_numpy(sums)[: len(self.names)]
        self.windows += [_mended(prediction, label, scale, index) for scale in self.scales]

    def mean_weights(self) -> Tensor:
        """Mean effective weight of each scale on each true class `[K,S]`."""
        return self.weights / self.confusion[self.own].matrix.sum(1, keepdim=True)

    def summary(self) -> dict[str, Any]:
        """The JSON object; scripts rely on its keys. What has no score is nan."""

        def of(names: Iterable[str], scores: Tensor) -> dict[str, float]:
            return dict(zip(names, scores.tolist(), strict=True))

        own, boundary = self.confusion[self.own], self.boundary
        miou: dict[str, Any] = {name: each.miou() for name, each in self.confusion.items()}
        single = {f"{scale:g}": miou.pop(f"{scale:g}") for scale in self.scales}
        scores: dict[str, Any] = {
            "iou": of(self.names, own.iou()),
            "accuracy": own.accuracy(),
            "mean_accuracy": float(own.recall().nanmean()),
            "weighted_iou": own.weighted_iou(),
            "boundary": of(("f1", "iou"), torch.stack([boundary.f1(), boundary.iou()]).nanmean(1)),
            "calibration": {"ece": self.calibration.ece()},
        }
        if groups := self.dataset.categories:
            merged = own.grouped([*groups.values()])
            scores |= {"category_iou": of(groups, merged.iou()), "category_miou": merged.miou()}
        if self.instances:
            iou = self.instances.iou()
            scores["instance_iou"] = {"mean": float(iou.nanmean()), "class": of(self.names, iou)}
        summary = {"miou": {"single": single, **miou}, "images": len(self.mious)}
        summary |= {name: {self.own: score} for name, score in scores.items()}
        if self.weights.any():
            rows = zip(self.names, self.mean_weights(), strict=True)
            summary["weight"] = {name: of(single, weights) for name, weights in rows}
        return summary


def measure(predictor: Predictor, dataset: Dataset, submission: Path | None = None) -> Evaluation:
    """One pass over the split. submission: folder for predictions in the dataset's own label
    values, named like the images. Raises InputError where its labels are colours or, but for a
    submission, nothing is labelled, and where the network's output is no number."""
    if submission and dataset.labels.encoding != "index":
        raise InputError(f"no submission of {dataset.source}: its labels are colours; leave it out")
    if submission:
        dataset.frequencies()  # finds bad labels before the work
    else:
        dataset.require_labels()
    dataset = dataset.stretched(predictor.stretch)
    found = Evaluation(dataset, predictor.scales, predictor.model.fusion)
    for index, image, label in read_all(dataset, "evaluate"):
        prediction = predictor(image, detail=True)
        if not prediction.confidence8.all():  # the highest of K probabilities is at least 1 / K
            raise InputError(
                f"{dataset.pairs[index].image}: the network's output is not a number there; try "
                "--precision fp32, or another checkpoint"
            )
        found.add(index, label, prediction)
        if submission:
            raw = Image.fromarray(dataset.labels.to_raw(prediction.label))
            file = submission / f"{dataset.pairs[index].name}.png"
            replace(file, functools.partial(raw.save, format="PNG"))
    return found


def read_all(dataset: Dataset, what: str) -> Iterator[tuple[int, Bytes, Bytes]]:
    """Number, image and label of every pair, as `Dataset.read`; what: named beside the progress."""
    with Progress(what, len(dataset)) as progress:
        for index in range(len(dataset)):
            yield index, *dataset.read(index)
            progress.advance()


def score(
    predictor: Predictor, dataset: Dataset, indices: Iterable[int] | None = None,
    seen: Callable[[int, Bytes, Bytes, Bytes], None] = lambda *_: None,
) -> Confusion:  # fmt: skip
    """The fused prediction alone; indices: of the images, default: all; seen: is called with the
    index, image, label and prediction of each."""
    confusion = Confusion(len(dataset.labels.names))
    for index in range(len(dataset)) if indices is None else indices:
        image, label = dataset.read(index)
        predicted = predictor(image).label
        confusion.add(label, predicted)
        seen(index, image, label, predicted)
    return confusion


def gate_curve(predictor: Predictor, dataset: Dataset) -> list[GatePoint]:
    """What each share of the finer scales costs and reaches; the predictor comes without a gate."""
    dataset = dataset.stretched(predictor.stretch)
    confusion = [Confusion(len(dataset.labels.names)) for _ in SHARES]
    sums = np.zeros((len(SHARES), 2))  # cost and agreement of each image
    for _, image, label in read_all(dataset, "gate"):
        whole = predictor(image).label
        for place, share in enumerate(SHARES):
            predictor.gate = Gate(share)
            prediction = predictor(image)
            confusion[place].add(label, prediction.label)
            sums[place] += prediction.cost, (prediction.label == whole).mean()
        predictor.gate = None
    means = (sums / len(dataset)).tolist()
    return [
        GatePoint(share=share, cost=cost, miou=each.miou(), agreement=agreement)
        for share, each, (cost, agreement) in zip(SHARES, confusion, means, strict=True)
    ]


def _mended(prediction: Prediction, label: Bytes, scale: float, index: int) -> Window:
    """The square of this image where the fused label is right most where `scale` is wrong."""
    gain = (prediction.label == label) * 1.0 - (prediction.single[scale] == label)
    side = max(1, min(label.shape) // 3)
    sums = np.pad(np.cumsum(np.cumsum(gain * (label != IGNORE), 0), 1), ((1, 0), (1, 0)))
    boxes = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    y, x = (int(place) for place in np.unravel_index(boxes.argmax(), boxes.shape))
    return Window(boxes.max() / side**2, index, scale, np.s_[y : y + side, x : x + side])
