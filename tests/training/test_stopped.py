"""Training that is stopped, killed or fails on the way: what is saved, and how it goes on."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from scenes import write_scenes

from hmsa import HMSA
from hmsa.runs import replace
from hmsa.training import trainer
from hmsa.training.trainer import set_learning_rate
from samples import TINY_RECIPE


@pytest.fixture
def place(tmp_path) -> Path:
    """A folder with recipe.yaml and scenes of its own, which a test may change."""
    data = write_scenes(tmp_path / "scenes", {"train": 4, "val": 2}, (64, 96))
    content = TINY_RECIPE | {"data": {"dataset": str(data), "workers": 0}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    return tmp_path


@pytest.fixture
def train(place, hmsa):
    """`train("--resume", "joint.lr=1")` -> what `hmsa train` did in the folder `run`."""

    def train(*words):
        settings = [w for word in words for w in ([word] if word[0] == "-" else ["--set", word])]
        return hmsa("train", place / "recipe.yaml", "--out", place / "run", *settings)

    return train


@pytest.fixture
def before_step(monkeypatch):
    """`before_step(2, act)` calls `act` once, when step 2 of a stage begins."""

    def at(number, act):
        acts = [act]

        def rate(optimizer, stage, step):
            if step == number and acts:
                acts.pop()()
            return set_learning_rate(optimizer, stage, step)

        monkeypatch.setattr(trainer, "set_learning_rate", rate)

    return at


def interrupt(number=signal.SIGINT):
    os.kill(os.getpid(), number)


def state(place):
    return torch.load(place / "run" / "resume.pt", weights_only=True)["state"]


def labels(place):
    return sorted((place / "scenes" / "train" / "labels").iterdir())


class TestData:
    """A change of the data since the run began is named, and refused unless it is allowed."""

    @pytest.fixture
    def stopped(self, train, before_step):
        before_step(1, interrupt)
        assert train().code == 130

    def test_a_blanked_label(self, stopped, train, place):
        file = labels(place)[1]
        Image.fromarray(np.full((64, 96), 255, np.uint8)).save(file)
        ran = train("--resume")
        assert ran.code == 2
        assert f"split train, has changed since then: label {file.stem} changed; re" in ran.err
        assert state(place)["step"] == 2
        assert train("--resume", "--changed-data").code == 0
        assert train("--resume").code == 0, "the change is now part of the run"

    def test_a_pair_less(self, stopped, train, place):
        file = labels(place)[0]
        file.unlink()
        next((place / "scenes" / "train" / "images").glob(f"{file.stem}.*")).unlink()
        ran = train("--resume")
        assert ran.code == 2
        assert f"image {file.stem} removed" in ran.err

    def test_files_only_touched(self, stopped, train, place):
        for file in labels(place):
            os.utime(file, (1, 1))
        assert train("--resume").code == 0

    def test_a_new_class(self, stopped, train, place):
        file = place / "scenes" / "dataset.yaml"
        content = yaml.safe_load(file.read_text())
        names = content["names"]
        content["names"] = names | {99: "tram"} if isinstance(names, dict) else [*names, "tram"]
        content["palette"].append([1, 2, 3])
        file.write_text(yaml.safe_dump(content))
        for more in ((), ("--changed-data",)):
            ran = train("--resume", *more)
            assert ran.code == 2, ran.err
            assert "class tram added" in ran.err


def test_the_card_tells_the_data(train, place):
    assert train().code == 0
    first = HMSA.from_pretrained(place / "run").card.trained_on
    assert (first["dataset"], first["split"]) == ("dataset.yaml", "train")
    assert len(first["data"]) == 16


def test_other_loader_processes_at_resume(train, place, before_step):
    before_step(1, interrupt)
    assert train("data.workers=1").code == 130
    assert train("--resume", "data.workers=0").code == 0


def test_stopped_before_the_first_step(train, place, monkeypatch):
    """SIGTERM while the network is made: there is nothing to save, and --resume begins."""
    with monkeypatch.context() as patch:
        patch.setattr("hmsa.training.train.build", lambda **_: interrupt(signal.SIGTERM))
        ran = train()
    assert ran.code == 130
    assert "hmsa: stopped; go on with: hmsa train" in ran.err
    assert not (place / "run" / "resume.pt").exists()
    assert train("--resume").code == 0


def test_stopped_while_the_frozen_network_runs(train, place, monkeypatch):
    """SIGTERM is heeded after the image that is at hand, and no image is computed again."""
    files = []

    def stopping(file, content):
        replace(file, content)
        files.append(file.name)
        if len(files) == 2:
            interrupt(signal.SIGTERM)

    monkeypatch.setattr("hmsa.training.passes.replace", stopping)
    ran = train()
    assert ran.code == 130, ran.err
    assert "stopped and saved: attention, step 0" in ran.err
    assert len(files) == 2
    assert state(place) | {"best": 0} == {
        "stage": "attention", "step": 0, "total": 4, "best": 0, "best_step": 0
    }  # fmt: skip
    assert train("--resume").code == 0
    assert sorted(files) == ["0.pt", "1.pt", "2.pt", "3.pt", "4.pt", "5.pt"]


def test_an_image_that_breaks_on_the_way(train, place, before_step):
    """Saved before the step that needs it; mended, it goes on as if nothing had happened."""
    images = {f: f.read_bytes() for f in (place / "scenes" / "train" / "images").iterdir()}
    before_step(3, lambda: [file.write_bytes(c[:99]) for file, c in images.items()])
    ran = train("attention.steps=0")
    assert ran.code == 2
    assert str(place / "scenes" / "train" / "images") in ran.err
    assert state(place)["step"] == 3
    for file, content in images.items():
        file.write_bytes(content)
    assert train("--resume", "attention.steps=0").code == 0
    parts = load_file(place / "run" / "last.safetensors")
    (place / "run").rename(place / "parts")
    assert train("attention.steps=0").code == 0
    whole = load_file(place / "run" / "last.safetensors")
    assert all(torch.equal(parts[name], whole[name]) for name in whole)


def test_a_loader_process_that_dies(train, place, before_step):
    def kill():
        for child in multiprocessing.active_children():
            child.kill()
            child.join()

    before_step(3, kill)
    ran = train("joint.steps=40", "joint.validate_every=40", "data.workers=1")
    assert ran.code in (1, 2), "torch may notice it anywhere in a step"
    assert "DataLoader worker" in ran.err
    assert "Traceback" not in ran.err


@pytest.mark.parametrize(
    ("step", "says"),
    [
        (3, "the loss is nan after 2 steps of joint; start another run with a lower joint.lr"),
        (4, "the network has weights that are not finite after 4 steps of joint"),
    ],
)
def test_numbers_that_are_not_finite(train, place, monkeypatch, step, says):
    """What was saved before stays: the state after step 2. A slope of nan shows one step later."""
    objective, made = trainer.objective, []

    def diverging(*arguments):
        terms = objective(*arguments)
        made.append(terms)
        if len(made) == step == 3:
            terms["loss"] = terms["loss"] * float("nan")
        elif len(made) == step:
            terms["loss"].register_hook(lambda slope: slope * float("nan"))
        return terms

    monkeypatch.setattr(trainer, "objective", diverging)
    ran = train()
    assert ran.code == 1
    assert says in ran.err
    for name in ("best", "last"):
        tensors = load_file(place / "run" / f"{name}.safetensors")
        assert all(tensor.isfinite().all() for tensor in tensors.values())
    assert state(place)["step"] == 2


def test_leavings_of_a_kill_while_the_first_state_is_written(place):
    """SIGKILL between two bytes of resume.pt: its temporary file goes at the next start."""
    code = """
import os, signal, sys, torch
from hmsa import __main__ as cli
def torn(content, file):
    file.write_bytes(bytes(1000))
    os.kill(os.getpid(), signal.SIGKILL)
if "--resume" not in sys.argv:
    torch.save = torn
sys.exit(cli.run())
"""
    run = place / "run"
    command = [sys.executable, "-c", code, "train", place / "recipe.yaml", "--out", run]
    command += ["--set", "attention.steps=0"]
    killed = subprocess.run(command, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [file.stat().st_size for file in run.glob(".*.part")] == [1000]
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {file.name for file in run.glob(".*")} == {".train.lock"}


def test_torchrun_makes_one_training(place):
    """Two processes by the environment, though the recipe says `devices: 1`."""
    run = place / "run"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    train = ["-m", "hmsa", "train", place / "recipe.yaml", "--out", run]
    more = ["--set", "accelerator=cpu", "--set", "attention.steps=0"]
    command = [*launcher, "--standalone", *train, *more]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("; 2 x ") == 1
    assert '"devices": 2' in (run / "train.json").read_text()
    assert len((run / "metrics.csv").read_text().splitlines()) == 3
