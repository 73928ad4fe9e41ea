"""The precision of training is measured where the hardware leaves it open, and then kept."""

from __future__ import annotations

import pytest
import torch

from hmsa import HMSA
from hmsa.config.recipe import Joint
from hmsa.runs.folder import read_records
from hmsa.training import train as module
from hmsa.training.train import faster_precision, step_seconds

CPU = torch.device("cpu")


@pytest.fixture
def timed(monkeypatch):
    """`timed(fp32, bf16)`: a CPU with bf16 on which a step takes so many seconds."""
    monkeypatch.setattr("hmsa.runs.machine.fast_bf16", lambda device: True)

    def says(fp32: float, bf16: float) -> None:
        seconds = {"fp32": fp32, "bf16": bf16}
        monkeypatch.setattr(module, "step_seconds", lambda model, stage, name: seconds[name])

    return says


@pytest.mark.parametrize(("bf16", "best"), [(0.5, "bf16"), (0.95, "fp32"), (3.0, "fp32")])
def test_bf16_has_to_be_clearly_faster(timed, capsys, bf16, best):
    timed(1.0, bf16)
    assert faster_precision(HMSA(2, "resnet18", width=8), Joint(), CPU) == best
    assert f"precision: {best}" in capsys.readouterr().err


def test_nothing_is_timed_without_bf16_in_the_hardware(monkeypatch):
    monkeypatch.setattr("hmsa.runs.machine.fast_bf16", lambda device: False)
    monkeypatch.setattr(module, "step_seconds", None)
    assert faster_precision(HMSA(2, "resnet18", width=8), Joint(), CPU) == "fp32"


def test_timing_changes_neither_the_network_nor_random_numbers():
    model = HMSA(2, "hrnet_w18_small", width=8)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.random.get_rng_state()
    assert 0 < step_seconds(model, Joint(crop=(64, 64)), "bf16") < float("inf")
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_resumed_run_keeps_its_precision(recipe, hmsa, tmp_path, timed):
    out = tmp_path / "run"
    changes = ["--set", "precision=auto", "--set", "attention.steps=0"]
    timed(1.0, 0.5)
    assert hmsa("train", recipe, "--out", out, *changes).code == 0
    assert read_records(out, "train")["precision"] == "bf16"
    timed(0.5, 1.0)
    assert hmsa("train", recipe, "--out", out, *changes, "--resume").code == 0
    assert read_records(out, "train")["precision"] == "bf16"
