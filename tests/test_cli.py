"""The command line: exit codes, one line a mistake, results on stdout."""

from __future__ import annotations

import subprocess
import sys

import pytest

import hmsa as package


def test_version(hmsa):
    ran = hmsa("--version")
    assert ran.code == 0
    assert ran.out.strip() == f"hmsa {package.__version__}"


VERBS = [
    *("train", "evaluate", "autolabel", "review", "selftrain", "predict", "convert", "demo"),
    *(f"data {what}" for what in ("scenes", "import", "check", "stats")),
]


@pytest.mark.parametrize("verb", VERBS)
def test_help_ends_in_a_command(hmsa, verb):
    ran = hmsa(*verb.split(), "--help")
    assert ran.code == 0
    assert f"hmsa {verb}" in " ".join(ran.out.split("example:")[1].split())


MISTAKES = {
    "unknown verb": (["segment"], "Unknown command"),
    "missing config": (["train", "nowhere.yaml"], "no file nowhere.yaml"),
    "unknown key": (["train", "RECIPE", "--set", "joint.stepz=1"], "did you mean 'steps'"),
    "wrong type": (["train", "RECIPE", "--set", "joint.batch=many"], "joint.batch"),
    "unknown trunk": (["train", "RECIPE", "--set", "model.trunk=hrnet"], "not a timm model"),
    "no such device": (
        ["train", "RECIPE", "--set", "accelerator=mps"],
        "there is no Apple GPU here",
    ),
    "empty crop": (["train", "RECIPE", "--set", "joint.crop=[0, 64]"], "joint.crop.0"),
    "missing split": (["train", "RECIPE", "--set", "data.val=vall"], "did you mean val"),
    "missing folder": (["train", "RECIPE", "--data", "/nowhere"], "no folder /nowhere"),
    "no checkpoint": (["evaluate", "nothing.safetensors", "RECIPE"], "no checkpoint"),
    "not a checkpoint": (["evaluate", "RECIPE", "RECIPE"], "is not a checkpoint"),
    "no dataset": (["evaluate", "TRAINED", "nodata.yaml"], "no file nodata.yaml"),
    "unknown dataset": (["evaluate", "TRAINED", "cityscape"], "did you mean cityscapes?"),
    "no place": (["evaluate", "TRAINED", "cityscapes"], "pass --data FOLDER"),
    "bad size": (["data", "scenes", "x", "--size", "big"], "HEIGHTxWIDTH"),
    "bad count": (["data", "scenes", "x", "--count", "five"], "SPLIT=N"),
    "full folder": (["data", "scenes", "FULL"], "is not empty"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_line_and_exit_2(hmsa, recipe, trained, tmp_path, mistake):
    arguments, says = MISTAKES[mistake]
    places = {"RECIPE": recipe, "TRAINED": trained, "FULL": trained}
    out = ["--out", tmp_path / "run"] if "train" in arguments else []
    ran = hmsa(*(places.get(a, a) for a in arguments), *out)
    assert ran.code == 2
    assert says in ran.err
    assert "Traceback" not in ran.err
    assert ran.out == ""
    assert len(ran.err.splitlines()) == 1, ran.err


def test_labels_outside_the_table_stop_training_before_it_starts(hmsa, folder_dataset, tmp_path):
    import numpy as np
    import yaml

    path = folder_dataset({"a": np.full((64, 64), 77, np.uint8)}, splits={"train": "train"})
    recipe = tmp_path / "r.yaml"
    recipe.write_text(yaml.safe_dump({"data": {"dataset": str(path), "val": "train"}}))
    ran = hmsa("train", recipe, "--out", tmp_path / "run")
    assert ran.code == 2
    assert "77 (4096 pixels)" in ran.err
    assert not (tmp_path / "run" / "resume.pt").exists()


@pytest.mark.parametrize("verb", ["train", "evaluate"])
def test_a_truncated_picture_is_named(hmsa, trained, tmp_path, verb):
    from hmsa.data.scenes import write_scenes

    path = write_scenes(tmp_path / "s", {"train": 1, "val": 1}, (64, 96))
    for split in ("train", "val"):
        file = tmp_path / "s" / split / "images" / "00000.png"
        file.write_bytes(file.read_bytes()[:3000])
    if verb == "train":
        recipe = tmp_path / "r.yaml"
        recipe.write_text(f"data: {{dataset: {path}}}")
        ran = hmsa("train", recipe, "--out", tmp_path / "run")
    else:
        ran = hmsa("evaluate", trained, path)
    assert ran.code == 2
    assert "00000.png cannot be decoded" in ran.err
    assert "Traceback" not in ran.err


def test_failures_are_one_line_and_exit_1(hmsa, recipe, tmp_path, monkeypatch):
    from hmsa.training import train as module

    def break_down(*_):
        raise RuntimeError("the disk is on fire")

    monkeypatch.setattr(module, "open_dataset", break_down)
    ran = hmsa("train", recipe, "--out", tmp_path / "run")
    assert ran.code == 1
    assert "the disk is on fire" in ran.err
    assert "Traceback" not in ran.err


def test_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "hmsa", "predict"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "CHECKPOINT requires an argument" in done.stderr


def test_data_scenes(hmsa, tmp_path):
    ran = hmsa(
        "data", "scenes", tmp_path / "s", "--count", "a=2", "--count", "b=1", "--size", "64x80"
    )
    assert ran.code == 0
    assert ran.out.strip() == str(tmp_path / "s" / "dataset.yaml")
    assert len(list((tmp_path / "s" / "a" / "images").iterdir())) == 2
