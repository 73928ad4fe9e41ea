"""What a plan says before a run is what a step then takes."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace

import pytest
import torch
from PIL import Image

from hmsa.config.reading import read
from hmsa.config.recipe import Joint, Recipe, preset
from hmsa.data.datasets import open_dataset
from hmsa.model import build
from hmsa.training.plan import LIBRARIES, counted, forecast, step_cost, suited


@pytest.mark.parametrize(
    ("trunk", "head", "loss"),
    [("resnet18", "ocr", "rmi"), ("tf_efficientnet_lite0", "plain", "cross_entropy")],
)
@pytest.mark.parametrize("memory", ["lean", "plain"])
def test_counted_bytes_are_those_of_a_step(trunk, head, loss, memory):
    model = build(classes=5, trunk=trunk, head=head, width=16).train()
    stage = Joint(crop=(96, 128), memory=memory, loss=loss)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    count = counted(model, stage, 3)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    cost = step_cost(model, stage, "fp32", 3, stage.crop)
    assert count.saved == pytest.approx(cost.saved, rel=0.02)
    assert count.peak == pytest.approx(cost.peak, rel=0.02)


def test_bytes_of_rmi_are_counted():
    model = build(classes=5, trunk="resnet18", width=16).train()
    stage = Joint(crop=(96, 128), loss="rmi")
    peak = step_cost(model, stage, "fp32", 2, stage.crop).peak
    assert counted(model, stage, 2).peak == pytest.approx(peak, rel=0.05)


def test_what_fits(recipe, hmsa, tmp_path):
    words = ["train", recipe, "--plan", "--set", "accelerator=cuda", "--json", "--memory"]
    ran = hmsa(*words, "0.05", "--out", tmp_path / "run")
    assert ran.code == 0, ran.err
    lean, plain = json.loads(ran.out)["plans"]
    assert (lean["memory"], plain["memory"]) == ("lean", "plain")
    assert lean["saved"] < plain["saved"] < plain["peak"] < 0.05 * 2**30
    assert lean["batch"] >= plain["batch"] > 2
    assert lean["crop"] >= plain["crop"] >= 64
    assert lean["lr"] == pytest.approx(1e-3 * (lean["batch"] / 2) ** 0.5)
    assert not (tmp_path / "run").exists()
    advice = ran.err.split("largest crop: --set ")[1].split("\n")[0].split(" --set ")
    assert advice[1:] == ["precision=fp32", f"joint.crop=[{lean['crop']},{lean['crop']}]"]
    on_a_cpu = json.loads(hmsa(*words, "0.3", "--set", "accelerator=cpu").out)["plans"]
    assert on_a_cpu[0]["peak"] > lean["peak"] + LIBRARIES
    tight = hmsa(*words, "0.0001")
    assert json.loads(tight.out)["plans"][0]["batch"] == 0


def test_a_batch_that_fits_in_parts(recipe, hmsa):
    words = ["train", recipe, "--plan", "--memory", "0.06"]
    words += ["--set", "accelerator=cuda", "--set", "joint.batch=24"]
    advice = hmsa(*words).err.split("fits in parts: --set ")[1].split()[0]
    parts = hmsa(*words, "--set", advice, "--json")
    assert json.loads(parts.out)["plans"][0]["batch"] >= 24


@pytest.mark.parametrize(
    ("side", "count", "chosen", "settings"),
    [
        ((64, 80), 3, "laptop", {"joint.steps": 400, "joint.crop": [64, 96], "sampling.tile": 96}),
        ((360, 480), 30, "laptop", {"joint.steps": 600, "joint.warmup": 60}),
        ((360, 480), 30, "laptop", {"joint.crop": [256, 256], "attention.crop": [384, 480]}),
        ((1024, 2048), 4, "laptop", {"joint.crop": [512, 512], "joint.batch": 4}),
        ((40, 6000), 1, "laptop", {"attention.scales": [0.25, 0.5, 1.0]}),
        ((1024, 2048), 90, "gpu", {"joint.steps": 3600, "joint.crop": [512, 512]}),
        ((1024, 2048), 80, "paper", {"joint.steps": 7000, "joint.crop": [1024, 2048]}),
        ((360, 480), 80, "paper", {"joint.lr": 1.25e-3, "joint.crop": [384, 480]}),
    ],
)
def test_settings_without_a_recipe(folder_dataset, side, count, chosen, settings):
    label = Image.new("L", side[::-1])
    dataset = open_dataset(folder_dataset({f"a{n}": label for n in range(count)}), "train")
    recipe = read(Recipe, None, ["data.dataset=x", *preset(chosen)])
    found = suited(dataset, recipe, chosen, 2 if chosen == "paper" else 1)
    assert {f"{key}={value}" for key, value in settings.items()} <= {*found}
    read(Recipe, None, ["data.dataset=x", *preset(chosen), *found])


def test_a_preset_is_for_datasets(hmsa, recipe, scenes, tmp_path):
    ran = hmsa("train", recipe, "--preset", "gpu")
    assert (ran.code, "is a recipe" in ran.err) == (2, True), ran.err
    small = [
        "model.trunk=hrnet_w18_small", "model.pretrained=false", "model.width=8", "joint.steps=2",
        "joint.batch=2", "attention.steps=2", "attention.pictures=2", "joint.crop=[32, 32]",
    ]  # fmt: skip
    changes = [part for each in small for part in ("--set", each)]
    ran = hmsa("train", scenes, "--out", tmp_path / "run", *changes)
    assert ran.code == 0, ran.err
    assert "to train longer: --set joint.steps=8" in ran.err
    name, *words = shlex.split(ran.err.split("Next:")[1].splitlines()[1], comments=True)
    assert (name, hmsa(*words).code) == ("hmsa", 0)


def test_forecast(folder_dataset):
    label = Image.new("L", (100, 100))
    data = open_dataset(folder_dataset({f"a{n}": label for n in range(4)}), "train")
    changes = ["joint.steps=1000", "joint.crop=[100,100]", "joint.validate_every=1000"]
    recipe = read(Recipe, None, ["data.dataset=x", *changes, "attention.steps=0"])
    line = forecast(recipe, data, data, 2.0, 900)
    # 900 steps of 2 s; 4 images are half of a batch, without backward: a quarter of a second
    assert line.startswith("about 0:30:00 left at 2.00 s a step: joint stage 0:30:00, validation")
    assert line.endswith("shorter: --set joint.steps=500")
    assert forecast(recipe, data, data, 0.01, 900) == ""
    often = read(Recipe, None, ["data.dataset=x", *changes, "joint.validate_every=1"])
    many = replace(data, pairs=data.pairs * 50)
    assert "--set joint.validate_every=1000" in forecast(often, data, many, 2.0, 900)


def test_a_long_run_is_forecast(recipe, hmsa, tmp_path, monkeypatch):
    monkeypatch.setattr("hmsa.training.plan.LONG", 0)
    ran = hmsa("train", recipe, "--out", tmp_path / "run", "--set", "joint.steps=8")
    assert ran.code == 0, ran.err
    assert ran.err.count(" s a step: joint stage 0:00:0") == 1
