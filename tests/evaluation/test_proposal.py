"""Proposed thresholds, against counts by hand."""

from __future__ import annotations

import io

import numpy as np
import pytest
from rich.console import Console

from hmsa.config.options import Rules
from hmsa.data.datasets import open_dataset
from hmsa.data.stretch import Stretch
from hmsa.evaluation.proposal import calibrate, propose
from hmsa.inference.result import Prediction


def test_precision_on_held_out_images(folder_dataset):
    """Predicted water with 200 is right on all of 4 pixels, with 100 on 2 of 4."""
    path = folder_dataset({"a": np.array([[1, 1, 1, 1, 1, 1, 2, 2, 255]], np.uint8)})

    def predictor(image):
        assert image.shape == (1, 9, 3)
        confidence = np.array([[200] * 4 + [100] * 4 + [50]], np.uint8)
        return Prediction(np.ones((1, 9), np.uint8), confidence)

    predictor.stretch = Stretch()
    held_out = calibrate(predictor, open_dataset(path, "train"))
    assert held_out.counts.sum() == 8
    counts = np.zeros((3, 256), np.int64)
    counts[1, [100, 200]] = 6, 4
    for target, lowest in ((0.95, 0.7843), (0.75, 0.3921)):
        rules = Rules(keep=0.4, precision_target=target)
        found = propose(("land", "water", "road"), counts, rules, held_out)
        assert [*found.thresholds["precision"].values()] == [1, lowest, 1]
        assert found.unreached == ["land", "road"]
        assert found.thresholds["quantile"]["water"] == 0.7843
    kept = found.kept()
    assert [kept[rule]["all"] for rule in kept] == pytest.approx([0.4, 0.4, 1])
    assert kept["fixed"]["class"] == {"land": None, "water": 0.4, "road": None}
    console = Console(width=200, file=io.StringIO())
    console.print(found.table(rules, "lake, split val"))
    text = " ".join(console.file.getvalue().split())
    assert "never" in text
    assert "precision 75% on lake, split val" in text
