"""`hmsa gate`, and what --budget means afterwards."""

from __future__ import annotations

import json
import shutil

import pytest

from hmsa.checkpoint.files import fingerprint
from hmsa.model import HMSA


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


def test_the_curve_is_measured_shown_and_kept(hmsa, run, scenes, tmp_path):
    before = fingerprint(run)
    done = hmsa("gate", run, scenes, "--split", "val", "--scales", "0.5,1,2")
    assert done.code == 0, done.err
    shown = json.loads(done.out.splitlines()[-1])
    points = shown["points"]
    assert [p["share"] for p in points] == [0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1]
    cost = [p["cost"] for p in points]
    assert cost == sorted(cost)
    assert cost[0] < 0.3
    assert cost[-1] == points[-1]["agreement"] == 1
    plain = json.loads(
        hmsa("evaluate", run, scenes, "--split", "val", "--scales", "0.5,1,2", "--json").out
    )
    assert points[-1]["miou"] == pytest.approx(plain["miou"]["hierarchical"], abs=1e-6)
    card = HMSA.from_pretrained(run).card
    assert card.gate == {k: v for k, v in shown.items() if k != "checkpoint"}
    assert fingerprint(run) == before, "results depend on no curve"

    image = next((scenes.parent / "val" / "images").iterdir())
    made = hmsa("predict", run, image, "-o", tmp_path / "out", "--scales", "0.5,1,2",
                "--budget", "0.2")  # fmt: skip
    assert made.code == 0, made.err
    assert "budget 0.2: " in made.err
    assert "of the work; on dataset.yaml, val" in made.err
    other = hmsa("predict", run, image, "-o", tmp_path / "out", "--scales", "0.5,1,2")
    assert other.code == 2, "the same folder with another gate"


def test_refuses(hmsa, run, scenes):
    done = hmsa("gate", run, scenes, "--scales", "0.5,1")
    assert done.code == 2
    assert "a gate is for scales above 1 after a coarser one" in done.err
    done = hmsa(
        "predict", run, scenes.parent / "val", "-o", "x", "--budget", "0.2", "--gate", "0.1"
    )
    assert done.code == 2
    assert "gate" in done.err
