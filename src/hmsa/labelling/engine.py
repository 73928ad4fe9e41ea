"""Labels the images of a source, in this process or with Ray Data in several, on many machines.

Ray Data starts a dead worker again and gives it its part again, without end. An image may kill any
worker that it meets, so it is counted how often each part was begun, and `_TRIES` are enough.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import pickle
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ..data.coarse import Coarse
from ..data.images import read_image
from ..data.labels import LabelSet
from ..inference.pipeline import flow
from ..inference.predictor import Predictor
from ..inference.result import Prediction
from ..report.pictures import label_image, png_bytes
from ..runs import InputError, Progress, first_line, sha256
from ..runs.files import escaped
from ..runs.machine import keep_memory
from .folder import figures, key_of, tally
from .sources import Row, entries, read

Drawn = tuple[NDArray[np.uint8], NDArray[np.bool_]]  # label [H,W] by people, and where it counts
Loaded = tuple[NDArray[np.uint8], Drawn | None] | None  # image [H,W,3]; None: not to be labelled
Result = tuple[Prediction, float] | None  # and seconds that it took
Store = Callable[[Row], None]
Write = Callable[[list[Row]], list[Row]]

_PART, _SHARD = 16, 256  # images, at most, that a worker gets at once; that it writes in a shard
_TRIES = 4  # of a part whose worker dies; it may be an image that kills it


@dataclass(frozen=True)
class Labeller:
    """Makes rows of images.

    labels: values that the files hold. known: see `Folder.known`. coarse: labels by people, which
    count before those of the network. agreement: also store where the scales, and the image and
    its mirror image, agree.
    """

    predictor: Predictor
    labels: LabelSet
    known: Collection[str]
    coarse: Coarse | None = None
    agreement: bool = False

    def label(self, pieces: Iterable[Row], store: Store) -> Iterator[None]:
        """Step from image to image; `store` gets the rows of all that are not known, from threads.

        What is wrong with an image is the reason in its row.
        """

        def write(row: Row, loaded: Loaded, result: Result) -> None:
            if loaded and result:
                store(row | self._labelled(*result, loaded[1]))

        listed = (row for piece in pieces for row in entries(piece))
        threads = min(4, os.cpu_count() or 1)
        for row, problem in flow(listed, self._read, self._predict, write, threads=threads):
            if problem:
                store(row | {"status": "failed", "reason": str(problem)})
            yield

    def _read(self, row: Row) -> Loaded:
        """The image; its hash and that of its coarse label come into the row."""
        image, content, drawn = row["image"], row.pop("content", None), None
        if escaped(row["name"]) in self.known:
            return None
        if row.get("reason"):
            raise InputError(row["reason"])
        try:
            content = content or read(image)
            row["sha256"] = hashlib.sha256(content).hexdigest()
            place = self.coarse.find(Path(image), row["name"]) if self.coarse else None
            if self.coarse and place is not None:
                row["coarse_sha256"] = sha256(self.coarse.dataset.pairs[place].label)
            if key_of(row) in self.known:
                return None
            pixels = read_image(image, content, replace(self.predictor.stretch, per_image=False))
            if self.coarse and place is not None:
                drawn = self.coarse.read(place, image, pixels.shape[:2])
        except InputError:
            raise
        except Exception as error:  # decoders raise anything, and it must not stop the others
            text = " ".join(str(error).split())
            raise InputError(f"{image} cannot be decoded ({text}); replace or remove it") from None
        return pixels, drawn

    def _predict(self, loaded: Loaded) -> Result:
        began = time.monotonic()
        if loaded is None:
            return None
        return self.predictor(loaded[0], detail=self.agreement), time.monotonic() - began

    def _labelled(self, prediction: Prediction, seconds: float, drawn: Drawn | None) -> Row:
        label, maps = prediction.label, {"confidence": prediction.confidence8}
        row: Row = {"status": "done", "reason": "", "seconds": round(seconds, 4)}
        row["height"], row["width"] = label.shape
        if self.agreement:
            votes = [*prediction.single.values(), *prediction.flips.values()]
            same = np.sum([vote == label for vote in votes], 0)
            maps["agreement"] = (same * 255 // len(votes)).astype(np.uint8)
        if drawn:
            by_people, counts = drawn
            label = np.where(counts, by_people, label)
            maps = {kind: np.where(counts, np.uint8(255), each) for kind, each in maps.items()}
            row["coarse_pixels"] = int(counts.sum())
        if self.agreement:
            row["mean_agreement"] = float(maps["agreement"].mean()) / 255
        row |= figures(tally(label, maps["confidence"], len(self.labels.names)))
        images = {kind: Image.fromarray(each) for kind, each in maps.items()}
        images["label"] = label_image(label, self.labels)
        return row | {f"{kind}_png": png_bytes(image) for kind, image in images.items()}


def _count(pieces: list[Row]) -> int | None:
    return len(pieces) if all("name" in piece for piece in pieces) else None


def label_here(labeller: Labeller, pieces: list[Row], store: Store) -> None:
    """Label in this process; `store` is called by threads."""
    with Progress("autolabel", _count(pieces)) as progress:
        for _ in labeller.label(pieces, store):
            progress.advance()


def label_with_ray(
    make: Callable[[], Labeller], pieces: list[Row], store: Store, write: Write | None,
    address: str, workers: int | None,
) -> None:  # fmt: skip
    """Label with Ray Data; `store` is called here.

    make: called in each worker. write: takes rows where they are made, and returns what `store`
    gets. address: of a running cluster; local: one is started on this machine. workers: networks
    at the same time; None: one for each GPU, or for every four cores where there are no GPUs.
    Raises RuntimeError, after all other images, if some could not be labelled.
    """
    if not pieces:
        return
    problem = ""
    with (
        redirect_stdout(sys.stderr),  # Ray prints there which process died
        _connected(address) as ray,
        Progress("autolabel", _count(pieces)) as progress,
    ):
        resources = ray.cluster_resources()
        cpus, gpus = int(resources.get("CPU", 1)), int(resources.get("GPU", 0))
        workers = workers or gpus or max(1, cpus // 4)
        most = (_SHARD if write else _PART) if _count(pieces) else 1  # a tar file alone is much
        step = max(1, min(most, len(pieces) // workers // 8))
        parts = [
            {"number": start, "part": pickle.dumps(pieces[start : start + step])}
            for start in range(0, len(pieces), step)
        ]
        begun = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(_Begun).remote()
        done = ray.data.from_items(parts, override_num_blocks=len(parts)).map_batches(
            _Worker, fn_constructor_args=(make, write, max(1, cpus // workers), begun),
            compute=ray.data.ActorPoolStrategy(
                size=min(workers, len(parts)), max_tasks_in_flight_per_actor=1
            ),
            batch_size=1, num_cpus=0, num_gpus=1 / math.ceil(workers / gpus) if gpus else 0,
        )  # fmt: skip
        for part in done.iter_rows():
            rows, reason = pickle.loads(part["answer"])
            if rows is None:
                raise InputError(reason)
            problem = reason or problem
            for row in rows:
                store(row)
                progress.advance()
    if problem:
        raise RuntimeError(f"{problem}; the same command goes on")


class _Begun:
    """Counts, in a process of its own, how often each part was begun."""

    def __init__(self) -> None:
        self.times: Counter[int] = Counter()

    def begin(self, number: int) -> int:
        self.times[number] += 1
        return self.times[number]


@dataclass
class _Worker:
    """A network in a process of its own, on a GPU if Ray assigned it one."""

    make: Callable[[], Labeller]
    write: Write | None
    threads: int
    begun: Any  # handle of `_Begun`

    @cached_property
    def labeller(self) -> Labeller:
        keep_memory()
        torch.set_num_threads(self.threads)
        return self.make()

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        """The rows of one part, None if this worker can make none, and what went wrong."""
        import ray

        pieces = pickle.loads(batch["part"][0])
        if ray.get(self.begun.begin.remote(int(batch["number"][0]))) > _TRIES:
            names = " to ".join(dict.fromkeys(str(pieces[i]["image"]) for i in (0, -1)))
            return _answer([], f"{names}: the process that labels this died {_TRIES} times")
        rows: list[Row] | None = None
        try:
            labeller, rows = self.labeller, []
            return _answer(self._label(labeller, pieces))
        except Exception as error:  # such as of `write`; other parts go on
            is_said = isinstance(error, InputError)
            return _answer(rows, f"{'' if is_said else type(error).__name__ + ': '}{error}")

    def _label(self, labeller: Labeller, pieces: list[Row]) -> list[Row]:
        rows: list[Row] = []
        written: list[Row] = []
        for _ in labeller.label(pieces, rows.append):
            if self.write and len(rows) >= _SHARD:
                written += self.write(rows[:_SHARD])
                del rows[:_SHARD]  # threads may have added more
        return written + (self.write(rows) if self.write else rows)


def _answer(rows: list[Row] | None, problem: str = "") -> dict[str, list[bytes]]:
    return {"answer": [pickle.dumps((rows, problem))]}


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    """Ray, on the cluster at `address`, or on the one that this process is connected to already."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        import ray
        import ray.data
    except ImportError:
        needed = '--workers and --cluster need Ray: pip install "hmsa[cluster]"'
        raise InputError(needed) from None
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    if starts := not ray.is_initialized():
        local = {"include_dashboard": False} if address == "local" else {}
        stop = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR", **local)
        except (ConnectionError, ValueError) as error:
            raise InputError(f"--cluster {address}: no cluster there ({error})") from None
        if signal.getsignal(signal.SIGTERM) is not stop:  # Ray's would end this process with 15
            signal.signal(signal.SIGTERM, stop)
    try:
        yield ray
    except ray.exceptions.RayError as error:
        raise RuntimeError(f"{first_line(error)}; the same command goes on") from None
    finally:
        if starts:
            ray.shutdown()
