"""Training: both stages, exact resume, a real Ctrl-C, a real kill."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from hmsa import HMSA
from hmsa.config.recipe import Joint
from hmsa.data.descriptions import is_dataset
from hmsa.training.trainer import class_weights, set_learning_rate


def rows(run):
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def weights(path):
    return HMSA.from_pretrained(path).state_dict()


def test_a_run_leaves_everything_that_is_promised(trained):
    names = {p.name for p in trained.iterdir()}
    assert {"best.safetensors", "last.safetensors", "resume.pt", "metrics.csv"} <= names
    assert any(n.startswith("events.out.tfevents") for n in names)
    assert {n for n in names if n.startswith(".")} <= {".train.lock"}, "no temporary file is left"
    assert not [n for n in names if "passes" in n], "what is needed for training only is gone"
    model = HMSA.from_pretrained(trained)
    card = model.card
    assert card.names[0] == "sky"
    assert len(card.palette) == 7
    assert card.scales == [0.5, 1.0, 2.0]
    assert card.recipe["joint"]["steps"] == 4
    assert card.trained_on["split"] == "train"
    assert model.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    log = rows(trained)
    assert [(r["stage"], r["step"]) for r in log] == [
        ("joint", "2"), ("joint", "4"), ("attention", "4"), ("attention", "6")
    ]  # fmt: skip
    assert all(0 <= float(r["val_miou"]) <= 1 for r in log)
    steps = [r for r in log if r["loss"]]  # not where attention begins
    assert all(float(r["images_per_s"]) > 0 and float(r["memory_gib"]) > 0 for r in steps)
    assert all(0 < float(r["wait"]) < 1 for r in log if r["stage"] == "joint")
    iou = [v for k, v in card.metrics.items() if k.startswith("val_iou ")]
    assert sum(iou) / len(iou) == pytest.approx(card.metrics["val_miou"])


def test_sheets_of_validation_images(trained):
    sheets = sorted((trained / "validation-sheets").iterdir())
    names = ["000002-joint", "000004-attention", "000004-joint", "000006-attention"]
    assert [sheet.stem for sheet in sheets] == names
    with Image.open(sheets[-1]) as sheet:
        assert sheet.format == "JPEG"
        assert sheet.width > 3 * 320, "image, label, prediction"
        assert sheet.height > 3 * 320 * 64 // 96, "three images of val"


def test_attention_stage_trains_the_attention_head_alone(recipe, hmsa, tmp_path):
    assert hmsa("train", recipe, "--out", tmp_path / "a", "--set", "attention.steps=0").code == 0
    assert hmsa("train", recipe, "--out", tmp_path / "b").code == 0
    before, after = weights(tmp_path / "a" / "last.safetensors"), weights(tmp_path / "b")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all(name.startswith(("attention.", "prior")) for name in moved)


@pytest.mark.parametrize("stop", [1, 3, 4, 5])
def test_resume_equals_never_stopping(recipe, hmsa, tmp_path, monkeypatch, stop):
    """Stopped anywhere (4 is the last joint step, 5 the attention stage's first) and gone on with:
    the very weights of an uninterrupted run."""
    assert hmsa("train", recipe, "--out", tmp_path / "whole").code == 0
    steps = []

    def impatient(optimizer, stage, step):
        steps.append(step)
        if len(steps) == stop:
            os.kill(os.getpid(), signal.SIGINT)
        return set_learning_rate(optimizer, stage, step)

    monkeypatch.setattr("hmsa.training.trainer.set_learning_rate", impatient)
    stopped = hmsa("train", recipe, "--out", tmp_path / "parts")
    assert stopped.code == 130
    assert "go on with: hmsa train" in stopped.err
    assert "--resume" in stopped.err
    assert steps == [0, 1, 2, 3, 0, 1][:stop]
    assert hmsa("train", recipe, "--out", tmp_path / "parts", "--resume").code == 0
    assert steps == [0, 1, 2, 3, 0, 1]
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(first[name], second[name]) for name in first)
    measured = ("rate", "seconds", "images_per_s", "wait", "memory_gib")
    whole, parts = (
        [{k: v for k, v in r.items() if k not in measured} for r in rows(tmp_path / name)]
        for name in ("whole", "parts")
    )
    assert whole == parts


def test_resume_of_a_finished_run_is_nothing_to_do(recipe, hmsa, tmp_path):
    run = tmp_path / "run"
    assert hmsa("train", recipe, "--out", run, "--resume").code == 0
    before = (run / "best.safetensors").stat().st_mtime_ns
    assert hmsa("train", recipe, "--out", run, "--resume").code == 0
    assert (run / "best.safetensors").stat().st_mtime_ns == before


def test_class_uniform_crops_and_a_further_set(recipe, hmsa, tmp_path, monkeypatch):
    """The index is made once and kept; a run that is gone on with ends with equal weights."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    content = yaml.safe_load(recipe.read_text()) | {"sampling": {
        "class_uniform": 0.5, "tile": 32, "until": 0.75,
        "extra": [{"split": "val", "share": 0.5, "boost": ["post"]}],
    }, "attention": {"steps": 0}}  # fmt: skip
    recipe.write_text(yaml.safe_dump(content))
    assert hmsa("train", recipe, "--out", tmp_path / "whole").code == 0
    kept = sorted((tmp_path / "cache" / "hmsa").iterdir())
    assert len(kept) == 2
    times = [file.stat().st_mtime_ns for file in kept]

    def impatient(optimizer, stage, step):
        if step == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return set_learning_rate(optimizer, stage, step)

    with monkeypatch.context() as patch:
        patch.setattr("hmsa.training.trainer.set_learning_rate", impatient)
        assert hmsa("train", recipe, "--out", tmp_path / "parts").code == 130
    assert hmsa("train", recipe, "--out", tmp_path / "parts", "--resume").code == 0
    assert [file.stat().st_mtime_ns for file in kept] == times
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_killed_run_can_be_gone_on_with(recipe, tmp_path):
    """SIGKILL, which nothing can catch: what is on disk is whole and the run goes on from it."""
    run = tmp_path / "run"
    command = [sys.executable, "-m", "hmsa", "train", str(recipe), "--out", str(run)]
    long = [*command, "--set", "joint.steps=500", "--set", "joint.validate_every=1"]
    process = subprocess.Popen(long, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 600
        while not (run / "metrics.csv").exists() or len(rows(run)) < 2:
            assert process.poll() is None, "training ended by itself"
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    state = torch.load(run / "resume.pt", weights_only=True)
    assert 1 <= state["state"]["step"] < 500
    HMSA.from_pretrained(run / "best.safetensors")
    assert [float(r["step"]) for r in rows(run)]


@pytest.mark.parametrize(
    ("optimizer", "loss"), [("sgd", "cross_entropy"), ("adamw", "ohem"), ("adamw", "rmi")]
)
def test_loss_falls(scenes, hmsa, tmp_path, optimizer, loss):
    """The same few pictures for forty steps: whatever is wired wrong shows here."""
    lr = {"sgd": 0.05, "adamw": 3e-3}[optimizer]
    content = {
        "data": {"dataset": str(scenes)},
        "model": {"trunk": "hrnet_w18_small", "pretrained": False, "width": 16},
        "augment": {"color": 0},
        "joint": {"steps": 40, "batch": 4, "crop": [64, 96], "resize": [1, 1], "lr": lr,
                  "optimizer": optimizer, "loss": loss, "warmup": 3, "ema": 0,
                  "validate_every": 40},
        "attention": {"steps": 0},
        "precision": "fp32",
    }  # fmt: skip
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(content))
    assert hmsa("train", tmp_path / "r.yaml", "--out", tmp_path / "run").code == 0
    losses = [float(r["fused"]) for r in rows(tmp_path / "run")]
    assert losses[-1] < 0.75 * losses[0]


def test_schedule():
    class Optimizer:
        param_groups = [{}]  # noqa: RUF012

    stage = Joint(steps=100, lr=1.0, power=2.0, warmup=9)
    assert set_learning_rate(Optimizer, stage, 0) == pytest.approx(0.1)
    assert set_learning_rate(Optimizer, stage, 50) == pytest.approx(0.25)
    assert Optimizer.param_groups[0]["lr"] == pytest.approx(0.25)
    assert 0 < set_learning_rate(Optimizer, stage, 99) < 1e-3


def test_class_weights():
    import numpy as np

    weight = class_weights(np.array([100, 400, 0, 25]), 0.5)
    assert weight.tolist() == pytest.approx([1.0, 0.5, 1.0, 2.0])
    assert class_weights(np.array([1, 9]), 0.0).tolist() == [1, 1]


def test_two_processes_learn_as_one(recipe, tmp_path):
    """Fabric's own launcher, two real processes on the CPU."""
    run = tmp_path / "run"
    command = [sys.executable, "-m", "hmsa", "train", str(recipe), "--out", str(run),
               "--set", "devices=2", "--set", "accelerator=cpu"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(rows(run)) == 4
    HMSA.from_pretrained(run)


@pytest.mark.parametrize(
    ("fusion", "scales"),
    [
        ("average", [1.0]),  # a single scale
        ("average", [0.5, 1.0]),
        ("max", [0.5, 1.0]),
        ("explicit", [0.5, 1.0, 2.0]),
        ("pair", [0.5, 1.0]),
    ],
)
def test_every_rival_trains_and_is_evaluated(scenes, recipe, hmsa, tmp_path, fusion, scales):
    """Both stages where there is attention to train; then the same verb scores it, with flip."""
    changes = [f"model.fusion={fusion}", *(f"{s}.scales={scales}" for s in ("joint", "attention"))]
    settings = [argument for change in changes for argument in ("--set", change)]
    run = tmp_path / "run"
    assert hmsa("train", recipe, "--out", run, *settings).code == 0
    stages = {row["stage"] for row in rows(run)}
    assert stages == ({"joint", "attention"} if fusion in ("explicit", "pair") else {"joint"})
    card = HMSA.from_pretrained(run).card
    assert (card.network["fusion"], card.scales) == (fusion, scales)
    ran = hmsa("evaluate", run, scenes, "--split", "val", "--flip", "--json")
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    assert found["flip"] is True
    assert set(found["miou"]) == {"single", "average", "max", fusion}
    assert ("weight" in found) == (fusion != "max")
    assert list(found["iou"]) == [fusion]
    page = (run / "report-val.html").read_text()
    assert "flip True" in page


def test_begins_from_another_network(recipe, hmsa, trained, tmp_path):
    """Nothing learnt, nothing lost: what it begins from is what it saves."""
    settings = [f"start={trained}", "joint.lr=1e-12", "attention.steps=0", "joint.ema=0"]
    run = tmp_path / "run"
    ran = hmsa("train", recipe, "--out", run, *(a for s in settings for a in ("--set", s)))
    assert ran.code == 0
    assert "new: nothing" in ran.err
    before, after = weights(trained), weights(run)
    kept = [name for name, value in before.items() if not name.endswith(("mean", "var", "tracked"))
            and torch.allclose(after[name], value, atol=1e-6)]  # fmt: skip
    assert len(kept) > 100
    assert all(name in kept for name in before if name.endswith("weight"))


def test_a_folder_is_a_recipe_of_its_dataset(hmsa, scenes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changes = ["model.trunk=hrnet_w18_small", "model.pretrained=false", "model.width=8"]
    changes += ["joint.crop=[32, 32]"]
    changes += ["joint.steps=1", "joint.batch=2", "joint.validate_every=1", "attention.steps=0"]
    ran = hmsa("train", scenes.parent, *(part for each in changes for part in ("--set", each)))
    assert ran.code == 0, ran.err
    assert (tmp_path / "runs" / scenes.parent.name / "best.safetensors").is_file()
    known = [is_dataset(path) for path in (scenes, Path("camvid"), tmp_path / "recipe.yaml")]
    assert known == [True, True, False]
    ran = hmsa("train", tmp_path)
    assert (ran.code, "no image files" in ran.err) == (2, True)
