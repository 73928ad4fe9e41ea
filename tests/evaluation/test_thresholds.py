"""Thresholds by rule: made-up counts, worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hmsa.evaluation.calibration import precise, surest, threshold


def test_a_number_keeps_its_confidence_and_nothing_below():
    numbers = [threshold(v) for v in range(256)]
    assert np.searchsorted(np.arange(256) / 255, numbers).tolist() == list(range(256))
    assert (numbers[0], numbers[255]) == (0, 1)


def test_precision_by_hand():
    """Class 0: of the pixels from 250 on 9 in 10 are right, from 200 on 18 in 20, from 100 on 20
    in 30. Class 1 is never right, nothing was taken for class 2, class 3 dips and comes back."""
    counts = torch.zeros(4, 256, 2, dtype=torch.int64)
    counts[0, 250], counts[0, 200], counts[0, 100] = torch.tensor([[1, 9], [1, 9], [8, 2]])
    counts[1, 255] = torch.tensor([5, 0])
    counts[3, 240], counts[3, 230], counts[3, 220] = torch.tensor([[0, 1], [1, 0], [0, 8]])
    assert precise(counts, 0.9) == [threshold(200), None, None, threshold(220)]
    assert precise(counts, 0.91) == [None, None, None, threshold(240)]
    assert precise(counts, 0.6) == [threshold(100), None, None, threshold(220)]


def test_surest_by_hand():
    counts = torch.zeros(3, 256, dtype=torch.int64)
    counts[0, 255], counts[0, 128], counts[0, 3] = 3, 3, 24
    counts[1, 7] = 1
    assert surest(counts, 0.1) == [1, threshold(7), 0]
    assert surest(counts, 0.101) == [threshold(128), threshold(7), 0]
    assert surest(counts, 0.5) == [threshold(3), threshold(7), 0]


@given(st.lists(st.integers(0, 255), min_size=1, max_size=60), st.floats(0.01, 1))
def test_surest_keeps_enough_and_no_step_more(values, share):
    counts = torch.bincount(torch.tensor(values), minlength=256)[None]
    lowest = np.searchsorted(np.arange(256) / 255, surest(counts, share)[0])
    kept = (np.array(values) >= lowest).mean()
    above = (np.array(values) > lowest).mean()
    assert kept >= share > above or kept == pytest.approx(share)
