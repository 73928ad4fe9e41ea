"""What `hmsa train` refuses before its first step, in one line that says how to mend it."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from hmsa.runs import Run
from samples import TINY_RECIPE


@pytest.fixture
def refused(recipe, hmsa, tmp_path):
    """`refused("joint.batch=1")` -> the one line; nothing was trained."""

    def run(*changes, out=tmp_path / "run", more=()):
        settings = [word for change in changes for word in ("--set", change)]
        ran = hmsa("train", recipe, "--out", out, *settings, *more)
        assert ran.code == 2, ran.err
        assert "Traceback" not in ran.err
        assert not list(out.glob("metrics.csv")) or "--resume" in more
        return ran.err.strip().splitlines()[-1]

    return run


def test_a_second_run_in_one_folder(recipe, hmsa, trained):
    ran = hmsa("train", recipe, "--out", trained)
    assert ran.code == 2
    assert "--resume" in ran.err


def test_another_process_in_one_folder(refused, tmp_path):
    with Run(tmp_path / "run", "train", {}):
        assert "another process is writing into this folder" in refused()


@pytest.mark.parametrize(
    ("change", "says"), [("seed=9", "seed 0 -> 9"), ("joint.steps=7", "joint.steps 4 -> 7")]
)
def test_another_recipe_at_resume(trained, hmsa, change, says):
    recipe = trained.parent / "recipe.yaml"
    ran = hmsa("train", recipe, "--out", trained, "--resume", "--set", change)
    assert ran.code == 2
    assert f"begun with other settings, {says}; continue with the same recipe" in ran.err


@pytest.mark.parametrize(("value", "says"), [(0, "classes, not 1"), (255, "classes, not 0")])
def test_nothing_to_tell_apart(hmsa, folder_dataset, value, says):
    """Such as 0/255 masks, whose 255 means "no label" by default."""
    label = np.full((64, 64), value, np.uint8)
    data = folder_dataset({"a": label}, splits={"train": "train", "val": "val"})
    shutil.copytree(data.parent / "pictures" / "train", data.parent / "pictures" / "val")
    Image.fromarray(label * 0).save(data.parent / "pictures" / "val" / "labels" / "a.png")
    file = data.parent / "recipe.yaml"
    file.write_text(yaml.safe_dump(TINY_RECIPE | {"data": {"dataset": str(data)}}))
    ran = hmsa("train", file, "--out", data.parent / "run")
    assert ran.code == 2
    assert says in ran.err
    assert "hmsa data check" in ran.err


def test_nothing_labelled_in_the_validation_split(hmsa, folder_dataset):
    label = np.zeros((64, 64), np.uint8)
    label[:32] = 1
    data = folder_dataset({"a": label}, splits={"train": "train", "val": "val"})
    pictures = data.parent / "pictures"
    shutil.copytree(pictures / "train", pictures / "val")
    Image.fromarray(label * 0 + 255).save(pictures / "val" / "labels" / "a.png")
    file = data.parent / "recipe.yaml"
    file.write_text(yaml.safe_dump(TINY_RECIPE | {"data": {"dataset": str(data)}}))
    ran = hmsa("train", file, "--out", data.parent / "run")
    assert ran.code == 2
    assert "nothing is labelled in split val" in ran.err
    assert not list(data.parent.glob("run/*.safetensors"))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["joint.batch=1"], "joint.batch 1, joint.crop [64, 64]: Expected more than 1 value"),
        (["joint.batch=1", "joint.crop=[128, 128]", "model.head=deeplab", "model.stride=8",
          "model.trunk=resnet18", "model.pretrained=false"], "joint.batch 1"),
        (["joint.batch=1", "joint.crop=[32, 32]", "model.head=ocr"], "joint.batch 1"),
    ],
)  # fmt: skip
def test_one_value_for_each_channel_of_a_norm(refused, changes, says):
    line = refused(*changes)
    assert says in line
    assert "use larger batches or crops" in line


def test_no_steps_at_all(refused):
    assert "no stage had a step" in refused("joint.steps=0", "attention.steps=0")
    changes = ["joint.steps=0", "model.fusion=average", "joint.scales=[1]"]
    assert "no stage had a step" in refused(*changes)


class Code:
    def __reduce__(self):
        return os.mkdir, ("it-ran",)


def test_files_that_would_run_code(refused, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.pth").write_bytes(pickle.dumps({"conv1.weight": Code()}))
    torch.save({"conv1.weight": Code()}, tmp_path / "zipped.pth")
    for name in ("weights.pth", "zipped.pth"):
        line = refused(f"model.pretrained={tmp_path / name}")
        assert f"{name} cannot be read safely" in line
    run = tmp_path / "begun"
    shutil.copytree(trained, run)
    for content in ((tmp_path / "zipped.pth").read_bytes(), b"torn"):
        (run / "resume.pt").write_bytes(content)
        assert "resume.pt is damaged or not by hmsa" in refused(out=run, more=["--resume"])
    assert not (tmp_path / "it-ran").exists()


def test_a_folder_that_cannot_be_written(refused, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    assert "file/run" in refused(out=tmp_path / "file" / "run")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("hmsa.training.trainer.save", full)
    assert f"cannot write into {tmp_path / 'run'} (No space left on device" in refused()


def test_a_process_that_no_launcher_counts(recipe, tmp_path):
    """It has a rank but is alone: it would write what the first one writes."""
    command = [sys.executable, "-m", "hmsa", "train", recipe, "--out", tmp_path / "run"]
    done = subprocess.run(
        command, env=os.environ | {"LOCAL_RANK": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    assert "another process trains here" in done.stderr
