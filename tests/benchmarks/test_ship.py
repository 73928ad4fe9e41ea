"""A run becomes a network that comes with hmsa, and its card says what hmsa evaluate says."""

from __future__ import annotations

import json
import shlex
import sys

import pytest
import ship
import yaml

from hmsa import HMSA
from hmsa.checkpoint import shipped


@pytest.fixture
def plan(tmp_path, monkeypatch, scenes):
    texts = {
        "dataset": str(scenes), "default": True, "license": "Apache-2.0", "terms": "Freely.",
        "data": "Generated scenes.", "splits": {"val": "Three."}, "limits": ["Four steps."],
        "notice": "Made by nobody.", "recipe": "configs/demo.yaml",
    }  # fmt: skip
    monkeypatch.setattr(shipped, "FOLDER", tmp_path / "box")
    monkeypatch.setattr(ship, "PLAN", tmp_path / "ship.yaml")
    monkeypatch.setattr(ship, "ENOUGH", 1)
    networks = {"meadows": texts, "research": texts | {"default": False}}
    ship.PLAN.write_text(yaml.safe_dump(networks))


def ran(monkeypatch, capsys, *arguments) -> dict:
    monkeypatch.setattr(sys, "argv", ["ship.py", *map(str, arguments)])
    ship.main()
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_ship(hmsa, plan, trained, scenes, tmp_path, monkeypatch, capsys):
    made = ran(monkeypatch, capsys, trained, "meadows", "--data", scenes.parent)
    assert made["alike"] > 0.9
    folder = tmp_path / "box" / "meadows"
    assert made["bytes"] < 0.6 * (trained / "best.safetensors").stat().st_size + 1e5
    card = HMSA.from_pretrained("meadows").card
    (result,) = card.about["results"]
    assert len(card.about["look"]) == 320
    assert card.recipe["joint"]["steps"] == 200
    assert (folder / "NOTICE").read_text() == "Made by nobody."
    page = (folder / "README.md").read_text()
    command = next(line.strip() for line in page.splitlines() if "hmsa evaluate" in line)
    arguments = shlex.split(command.replace("FOLDER", str(scenes.parent)))[1:]
    told = hmsa(*arguments, "--report", tmp_path / "report.html", "--json")
    assert json.loads(told.out)["miou"]["hierarchical"] == pytest.approx(result["miou"])
    assert "Four steps." in page

    ran(monkeypatch, capsys, trained, "research", "--data", scenes.parent)
    assert "look" not in HMSA.from_pretrained("research").card.about
