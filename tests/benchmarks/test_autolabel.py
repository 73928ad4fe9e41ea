"""The proof on a few generated pictures that are called and laid out like CamVid's."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hmsa.data.labels import IGNORE

SETTINGS = (
    "model.width=8", "joint.batch=2", "joint.crop=[64,64]", "joint.warmup=1", "attention.steps=1",
    "attention.pictures=2", "attention.crop=[64,96]", "precision=fp32",
)  # fmt: skip


@pytest.fixture(scope="module")
def proof():
    file = Path(__file__).parents[2] / "benchmarks" / "autolabel.py"
    spec = importlib.util.spec_from_file_location("autolabel_benchmark", file)
    assert spec
    module = importlib.util.module_from_spec(spec)
    assert spec.loader
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def drives(tmp_path) -> Path:
    """Blocks of classes; coarse labels leave out 3 pixels at their borders."""
    rng, root = np.random.default_rng(0), tmp_path / "camvid"
    names = [f"{drive}_{n:05}" for drive in ("0001TP", "0006R0", "0016E5") for n in range(12)]
    for folder, stem in [*(("train", name) for name in names), ("val", "0016E5_90000")]:
        blocks = rng.integers(0, 11, (2, 3), np.uint8)
        label = blocks.repeat(32, 0).repeat(32, 1)
        inside = np.pad(np.ones((26, 26), bool), 3)
        image = (label[..., None] * np.array([20, 9, 3]) + rng.integers(0, 9, (64, 96, 3))) % 256
        for kind, picture in (
            ("images", image.astype(np.uint8)), ("labels", label),
            ("coarse", np.where(np.tile(inside, (2, 3)), label, 11)),
        ):  # fmt: skip
            file = root / folder / kind / f"{stem}.{'jpg' if kind == 'images' else 'png'}"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(file)
    return root


def test_the_whole_proof(proof, drives, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--data", "camvid", "--out", "run", "--steps", 2, "--base-steps", 2,
             "--teacher-steps", 2, "--students", "nearest", "auto, 0.9",
             "--picture", "sheet.png"]  # fmt: skip
    words = [str(word) for word in words] + [f"--set={each}" for each in SETTINGS]
    proof.main(words)
    out = capsys.readouterr().out
    found = json.loads(out.splitlines()[-1])
    labels = found["labels"]
    assert labels["coarse"]["coverage"] == pytest.approx(26**2 / 32**2)
    assert labels["coarse"]["accuracy"] == 1
    assert labels["nearest"]["accuracy"] == 1  # blocks as these are what it is good at
    assert found["margin"] == 5  # the corners of the blocks
    assert labels["auto"]["coverage"] == 1
    assert labels["teacher"]["miou"] < labels["teacher + coarse"]["miou"] < labels["auto"]["miou"]
    assert set(found["students"]) == {"nearest", "auto, 0.9"}
    for (judged,) in found["students"].values():
        assert (judged["unseen"]["images"], judged["val"]["images"]) == (12, 1)
    with Image.open("sheet.png") as sheet:
        assert sheet.width > 5 * 320

    proof.main(words)  # goes on: nothing is left to do
    again = capsys.readouterr()
    assert json.loads(again.out.splitlines()[-1]) == found
    assert "evaluate" not in again.err


def test_margin_is_where_the_nearest_label_stops_being_right(proof, tmp_path):
    class Labels(list):
        read_label = list.__getitem__

    fine = np.zeros((3, 20), np.uint8)
    fine[:, 9:] = 1
    coarse = np.full_like(fine, IGNORE)
    coarse[:, :4] = 0
    grow, shares = proof.margin(Labels([fine]), Labels([coarse]), 12)
    assert grow == 5
    assert shares == [1] * 5 + [0] * 7
