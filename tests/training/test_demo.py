"""The demo's whole path, cut short: what it makes, not how good it is."""

from __future__ import annotations

import json

from hmsa.training import verbs


def test_demo(hmsa, tmp_path, monkeypatch):
    monkeypatch.setattr(verbs, "DEMO_SIZE", (96, 128))
    monkeypatch.setattr(verbs, "DEMO_COUNTS", {"train": 4, "val": 2, "test": 4})
    cut = ["joint.steps=2", "joint.batch=2", "attention.steps=1", "precision=bf16"]
    cut += ["joint.crop=[64, 64]", "attention.crop=[64, 64]", "attention.batch=2"]
    for _ in range(2):  # a second demo takes the place of the first
        ran = hmsa("demo", "--out", tmp_path, *(x for c in cut for x in ("--set", c)))
        assert ran.code == 0, ran.err
        result = json.loads(ran.out.splitlines()[-1])
        assert result["images"] == 4
        assert result["split"] == "test"
        assert (tmp_path / "report.html").is_file()
        assert len(list((tmp_path / "predictions" / "panel").iterdir())) == 4
