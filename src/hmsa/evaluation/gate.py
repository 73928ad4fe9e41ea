"""What leaving finer scales out saves and costs, measured for `--budget`."""

from __future__ import annotations

from collections.abc import Sequence

from ..checkpoint.files import GatePoint
from ..data.datasets import Dataset
from ..inference.predictor import Predictor
from ..model.gate import Gate
from ..runs import Progress
from .confusion import Confusion

SHARES = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7)  # of an image, where finer scales are computed


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
