"""`hmsa train --profile`: its table adds up, its trace opens, its advice fits."""

from __future__ import annotations

import gzip
import json

import pytest
from torch import nn

from hmsa.training.profile import LOSS, OPTIMIZER, WAIT, advice, parts_of


@pytest.mark.parametrize("memory", ["lean", "plain"])
def test_parts_and_trace(recipe, hmsa, tmp_path, memory):
    run = tmp_path / "run"
    ran = hmsa("train", recipe, "--out", run, "--profile", "--set", f"joint.memory={memory}")
    assert ran.code == 0, ran.err
    found = json.loads(ran.out.splitlines()[-1])
    parts = found["parts"]
    assert sum(parts.values()) == pytest.approx(found["seconds"])
    for part in ("trunk.stage2", "trunk.stage4", "head", "attention", LOSS):
        assert parts[f"{part}, forward"] > 0
        assert parts[f"{part}, backward"] > 0
    assert parts[f"{OPTIMIZER}, forward"] > 0
    assert parts[f"{WAIT}, forward"] > 0
    assert found["advice"] in ran.err
    assert "trunk.stage4" in ran.out
    assert [file.name for file in run.iterdir()] == ["trace.json.gz"], "nothing is trained"
    with gzip.open(run / "trace.json.gz") as file:
        names = {event.get("name") for event in json.load(file)["traceEvents"]}
    assert {WAIT, "backward", OPTIMIZER, "trunk.stage4", "aten::convolution"} <= names


def test_rows_of_rows_of_blocks_are_told_apart(tiny):
    stem, *rows = (nn.Sequential(nn.Conv2d(3, 3, 1)) for _ in range(3))
    tiny.trunk.extractor = nn.Module()
    tiny.trunk.extractor.stem, tiny.trunk.extractor.blocks = stem, nn.Sequential(*rows)
    names = ["trunk.stem", "trunk.blocks.0", "trunk.blocks.1", "head", "attention"]
    assert list(parts_of(tiny)) == names


@pytest.mark.parametrize(
    ("wait", "optimizer", "workers", "spare", "faster", "says"),
    [
        (0.5, 0.0, 0, False, False, "--set data.workers=1"),
        (0.5, 0.0, 3, False, False, "--set data.workers=6"),
        (0.5, 0.0, 8, True, True, "all cores load"),
        (0.0, 0.5, 0, True, True, "--set precision=auto"),
        (0.0, 0.5, 0, True, False, "--set joint.memory=plain"),
        (0.0, 0.5, 0, False, False, "larger batches"),
        (0.0, 0.0, 0, False, False, "trunk.stage4 takes most, 70%"),
    ],
)
def test_advice(wait, optimizer, workers, spare, faster, says):
    parts = {(WAIT, "forward"): wait, (OPTIMIZER, "forward"): optimizer}
    parts[("head", "forward")] = (1 - wait - optimizer) * 0.3
    parts[("trunk.stage4", "forward")] = (1 - wait - optimizer) * 0.2
    parts[("trunk.stage4", "backward")] = (1 - wait - optimizer) * 0.5
    assert says in advice(parts, workers, 8, spare, faster)
