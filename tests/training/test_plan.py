"""What a plan says before a run is what a step then takes."""

from __future__ import annotations

import json

import pytest
import torch

from hmsa.config.recipe import Joint
from hmsa.model import build
from hmsa.training.plan import counted, step_cost


@pytest.mark.parametrize(
    ("trunk", "head"), [("resnet18", "ocr"), ("tf_efficientnet_lite0", "plain")]
)
@pytest.mark.parametrize("memory", ["lean", "plain"])
def test_counted_bytes_are_those_of_a_step(trunk, head, memory):
    model = build(classes=5, trunk=trunk, head=head, width=16).train()
    stage = Joint(crop=(96, 128), memory=memory)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    count = counted(model, stage, 3)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    cost = step_cost(model, stage, "fp32", 3, stage.crop)
    assert count.saved == pytest.approx(cost.saved, rel=0.02)
    assert count.peak == pytest.approx(cost.peak, rel=0.02)


def test_what_fits(recipe, hmsa, tmp_path):
    ran = hmsa("train", recipe, "--plan", "--memory", "0.05", "--out", tmp_path / "run", "--json")
    assert ran.code == 0, ran.err
    lean, plain = json.loads(ran.out)["plans"]
    assert (lean["memory"], plain["memory"]) == ("lean", "plain")
    assert lean["saved"] < plain["saved"] < plain["peak"] < 0.05 * 2**30
    assert lean["batch"] >= plain["batch"] > 2
    assert lean["crop"] >= plain["crop"] >= 64
    assert lean["lr"] == pytest.approx(1e-3 * (lean["batch"] / 2) ** 0.5)
    assert not (tmp_path / "run").exists()
    tight = hmsa("train", recipe, "--plan", "--memory", "0.0001", "--json")
    assert json.loads(tight.out)["plans"][0]["batch"] == 0
