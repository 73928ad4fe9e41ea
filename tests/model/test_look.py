"""Scale after scale, tile by tile, row by row: the same as the whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hmsa.model import HMSA, build, effective_weights
from hmsa.model.bands import bands
from hmsa.model.gate import Gate, known_weight
from hmsa.model.heads import resize
from hmsa.model.tiles import Held, Patch, Patches, Scaled, Tiling, merged
from hmsa.runs.errors import InputError


def warm(model: HMSA) -> HMSA:
    """Norms that have seen something, double precision."""
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


def logits(look, size, rows=19):
    node = look.fused(size)
    return torch.cat([node.rows(*band) for band in bands(size[0], rows)], 2)


@pytest.mark.parametrize("head", ["plain", "ocr", "deeplab"])
@pytest.mark.parametrize("size", [(64, 96), (137, 61), (1, 1)])
@pytest.mark.parametrize("scales", [(0.5, 1, 2), (0.3, 1.5), (1,)])
def test_a_look_is_the_forward_pass(head, size, scales):
    torch.manual_seed(0)
    model = warm(HMSA(4, "mobilenetv3_small_050", head=head, width=8))
    image = torch.rand(1, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        whole = model(image, scales).logits
        look = model.look(Held(image), scales)
        torch.testing.assert_close(logits(look, size), whole, atol=1e-9, rtol=0)


@pytest.mark.parametrize("fusion", ["average", "max", "explicit", "pair"])
def test_rivals_look_the_same_way(fusion):
    torch.manual_seed(0)
    model = warm(build(fusion, classes=4, trunk="mobilenetv3_small_050", width=8))
    image, size = torch.rand(1, 3, 90, 70, dtype=torch.float64), (45, 80)
    with torch.no_grad():
        output = model(image, (0.5, 1, 2))
        look = model.look(Held(image), (0.5, 1, 2))
        expected = resize(output.logits, size)
        torch.testing.assert_close(logits(look, size), expected, atol=1e-9, rtol=0)
        if fusion == "max":
            return
        weights = torch.cat(list(effective_weights(output.maps, (90, 70), output.fold).values()), 1)
        found = look.weights((90, 70)).rows(0, 90)
        torch.testing.assert_close(found, weights, atol=1e-9, rtol=0)


def test_ocr_by_bands_is_ocr():
    """With a gradient to come it is computed whole, without one in bands: to the same result."""
    torch.manual_seed(0)
    model = HMSA(5, "mobilenetv3_small_050", head="ocr", width=8).double().eval()
    image = torch.rand(1, 3, 300, 40, dtype=torch.float64)  # 75 rows on the trunk's grid
    whole = model(image, (0.5, 1)).logits
    with torch.no_grad():
        banded = model(image, (0.5, 1)).logits
    torch.testing.assert_close(banded, whole, atol=1e-9, rtol=0)


class TestTiles:
    @settings(max_examples=25)
    @given(
        st.tuples(st.integers(1, 230), st.integers(1, 230)),
        st.sampled_from([(0.5, 1, 2), (0.37, 1.3), (1,), (2, 0.25)]),
        st.sampled_from([(104, 32), (136, 40), (200, 48)]),
    )
    def test_a_network_that_sees_no_further_than_half_the_halo_sees_the_whole(
        self, near, size, scales, tiling
    ):
        torch.manual_seed(1)
        image = torch.rand(1, 3, *size, dtype=torch.float64)
        with torch.no_grad():
            whole = near(image, scales).logits
            look = near.look(Held(image), sorted(scales), Tiling(*tiling))
            torch.testing.assert_close(logits(look, size), whole, atol=1e-9, rtol=0)

    def test_a_halo_too_small_shows(self, near):
        """The property above is no matter of course."""
        image = torch.rand(1, 3, 200, 200, dtype=torch.float64)
        with torch.no_grad():
            whole = near(image, (1,)).logits
            tiled = logits(near.look(Held(image), (1,), Tiling(64, 0)), (200, 200))
        assert (whole - tiled).abs().max() > 1e-3

    @settings(max_examples=25)
    @given(st.data(), st.tuples(st.integers(1, 90), st.integers(1, 90)))
    def test_a_window_is_cut_out_of_the_scaled_image(self, data, size):
        scale = data.draw(st.sampled_from([1.0, 2.0, 0.5]) | st.floats(0.2, 2.5))
        image = torch.rand(2, 3, *size, dtype=torch.float64)
        scaled = Scaled(Held(image), scale, 8, lambda x: x)
        h, w = scaled.size
        down, right = scaled.padded[0] - h, scaled.padded[1] - w
        whole = nn.functional.pad(resize(image, scaled.size), (0, right, 0, down), "replicate")
        top, left = (data.draw(st.integers(0, (n - 1) // 8)) * 8 for n in scaled.padded)
        if top >= h or left >= w:
            return
        at = Patch(top, scaled.padded[0], left, data.draw(st.integers(left // 8 + 1, 40)) * 8)
        at = at._replace(right=min(at.right, scaled.padded[1]))
        expected = whole[..., at.top : at.bottom, at.left : at.right]
        torch.testing.assert_close(scaled.window(at), expected, atol=1e-9, rtol=0)

    @given(st.data())
    def test_whatever_the_rectangles_their_say_sums_to_one(self, data):
        rows, cols = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
        padded = (data.draw(st.integers(rows * 8 - 7, rows * 8)) * 4,
                  data.draw(st.integers(cols * 8 - 7, cols * 8)) * 4)  # fmt: skip
        wanted = st.lists(st.booleans(), min_size=rows * cols, max_size=rows * cols)
        chosen = torch.tensor(data.draw(wanted)).view(rows, cols)
        patches = merged(chosen, padded, 32, data.draw(st.sampled_from([32, 64, 1000])))
        covered = np.zeros(padded, int)
        for top, bottom, left, right in patches:
            covered[top:bottom, left:right] += 1
        everywhere = chosen.repeat_interleave(32, 0).repeat_interleave(32, 1)
        assert (covered == everywhere[: padded[0], : padded[1]].numpy()).all()

        def ones(at: Patch) -> torch.Tensor:
            return torch.ones(1, 1, (at.bottom - at.top) // 4, (at.right - at.left) // 4)

        node = Patches(patches, ones, padded, 4, 16, torch.zeros(1, 1, 1, 1))
        share = torch.cat([node.rows(*band) for band in bands(node.size[0], 3)], 2)[0, 0]
        assert share.min() >= 0
        assert share.max() <= 1 + 1e-6
        if chosen.all():
            torch.testing.assert_close(share, torch.ones_like(share))
        inside = Patches(merged(~chosen, padded, 32, 64), ones, padded, 4, 16, node._empty)
        rest = inside.rows(0, inside.size[0])[0, 0]
        torch.testing.assert_close(share + rest, torch.ones_like(share))

    @pytest.mark.parametrize("head", ["ocr", "deeplab"])
    @pytest.mark.parametrize("scales", [(0.5, 1), (1,)])
    def test_tiles_know_the_context_of_the_whole_image(self, head, scales, monkeypatch):
        """From the finest scale that is seen whole, or from a look at a low one."""
        torch.manual_seed(0)
        model = warm(HMSA(5, "mobilenetv3_small_050", head=head, width=8))
        looks = []
        see = model.see

        def spy(image, attended, context):
            reading = see(image, attended, context)
            looks.append((tuple(image.shape[-2:]), context, reading.context))
            return reading

        monkeypatch.setattr(model, "see", spy)
        with torch.no_grad():
            image = torch.rand(1, 3, 256, 256, dtype=torch.float64)
            logits(model.look(Held(image), scales, Tiling(192, 32)), (256, 256))
        whole, *tiles = looks
        assert whole[1] is None
        assert whole[0] == ((128, 128) if len(scales) > 1 else (192, 192))
        assert len(tiles) == 4
        assert all(given is whole[2] for _, given, _ in tiles)

    def test_a_tile_smaller_than_its_halo_is_refused(self, near):
        with pytest.raises(InputError, match="leave nothing inside a halo of 64"):
            Tiling(128, 64)
        with pytest.raises(InputError, match="give 120 or more"):
            near.look(Held(torch.rand(1, 3, 300, 300).double()), (1,), Tiling(80, 33))

    def test_attention_over_all_scales_at_once_takes_no_tiles(self):
        model = warm(build("pair", classes=4, trunk="mobilenetv3_small_050", width=8))
        with pytest.raises(InputError, match="no tiles and no gate"):
            model.look(Held(torch.rand(1, 3, 64, 64)), (0.5, 1), Tiling(512))


class TestGate:
    IMAGE = torch.rand(1, 3, 200, 260, dtype=torch.float64)
    SIZE = (200, 260)

    def look(self, near, gate):
        with torch.no_grad():
            look = near.look(Held(self.IMAGE), (0.5, 1, 2), None, gate)
            return look, logits(look, self.SIZE)

    def test_all_of_it_is_the_whole_and_none_is_the_coarser_scales(self, near):
        with torch.no_grad():
            whole = near(self.IMAGE, (0.5, 1, 2)).logits
            coarse = near(self.IMAGE, (0.5, 1)).logits
        look, found = self.look(near, Gate(share=1))
        torch.testing.assert_close(found, whole, atol=1e-9, rtol=0)
        assert look.seen[2].share is None
        look, found = self.look(near, Gate(share=0))
        torch.testing.assert_close(found, coarse, atol=1e-9, rtol=0)
        assert list(look.seen) == [0.5, 1]

    def test_where_it_looks_it_sees_the_whole_and_elsewhere_the_coarser_scales(self, near):
        with torch.no_grad():
            whole = near(self.IMAGE, (0.5, 1, 2)).logits
            coarse = near(self.IMAGE, (0.5, 1)).logits
        look, found = self.look(near, Gate(share=0.3, cell=64))
        fine = look.seen[2]
        assert 0.2 < fine.computed <= 0.3
        share = resize(fine.share.rows(0, 400), self.SIZE)
        looked, left = (share == 1).expand_as(found), (share == 0).expand_as(found)
        assert looked.any()
        assert left.any()
        torch.testing.assert_close(found[looked], whole[looked], atol=1e-9, rtol=0)
        torch.testing.assert_close(found[left], coarse[left], atol=1e-9, rtol=0)

    def test_weights_are_of_what_was_computed(self, near):
        look, _ = self.look(near, Gate(share=0.3, cell=64))
        weights = look.weights(self.SIZE).rows(0, 200)
        torch.testing.assert_close(weights.sum(1), torch.ones(1, *self.SIZE).double())
        left = resize(look.seen[2].share.rows(0, 400), self.SIZE) == 0
        assert weights[:, 2:][left].abs().max() == 0

    def test_it_looks_where_the_known_weight_is_highest(self, near):
        """The cells it takes weigh more than those it leaves; the weight is the one that counts."""
        with torch.no_grad():
            look = near.look(Held(self.IMAGE), (0.5, 1, 2))
            known = look.weights((400, 520)).rows(0, 400)[0, 2]
            gated, _ = self.look(near, Gate(share=0.4, cell=64))
        share = gated.seen[2].share.rows(0, 400)[0, 0]
        assert known[share > 0.5].mean() > known[share < 0.5].mean()
        coarse = {s: look.seen[s] for s in (0.5, 1)}
        with torch.no_grad():
            told = known_weight(coarse, (200, 260))[0, 0]
            there = look.weights((200, 260)).rows(0, 200)[0, 2]
        torch.testing.assert_close(told, there, atol=0.02, rtol=0)

    def test_a_threshold_takes_what_weighs_that_much(self, near):
        low, _ = self.look(near, Gate(threshold=0.0))
        assert low.seen[2].share is None
        none, _ = self.look(near, Gate(threshold=1.0))
        assert 2 not in none.seen

    def test_tiles_and_a_gate_together(self, near):
        with torch.no_grad():
            gate = Gate(share=0.5, cell=64)
            one = near.look(Held(self.IMAGE), (0.5, 1, 2), None, gate)
            both = near.look(Held(self.IMAGE), (0.5, 1, 2), Tiling(136, 32), gate)
            found, expected = logits(both, self.SIZE), logits(one, self.SIZE)
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)

    @pytest.mark.parametrize("wrong", [{}, {"share": 0.5, "threshold": 0.1}, {"share": 1.5}])
    def test_refuses(self, wrong):
        with pytest.raises(InputError, match="gate"):
            Gate(**wrong)
