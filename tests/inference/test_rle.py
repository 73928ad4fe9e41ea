"""Run lengths: what is packed decodes to the same masks, by COCO's definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from hmsa.inference.rle import class_runs, coco, pack_runs


def unpack(text: str) -> list[int]:
    """One character at a time, as the definition has it."""
    runs: list[int] = []
    value = shift = 0
    for character in text:
        digit = ord(character) - 48
        value |= (digit & 31) << shift
        shift += 5
        if not digit & 32:
            if digit & 16:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs


def mask_of(runs, height, width):
    values = np.arange(len(runs)) % 2
    return np.repeat(values, runs).reshape(width, height).T.astype(bool)


SHAPES = array_shapes(min_dims=2, max_dims=2, max_side=12)


@given(arrays(np.uint8, SHAPES, elements=st.integers(0, 3)))
def test_masks_come_back(label):
    found = class_runs(label)
    assert sorted(found) == sorted(set(label.ravel().tolist()))
    for value, runs in found.items():
        assert runs.sum() == label.size
        assert (runs[1:] > 0).all(), "only the first run may be empty"
        assert unpack(pack_runs(runs)) == runs.tolist()
        assert (mask_of(runs, *label.shape) == (label == value)).all()


@given(st.lists(st.integers(0, 2**31), min_size=1, max_size=9))
def test_counts_of_any_size_come_back(runs):
    assert unpack(pack_runs(np.array(runs, np.int64))) == runs


@pytest.mark.parametrize(
    ("runs", "text"),
    # by hand: 5 is the digit 5; 16 needs two, for the sixteens say minus; 4 - 1 = 3, 1 - 20 = -19
    [([5], "5"), ([16], "`0"), ([0, 1], "01"), ([1, 1, 2, 4], "1123"), ([1, 20, 3, 1], "1d03]O")],
)
def test_known_texts(runs, text):
    assert pack_runs(np.array(runs, np.int64)) == text


def test_a_coco_file():
    label = np.array([[1, 1, 0], [2, 1, 0]], np.uint8)
    found = coco(label, "a.jpg", ["sky", "road", "post"])
    assert found["images"] == [{"id": 1, "file_name": "a.jpg", "height": 2, "width": 3}]
    assert [c["name"] for c in found["categories"]] == ["sky", "road", "post"]
    one = found["annotations"][1]
    assert (one["id"], one["category_id"], one["area"], one["bbox"]) == (2, 1, 3, [0, 0, 2, 2])
    assert one["segmentation"]["size"] == [2, 3]
    assert unpack(one["segmentation"]["counts"]) == [0, 1, 1, 2, 2]
