from __future__ import annotations

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from hmsa.config.recipe import Stage
from hmsa.model import Output, chain
from hmsa.model.hmsa import Attended, Grid
from hmsa.training import groups, losses, rmi
from hmsa.training.groups import whole
from hmsa.training.losses import objective


def cross_entropy(logits, label, weight=None):
    return losses.cross_entropy(whole(logits), label, weight)


def hard_cross_entropy(logits, label, weight=None, **options):
    return losses.hard_cross_entropy(whole(logits), label, weight, **options)


def output_of(maps, fold=None):
    """maps: scale -> logits and attention, at each pixel; fold: by default, the finest logits."""

    def grid(each):
        return None if each is None else Grid(each, each.shape[-2:], each.shape[-2:])

    scales = {s: Attended(grid(m[0]), grid(m[1]), None) for s, m in maps.items()}
    finest = max(maps)
    return Output(scales, maps[finest][0].shape[-2:], fold or (lambda m, size: m[finest].logits))


def stage(**settings):
    return Stage(steps=1, scales=(0.5, 1.0), **settings)


@given(st.integers(0, 1000), st.booleans())
def test_equals_torch_where_there_are_labels(seed, weighted):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 4, 5, 6, generator=generator)
    label = torch.randint(0, 4, (2, 5, 6), generator=generator)
    label[0, 0] = 255
    weight = torch.rand(4, generator=generator) + 0.1 if weighted else None
    losses = []
    for loss in (cross_entropy, partial(F.cross_entropy, ignore_index=255)):
        own = logits.clone().requires_grad_()
        losses.append((found := loss(own, label, weight), *torch.autograd.grad(found, own)))
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize("loss", ["cross_entropy", "ohem", "rmi"])
@pytest.mark.parametrize("at_once", [1, 150, 10**6])
def test_any_number_of_classes_at_once(monkeypatch, loss, at_once):
    """Loss and gradients on the grids of both scales are those of all classes together."""
    torch.manual_seed(0)
    lo, hi = torch.randn(2, 7, 8, 8).double(), torch.randn(2, 7, 16, 16).double()
    attention = torch.rand(2, 1, 8, 8).double()
    label = torch.randint(0, 7, (2, 16, 16))
    label[0, 3] = 255

    def run():
        leaves = [each.clone().requires_grad_() for each in (lo, attention, hi)]
        output = output_of({0.5: (leaves[0], leaves[1]), 1.0: (leaves[2], None)}, chain)
        found = objective(output, label, stage(loss=loss, supervision=0.3))["loss"]
        (3 * found).backward()
        return [found, *(each.grad for each in leaves)]

    expected = run()
    monkeypatch.setattr(groups, "AT_ONCE", at_once)
    for one, other in zip(run(), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    if loss == "cross_entropy":
        up = [
            F.interpolate(m, size=(16, 16), mode="bilinear")
            for m in (lo, attention * lo, attention)
        ]
        fused = up[1] + (1 - up[2]) * hi
        plain = [F.cross_entropy(each, label, ignore_index=255) for each in (fused, up[0], hi)]
        torch.testing.assert_close(expected[0], plain[0] + 0.3 * (plain[1] + plain[2]))


@pytest.mark.parametrize("weight", [None, torch.rand(3)])
def test_nothing_labelled_is_zero_not_nan(weight):
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = cross_entropy(logits, torch.full((1, 4, 4), 255), weight)
    loss.backward()
    assert loss == 0
    assert logits.grad.abs().sum() == 0


def test_objective_adds_each_scale_at_full_size():
    torch.manual_seed(0)
    lo, hi = torch.randn(1, 3, 4, 4), torch.randn(1, 3, 8, 8)
    label = torch.randint(0, 3, (1, 8, 8))
    output = output_of({0.5: (lo, None), 1.0: (hi, None)}, lambda maps, size: maps[1.0].logits + 1)
    terms = objective(output, label, stage(supervision=0.5))
    up = F.interpolate(lo, size=(8, 8), mode="bilinear", align_corners=False)
    scales = F.cross_entropy(up, label) + F.cross_entropy(hi, label)
    torch.testing.assert_close(terms["scales"], scales)
    torch.testing.assert_close(terms["loss"], F.cross_entropy(hi + 1, label) + 0.5 * scales)
    assert "scales" not in objective(output, label, stage())


def test_objective_with_rmi_keeps_its_halves_apart():
    torch.manual_seed(0)
    lo, hi = torch.randn(1, 3, 16, 16), torch.randn(1, 3, 32, 32)
    label = torch.randint(0, 3, (1, 32, 32))
    output = output_of({0.5: (lo, None), 1.0: (hi, None)})
    terms = objective(output, label, stage(supervision=0.05, loss="rmi"))
    both = rmi.region_mutual_information(whole(hi), label)
    torch.testing.assert_close(terms["fused"], 0.5 * both.bce + 0.5 * both.rmi)
    up = F.interpolate(lo, size=(32, 32), mode="bilinear", align_corners=False)
    scales = sum(rmi.binary_cross_entropy(whole(each), label) for each in (up, hi))
    torch.testing.assert_close(terms["loss"], terms["fused"] + 0.05 * scales)


def test_penalty_is_the_expected_share_of_fine_pixels():
    """Attention 1/4 at 0.5 leaves 3/4 to 1.0: 1/4 * (0.5/1)^2 + 3/4 * 1."""
    attention = torch.full((1, 1, 4, 4), 0.25, requires_grad=True)
    maps = {
        0.5: (torch.zeros(1, 2, 4, 4), attention),
        1.0: (torch.zeros(1, 2, 8, 8), None),
    }
    output = output_of(maps, chain)
    terms = objective(output, torch.zeros(1, 8, 8, dtype=torch.long), stage(penalty=2.0))
    assert terms["cost"].item() == pytest.approx(0.25 * 0.25 + 0.75)
    torch.testing.assert_close(terms["loss"], terms["fused"] + 2 * terms["cost"])
    terms["loss"].backward()
    assert (attention.grad < 0).all(), "more trust in the coarse scale lowers the loss"


class TestHardPixels:
    def test_sure_pixels_do_not_count(self):
        """Three pixels of four are right with 0.95; the one at 1/2 is the whole loss."""
        sure = torch.tensor([0.95 / 0.05, 1.0]).log()
        logits = torch.stack([sure, sure, sure, torch.zeros(2)], 1).view(1, 2, 2, 2)
        loss = hard_cross_entropy(logits, torch.zeros(1, 2, 2, dtype=torch.long))
        assert loss.item() == pytest.approx(math.log(2))

    def test_the_hardest_share_always_counts(self):
        logits = torch.tensor([[9.0, 8.0, 7.0, 6.0], [0.0] * 4]).view(1, 2, 2, 2)
        loss = hard_cross_entropy(logits, torch.zeros(1, 2, 2, dtype=torch.long), least=0.5)
        hardest = (math.log1p(math.exp(-6)) + math.log1p(math.exp(-7))) / 2
        assert loss.item() == pytest.approx(hardest, rel=1e-4)

    @given(st.integers(0, 1000))
    def test_everything_counts_below_a_threshold_of_one(self, seed):
        generator = torch.Generator().manual_seed(seed)
        logits = torch.randn(2, 3, 5, 4, generator=generator)
        label = torch.randint(0, 3, (2, 5, 4), generator=generator)
        label[1, 2] = 255
        weight = torch.rand(3, generator=generator) + 0.1
        everything = hard_cross_entropy(logits, label, weight, threshold=1.0)
        torch.testing.assert_close(everything, cross_entropy(logits, label, weight))

    def test_nothing_labelled(self):
        logits = torch.randn(1, 3, 4, 4, requires_grad=True)
        loss = hard_cross_entropy(logits, torch.full((1, 4, 4), 255))
        loss.backward()
        assert loss == 0
        assert logits.grad.abs().sum() == 0

    def test_objective_takes_it_for_the_fused_output_alone(self):
        torch.manual_seed(0)
        logits, label = torch.randn(1, 3, 8, 8), torch.randint(0, 3, (1, 8, 8))
        output = output_of({1.0: (logits, None)})
        terms = objective(output, label, stage(loss="ohem", supervision=1.0))
        torch.testing.assert_close(terms["fused"], hard_cross_entropy(logits, label))
        torch.testing.assert_close(terms["scales"], cross_entropy(logits, label))
