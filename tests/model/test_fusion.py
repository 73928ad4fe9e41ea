"""The invariants of the idea: what `fuse` and the chain must do whatever the network says."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hmsa.model import ScaleOutput, average, chain, effective_weights, fuse
from hmsa.model.fusion import known_weight, resize

sizes = st.tuples(st.integers(1, 23), st.integers(1, 23))
scale_lists = st.lists(
    st.sampled_from([0.25, 0.4, 0.5, 0.75, 1.0, 1.3, 1.5, 2.0, 3.0]), min_size=1, unique=True
)


def random_maps(scales, size, seed=0, classes=3) -> dict[float, ScaleOutput]:
    generator = torch.Generator().manual_seed(seed)
    maps = {}
    for s in scales:
        h, w = max(1, int(size[0] * s)), max(1, int(size[1] * s))
        maps[s] = ScaleOutput(
            torch.randn(1, classes, h, w, generator=generator),
            torch.rand(1, 1, h, w, generator=generator),
        )
    return maps


class TestFuse:
    @given(sizes, sizes, sizes)
    def test_attention_one_gives_lo(self, low, high, out):
        lo, hi = torch.randn(1, 3, *low), torch.randn(1, 3, *high)
        fused = fuse(lo, torch.ones(1, 1, *low), hi, out)
        torch.testing.assert_close(fused, resize(lo, out), atol=1e-5, rtol=0)

    @given(sizes, sizes, sizes)
    def test_attention_zero_gives_hi(self, low, high, out):
        lo, hi = torch.randn(1, 3, *low), torch.randn(1, 3, *high)
        fused = fuse(lo, torch.zeros(1, 1, *low), hi, out)
        torch.testing.assert_close(fused, resize(hi, out), atol=1e-5, rtol=0)

    def test_product_is_taken_before_resizing(self):
        """R(a * lo), not R(a) * R(lo): a hand-computed case in which the two differ."""
        lo = torch.tensor([[[[0.0, 4.0]]]])
        attention = torch.tensor([[[[1.0, 0.0]]]])
        fused = fuse(lo, attention, torch.zeros(1, 1, 1, 4), (1, 4))
        assert fused.abs().max() == 0  # a * lo is 0 everywhere; R(a) * R(lo) is 0.75 in the middle

    def test_against_numbers_by_hand(self):
        lo, hi = torch.full((1, 1, 1, 1), 10.0), torch.full((1, 1, 2, 2), 2.0)
        fused = fuse(lo, torch.full((1, 1, 1, 1), 0.25), hi, (2, 2))
        assert fused.tolist() == [[[[4.0, 4.0], [4.0, 4.0]]]]


class TestChain:
    @given(scale_lists, st.tuples(st.integers(1, 17), st.integers(1, 17)))
    def test_weights_sum_to_one(self, scales, size):
        weights = effective_weights(random_maps(scales, size), size)
        assert set(weights) == set(scales)
        total = sum(weights.values())
        assert total.shape == (1, 1, *size)
        torch.testing.assert_close(total, torch.ones_like(total), atol=1e-5, rtol=0)
        assert all(w.min() >= 0 for w in weights.values())

    def test_two_scales_are_one_fusion(self):
        maps = random_maps((0.5, 1.0), (12, 20))
        by_hand = fuse(maps[0.5].logits, maps[0.5].attention, maps[1.0].logits, (12, 20))
        torch.testing.assert_close(chain(maps, (12, 20)), by_hand, atol=0, rtol=0)

    def test_three_scales_by_hand(self):
        """2.0 is brought down to 1.0 first; then 0.5 is brought up."""
        maps = random_maps((0.5, 1.0, 2.0), (12, 20))
        inner = fuse(maps[1.0].logits, maps[1.0].attention, maps[2.0].logits, (12, 20))
        outer = fuse(maps[0.5].logits, maps[0.5].attention, inner, (12, 20))
        torch.testing.assert_close(chain(maps, (12, 20)), outer, atol=0, rtol=0)

    def test_order_given_does_not_matter(self):
        maps = random_maps((0.5, 1.0, 2.0), (9, 7))
        shuffled = {s: maps[s] for s in (2.0, 0.5, 1.0)}
        assert torch.equal(chain(maps, (9, 7)), chain(shuffled, (9, 7)))

    @pytest.mark.parametrize("favoured", [0.5, 1.0, 2.0])
    def test_attention_can_pick_any_single_scale(self, favoured):
        maps = {
            s: m._replace(attention=torch.full_like(m.attention, float(s == favoured)))
            for s, m in random_maps((0.5, 1.0, 2.0), (8, 8)).items()
        }
        expected = resize(maps[favoured].logits, (8, 8))
        torch.testing.assert_close(chain(maps, (8, 8)), expected)
        assert effective_weights(maps, (8, 8))[favoured].min() == 1

    def test_average_is_the_mean(self):
        maps = {s: ScaleOutput(torch.full((1, 2, 4, 4), s), None) for s in (1.0, 2.0, 6.0)}
        assert average(maps, (3, 5)).unique().tolist() == [3.0]

    def test_the_weight_of_a_finer_scale_is_known_before_it_is_computed(self):
        """Exact on one grid; elsewhere but for the order of product and resize."""
        maps = random_maps((1.0, 2.0, 3.0), (8, 8))
        maps = {s: ScaleOutput(m.logits, m.attention[..., :8, :8]) for s, m in maps.items()}
        maps = {s: ScaleOutput(m.logits[..., :8, :8], m.attention) for s, m in maps.items()}
        known = known_weight([maps[1.0].attention, maps[2.0].attention], (8, 8))
        torch.testing.assert_close(known, effective_weights(maps, (8, 8))[3.0])
