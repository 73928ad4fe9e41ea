"""Constant attention: every mixture is reached, the best is found, and training begins there."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric

from hmsa.model import Encoded, ScaleOutput
from hmsa.model.fusion import average, chain, effective_weights
from hmsa.training.passes import Passes, begin_at, clearly_best, constant_weights, prior_of

SCALES = [0.5, 1.0, 2.0]


@pytest.mark.parametrize("shares", [(1 / 3, 1 / 2), (0.9, 0.02), (0.1, 0.8)])
def test_two_numbers_reach_every_mixture_of_three_scales(shares):
    low, high = shares
    weights = constant_weights(prior_of(shares, SCALES), SCALES)
    assert weights == pytest.approx([low, (1 - low) * high, (1 - low) * (1 - high)])


def test_other_chains():
    assert constant_weights(prior_of((0.7, 0.4), [1.0, 2.0]), [1.0, 2.0]) == pytest.approx(
        [0.4, 0.6]
    )
    four = constant_weights(prior_of((1 / 4, 1 / 2), [0.25, *SCALES]), [0.25, *SCALES])
    assert sum(four) == pytest.approx(1)
    assert four == pytest.approx([0.25] * 4, abs=0.03), "nearly the average"


@pytest.mark.parametrize("shares", [(1 / 3, 1 / 2), (0.98, 0.25)])
def test_the_beginning_is_the_fold_with_constant_weights(tiny, shares):
    image = torch.rand(1, 3, 50, 70)
    prior = prior_of(shares, SCALES)
    begin_at(tiny, prior)
    with torch.no_grad():
        output = tiny(image, SCALES)
        constant = {
            s: one._replace(attention=torch.full_like(one.logits[:, :1], share))
            for (s, one), share in zip(output.maps.items(), (*shares, math.nan), strict=True)
        }
        torch.testing.assert_close(output.logits, chain(constant, (50, 70)), atol=1e-6, rtol=0)
        weights = effective_weights(output.maps, (50, 70))
    for weight, expected in zip(weights.values(), constant_weights(prior, SCALES), strict=True):
        torch.testing.assert_close(weight, torch.full_like(weight, expected))
    if shares == (1 / 3, 1 / 2):
        torch.testing.assert_close(output.logits, average(output.maps, (50, 70)))


def test_attention_learns_from_there(tiny):
    begin_at(tiny, (0.5, 0.2))
    tiny(torch.rand(1, 3, 64, 64), SCALES).logits.square().mean().backward()
    assert tiny.attention[-1].weight.grad.abs().sum() > 0


class Known(Passes):
    """The coarse scale is wrong and sure, the middle one right, the fine one says nothing."""

    def read(self, numbers):
        label = torch.arange(2).repeat_interleave(16).expand(1, 32, 32)
        right = torch.nn.functional.one_hot(label, 2).permute(0, 3, 1, 2).float()
        logits = {0.5: 2 * right.flip(1), 1.0: right, 2.0: 0 * right}
        size = {s: (int(32 * s), int(32 * s)) for s in SCALES}
        return {s: Encoded(None, one, None, size[s], size[s]) for s, one in logits.items()}, label


def test_the_best_constant_is_found(tiny):
    passes = Known(Path(), Fabric(accelerator="cpu"), tiny, SCALES, lambda number: number)
    encoded, label = passes.read([0])
    maps = {s: ScaleOutput(one.grid(one.logits).pixels(), None) for s, one in encoded.items()}
    assert (average(maps, (32, 32)).argmax(1) == label).float().mean() < 0.1, "nearly all wrong"
    low, middle, _ = constant_weights(passes.best_constant([0, 1]), SCALES)
    assert middle > 2 * low
    alone = constant_weights(passes.best_constant([0]), SCALES)
    assert alone == pytest.approx([1 / 3] * 3), "one image is no evidence"


def test_chance_leaves_averaging():
    """64 candidates that differ by noise alone: one of them is the best of these images."""
    random = np.random.default_rng(0)
    hit = random.integers(40, 60, (20, 65, 4))
    counts = np.stack([hit, np.full_like(hit, 100)], 2)
    gain = (hit.sum(0) / 2000).mean(-1)
    assert gain.max() > gain[0] + 0.005
    assert clearly_best(counts) == 0
    counts[:, 7, 0] += 10
    assert clearly_best(counts) == 7
    counts[:, :, :, 3] = 0  # a class that does not occur
    assert clearly_best(counts) == 7


def test_older_checkpoints_have_no_prior(tiny):
    begin_at(tiny, (0.5, -0.25))
    state = tiny.state_dict()
    assert state.pop("prior").tolist() == [0.5, -0.25]
    tiny.load_state_dict(state)
    assert tiny.prior.tolist() == [0, 0]
