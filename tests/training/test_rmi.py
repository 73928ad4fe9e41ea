"""RMI: the official values and gradients to the last digit, and safe where the original is not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from golden.rule import blocky_labels
from hmsa.runs.memory import Alive
from hmsa.training import rmi
from hmsa.training.groups import whole

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = json.loads((GOLDEN / "rmi.json").read_text())
GRADIENTS = np.load(GOLDEN / "rmi_grads.npz")


def region_mutual_information(logits, label):
    return rmi.region_mutual_information(whole(logits), label)


def inputs(p) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels of a case, by the rule of the golden data."""
    shape = (p["n"], p["c"], p["h"], p["w"])
    label = blocky_labels(
        p["n"], p["h"], p["w"], p["c"], p["block"], p["seed"] + 1000, p["p_ignore"], p["ignore"]
    )
    z = p["gain"] * np.random.Generator(np.random.PCG64(p["seed"])).standard_normal(shape)
    one_hot = label[:, None] == np.arange(p["c"])[None, :, None, None]
    z = (z + p["conf"] * (2.0 * one_hot - 1)).astype(np.float32)
    return torch.from_numpy(z), torch.from_numpy(label)


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_are_the_official_ones(name):
    case = CASES[name]
    logits, label = inputs(case["params"])
    assert logits.flatten()[:3].tolist() == pytest.approx(case["logits_first3"])
    assert int(label.sum()) == case["labels_checksum_sum"]
    logits = logits.double().requires_grad_()
    terms = region_mutual_information(logits, label)
    torch.testing.assert_close(terms.loss, 0.5 * (terms.bce + terms.rmi))
    entropy = rmi.binary_cross_entropy(whole(logits), label)
    torch.testing.assert_close(entropy, terms.bce)
    for part, value in (("rmi", terms.loss), ("bce", entropy)):
        assert value.item() == pytest.approx(case[part]["value_fp64"], rel=1e-6)
        (gradient,) = torch.autograd.grad(value, logits)
        expected = torch.from_numpy(GRADIENTS[f"{name}|{part}|grad"]).double()
        torch.testing.assert_close(gradient, expected, rtol=2e-6, atol=2e-9)


@pytest.mark.parametrize("size", [(1, 1), (5, 40), (11, 11), (33, 47), (64, 96)])
def test_gradient_is_the_slope(size):
    torch.manual_seed(0)
    logits = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    label = torch.randint(0, 4, (2, *size))  # 3 is outside the classes: ignored
    terms = region_mutual_information(logits, label)
    (gradient,) = torch.autograd.grad(terms.loss, logits)
    way = torch.randn_like(logits)
    step = 1e-6
    up, down = (
        region_mutual_information(logits.detach() + s * step * way, label).loss for s in (1, -1)
    )
    assert float((up - down) / (2 * step)) == pytest.approx(float((gradient * way).sum()), rel=1e-4)


BLOCKS = torch.arange(4).repeat_interleave(64).view(1, 16, 16)
HARD = {
    "all ignored": (torch.randn(1, 4, 24, 24), torch.full((1, 24, 24), 255)),
    "one class": (torch.randn(1, 4, 24, 24), torch.zeros(1, 24, 24, dtype=torch.long)),
    "constant": (torch.zeros(1, 4, 24, 24), torch.randint(0, 4, (1, 24, 24))),
    "saturated": (torch.randn(1, 4, 40, 40) * 1e4, torch.randint(0, 4, (1, 40, 40))),
    "perfect": (torch.eye(4)[BLOCKS].permute(0, 3, 1, 2) * 200, BLOCKS),
    "tiny": (torch.randn(2, 4, 2, 3), torch.randint(0, 4, (2, 2, 3))),
}  # fmt: skip


@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_finite_where_the_original_is_not(name, dtype):
    logits, label = HARD[name]
    logits = logits.to(dtype, copy=True).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        terms = region_mutual_information(logits, label)
    terms.loss.backward()
    assert terms.loss.isfinite()
    assert logits.grad.isfinite().all()
    if name == "all ignored":
        assert logits.grad.abs().max() == 0


def test_better_predictions_lose_less():
    label = torch.arange(4).repeat_interleave(256).view(1, 32, 32)
    truth = torch.eye(4)[label].permute(0, 3, 1, 2) * 2 - 1
    losses = [region_mutual_information(truth * sure, label) for sure in (0.0, 1.0, 4.0)]
    assert losses[0].rmi > losses[1].rmi > losses[2].rmi
    assert losses[0].bce > losses[1].bce > losses[2].bce
    opposite = region_mutual_information(-truth * 4, label)
    assert opposite.loss > losses[2].loss


def test_keeps_little_for_backward():
    """Beside the logits their gradient, and crumbs."""
    logits = torch.randn(1, 19, 128, 128, requires_grad=True)
    label = torch.randint(0, 19, (1, 128, 128))
    with Alive() as alive:
        terms = region_mutual_information(logits, label)
    assert terms.loss.requires_grad
    assert alive.now < 2.2 * logits.untyped_storage().nbytes()


def test_large_and_sure_stays_finite():
    """A picture of 512x1024: no covariance loses its positive diagonal to rounding."""
    torch.manual_seed(0)
    label = torch.randint(0, 3, (1, 32, 64)).repeat_interleave(16, 1).repeat_interleave(16, 2)
    truth = torch.eye(3)[label].permute(0, 3, 1, 2)
    for logits in (
        truth * 200 - 100,
        truth * 2e4,
        100 - truth * 200,
        1e3 * torch.randn_like(truth),
    ):
        assert region_mutual_information(logits, label).loss.isfinite()
