"""`make fuzz MINUTES=20`: all doors in turn for so long, then a table of what came of it.

Files that break the contract are kept in runs/fuzz; the exit code is then 1.
"""

from __future__ import annotations

import hashlib
import random
import sys
import time
from collections import Counter
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table

from fuzz.doors import DOORS
from fuzz.runner import Runner

ROUND = 100  # examples of one door before the next one's turn
KEPT = Path("runs/fuzz")


def main(minutes: float, only: str) -> int:
    doors = [name for name in DOORS if only in name]
    runners = {name: Runner(name) for name in doors}
    counts = {name: Counter[str]() for name in doors}
    seconds, found = Counter[str](), dict[tuple[str, str], Path]()
    end = time.monotonic() + 60 * minutes
    while time.monotonic() < end:
        for name in doors:
            began = time.monotonic()
            try_some(name, runners[name], counts[name], found, end)
            seconds[name] += time.monotonic() - began
    table = Table("door", "files", "accepted", "refused", "violations", "files/s")
    for name, each in counts.items():
        numbers = [each.total(), each["accepted"], each["refused"], each["violation"]]
        speed = f"{each.total() / max(seconds[name], 1e-9):.1f}"
        table.add_row(name, *map(str, numbers), speed)
        runners[name].close()
    console = Console(width=160)
    console.print(table)
    for (name, text), file in found.items():
        console.print(f"{name}: {text} ({file})", markup=False)
    return int(bool(found))


def try_some(
    name: str, runner: Runner, count: Counter[str], found: dict[tuple[str, str], Path], end: float
) -> None:
    door = DOORS[name]
    sample = door.sample()

    @seed(random.getrandbits(64))
    @settings(max_examples=ROUND, database=None, deadline=None, phases=[Phase.generate],
              suppress_health_check=[*HealthCheck])  # fmt: skip
    @given(data=st.data())
    def attempt(data: st.DataObject) -> None:
        content = data.draw(st.sampled_from(door.mutations))(data.draw, sample)
        if time.monotonic() > end:
            return
        result = runner(content)
        count[result.kind] += 1
        if result.kind == "violation":
            key = name, result.text[:60]
            digest = hashlib.sha256(content).hexdigest()[:12]
            file = KEPT / f"{name.replace(' ', '-')}-{digest}{Path(door.file).suffix}"
            if key not in found:
                KEPT.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
                found[key] = file

    attempt()


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2] if sys.argv[2:] else ""))
