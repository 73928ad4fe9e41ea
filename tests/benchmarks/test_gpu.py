"""The benchmark of a GPU runs on a CPU too, in small."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


def test_every_part_is_measured(tmp_path):
    file = tmp_path / "gpu.jsonl"
    file.write_text("{}\n")
    command = [sys.executable, BENCHMARK, "--results", file, "--crop", "64", "64", "--size", "64",
               "96", "--batch", "2"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    before, kept = map(json.loads, file.read_text().splitlines())
    assert (before, kept["options"]["crop"]) == ({}, [64, 64])
    assert [len(kept[part]) for part in ("limits", "inference", "losses")] == [3, 9, 3]
    assert {row["network"] for row in kept["training"]} == {"single", "hierarchical", "explicit"}
    rows = [row for part in ("training", "inference") for row in kept[part]]
    assert all(row["seconds"] > 0 for row in rows), rows
