"""Rows made when asked for are the rows of the whole."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from hmsa.model.bands import Resized, Whole, bands
from hmsa.model.heads import resize

side = st.integers(1, 40)


@given(st.tuples(side, side), st.tuples(side, side), st.data())
def test_rows_of_a_resized_map(small, large, data):
    maps = torch.randn(1, 2, *small, dtype=torch.float64)
    start = data.draw(st.integers(0, large[0] - 1))
    stop = data.draw(st.integers(start + 1, large[0]))
    node = Resized(Whole(maps), large)
    expected = resize(maps, large)[..., start:stop, :]
    torch.testing.assert_close(node.rows(start, stop), expected, atol=1e-9, rtol=0)


@given(st.integers(1, 200), st.integers(1, 64))
def test_bands_cover_everything_once(height, rows):
    cuts = list(bands(height, rows))
    assert [row for start, stop in cuts for row in range(start, stop)] == list(range(height))
    assert all(stop - start <= rows for start, stop in cuts)
