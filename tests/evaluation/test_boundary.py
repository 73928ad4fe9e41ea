from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hmsa.evaluation.boundary import Boundary

ROAD, CAR = 0, 1


def ids(*rows):
    """Rows of characters -> `[H,W]`: digits are classes, a point is ignored."""
    return torch.tensor([[255 if c == "." else int(c) for c in row] for row in rows])


@st.composite
def blobs(draw, classes):
    """label, predicted `[H,W]` of patches rather than noise, so that there is an inside too."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    height, width = random.integers(1, 10, 2)

    def patches():
        size = random.integers(1, 5)
        coarse = random.integers(0, classes, (height // size + 1, width // size + 1))
        return np.kron(coarse, np.ones((size, size), np.int64))[:height, :width]

    label = patches()
    predicted = patches() if random.random() < 0.5 else np.roll(label, random.integers(-1, 2, 2))
    if random.random() < 0.7:
        label = np.where(patches() % 3 == 0, 255, label)
    return torch.from_numpy(label), torch.from_numpy(predicted)


def places(grid):
    return [(y, x) for y in range(grid.shape[0]) for x in range(grid.shape[1])]


def borders(grid, allowed):
    """Pixels with one of four neighbours in another class, both allowed."""
    return {
        (y, x)
        for y, x in places(grid)
        for b, a in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1))
        if 0 <= b < grid.shape[0] and 0 <= a < grid.shape[1]
        if allowed[y, x] and allowed[b, a] and grid[y, x] != grid[b, a]
    }


def slow_f1_counts(label, predicted, classes, tolerance):
    limit = (tolerance * math.hypot(*label.shape)) ** 2
    known = label != 255
    truth = torch.where(known, label, predicted)
    counts = np.zeros((classes, 4), np.int64)
    for column, mine, other in ((0, truth, predicted), (2, predicted, truth)):
        targets = borders(other, torch.ones_like(known))
        for y, x in borders(mine, known):
            met = any(
                other[b, a] == mine[y, x] and (b - y) ** 2 + (a - x) ** 2 < limit
                for b, a in targets
            )
            counts[mine[y, x], column] += 1
            counts[mine[y, x], column + 1] += met
    return counts


class TestF1:
    @given(blobs(11), st.sampled_from([0.0075, 0.1, 0.2, 0.37, 1.0]))
    def test_equals_distances_by_loops(self, drawn, tolerance):
        label, predicted = drawn
        score = Boundary(11, tolerance)
        score.add(label, predicted)
        expected = slow_f1_counts(label, predicted, 11, tolerance)
        assert score.counts[:, :4].tolist() == expected.tolist()

    @pytest.mark.parametrize(("shift", "expected"), [(0, 1), (4, 1), (5, 0), (9, 0)])
    def test_a_shift_counts_from_the_tolerance_on(self, shift, expected):
        label, predicted = torch.zeros(2, 30, 40, dtype=torch.uint8)
        label[:, 20:], predicted[:, 20 + shift :] = CAR, CAR
        score = Boundary(2, tolerance=0.1)  # of a diagonal of 50: nearer than 5 pixels
        score.add(label, predicted)
        assert score.f1().tolist() == [expected, expected]

    def test_by_hand(self):
        score = Boundary(3, tolerance=0.1)  # less than a pixel: the very same place
        score.add(ids("00001", "00001"), ids("01001", "00001"))
        # The true border is met, and a car too much has one of its own
        assert score.counts[:, :4].tolist() == [[2, 2, 5, 2], [2, 2, 3, 2], [0, 0, 0, 0]]
        assert score.f1()[:2].tolist() == pytest.approx([4 / 7, 4 / 5])
        assert score.f1()[2].isnan()

    def test_predicted_but_never_true_is_0_and_counts(self):
        score = Boundary(3)
        score.add(ids("0000"), ids("0011"))
        assert score.f1()[:2].tolist() == [0, 0]


class TestIgnored:
    """What was predicted is taken to be true there, and is not counted."""

    def test_a_border_that_runs_on_into_it_is_not_broken(self):
        label = ids("000111", "000111", "......", "......")
        for below in ("000111", "001111", "011111"):
            predicted = ids("000111", "000111", below, below)
            score = Boundary(2, tolerance=0.01, width=0.1)
            score.add(label, predicted)
            assert score.counts[:, :4].tolist() == [[2, 2, 2, 2]] * 2
            assert score.iou().tolist() == [1, 1]

    def test_its_rim_is_no_border(self):
        label = ids("00000", "00000", "00...", "00...")
        score = Boundary(2, 0.5)
        score.add(label, ids("00000", "00000", "00111", "00101"))
        assert not score.counts[:, :4].any()

    def test_a_border_hidden_in_it_is_met_by_one_beside_it(self):
        label = ids("000...111")
        score = Boundary(2, tolerance=0.2)  # nearer than 1.8 pixels
        score.add(label, ids("000000011"))
        assert score.counts[:, 2:4].tolist() == [[1, 1], [1, 1]], "one pixel beside"
        score.add(label, ids("000000001"))
        assert score.counts[:, 2:4].tolist() == [[2, 1], [2, 1]], "two pixels beside"
        assert not score.counts[:, 0].any(), "where it truly is, nobody knows"

    @given(blobs(4))
    def test_a_perfect_prediction_stays_perfect(self, drawn):
        label, hidden = drawn
        predicted = torch.where(label == 255, hidden, label)
        score = Boundary(4)
        score.add(label, predicted)
        for values in (score.f1(), score.iou()):
            assert set(values[~values.isnan()].tolist()) <= {1.0}


def slow_band(grid, allowed, reach):
    """Pixels whose square neighbourhood leaves the picture or has an allowed pixel of another
    class: what an erosion of the class's mask takes away."""
    height, width = grid.shape
    return {
        (y, x)
        for y, x in places(grid)
        if not all(
            0 <= b < height and 0 <= a < width and (grid[b, a] == grid[y, x] or not allowed[b, a])
            for b in range(y - reach, y + reach + 1)
            for a in range(x - reach, x + reach + 1)
        )
    }


def slow_band_counts(label, predicted, classes, width):
    reach = max(1, round(width * math.hypot(*label.shape)))
    known, everywhere = label != 255, torch.ones_like(label, dtype=torch.bool)
    truth = torch.where(known, label, predicted)
    counted = slow_band(truth, known, reach) | slow_band(predicted, known, reach)
    true, guessed = (slow_band(grid, everywhere, reach) for grid in (truth, predicted))
    counts = np.zeros((classes, 3), np.int64)
    for y, x in counted:
        if known[y, x]:
            at, right = (y, x), truth[y, x] == predicted[y, x]
            counts[truth[at], 0] += at in true and at in guessed and bool(right)
            counts[truth[at], 1] += at in true
            counts[predicted[at], 2] += at in guessed
    return counts


class TestIoU:
    @given(blobs(5), st.sampled_from([0.02, 0.1, 0.2, 0.5]))
    def test_equals_erosion_by_loops(self, drawn, width):
        label, predicted = drawn
        score = Boundary(5, width=width)
        score.add(label, predicted)
        assert score.counts[:, 4:].tolist() == slow_band_counts(label, predicted, 5, width).tolist()

    def test_by_hand(self):
        """A frame of 1 pixel, so that all but the middle of a mask of 3 x 3 is band."""
        score = Boundary(3, width=0.02)
        label = torch.zeros(7, 7, dtype=torch.uint8)
        predicted = label.clone()
        label[2:5, 2:5], predicted[2:5, 2:6] = CAR, CAR
        score.add(label, predicted)
        # Car: rings of 8 and 10, 7 of them in common. Road: around the ring and along the frame.
        assert score.counts[CAR, 4:].tolist() == [7, 8, 10]
        assert score.iou()[CAR] == pytest.approx(7 / 11)
        assert score.counts[ROAD, 4:].tolist() == [37, 40, 37]
        assert score.iou()[2].isnan()
        assert score.iou()[ROAD] == pytest.approx(37 / 40)

    def test_a_wider_band_is_the_whole_mask(self):
        label, predicted = ids("0011", "0011"), ids("0001", "0011")
        score = Boundary(2, width=1)
        score.add(label, predicted)
        assert score.iou().tolist() == pytest.approx([4 / 5, 3 / 4])
