"""Masks in the COCO file: they come back by COCO's own definition."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from hmsa.inference.result import Prediction
from hmsa.inference.writer import write_coco

pytest.importorskip("pycocotools")
NAMES = ["sky", "road", "post", "roof"]


def unpack(text: str) -> list[int]:
    """Run lengths, one character at a time, as maskApi.h of the COCO API defines them."""
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


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    file = tmp_path_factory.mktemp("coco") / "a.json"

    def coco(label):
        write_coco(file, Prediction(label, label), "a.jpg", NAMES)
        return json.loads(file.read_text())

    return coco


SHAPES = array_shapes(min_dims=2, max_dims=2, max_side=12)


@given(label=arrays(np.uint8, SHAPES, elements=st.integers(0, 3)))
def test_masks_come_back(coco, label):
    found = coco(label)["annotations"]
    assert [each["category_id"] for each in found] == sorted(set(label.ravel().tolist()))
    for each in found:
        runs = unpack(each["segmentation"]["counts"])
        mask = label == each["category_id"]
        assert (mask_of(runs, *label.shape) == mask).all()
        assert each["area"] == mask.sum()
        left, top, width, height = map(int, each["bbox"])
        assert mask[top : top + height, left : left + width].sum() == mask.sum()


def test_a_coco_file(coco):
    found = coco(np.array([[1, 1, 0], [2, 1, 0]], np.uint8))
    assert found["images"] == [{"id": 1, "file_name": "a.jpg", "height": 2, "width": 3}]
    assert [c["name"] for c in found["categories"]] == NAMES
    one = found["annotations"][1]
    assert (one["id"], one["category_id"], one["area"], one["bbox"]) == (2, 1, 3, [0, 0, 2, 2])
    assert one["segmentation"]["size"] == [2, 3]
    assert unpack(one["segmentation"]["counts"]) == [0, 1, 1, 2, 2]
