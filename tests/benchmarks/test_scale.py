"""The cost of auto-labelling, told of a few images."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "scale.py"


def test_every_phase_of_one_process_is_told():
    command = [sys.executable, str(BENCHMARK), "--counts", "30", "--ways", "one"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    (phases,) = find(told, "decode")
    for phase in ("list", "decode", "hash", "figures", "write", "manifest", "all", "again"):
        assert phases[phase] > 0
    assert phases["all"] >= phases["run"] >= phases["decode"] + phases["hash"] + phases["write"]


def find(told, key):
    """Objects in `told`, however deep, that have this key."""
    if isinstance(told, dict):
        if key in told:
            yield told
        for value in told.values():
            yield from find(value, key)
    elif isinstance(told, list):
        for value in told:
            yield from find(value, key)
