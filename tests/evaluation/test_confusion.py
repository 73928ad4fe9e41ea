from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hmsa.evaluation.boundary import Boundary
from hmsa.evaluation.calibration import Calibration
from hmsa.evaluation.confusion import Confusion, InstanceConfusion


def same(score, expected):
    """Equal to 1e-9, and nan at the same places."""
    np.testing.assert_allclose(score, expected, rtol=0, atol=1e-9)


def test_by_hand():
    confusion = Confusion(3)
    confusion.add(torch.tensor([[0, 0, 1], [1, 1, 255]]), torch.tensor([[0, 1, 1], [1, 0, 2]]))
    assert confusion.matrix.tolist() == [[1, 1, 0], [1, 2, 0], [0, 0, 0]]
    same(confusion.iou(), [1 / 3, 2 / 4, math.nan])
    same(confusion.miou(), (1 / 3 + 1 / 2) / 2)
    same(confusion.accuracy(), 3 / 5)
    same(confusion.recall(), [1 / 2, 2 / 3, math.nan])
    same(confusion.weighted_iou(), 2 / 5 * 1 / 3 + 3 / 5 * 1 / 2)


def test_absent_classes():
    """Class 0 is right, 1 only predicted, 2 only true, 3 nowhere."""
    confusion = Confusion(4)
    confusion.add(torch.tensor([0, 0, 0, 2]), torch.tensor([0, 0, 1, 0]))
    same(confusion.iou(), [2 / 4, 0, 0, math.nan])
    same(confusion.precision(), [2 / 3, 0, math.nan, math.nan])
    same(confusion.recall(), [2 / 3, math.nan, 0, math.nan])
    same(confusion.miou(), (2 / 4 + 0 + 0) / 3)
    same(confusion.weighted_iou(), 3 / 4 * 2 / 4)


def test_nothing_to_average():
    confusion = Confusion(2)
    confusion.add(torch.full((2, 2), 255), torch.zeros(2, 2, dtype=torch.int64))
    scores = ("miou", "accuracy", "weighted_iou")
    assert all(math.isnan(getattr(confusion, score)()) for score in scores)


def maps(classes, pictures=1, side=7):
    """label and predicted, uint8 `[B,H,W]`: some classes absent, some pixels ignored."""

    def draw(seed):
        random = np.random.default_rng(seed)
        present = random.choice(classes, random.integers(1, classes + 1), replace=False)
        shape = (pictures, *random.integers(1, side + 1, 2))
        label = random.choice(present, shape).astype(np.uint8)
        predicted = np.where(random.random(shape) < 0.5, label, random.integers(0, classes, shape))
        label[random.random(shape) < random.choice([0, 0.3, 1], p=[0.4, 0.5, 0.1])] = 255
        return torch.from_numpy(label), torch.from_numpy(predicted.astype(np.uint8))

    return st.integers(0, 2**32 - 1).map(draw)


def ratio(a, b):
    return a / b if b else math.nan


def mean(values):
    valid = [v for v in values if not math.isnan(v)]
    return ratio(sum(valid), len(valid))


@given(maps(5), st.sampled_from([torch.uint8, torch.int16, torch.int64]))
def test_every_score_equals_a_slow_loop(drawn, dtype):
    label, predicted = drawn
    confusion = Confusion(5)
    confusion.add(label.to(dtype), predicted.to(dtype))
    every = zip(label.flatten().tolist(), predicted.flatten().tolist(), strict=True)
    pixels = [(t, p) for t, p in every if t != 255]
    precision, recall, iou, share = [], [], [], []
    for k in range(5):
        both = sum(t == k and p == k for t, p in pixels)
        true, guessed = sum(t == k for t, _ in pixels), sum(p == k for _, p in pixels)
        precision.append(ratio(both, guessed))
        recall.append(ratio(both, true))
        iou.append(ratio(both, sum(k in pair for pair in pixels)))
        share.append(ratio(true, len(pixels)))
    same(confusion.precision(), precision)
    same(confusion.recall(), recall)
    same(confusion.iou(), iou)
    same(confusion.miou(), mean(iou))
    same(confusion.accuracy(), ratio(sum(t == p for t, p in pixels), len(pixels)))
    weighted = sum(s * i for s, i in zip(share, iou, strict=True) if s)
    same(confusion.weighted_iou(), weighted if pixels else math.nan)


@given(maps(4), st.lists(st.integers(0, 2), min_size=4, max_size=4))
def test_grouped_is_as_if_counted_in_groups(drawn, groups):
    label, predicted = drawn
    whole = Confusion(4)
    whole.add(label, predicted)
    table = torch.full((256,), 255)
    table[:4] = torch.tensor(groups)
    direct = Confusion(max(groups) + 1)
    direct.add(table[label.long()], table[predicted.long()])
    members = [[k for k in range(4) if groups[k] == group] for group in range(max(groups) + 1)]
    assert torch.equal(whole.grouped(members).matrix, direct.matrix)


SCORES = {
    "confusion": lambda: Confusion(4),
    "boundary": lambda: Boundary(4, tolerance=0.2, width=0.1),
    "instances": lambda: InstanceConfusion([math.nan, 5, 5, 5]),
    "calibration": lambda: Calibration(4),
}


def feed(score, label, predicted):
    beside = ()
    if isinstance(score, InstanceConfusion):
        beside = (torch.arange(label.numel()).view(label.shape) // 3,)
    if isinstance(score, Calibration):
        beside = ((predicted * 37 + 11),)
    score.add(label, predicted, *beside)


def tensors(score):
    """What is summed over processes."""
    if isinstance(score, InstanceConfusion):
        return [score.shares, score.confusion.matrix]
    return [value for value in vars(score).values() if isinstance(value, torch.Tensor)]


@pytest.mark.parametrize("name", SCORES)
@given(drawn=maps(4, pictures=3))
def test_counts_of_pictures_add_up(name, drawn):
    whole, parts = SCORES[name](), [SCORES[name]() for _ in range(3)]
    for part, label, predicted in zip(parts, *drawn, strict=True):
        feed(part, label, predicted)
        feed(whole, label, predicted)
    for total, *some in zip(tensors(whole), *map(tensors, parts), strict=True):
        torch.testing.assert_close(total, sum(some), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", SCORES)
def test_a_score_of_nothing_is_nan(name):
    score = SCORES[name]()
    feed(score, torch.full((4, 5), 255), torch.zeros(4, 5, dtype=torch.uint8))
    scores = {"boundary": ("f1", "iou"), "calibration": ("ece",)}.get(name, ("iou",))
    assert all(torch.as_tensor(getattr(score, each)()).isnan().all() for each in scores)
    assert not any(t.any() for t in tensors(score))


@pytest.mark.parametrize(("label", "predicted"), [([0, 26], [0, 0]), ([0, 1], [4, 1])])
def test_refuses_what_it_cannot_count(label, predicted):
    confusion = Confusion(4)
    with pytest.raises(ValueError, match="outside the 4 classes"):
        confusion.add(torch.tensor(label), torch.tensor(predicted))
    assert not confusion.matrix.any(), "nothing is half counted"


def test_anything_may_be_predicted_where_the_label_is_ignored():
    confusion = Confusion(2)
    confusion.add(torch.tensor([255, 255, 255, 1]), torch.tensor([255, 19, -1, 1]))
    assert confusion.matrix.tolist() == [[0, 0], [0, 1]]
