"""What a run leaves behind to be looked at: metrics.csv and TensorBoard events."""

from __future__ import annotations

import csv
import time
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from ..runs.files import replace

FILE = "metrics.csv"
FIELDS = (
    "stage", "step", "loss", "fused", "bce", "rmi", "fallbacks", "aux", "scales", "cost",
    "lr", "rate", "val_miou", "seconds",
)  # fmt: skip


class Record:
    """Rows of numbers, counted over the whole run; begun after step `done`, what came later goes.

    `seconds` is the time spent running, pauses between resumes left out; `rate` steps a second.
    """

    def __init__(self, folder: Path, done: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / FILE
        kept = [row for row in _rows(self.path) if int(row["step"]) <= done]
        self._before = float(kept[-1]["seconds"]) if kept else 0.0
        self._started = time.monotonic()

        def rewrite(temporary: Path) -> None:
            with temporary.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, FIELDS)
                writer.writeheader()
                writer.writerows(kept)

        replace(self.path, rewrite)
        self.events = SummaryWriter(str(folder), purge_step=done + 1 if done else None)

    def write(self, stage: str, step: int, values: dict[str, float]) -> None:
        seconds = self._before + time.monotonic() - self._started
        numbers = {name: f"{value:.6g}" for name, value in values.items()}
        row = {"stage": stage, "step": step, **numbers, "seconds": f"{seconds:.1f}"}
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, FIELDS).writerow(row)
        for name, value in values.items():
            self.events.add_scalar(f"{stage}/{name}", value, step)
        self.events.flush()


def read_curves(folder: Path) -> list[dict[str, float | str]]:
    """Rows of a run's metrics.csv, empty cells left out; none where there is no such file."""
    return [
        {key: cell if key == "stage" else float(cell) for key, cell in row.items() if cell}
        for row in _rows(folder / FILE)
    ]


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
