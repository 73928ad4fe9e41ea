"""Brush masks of Label Studio, held against a decoder that reads its format bit by bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from hmsa.data.brush import pack_mask, unpack_mask

MASKS = arrays.arrays(bool, arrays.array_shapes(min_dims=2, max_dims=2, max_side=40))


def plainly(packed):
    """All values that the bytes hold, one bit after the other; nothing shared with our code."""
    bits = [byte >> (7 - i) & 1 for byte in packed for i in range(8)]
    bits.reverse()

    def take(count):
        value = 0
        for _ in range(count):
            value = value * 2 + bits.pop()
        return value

    total, word = take(32), take(5) + 1
    sizes = [take(4) + 1 for _ in range(4)]
    values = []
    while len(values) < total:
        run = take(1)
        length = take(sizes[take(2)]) + 1
        values += [take(word)] * length if run else [take(word) for _ in range(length)]
    assert len(values) == total
    assert len(bits) < 8
    return values


def by_hand(values, sizes=(3, 4, 8, 16), literal=5):
    """Another encoder: pieces of `literal` values as they are, as drawn masks have them."""
    text = f"{len(values):032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in sizes)
    for at in range(0, len(values), literal):
        piece = values[at : at + literal]
        text += f"0{0:02b}{len(piece) - 1:0{sizes[0]}b}" + "".join(f"{v:08b}" for v in piece)
    text += "0" * (-len(text) % 8)
    return [int(text[i : i + 8], 2) for i in range(0, len(text), 8)]


@given(MASKS)
def test_what_is_packed_is_read_by_the_format(mask):
    values = np.array(plainly(pack_mask(mask))).reshape(*mask.shape, 4)
    assert (values == np.where(mask, 255, 0)[..., None]).all()


@given(MASKS)
def test_round_trip(mask):
    assert (unpack_mask(pack_mask(mask), mask.shape) == mask).all()


@given(MASKS, st.integers(1, 8))
def test_pieces_of_single_values(mask, literal):
    rgba = np.zeros((*mask.shape, 4), np.uint8)
    rgba[mask] = (12, 200, 7, 129)  # coloured and half transparent, as a brush may draw
    packed = by_hand(rgba.ravel().tolist(), literal=literal)
    assert (unpack_mask(packed, mask.shape) == mask).all()


def test_first_bytes_of_a_mask_that_label_studio_wrote():
    """3332x2527, empty above: its own export begins so (public data, an annotated cell)."""
    written = [
        2, 1, 233, 240, 57, 27, 255, 255, 255, 0, 255, 255, 224, 31, 255, 252, 3, 255, 255, 128,
        127, 255, 240, 15, 255, 254, 1, 255, 255, 192, 63, 255, 248, 7, 255,
    ]  # fmt: skip
    mask = np.zeros((2527, 3332), bool)
    mask[2000:, 1000:] = True
    assert pack_mask(mask)[: len(written)] == written
    assert (unpack_mask(pack_mask(mask), mask.shape) == mask).all()


@pytest.mark.parametrize(
    ("packed", "says"),
    [
        ([], "ends too early"),
        ("text", "not a list of bytes"),
        ([1, 300], "not a list of bytes"),
        (pack_mask(np.eye(9, dtype=bool))[:-9], "ends too early"),
        (pack_mask(np.zeros((4, 4), bool)), "has 64 values"),
        (by_hand([1] * 324)[:4] + by_hand([1] * 4)[4:], "ends too early"),
    ],
)
def test_damaged(packed, says):
    with pytest.raises(ValueError, match=says):
        unpack_mask(packed, (9, 9))
