"""The same labels, made on many machines by Ray Data. Needs the extra `cluster`.

    OUT/settings.json            as for one machine
    OUT/shards/NAME.parquet      rows of some hundred images, with name, key and counts; label and
                                 confidence as PNG in label_png and confidence_png (agreement in
                                 agreement_png), or else:
    OUT/labels, OUT/confidence   files, where the source is a folder of pictures and OUT a folder
    OUT/dataset.yaml             beside such files only
    OUT/thresholds.json          there only when all of it is done

Every file is whole or not there. An image is known by its name: what a shard has as done under the
same settings is not done again, whatever the file holds now. What could not be read is tried again;
of two rows of one name the one that is done counts.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from numpy.typing import NDArray
from pyarrow import fs, parquet

from ..data.coarse import Coarse
from ..data.labels import LabelSet
from ..inference.predictor import Predictor
from ..runs.errors import InputError
from ..runs.progress import Progress
from . import sources
from .labelling import locked
from .out import DESCRIPTION, FOLDER_OF, SETTINGS, THRESHOLD_FILE, description, refuse_others
from .rows import LOOK, Row, is_done, schema_of
from .stages import (
    AT_ONCE,
    MORE,
    SHARDS,
    Job,
    Teacher,
    digest,
    fetch,
    folder_of,
    is_in,
    join,
    put,
    store,
)

_PNG = ("label_png", "confidence_png", "agreement_png")
_BLOCK = 32 << 20  # bytes of images that go to a teacher together
_SHARD = 256  # images
_LIGHT: Row = {"num_cpus": 0.25, "batch_format": "pyarrow"}  # stages that wait for files


@dataclass(frozen=True)
class Cluster:
    """One run: the images of `source` -> `out`, both as `sources` takes them.

    load: makes the teacher, on whatever machine. look: `settings_of` it. workers: teachers at the
    same time; None: one for each GPU, or for every four cores where there are no GPUs.
    """

    address: str  # of a running cluster; local: one is made of this machine
    load: Callable[[], Predictor]
    look: dict[str, Any]
    source: str  # this and `out` are absolute where they are paths
    out: str
    labels: LabelSet
    workers: int | None = None
    coarse: Coarse | None = None
    agreement: bool = False  # whether it is stored, too

    @property
    def dataset(self) -> str:
        return join(self.out, DESCRIPTION if self.in_files else SHARDS)

    def check(self) -> None:
        """InputError: there is nothing to label, or not there, or no Ray."""
        ray_data()
        if self.in_files and Path(self.out).resolve().is_relative_to(Path(self.source).resolve()):
            raise InputError(f"{self.out} is inside {self.source}; labels must lie elsewhere")
        if self.coarse and self.found.kind == "pictures":  # elsewhere names show as it is read
            files = {name: Path(place) for name, place in self.found.pictures.items()}
            self.coarse.check_names(files, self.source)

    @cached_property
    def found(self) -> sources.Source:
        return sources.find(self.source)

    @property
    def in_files(self) -> bool:
        """Whether label and confidence are files of their own."""
        here = "://" not in self.source + self.out and Path(self.source).is_dir()
        return self.found.kind == "pictures" and here

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All that a label depends on but the image."""
        here = Path(self.source), Path(self.out)
        images = os.path.relpath(*(p.resolve() for p in here)) if self.in_files else self.source
        return {"images": images, **self.look, "shards": True}

    @cached_property
    def key(self) -> str:
        return hashlib.sha256(json.dumps(self.settings).encode()).hexdigest()

    def hold(self) -> AbstractContextManager[Any]:
        """OUT for this run alone; where it is no folder, nobody can promise that."""
        return nullcontext() if "://" in self.out else locked(Path(self.out))

    def run(self, overwrite: bool = False) -> int:
        """Label what is not labelled yet; returns how many images that were. `hold` around it.

        InputError if OUT was made with other settings, unless it is to be overwritten.
        """
        self._begin(overwrite)
        done, found = self._done(), self.found
        todo = {n: a for n, a in found.pictures.items() if not is_in(done, n)}
        if found.kind == "pictures" and not todo:
            return 0
        self._remove(THRESHOLD_FILE, DESCRIPTION)
        before = len(found.pictures) - len(todo) if todo else len(done)
        new = 0
        with (
            _joined(self.address) as ray,
            Progress("autolabel", found.count, before) as meter,
        ):
            try:
                for block in self._stages(ray, done, todo).iter_batches(
                    batch_size=None, batch_format="pyarrow"
                ):
                    for count in block["images"].to_pylist():
                        new += count
                        for _ in range(count):
                            meter.advance()
            except ray.exceptions.RayError as error:
                told = " ".join(str(error).split())[-300:]
                raise RuntimeError(f"{told}; the same command goes on") from error
        return new

    def rows(self) -> Iterator[Row]:
        """What is known of each image, after `run`, from shard to shard."""
        done, failed = self._done(), set()
        for file in self._shards():
            columns = [c for c in schema_of((), MORE).names if c not in _PNG]
            for row in self._read(file, columns).to_pylist():
                name = row["name"]
                gone = self.found.kind == "pictures" and name not in self.found.pictures
                if row["key"] != self.key or gone:
                    continue
                if not is_done(row):
                    if name in failed or is_in(done, name):
                        continue
                    failed.add(name)
                yield row

    def finish(self, thresholds: str) -> int:
        """dataset.yaml, where there are files, and thresholds.json; how many images there are.

        RuntimeError: images that no machine gave back.
        """
        known: dict[str, bool] = {row["name"]: is_done(row) for row in self.rows()}
        missing = (self.found.count or 0) - len(known)
        if missing > 0:
            raise RuntimeError(
                f"{missing} of {self.found.count} pictures came back from no machine; Ray's log "
                "says why, the same command goes on"
            )
        if self.in_files:
            exclude = {name for name, done in known.items() if not done}
            text = description(self.labels, self.settings["images"], exclude)
            self._put(DESCRIPTION, text.encode())
        self._put(THRESHOLD_FILE, thresholds.encode())
        return len(known)

    def _begin(self, overwrite: bool) -> None:
        text = json.dumps(self.settings, indent=1).encode()
        there = {Path(file.path).name for file in self._list("")}
        if SETTINGS in there:
            before = sources.read(join(self.out, SETTINGS))
            refuse_others(self.out, before.decode(), self.settings, overwrite)
            if before != text:
                self._remove(THRESHOLD_FILE, DESCRIPTION, *self._shards())
                self._put(SETTINGS, text)
        elif there & {SHARDS, "rows", *FOLDER_OF.values(), DESCRIPTION}:
            raise InputError(f"{self.out} holds labels of something else; give another OUT")
        else:
            self._put(SETTINGS, text)
        if "://" not in self.out:  # what a killed run was writing; pictures begin with no dot
            for folder in (SHARDS, *FOLDER_OF.values()):
                for torn in Path(self.out, folder).rglob(".*.*"):
                    torn.unlink()

    def _stages(self, ray: Any, done: NDArray[np.uint64], todo: dict[str, str]) -> Any:
        """Listing -> content -> rows with labels -> shards, of which each tells its size."""
        has = ray.cluster_resources()
        cpus, gpus = has.get("CPU", 1), int(has.get("GPU", 0))
        workers = self.workers or gpus or max(1, int(cpus) // 4)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        context.target_max_block_size = _BLOCK
        # What was lost with its machine Ray does again; what fails is missed in the end, where the
        # number of images is known
        context.max_errored_blocks = 0 if self.found.count is None else -1
        # A whole processor stays free: what reads for the teachers must never wait for them
        share = max(0.0, min(0.75 * cpus, cpus - 1)) / workers
        each = (self.found.count or 1 << 30) // workers
        at_once, shard = max(1, min(AT_ONCE, each // 8)), max(1, min(_SHARD, each // 4))
        job = self._job(max(1, int(cpus / workers)))
        labelled = self._content(ray, done, todo, at_once).map_batches(
            Teacher, fn_constructor_args=(job,), batch_size=at_once, batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=workers, initial_size=workers),
            num_cpus=min(share, 1.0) if gpus else share,
            num_gpus=1 / math.ceil(workers / gpus) if gpus else None,
        )  # fmt: skip
        to = {"out": self.out, "schema": job.schema}
        return labelled.map_batches(store, batch_size=shard, fn_kwargs=to, **_LIGHT)

    def _job(self, threads: int) -> Job:
        return Job(
            self.load, threads, self.labels, schema_of(self.labels.names, MORE), self.key,
            {name: self.settings[name] for name in ("teacher", *LOOK)},
            self.settings["images"], Path(self.source), Path(self.out) if self.in_files else None,
            self.coarse, self.agreement,
        )  # fmt: skip

    def _content(
        self, ray: Any, done: NDArray[np.uint64], todo: dict[str, str], at_once: int
    ) -> Any:
        """Name, address, content or reason of each image that is not done."""
        found = self.found
        if found.kind == "parquet":
            filesystem, _ = sources.resolve(found.files[0])
            listing = ray.data.read_parquet(
                [sources.resolve(file)[1] for file in found.files], filesystem=filesystem
            )
            listing = listing.select_columns(sources.columns(found.files[0]))
            # A row group of addresses may hold a million of them
            listing = listing.repartition(target_num_rows_per_block=4 * at_once)
        else:
            rows = todo or dict(zip(found.files, found.files, strict=True))
            table = pyarrow.table({"name": list(rows), "image": list(rows.values())})
            step = 4 * at_once if todo else 1
            parts = [table.slice(i, step) for i in range(0, table.num_rows, step)]
            listing = ray.data.from_arrow(parts)
        here = {"kind": found.kind, "base": folder_of(self.source), "done": [ray.put(done)]}
        return listing.map_batches(fetch, batch_size=at_once, fn_kwargs=here, **_LIGHT)

    def _done(self) -> NDArray[np.uint64]:
        """Of the names of images that are labelled, in order."""
        found = [
            digest(row["name"])
            for file in self._shards()
            for row in self._read(file, ["name", "key", "status"]).to_pylist()
            if row["key"] == self.key and is_done(row)
        ]
        return np.unique(np.array(found, np.uint64))

    def _shards(self) -> list[str]:
        """Below OUT."""
        names = [Path(file.path).name for file in self._list(SHARDS)]
        return sorted(f"{SHARDS}/{n}" for n in names if n.endswith(".parquet") and n[0] != ".")

    def _read(self, file: str, columns: list[str]) -> Any:
        filesystem, path = sources.resolve(join(self.out, file))
        return parquet.read_table(path, columns=columns, filesystem=filesystem)

    def _list(self, folder: str) -> list[Any]:
        filesystem, path = sources.resolve(join(self.out, folder))
        return filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))  # type: ignore[no-any-return]

    def _put(self, file: str, content: bytes) -> None:
        put(join(self.out, file), content)

    def _remove(self, *files: str) -> None:
        for file in files:
            filesystem, path = sources.resolve(join(self.out, file))
            if filesystem.get_file_info(path).type != fs.FileType.NotFound:
                filesystem.delete_file(path)


def ray_data() -> Any:
    try:
        import ray
        import ray.data
    except ImportError:
        raise InputError('--cluster needs Ray Data: pip install "hmsa[cluster]"') from None
    return ray


@contextmanager
def _joined(address: str) -> Iterator[Any]:
    """Ray, on the cluster at `address`; as it is where this process has joined one before."""
    ray = ray_data()
    mine = not ray.is_initialized()
    if mine:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        local = {"include_dashboard": False} if address == "local" else {}
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR", **local)
        except (ConnectionError, ValueError) as error:
            told = " ".join(str(error).split())
            raise InputError(f"--cluster {address}: no cluster there ({told})") from None
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):  # its file tells all
            handler.setLevel(logging.ERROR)
    try:
        with redirect_stdout(sys.stderr):  # Ray prints there which process died
            yield ray
    finally:
        if mine:
            ray.shutdown()
