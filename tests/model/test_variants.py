"""The alternatives to hierarchical attention, behind one interface."""

from __future__ import annotations

import pytest
import torch

from hmsa.model import FUSIONS, ScaleOutput, average, build, maximum
from hmsa.model.fusion import resize, weighted
from hmsa.model.hmsa import Grid
from hmsa.model.variants import ExplicitAttention

SCALES = (0.5, 1.0, 2.0)


def network(fusion: str, **changes):
    torch.manual_seed(0)
    model = build(fusion=fusion, classes=4, trunk="mobilenetv3_small_050", width=8, **changes)
    model.train()
    with torch.no_grad():
        model(torch.rand(2, 3, 64, 64), SCALES)  # for the batch norms
    return model


@pytest.mark.parametrize("fusion", FUSIONS)
class TestEvery:
    """What holds for each of them, hierarchical attention included."""

    @pytest.mark.parametrize("size", [(64, 64), (37, 61), (1, 1)])
    def test_any_size(self, fusion, size):
        output = network(fusion).eval()(torch.rand(1, 3, *size), SCALES)
        assert output.logits.shape == (1, 4, *size)
        assert output.logits.isfinite().all()
        assert list(output.maps) == [0.5, 1.0, 2.0]

    @pytest.mark.parametrize("head", ["plain", "stacked", "ocr", "deeplab"])
    def test_learns_with_every_head(self, fusion, head):
        """No weight of head and attention is idle: it would be one too many."""
        model = network(fusion, head=head)
        output = model(torch.rand(2, 3, 64, 96), SCALES)
        aux = output.aux()
        assert (aux is not None) == (head == "ocr")
        loss = output.logits.square().mean() + (0 if aux is None else aux.logits.square().mean())
        loss.backward()
        learning = {n: p.grad for n, p in model.named_parameters() if not n.startswith("trunk.")}
        assert all(g is not None and g.isfinite().all() for g in learning.values())

    def test_weights_rebuild_the_logits(self, fusion):
        if fusion == "max":
            pytest.skip("a maximum is no weighted sum")
        output = network(fusion).eval()(torch.rand(1, 3, 64, 64), (0.5, 1.0, 2.0))
        weights = output.weights()
        total = sum(weights.values())
        torch.testing.assert_close(total, torch.ones_like(total), atol=1e-5, rtol=0)

    def test_one_scale_is_the_plain_network(self, fusion):
        if fusion == "explicit":
            pytest.skip("bound to its list of scales")
        model = network(fusion).eval()
        image = torch.rand(1, 3, 64, 96)
        plain = model.head(model.trunk(model.normalise(image))).logits
        torch.testing.assert_close(model(image, (1.0,)).logits, resize(plain, (64, 96)))


def test_poolings_by_hand():
    maps = {s: ScaleOutput(torch.full((1, 2, 4, 4), s), None) for s in (1.0, 2.0, 6.0)}
    assert average(maps, (3, 5)).unique().tolist() == [3.0]
    assert maximum(maps, (4, 4)).unique().tolist() == [6.0]


def test_weighted_by_hand():
    maps = {
        s: ScaleOutput(torch.full((1, 2, n, n), s), torch.full((1, 1, 4, 4), w))
        for s, n, w in ((1.0, 4, 0.25), (2.0, 8, 0.75))
    }
    assert weighted(maps, (4, 4)).unique().tolist() == [1.75]


def test_pooling_has_no_idle_attention():
    assert network("average").attention is None
    assert not [k for k in network("max").state_dict() if k.startswith("attention")]


class TestExplicit:
    def test_other_scales_are_refused(self):
        model = network("explicit")
        with pytest.raises(ValueError, match="made for scales 0.5,1,2, not for 0.5,1"):
            model(torch.rand(1, 3, 32, 32), (0.5, 1.0))

    def test_needs_scale_one(self):
        with pytest.raises(ValueError, match="needs 1 among"):
            ExplicitAttention(2, scales=(0.5, 2), trunk="hrnet_w18_small", width=8)

    def test_a_scale_can_win_everywhere(self):
        model = network("explicit").eval()
        last = model.attention[-1]
        torch.nn.init.zeros_(last.weight)
        last.bias.data = torch.tensor([-50.0, 50.0, -50.0])
        output = model(torch.rand(1, 3, 64, 64), SCALES)
        torch.testing.assert_close(output.logits, output.maps[1.0].logits)

    def test_short_head_as_the_official_code_has_it(self):
        model = build(
            fusion="explicit", classes=2, trunk="resnet18", width=8, short=True, official=True,
            head="deeplab", stride=8,
        )  # fmt: skip
        assert model.attention[2].padding == (1, 1)
        logits = model.eval()(torch.rand(1, 3, 64, 64), SCALES).logits
        assert logits.shape == (1, 2, 64, 64)


def test_features_of_padded_scales_meet_in_place():
    """A ramp across the picture is the same ramp on any scale's grid, whatever its padding."""

    def ramp(size, padded):
        x = (torch.arange(padded // 4) + 0.5) * 4 / size  # 0..1 across the image
        return Grid(x.expand(1, 1, padded // 4, -1), (padded, padded), (size, size))

    fine, coarse = ramp(80, 96), ramp(40, 64)
    met = coarse.onto(fine)[..., : 80 // 4]
    inner = slice(2, 18)
    torch.testing.assert_close(
        met[..., 10, inner], fine.maps[..., 10, :20][..., inner], atol=1e-5, rtol=0
    )


def test_unknown_fusion():
    with pytest.raises(ValueError, match="'sum' is not one of hierarchical, average, max"):
        build(fusion="sum", classes=2)
