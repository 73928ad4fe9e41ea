"""Networks that come with hmsa: found by name, never changed, listed with others."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from hmsa import HMSA
from hmsa.checkpoint import shipped
from hmsa.checkpoint.files import fingerprint, read
from hmsa.checkpoint.networks import find
from hmsa.model.pretrained import Card

ABOUT = {
    "license": "Apache-2.0", "terms": "Freely.", "data": "Generated scenes.",
    "limits": ["It has learnt nothing."], "rounding": "None.",
    "results": [{"dataset": "scenes", "split": "val", "images": 3, "miou": 0.25, "note": "",
                 "iou": {"sky": 0.5, "post": None}, "command": "hmsa evaluate meadows scenes"}],
    "speed": {"seconds_per_megapixel": 2.5, "hardware": "2 cores", "how": "once"},
}  # fmt: skip


@pytest.fixture
def box(tmp_path, monkeypatch, tiny) -> Path:
    """A folder of shipped networks with one of them, `meadows`."""
    folder = tmp_path / "box"
    monkeypatch.setattr(shipped, "FOLDER", folder)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    tiny.card = dataclasses.replace(tiny.card, about=ABOUT)
    for parameter in tiny.parameters():
        if parameter.ndim > 1:
            parameter.data = parameter.data.half()
    tiny.save_pretrained(folder / "meadows")
    return folder


def fitting(model: HMSA, small: HMSA) -> bool:
    """Whether all weights of `model` are those of `small`, in other arithmetic."""
    wide = {
        name: tensor.to(model.state_dict()[name].dtype)
        for name, tensor in small.state_dict().items()
    }
    return all(torch.equal(tensor, wide[name]) for name, tensor in model.state_dict().items())


def test_its_name_stands_for_its_folder(box, tiny):
    model = HMSA.from_pretrained("meadows")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert fitting(model, tiny)
    assert read("meadows")[0] == box / "meadows" / "model.safetensors"
    assert fingerprint("meadows") == fingerprint(box / "meadows")
    assert list(find("meadows").names) == tiny.card.names


def test_a_path_of_that_name_wins(box, tmp_path, tiny, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.card = dataclasses.replace(tiny.card, names=["my", "own", "four", "classes"])
    tiny.save_pretrained(tmp_path / "meadows")
    assert HMSA.from_pretrained("meadows").card.names[0] == "my"
    assert shipped.locate("nothing") == "nothing"


def test_it_is_not_changed(hmsa, box, scenes):
    ran = hmsa("gate", "meadows", scenes)
    assert ran.code == 2
    assert "hmsa convert meadows -o runs/meadows makes a copy" in ran.err


def in_hub(folder: Path, name: str, config: dict) -> None:
    snapshot = folder / f"models--{name.replace('/', '--')}" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps(config))
    (snapshot / "model.safetensors").write_bytes(b"weights")


def test_models_lists_those_of_hmsa_and_of_the_hub(hmsa, box, tmp_path, tiny):
    own = json.loads(tiny.card.to_json()) | {"about": {}, "metrics": {"val_miou": 0.5}}
    in_hub(tmp_path / "hub", "owner/streets", own | {"trained_on": {"dataset": "camvid"}})
    in_hub(tmp_path / "hub", "owner/language", {"model_type": "bert", "names": 3})
    in_hub(tmp_path / "hub", "owner/list", [1])
    ran = hmsa("models", "--json")
    assert ran.code == 0
    meadows, streets = json.loads(ran.out)["networks"]
    assert (meadows["name"], meadows["license"], meadows["classes"]) == ("meadows", "Apache-2.0", 4)
    assert (meadows["miou"], meadows["measured_on"]) == (0.25, "scenes, val")
    assert (meadows["seconds"], meadows["hardware"]) == (2.5, "2 cores")
    assert (streets["name"], streets["miou"]) == ("owner/streets", 0.5)
    assert streets["measured_on"] == "camvid, in training"
    assert streets["license"] is None
    shown = hmsa("models").out
    assert "meadows" in shown
    assert json.loads(hmsa("models", "owner/streets").out)["metrics"] == {"val_miou": 0.5}
    assert "25.0" in shown


def test_models_shows_a_card(hmsa, box):
    shown = hmsa("models", "meadows").out
    for said in ("It has learnt nothing.", "mIoU 25.0 %", "sky 50.0, post none", "Freely."):
        assert said in shown
    assert json.loads(hmsa("models", "meadows", "--json").out)["about"] == ABOUT
    ran = hmsa("models", "meadow")
    assert ran.code == 2
    assert "did you mean meadows?" in ran.err


@pytest.mark.parametrize("name", shipped.names())
def test_each_that_comes_with_hmsa_is_complete(name):
    folder = shipped.FOLDER / name
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 12e6
    model = HMSA.from_pretrained(name)
    about = Card.from_json((folder / "config.json").read_text(), folder).about
    assert about["license"]
    assert about["limits"]
    assert about["results"][0]["iou"].keys() == set(model.card.names)
    assert f"hmsa evaluate {name} " in (folder / "README.md").read_text()
    assert ("noncommercial" in name) == ("non-commercial" in about["license"])
    assert "look" not in about or "noncommercial" not in name
    assert (folder / "NOTICE").is_file() or about["data"].count("CC0")
