"""Learning rates by part: the trunk's own factor, layer by layer where that is wanted."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import nn

from hmsa.config.recipe import Joint
from hmsa.model import HMSA
from hmsa.training.trainer import freeze_norms, make_optimizer, set_learning_rate


def rates(model, **settings):
    """Learning rate and weight decay of each parameter, by name."""
    stage = Joint(lr=0.1, weight_decay=0.5, warmup=0, **settings)
    optimizer = make_optimizer(model, stage)
    set_learning_rate(optimizer, stage, 0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def test_the_trunk_has_a_factor_of_its_own_and_biases_no_decay():
    model = HMSA(2, "resnet18", width=8)
    found = rates(model, trunk_factor=0.2)
    assert len(found) == len(list(model.parameters()))
    for name, (rate, decay) in found.items():
        assert rate == pytest.approx(0.02 if name.startswith("trunk.") else 0.1), name
        assert decay == (0.5 if model.get_parameter(name).ndim > 1 else 0.0), name


def test_layers_of_a_transformer_decay_towards_its_input():
    model = HMSA(2, "vit_tiny_patch16_224", width=8)
    found = rates(model, layer_decay=0.5, trunk_factor=0.5)
    blocks = [
        rate for name, (rate, _) in found.items() if name.endswith("attn.qkv.weight")
    ]  # of the least to the greatest depth
    assert len(blocks) > 1
    assert blocks == pytest.approx(sorted(blocks))
    assert blocks[0] == pytest.approx(blocks[-1] * 0.5 ** (len(blocks) - 1))
    assert blocks[-1] <= 0.05
    assert found["attention.2.weight"][0] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("adamw", partial(torch.optim.AdamW, lr=0.1, weight_decay=0.5)),
        ("sgd", partial(torch.optim.SGD, lr=0.1, weight_decay=0.5, momentum=0.9)),
    ],
)
def test_fused_steps_are_those_of_the_formula(name, plain):
    """Also where values lie in memory as channels_last."""
    torch.manual_seed(0)
    one = nn.Conv2d(4, 3, 3, bias=False).to(memory_format=torch.channels_last)
    two = copy.deepcopy(one)
    stage = Joint(lr=0.1, weight_decay=0.5, optimizer=name)
    for network, optimizer in ((one, make_optimizer(one, stage)), (two, plain(two.parameters()))):
        for step in range(3):
            optimizer.zero_grad()
            network(torch.ones(1, 4, 5, 5)).pow(2 + step).sum().backward()
            optimizer.step()
    torch.testing.assert_close(one.weight, two.weight)


def test_frozen_norms_are_those_of_the_trunk():
    model = HMSA(2, "resnet18", width=8).train()
    freeze_norms(model.trunk)
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.training != name.startswith("trunk."), name
