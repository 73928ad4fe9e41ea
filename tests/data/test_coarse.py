"""Coarse labels that also count around where they were drawn."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from hmsa.data.coarse import grown

LABELS = arrays(
    np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.sampled_from([0, 3])
)


@given(LABELS, st.integers(0, 99), st.integers(0, 6))
def test_the_nearest_within_reach_speaks(label, seed, reach):
    label[np.random.default_rng(seed).random(label.shape) < 0.8] = 255
    found = grown(label, reach)
    drawn = np.argwhere(label != 255)
    for place in np.ndindex(label.shape):
        far = ((drawn - place) ** 2).sum(1)
        if not len(drawn) or far.min() > reach**2:
            assert found[place] == 255
        else:
            assert found[place] in {label[tuple(at)] for at in drawn[far == far.min()]}
