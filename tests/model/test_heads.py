"""Maps made in bands of rows are the rows of the whole."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from hmsa.model import HMSA
from hmsa.model.fusion import resize
from hmsa.model.heads import resize_rows

side = st.integers(1, 40)


@given(st.tuples(side, side), st.tuples(side, side), st.data())
def test_rows_of_a_resized_map(small, large, data):
    maps = torch.randn(1, 2, *small, dtype=torch.float64)
    start = data.draw(st.integers(0, large[0] - 1))
    stop = data.draw(st.integers(start + 1, large[0]))
    expected = resize(maps, large)[..., start:stop, :]
    torch.testing.assert_close(resize_rows(maps, large, start, stop), expected, atol=1e-9, rtol=0)


def test_ocr_by_bands_is_ocr():
    """With a gradient to come it is computed whole, without one in bands: to the same result."""
    torch.manual_seed(0)
    model = HMSA(5, "mobilenetv3_small_050", head="ocr", width=8).double().eval()
    image = torch.rand(1, 3, 300, 40, dtype=torch.float64)  # 75 rows on the trunk's grid
    whole = model(image, (0.5, 1)).logits
    with torch.no_grad():
        banded = model(image, (0.5, 1)).logits
    torch.testing.assert_close(banded, whole, atol=1e-9, rtol=0)
