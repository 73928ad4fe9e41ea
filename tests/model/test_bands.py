"""Rows made when asked for are the rows of the whole."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hmsa.model import HMSA
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


@pytest.mark.parametrize("head", ["plain", "ocr", "deeplab"])
@pytest.mark.parametrize("size", [(64, 96), (137, 61), (1, 1)])
@pytest.mark.parametrize("scales", [(0.5, 1, 2), (0.3, 1.5), (1,)])
def test_the_chain_in_bands_is_the_chain(head, size, scales):
    torch.manual_seed(0)
    model = HMSA(4, "mobilenetv3_small_050", head=head, width=8)
    with torch.no_grad():
        model.train()(torch.rand(2, 3, 64, 64), (0.5, 1))
    model = model.double().eval()
    image = torch.rand(1, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        whole = model(image, scales).logits
        node = model.banded(image, scales, size)
        rows = [node.rows(*band) for band in bands(size[0], 19)]
    torch.testing.assert_close(torch.cat(rows, 2), whole, atol=1e-9, rtol=0)


def test_ocr_by_bands_is_ocr():
    """With a gradient to come it is computed whole, without one in bands: to the same result."""
    torch.manual_seed(0)
    model = HMSA(5, "mobilenetv3_small_050", head="ocr", width=8).double().eval()
    image = torch.rand(1, 3, 300, 40, dtype=torch.float64)  # 75 rows on the trunk's grid
    whole = model(image, (0.5, 1)).logits
    with torch.no_grad():
        banded = model(image, (0.5, 1)).logits
    torch.testing.assert_close(banded, whole, atol=1e-9, rtol=0)
