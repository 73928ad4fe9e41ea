from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from hmsa.config.recipe import Stage
from hmsa.model import Output, ScaleOutput
from hmsa.training.losses import cross_entropy, hard_cross_entropy, objective
from hmsa.training.rmi import binary_cross_entropy, region_mutual_information


def stage(**settings):
    return Stage(steps=1, scales=(0.5, 1.0), **settings)


@given(st.integers(0, 1000), st.booleans())
def test_equals_torch_where_there_are_labels(seed, weighted):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 4, 5, 6, generator=generator)
    label = torch.randint(0, 4, (2, 5, 6), generator=generator)
    label[0, 0] = 255
    weight = torch.rand(4, generator=generator) + 0.1 if weighted else None
    expected = F.cross_entropy(logits, label, weight, ignore_index=255)
    torch.testing.assert_close(cross_entropy(logits, label, weight), expected)


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
    output = Output(hi + 1, {0.5: ScaleOutput(lo, None), 1.0: ScaleOutput(hi, None)})
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
    output = Output(hi, {0.5: ScaleOutput(lo, None), 1.0: ScaleOutput(hi, None)})
    terms = objective(output, label, stage(supervision=0.05, loss="rmi"))
    whole = region_mutual_information(hi, label)
    torch.testing.assert_close(terms["fused"], 0.5 * whole.bce + 0.5 * whole.rmi)
    up = F.interpolate(lo, size=(32, 32), mode="bilinear", align_corners=False)
    scales = binary_cross_entropy(up, label) + binary_cross_entropy(hi, label)
    torch.testing.assert_close(terms["loss"], terms["fused"] + 0.05 * scales)


def test_penalty_is_the_expected_share_of_fine_pixels():
    """Attention 1/4 at 0.5 leaves 3/4 to 1.0: 1/4 * (0.5/1)^2 + 3/4 * 1."""
    attention = torch.full((1, 1, 4, 4), 0.25, requires_grad=True)
    maps = {
        0.5: ScaleOutput(torch.zeros(1, 2, 4, 4), attention),
        1.0: ScaleOutput(torch.zeros(1, 2, 8, 8), None),
    }
    output = Output(torch.zeros(1, 2, 8, 8), maps)
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
        output = Output(logits, {1.0: ScaleOutput(logits, None)})
        terms = objective(output, label, stage(loss="ohem", supervision=1.0))
        torch.testing.assert_close(terms["fused"], hard_cross_entropy(logits, label))
        torch.testing.assert_close(terms["scales"], cross_entropy(logits, label))
