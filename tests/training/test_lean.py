"""Lean steps change what is kept for backward, and no number."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from hmsa.config.recipe import Joint
from hmsa.model import build
from hmsa.runs.memory import Alive
from hmsa.training.lean import lean, regions
from hmsa.training.losses import objective

STAGE = Joint(crop=(64, 64))


def step(model, found):
    """Bytes alive between forward and backward; loss, gradients and buffers afterwards."""
    torch.manual_seed(0)  # of dropout, too
    image, label = torch.rand(2, 3, 64, 64), torch.randint(0, 3, (2, 64, 64))
    with Alive() as alive, lean(found):
        loss = objective(model(image, STAGE.scales), label, STAGE)["loss"]
    kept = alive.now
    loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return kept, {"loss": loss.detach(), **grads, **dict(model.named_buffers())}


@pytest.mark.parametrize(
    ("trunk", "head", "stride", "official", "share"),
    [
        ("resnet50", "deeplab", 8, True, 0.5),
        ("hrnet_w18_small", "ocr", 4, True, 0.8),
        ("tf_efficientnet_lite0", "plain", 4, False, 0.5),
        ("mobilenetv3_small_100", "stacked", 4, False, 0.7),  # changes outputs in place
        ("convnext_atto", "plain", 4, False, 1),  # no batch norms
    ],
)
def test_equal_to_the_last_bit(trunk, head, stride, official, share):
    torch.manual_seed(0)
    plain = build(
        classes=3, trunk=trunk, head=head, stride=stride, official=official, width=16
    ).train()  # fmt: skip
    leaner = copy.deepcopy(plain)
    found = regions(leaner)
    all_bytes, expected = step(plain, [])
    kept_bytes, got = step(leaner, found)
    assert got.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(got[name], expected[name])] == []
    assert kept_bytes < share * all_bytes
    assert not any("forward" in vars(module) for module in leaner.modules())


def test_regions_are_blocks_and_heads():
    model = build(classes=3, trunk="resnet18", width=8)
    names = {module: name for name, module in model.named_modules()}
    rows = [f"trunk.extractor.layer{n}" for n in (1, 2, 3, 4)]
    assert [names[module] for module in regions(model)] == [*rows, "head.semantic", "attention"]


def test_an_output_that_is_changed_in_place_is_computed_again():
    torch.manual_seed(0)
    block = nn.Sequential(
        nn.Conv2d(4, 4, 3), nn.SiLU(inplace=True), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
    )
    network = nn.ModuleDict({"block": block})
    (found,) = regions(network)
    image, slopes = torch.rand(1, 4, 8, 8), []
    for which in ([], [found]):
        block.zero_grad()
        with lean(which):
            made = block(image)
        made.square().sum().backward()
        slopes.append(block[0].weight.grad.clone())
    assert torch.equal(*slopes)


def test_frozen_norms_and_no_gradient():
    model = build(classes=3, trunk="resnet18", width=8).eval()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    image = torch.rand(1, 3, 64, 64)
    with lean(regions(model)):
        model(image).logits.sum().backward()
        with torch.no_grad():
            assert not model(image).logits.requires_grad
    assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())
