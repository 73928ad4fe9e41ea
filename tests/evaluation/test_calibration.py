from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hmsa.evaluation.calibration import Calibration


def drawn(seed, classes=3, pixels=200):
    random = np.random.default_rng(seed)
    label, predicted = random.integers(0, classes, (2, pixels)).astype(np.uint8)
    label[random.random(pixels) < 0.2] = 255
    edges = [0, 1, 17, 18, 101, 102, 103, 254, 255]  # of bins, and beside them
    confidence = random.choice([*edges, *random.integers(0, 256, 20)], pixels)
    return label, predicted, confidence.astype(np.uint8)


def counted(label, predicted, confidence):
    score = Calibration(3)
    score.add(*map(torch.from_numpy, (label, predicted, confidence)))
    return score


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 7, 10, 15, 51, 255, 300]))
def test_equals_the_definition_pixel_by_pixel(seed, bins):
    label, predicted, confidence = drawn(seed)
    rows: list[list[tuple[int, bool]]] = [[] for _ in range(bins)]
    for t, p, v in zip(label.tolist(), predicted.tolist(), confidence.tolist(), strict=True):
        if t != 255:
            # The bin (b / bins, (b + 1) / bins] that v / 255 lies in, compared without rounding
            rows[next(b for b in range(bins) if v * bins <= (b + 1) * 255)].append((v, t == p))
    total, error = sum(map(len, rows)), 0.0
    claimed, accuracy, pixels = counted(label, predicted, confidence).reliability(bins)
    for b, row in enumerate(rows):
        assert pixels[b] == len(row)
        if not row:
            assert claimed[b].isnan()
            assert accuracy[b].isnan()
            continue
        mean, right = np.mean([v / 255 for v, _ in row]), np.mean([r for _, r in row])
        assert claimed[b] == pytest.approx(mean, abs=1e-9)
        assert accuracy[b] == pytest.approx(right, abs=1e-9)
        error += len(row) / total * abs(mean - right)
    assert counted(label, predicted, confidence).ece(bins) == pytest.approx(error, abs=1e-9)


def test_calibrated_has_no_error_and_overconfident_has():
    confidence = np.full(100, 204, np.uint8)  # 0.8
    label, predicted = np.zeros((2, 100), np.uint8)
    predicted[:20] = 1
    assert counted(label, predicted, confidence).ece() == pytest.approx(0, abs=1e-12)
    predicted[:60] = 1
    assert counted(label, predicted, confidence).ece() == pytest.approx(0.4)


@given(st.integers(0, 2**32 - 1))
def test_risk_and_coverage(seed):
    label, predicted, confidence = drawn(seed)
    known = label != 255
    share, accuracy = counted(label, predicted, confidence).risk_coverage()
    assert share[0] == 1
    assert (share.diff() <= 0).all(), "a higher threshold keeps no more"
    for v in (0, 1, 17, 102, 254, 255):
        kept = known & (confidence >= v)
        assert share[v] == pytest.approx(kept.sum() / known.sum())
        right = (label == predicted)[kept]
        expected = right.mean() if right.size else math.nan
        assert accuracy[v] == pytest.approx(expected, nan_ok=True)
