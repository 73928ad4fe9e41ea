"""What a training tells while it runs: metrics.csv, TensorBoard, W&B, MLflow, line of progress."""

from __future__ import annotations

import hashlib
import importlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from lightning_fabric.loggers.tensorboard import TensorBoardLogger
from pyarrow import csv

from ..runs import InputError, first_line, replace, say_once, stamp
from ..runs.folder import METRICS, flat, read_curves
from ..runs.memory import used_memory

Log = Callable[[dict[str, float], int], Any]  # values of a step


class Metrics:
    """metrics.csv and TensorBoard events; rows after step `done` of an earlier process are removed.

    Steps count over all stages, `rate` is steps per second, `seconds` do not include pauses.
    Fabric's CSVLogger would delete the metrics.csv that it finds.
    loggers: names in `LOGGERS`, which get the same values and, once, the settings.
    """

    def __init__(
        self, folder: Path, done: int, loggers: Sequence[str] = (), settings: Mapping[str, Any] = {}
    ) -> None:
        self.folder = folder
        self.rows = [row for row in read_curves(folder) if row["step"] <= done]
        self.started = time.monotonic() - (self.rows[-1]["seconds"] if self.rows else 0.0)
        purge = done + 1 if done else None
        self.events = TensorBoardLogger(folder, name="", version="", purge_step=purge)
        self.logs = {name: _started(name, folder, settings) for name in loggers}

    def write(self, stage: str, step: int, values: dict[str, float]) -> None:
        seconds = time.monotonic() - self.started
        self.rows.append({"stage": stage, "step": step, **values, "seconds": seconds})
        names = dict.fromkeys(name for row in self.rows for name in row)
        table = pa.table({name: [row.get(name) for row in self.rows] for name in names})
        replace(self.folder / METRICS, lambda temporary: csv.write_csv(table, temporary))
        named = {f"{stage}/{name}": value for name, value in values.items()}
        self.events.log_metrics(named, step)
        self.events.save()
        for name, log in self.logs.items():
            try:
                log(named, step)
            except Exception as error:  # whatever a server does, training goes on
                say_once(f"note: {name} did not take values: {first_line(error)}", name)


def _started(name: str, folder: Path, settings: Mapping[str, Any]) -> Log:
    """A logger; a run that is resumed goes on where it stopped, also there."""
    begun = stamp(folder / "train.json")  # written once, when a run begins
    key = hashlib.sha256(repr(begun).encode()).hexdigest()[:16]
    try:
        return LOGGERS[name](importlib.import_module(name), folder, key, dict(flat(settings)))
    except ModuleNotFoundError as error:
        raise InputError(
            f'loggers: {name} needs {error.name}; pip install "hmsa[{name}]"'
        ) from None
    except Exception as error:  # not logged in, no such server
        raise InputError(f"loggers: {name}: {first_line(error)}") from None


def _wandb(wandb: Any, folder: Path, key: str, settings: dict[str, Any]) -> Log:
    """In its own folder in the run folder; WANDB_MODE=offline uploads nothing."""
    run = wandb.init(
        project="hmsa", name=folder.resolve().name, dir=folder, id=key, resume="allow",
        config=settings, reinit="finish_previous",
    )  # fmt: skip
    log: Log = run.log
    return log


def _mlflow(mlflow: Any, folder: Path, key: str, settings: dict[str, Any]) -> Log:
    """Where MLFLOW_TRACKING_URI says."""
    client, entities = mlflow.MlflowClient(), mlflow.entities
    experiment = client.get_experiment_by_name("hmsa")
    number = experiment.experiment_id if experiment else client.create_experiment("hmsa")
    found = client.search_runs([number], f"tags.hmsa = '{key}'")
    name = folder.resolve().name
    run = found[0] if found else client.create_run(number, tags={"hmsa": key}, run_name=name)
    client.log_batch(
        run.info.run_id, params=[entities.Param(n, str(v)) for n, v in settings.items()]
    )

    def log(values: dict[str, float], step: int) -> None:
        now = round(1000 * time.time())
        metrics = [entities.Metric(name, value, now, step) for name, value in values.items()]
        client.log_batch(run.info.run_id, metrics)

    return log


LOGGERS: dict[str, Callable[[Any, Path, str, dict[str, Any]], Log]] = {
    "wandb": _wandb, "mlflow": _mlflow
}  # fmt: skip


class Pace:
    """How fast steps are, validation not counted; from one process, for all of them."""

    def __init__(self, device: torch.device, processes: int) -> None:
        self.device, self.processes, self.images = device, processes, 0
        self.seconds = self.waited = 0.0

    def add(self, images: int, seconds: float) -> None:
        """One more step."""
        self.images, self.seconds = self.images + images, self.seconds + seconds

    def values(self) -> dict[str, float]:
        """Images per second, the share of time that waits for data, and memory in GiB."""
        seconds = max(1e-9, self.seconds)
        return {
            "images_per_s": self.images * self.processes / seconds,
            "wait": self.waited / seconds,
            "memory_gib": used_memory(self.device) / 2**30,
        }

    def __str__(self) -> str:
        shown = self.values()
        return "{images_per_s:.1f} images/s  {wait:.0%} wait  {memory_gib:.1f} GiB".format(**shown)

    def waiting(self, items: Iterable[Any]) -> Iterator[Any]:
        """The same items; the time until each is there counts as waiting for data."""
        items = iter(items)
        while True:
            began = time.monotonic()
            item = next(items, None)
            self.waited += time.monotonic() - began
            if item is None:
                return
            yield item
