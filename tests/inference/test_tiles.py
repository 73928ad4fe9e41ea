"""Scale after scale, tile by tile, a few classes at a time: the same as the whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hmsa.inference import fold
from hmsa.inference.fold import Decision, Pass
from hmsa.inference.tiles import Gate, Runner, blend, cells, window
from hmsa.inference.tiles import tiling as make_tiling
from hmsa.model import HMSA, build
from hmsa.model.fusion import resize
from hmsa.runs.errors import InputError


def warm(model: HMSA) -> HMSA:
    """Norms with statistics of a batch, double precision."""
    with torch.no_grad():
        model.train()(torch.rand(2, 3, 64, 64), model.card.network.get("scales", (0.5, 1)))
    return model.double().eval()


class Near(nn.Module):
    """A trunk that sees no further than its cell and the next."""

    def __init__(self) -> None:
        super().__init__()
        self.channels, self.strides, self.multiple = [6, 6], [4, 8], 8
        self.fine = nn.Conv2d(3, 6, 4, 4)
        self.coarse = nn.Conv2d(6, 6, 2, 2)

    def forward(self, image):
        fine = torch.tanh(self.fine(image))
        return [fine, torch.tanh(self.coarse(fine))]


@pytest.fixture(scope="module")
def near() -> HMSA:
    torch.manual_seed(0)
    model = HMSA(4, "hrnet_w18_small", width=8)
    model.trunk = Near()
    model.head = type(model.head)([6, 6], 4, 8)
    return warm(model)


def run(model: HMSA, image, scales, tiling=None, gate=None) -> Pass:
    if tiling:
        tiling = make_tiling(model, *tiling)
    with torch.no_grad():
        return Runner(model, image, tiling, gate).run(sorted(scales))


def fused(found: Pass) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([found.fused(c) for c in found.groups(found.model.classes)], 1)


@pytest.fixture(autouse=True)
def two_classes_at_once(monkeypatch):
    monkeypatch.setattr(
        Pass, "groups", lambda self, n: [slice(k, min(n, k + 2)) for k in range(0, n, 2)]
    )


@pytest.mark.parametrize("head", ["plain", "ocr", "deeplab"])
@pytest.mark.parametrize("size", [(64, 96), (137, 61), (1, 1)])
@pytest.mark.parametrize("scales", [(0.5, 1, 2), (0.3, 1.5), (1,), (1, 1.5, 2)])
def test_a_pass_is_the_forward_pass(head, size, scales):
    torch.manual_seed(0)
    model = warm(HMSA(5, "mobilenetv3_small_050", head=head, width=8))
    image = torch.rand(1, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        whole = model(image, scales)
        found = run(model, image, scales)
        torch.testing.assert_close(fused(found), whole.logits, atol=1e-9, rtol=0)
        expected = torch.cat(list(whole.weights().values()), 1)
        torch.testing.assert_close(found.weights(), expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("fusion", ["average", "max", "explicit", "pair"])
def test_so_it_is_with_every_fusion(fusion):
    torch.manual_seed(0)
    model = warm(build(fusion, classes=4, trunk="mobilenetv3_small_050", width=8))
    image = torch.rand(1, 3, 90, 70, dtype=torch.float64)
    with torch.no_grad():
        output = model(image, (0.5, 1, 2))
        found = run(model, image, (0.5, 1, 2))
        torch.testing.assert_close(fused(found), output.logits, atol=1e-9, rtol=0)
        if fusion != "max":
            weights = torch.cat(list(output.weights().values()), 1)
            torch.testing.assert_close(found.weights(), weights, atol=1e-9, rtol=0)


@given(st.integers(1, 7), st.integers(1, 4), st.integers(0, 3))
def test_a_decision_in_groups_is_the_decision(classes, step, seed):
    logits = 3 * torch.randn(2, classes, 5, 6, generator=torch.Generator().manual_seed(seed))
    logits = logits.double().round()  # ties: the first class wins
    decision = Decision()
    for first in range(0, classes, step):
        decision.add(logits[:, first : first + step], entropy=True)
    share = logits.softmax(1)
    assert (decision.label == logits.argmax(1)).all()
    torch.testing.assert_close(decision.probability(decision.top[:, None])[:, 0], share.amax(1))
    torch.testing.assert_close(decision.probability(logits), share)
    entropy = torch.special.entr(share).sum(1) / np.log(max(2, classes))
    torch.testing.assert_close(decision.entropy(), entropy, atol=1e-12, rtol=0)


def test_groups_are_smaller_for_larger_images(near, monkeypatch):
    monkeypatch.undo()
    found = run(near, torch.rand(1, 3, 64, 64).double(), (0.5, 1, 2))
    assert list(found.groups(9)) == [slice(0, 9)]
    monkeypatch.setattr(fold, "AT_ONCE", 2 * 64 * 64 * 4)
    assert list(found.groups(9)) == [slice(0, 4), slice(4, 8), slice(8, 9)]
    monkeypatch.setattr(fold, "AT_ONCE", 1)
    assert len(list(found.groups(9))) == 9


class TestTiles:
    @settings(max_examples=25)
    @given(
        st.tuples(st.integers(1, 230), st.integers(1, 230)),
        st.sampled_from([(0.5, 1, 2), (0.37, 1.3), (1,), (2, 0.25)]),
        st.sampled_from([(104, 32), (136, 40), (200, 48)]),
    )
    def test_a_network_whose_receptive_field_fits_half_the_halo_gives_the_whole(
        self, near, size, scales, tiling
    ):
        torch.manual_seed(1)
        image = torch.rand(1, 3, *size, dtype=torch.float64)
        with torch.no_grad():
            whole = near(image, scales).logits
        found = fused(run(near, image, scales, tiling))
        torch.testing.assert_close(found, whole, atol=1e-9, rtol=0)

    def test_a_halo_too_small_shows(self, near):
        """The property above is no matter of course."""
        image = torch.rand(1, 3, 200, 200, dtype=torch.float64)
        with torch.no_grad():
            whole = near(image, (1,)).logits
        assert (whole - fused(run(near, image, (1,), (64, 0)))).abs().max() > 1e-3

    @settings(max_examples=25)
    @given(st.data(), st.tuples(st.integers(1, 90), st.integers(1, 90)))
    def test_a_window_is_cut_out_of_the_scaled_image(self, near, data, size):
        scale = data.draw(st.sampled_from([1.0, 2.0, 0.5]) | st.floats(0.2, 2.5))
        image = torch.rand(2, 3, *size, dtype=torch.float64)
        (h, w), padded = near.frame(size, scale)
        beyond = (0, padded[1] - w, 0, padded[0] - h)
        whole = nn.functional.pad(resize(near.normalise(image), (h, w)), beyond, "replicate")
        top, left = (data.draw(st.integers(0, (n - 1) // 8)) * 8 for n in padded)
        right = min(data.draw(st.integers(left // 8 + 1, 40)) * 8, padded[1])
        expected = whole[..., top:, left:right]
        found = window(near, image, scale, ((top, padded[0]), (left, right)))
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)

    @given(st.data())
    def test_whatever_cells_are_chosen_their_weights_sum_to_one(self, data):
        rows, cols = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
        padded = (data.draw(st.integers(rows * 8 - 7, rows * 8)) * 4,
                  data.draw(st.integers(cols * 8 - 7, cols * 8)) * 4)  # fmt: skip
        wanted = st.lists(st.booleans(), min_size=rows * cols, max_size=rows * cols)
        chosen = torch.tensor(data.draw(wanted)).view(rows, cols)
        covered = np.zeros(padded, int)
        for (top, bottom), (left, right) in cells(chosen, 32, padded):
            covered[top:bottom, left:right] += 1
        everywhere = chosen.repeat_interleave(32, 0).repeat_interleave(32, 1)
        assert (covered == everywhere[: padded[0], : padded[1]].numpy()).all()

        side = data.draw(st.sampled_from([0, 64]))

        def make(at):
            for (start, stop), length in zip(at, padded, strict=True):
                assert start % 16 == 0
                assert side - 16 < stop - start + max(0, side - length)
                assert stop - start <= 64
            return torch.ones(())

        def share(chosen):
            whole = torch.zeros(1, 1, padded[0] // 4, padded[1] // 4)
            blend(whole, cells(chosen, 32, padded), make, padded, 4, 16, side)
            return whole

        found = share(chosen)
        assert found.min() >= 0
        assert found.max() <= 1 + 1e-6
        torch.testing.assert_close(found + share(~chosen), torch.ones_like(found))

    @pytest.mark.parametrize("head", ["ocr", "deeplab"])
    @pytest.mark.parametrize("scales", [(0.5, 1), (1,)])
    def test_tiles_know_the_context_of_the_whole_image(self, head, scales, monkeypatch):
        """From the finest scale that was computed whole, or from a pass at a low one."""
        torch.manual_seed(0)
        model = warm(HMSA(5, "mobilenetv3_small_050", head=head, width=8))
        passes = []
        see = model.see

        def spy(image, attended, context):
            reading = see(image, attended, context)
            passes.append((tuple(image.shape[-2:]), context, reading.context))
            return reading

        monkeypatch.setattr(model, "see", spy)
        run(model, torch.rand(1, 3, 256, 256, dtype=torch.float64), scales, (192, 32))
        whole, *tiles = passes
        assert whole[1] is None
        assert whole[0] == ((128, 128) if len(scales) > 1 else (192, 192))
        assert len(tiles) == 4
        assert all(context is whole[2] for _, context, _ in tiles)

    def test_a_tile_smaller_than_its_halo_is_refused(self, near):
        with pytest.raises(InputError, match="20 pixels are too few for this network; give 24"):
            make_tiling(near, 20, 64)
        assert make_tiling(near, 24, 64) == (8, 8)

    @given(st.integers(24, 3000), st.integers(0, 500))
    def test_a_halo_is_at_most_a_quarter_of_a_tile(self, near, tile, wanted):
        side, halo = make_tiling(near, tile, wanted)
        assert side % 8 == halo % 8 == 0
        assert tile - 8 < side + 2 * halo <= tile
        assert halo <= max(8, tile / 4)
        assert halo >= min(wanted, tile / 4 - 8)

    def test_attention_over_all_scales_at_once_takes_no_tiles(self):
        model = warm(build("pair", classes=4, trunk="mobilenetv3_small_050", width=8))
        with pytest.raises(InputError, match="pair fusion takes no gate and no tiles"):
            run(model, torch.rand(1, 3, 64, 64), (0.5, 1), (512, 128))


class TestGate:
    IMAGE = torch.rand(1, 3, 200, 260, generator=torch.Generator().manual_seed(0)).double()
    SIZE = (200, 260)

    @pytest.fixture
    def whole(self, near):
        with torch.no_grad():
            return near(self.IMAGE, (0.5, 1, 2)).logits

    @pytest.fixture
    def coarse(self, near):
        with torch.no_grad():
            return near(self.IMAGE, (0.5, 1)).logits

    def run(self, near, gate, scales=(0.5, 1, 2), tiling=None):
        return run(near, self.IMAGE, scales, tiling, gate)

    def test_all_of_it_is_the_whole_and_none_is_the_coarser_scales(self, near, whole, coarse):
        found = self.run(near, Gate(1))
        torch.testing.assert_close(fused(found), whole, atol=1e-9, rtol=0)
        assert (found.computed, found.cost) == ({}, 1)
        found = self.run(near, Gate(share=0))
        torch.testing.assert_close(fused(found), coarse, atol=1e-9, rtol=0)
        assert found.computed == {2: 0}

    def test_all_of_it_where_the_halos_would_cost_more(self, near, whole):
        found = self.run(near, Gate(share=0.5, cell=64, halo=64))
        torch.testing.assert_close(fused(found), whole, atol=1e-9, rtol=0)
        assert (found.computed, found.cost) == ({}, 1)

    def test_inside_it_is_the_whole_and_elsewhere_the_coarser_scales(self, near, whole, coarse):
        gated = fused(found := self.run(near, Gate(share=0.3, cell=64, halo=16)))
        assert 0.2 < found.computed[2] <= 0.3
        assert found.cost < 0.95
        fine = ((gated - whole).abs() < 1e-9).all(1)
        left = ((gated - coarse).abs() < 1e-9).all(1)
        assert 0.05 < fine.double().mean() <= 0.3
        assert 0.4 < left.double().mean() < 0.9
        assert ((gated - whole).abs() <= (coarse - whole).abs() + 0.3).all(), "between, at borders"

    def test_a_scale_in_part_is_completed_by_the_coarser_one(self, near):
        with torch.no_grad():
            full = run(near, self.IMAGE, (0.5, 1, 2)).single(slice(0, 4))
            found = self.run(near, Gate(share=0.3, cell=64, halo=16)).single(slice(0, 4))
        same = ((found[2].logits - full[2].logits).abs() < 1e-9).all(1)
        assert 0.2 < same.double().mean() < 0.6
        assert (found[2].logits - full[1].logits).abs()[:, :, ~same[0]].mean() < 0.3

    def test_weights_are_of_what_was_computed(self, near):
        found = self.run(near, Gate(share=0.3, cell=64, halo=16))
        full = run(near, self.IMAGE, (0.5, 1, 2)).weights()
        weights = found.weights()
        torch.testing.assert_close(weights.sum(1), torch.ones(1, *self.SIZE).double())
        assert 0.4 < (weights[:, 2] == 0).double().mean() < 0.75
        assert (weights[:, 2] <= full[:, 2] + 0.02).all()

    def test_it_chooses_where_the_known_weight_and_the_doubt_are_high(self, near):
        """The cells it takes are worth more than those it leaves; the weight is the one there."""
        weights = self.run(near, Gate(share=0.3, cell=64, halo=16)).weights()[0, 2]
        full = run(near, self.IMAGE, (0.5, 1, 2)).weights()[0, 2]
        assert full[weights > 0].mean() > full[weights == 0].mean()
        known = run(near, self.IMAGE, (0.5, 1, 2))  # its attention is of the coarser scales
        torch.testing.assert_close(known.known_weight(self.SIZE)[0, 0], full, atol=0.02, rtol=0)

    def test_a_finer_scale_stays_inside_a_coarser_gated_one(self, near):
        found = self.run(near, Gate(share=0.3, cell=64, halo=16), (0.5, 1, 1.5, 2))
        assert 0 < found.computed[2] <= 0.3
        assert 0 < found.computed[1.5] <= 0.3
        weights = found.weights()
        torch.testing.assert_close(weights.sum(1), torch.ones(1, *self.SIZE).double())
        beyond = (weights[:, 2] == 0) & (weights[:, 3] > 0)
        assert beyond.double().mean() < 0.02, "the borders alone"

    def test_tiles_and_a_gate_together(self, near):
        gate = Gate(share=0.3, cell=64, halo=16)
        both = fused(self.run(near, gate, tiling=(136, 32)))
        torch.testing.assert_close(both, fused(self.run(near, gate)), atol=1e-9, rtol=0)

    def test_needs_attention(self):
        model = build("average", classes=4, trunk="mobilenetv3_small_050", width=8).eval()
        with pytest.raises(InputError, match="average fusion takes no gate; use"):
            run(model, torch.rand(1, 3, 64, 64), (0.5, 1, 2), gate=Gate(0.5))

    @pytest.mark.parametrize("wrong", [-0.1, 1.5, float("nan")])
    def test_refuses(self, wrong):
        with pytest.raises(InputError, match="budget: .* is not a share"):
            Gate(wrong)
