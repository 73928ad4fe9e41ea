"""The benchmark of auto-labelling runs, on a few images."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "scale.py"


def test_every_phase_of_one_process_is_measured():
    command = [sys.executable, str(BENCHMARK), "--counts", "30", "--ways", "one"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (phases,) = find(json.loads(done.stdout.splitlines()[-1]), "decode")
    for phase in ("list", "read", "decode", "figures", "encode", "write", "manifest", "again"):
        assert phases[phase] > 0
    assert phases["all"] >= phases["run"] + phases["manifest"]


def find(value, key):
    """Objects in `value`, however deep, that have this key."""
    if isinstance(value, dict):
        if key in value:
            yield value
        for each in value.values():
            yield from find(each, key)
    elif isinstance(value, list):
        for each in value:
            yield from find(each, key)
