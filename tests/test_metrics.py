from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hmsa.metrics import Confusion


def test_by_hand():
    confusion = Confusion(3)
    confusion.add(torch.tensor([[0, 0, 1], [1, 1, 255]]), torch.tensor([[0, 1, 1], [1, 0, 2]]))
    assert confusion.matrix.tolist() == [[1, 1, 0], [1, 2, 0], [0, 0, 0]]
    assert confusion.iou()[:2].tolist() == pytest.approx([1 / 3, 2 / 4])
    assert math.isnan(confusion.iou()[2]), "neither in truth nor prediction: left out"
    assert confusion.miou() == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert confusion.accuracy() == pytest.approx(3 / 5)


@given(st.integers(0, 99), st.integers(1, 5))
def test_pooling_equals_one_pass(seed, parts):
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(0, 5, (parts, 7, 7), generator=generator).to(torch.uint8)
    predicted = torch.randint(0, 4, (parts, 7, 7), generator=generator).to(torch.uint8)
    label[label == 4] = 255
    whole, pooled = Confusion(4), Confusion(4)
    whole.add(label, predicted)
    for a, b in zip(label, predicted, strict=True):
        pooled.add(a, b)
    assert torch.equal(whole.matrix, pooled.matrix)
    assert whole.matrix.sum() == (label != 255).sum()
    for k in range(4):
        both = ((label == k) & (predicted == k)).sum()
        either = (((label == k) | (predicted == k)) & (label != 255)).sum()
        assert whole.iou()[k] == pytest.approx(float(both / either))
