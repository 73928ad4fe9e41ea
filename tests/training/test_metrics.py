from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch

from hmsa.runs.folder import read_curves
from hmsa.training.metrics import LOGGERS, Metrics, Pace


def test_rows_after_the_step_of_a_resume_are_removed(tmp_path):
    first = Metrics(tmp_path, 0)
    for step in (10, 20, 30):
        first.write(
            "joint", step, {"loss": step / 10, "val_miou": 0.5} if step == 20 else {"loss": 1}
        )
    again = Metrics(tmp_path, 20)
    again.write("joint", 30, {"loss": 7.0})
    rows = read_curves(tmp_path)
    assert [row["step"] for row in rows] == [10, 20, 30]
    assert rows[1]["val_miou"] == 0.5
    assert "val_miou" not in rows[0], "empty cells are left out"
    assert rows[2]["loss"] == 7.0
    assert rows[0]["stage"] == "joint"
    assert [row["seconds"] for row in rows] == sorted(row["seconds"] for row in rows)


def test_no_run_no_curves(tmp_path):
    assert read_curves(tmp_path) == []


def test_a_further_logger_gets_everything_and_may_fail(tmp_path, monkeypatch, capsys):
    told = []

    def log(values, step):
        told.append((values, step))
        raise OSError("server is gone")

    begun = []
    monkeypatch.setitem(LOGGERS, "mlflow", lambda *given: begun.append(given) or log)
    monkeypatch.setitem(sys.modules, "mlflow", ModuleType("mlflow"))
    for _ in range(2):
        (tmp_path / "train.json").touch()
        metrics = Metrics(tmp_path, 0, ["mlflow"], {"joint": {"lr": 0.1}})
    assert begun[0][3] == {"joint.lr": 0.1}
    metrics.write("joint", 10, {"loss": 1.0})
    metrics.write("joint", 20, {"loss": 0.5})
    assert told == [({"joint/loss": 1.0}, 10), ({"joint/loss": 0.5}, 20)]
    assert len(read_curves(tmp_path)) == 2, "training goes on"
    assert "mlflow did not take values: server is gone" in capsys.readouterr().err


def test_loggers_that_cannot_begin(recipe, hmsa, tmp_path, monkeypatch):
    more = ("--out", tmp_path / "run", "--set", "loggers=[wandb]")
    monkeypatch.setitem(sys.modules, "wandb", None)
    ran = hmsa("train", recipe, *more)
    assert (ran.code, 'pip install "hmsa[wandb]"' in ran.err) == (2, True)

    def refuse(*_):
        raise RuntimeError("not logged in")

    monkeypatch.setitem(sys.modules, "wandb", ModuleType("wandb"))
    monkeypatch.setitem(LOGGERS, "wandb", refuse)
    ran = hmsa("train", recipe, *more)
    assert (ran.code, "loggers: wandb: not logged in" in ran.err) == (2, True)


def test_wandb_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    (tmp_path / "train.json").touch()
    for step in (10, 20):  # the second as after a resume
        Metrics(tmp_path, step - 1, ["wandb"], {"joint": {"lr": 0.1}}).write(
            "joint", step, {"loss": 1.0}
        )
        wandb.teardown()  # waits until all is written
    files = [*tmp_path.rglob("*.wandb")]
    assert len(files) == 2
    assert len({file.stem for file in files}) == 1, "one run"
    assert all(b"joint/loss" in file.read_bytes() for file in files)


def test_mlflow_offline(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    (tmp_path / "train.json").touch()
    for step in (10, 20):  # the second as after a resume
        Metrics(tmp_path, step - 1, ["mlflow"], {"joint": {"lr": 0.1}}).write(
            "joint", step, {"loss": step / 10}
        )
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("hmsa").experiment_id])
    assert run.data.params == {"joint.lr": "0.1"}
    found = client.get_metric_history(run.info.run_id, "joint/loss")
    assert [(each.step, each.value) for each in found] == [(10, 1.0), (20, 2.0)]


def test_pace():
    pace = Pace(torch.device("cpu"), processes=2)
    assert list(pace.waiting(iter("abc"))) == ["a", "b", "c"]
    pace.waited = 1.0
    pace.add(images=3, seconds=1.5)
    pace.add(images=3, seconds=2.5)
    values = pace.values()
    assert (values["images_per_s"], values["wait"]) == (3.0, 0.25)
    assert 0.01 < values["memory_gib"] < 1000
    assert str(pace).startswith("3.0 images/s  25% wait  ")
