"""A run folder: work that can be stopped at any moment, SIGKILL included, and continued later.

NAME.json     the settings that the results depend on; written first, compared ever after
NAME.jsonl    one line for each finished piece of work, appended when its files are complete
metrics.csv   of a training: values by step
.NAME.lock    locked while a process writes into the folder
"""

from __future__ import annotations

import csv
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout

from .errors import InputError
from .files import DISK_FULL, cannot_write, replace, sweep

METRICS = "metrics.csv"
MEND = "name another folder, or start again with --overwrite"


class Run:
    """The work `name` in `folder`, locked until `close` or the end of a `with` block.

    settings: JSON values that the results depend on, by the names that users know.
    overwrite: forget what was done there, and with which settings.
    keep: which records are kept even then, as they do not depend on the settings.
    mend: what the user can do where settings differ, for the message.
    What killed processes left half-written below `folder` is removed.
    Raises InputError if the folder was begun with other settings, holds another work or is in use
    by another process, and CannotWrite; the `with` block raises that when the disk is full.
    """

    def __init__(
        self, folder: Path, name: str, settings: Mapping[str, Any], *, overwrite: bool = False,
        keep: Callable[[Any], bool] = lambda record: False, mend: str = MEND,
    ) -> None:  # fmt: skip
        self.folder = folder
        self.records: dict[str, Any] = {}  # key -> what `add` was given
        self._settings_file = folder / f"{name}.json"
        self._done_file = folder / f"{name}.jsonl"
        self._adding = threading.Lock()
        self._lock = FileLock(folder / f".{name}.lock", timeout=0, thread_local=False)
        try:
            self._require_alone()  # first, so that a lock file in there is of no other work
            folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
            sweep(folder)
            if overwrite or not self._settings_file.is_file():
                self._forget(keep)  # first: it belongs to other settings
                replace(self._settings_file, json.dumps(settings, indent=1) + "\n")
            else:
                self._compare(settings, mend)
            self.records = _parse(self._done_file)
            self._file = self._done_file.open("ab+")
            if self._file.tell():
                self._file.seek(-1, os.SEEK_END)
                if self._file.read() != b"\n":  # killed while it wrote a line
                    self._file.write(b"\n")
        except Timeout:
            raise InputError(
                f"{folder}: another process is writing into this folder; wait for it or stop it"
            ) from None
        except BaseException as error:
            self._lock.release()
            if isinstance(error, OSError):
                raise cannot_write(folder, error) from None
            raise

    def _require_alone(self) -> None:
        for file in sorted(self.folder.glob("*.jsonl")):
            if file != self._done_file and file.with_suffix(".json").is_file():
                raise InputError(
                    f"{self.folder} holds results of hmsa {file.stem}, which might be overwritten; "
                    "name another folder"
                )

    def _forget(self, keep: Callable[[Any], bool]) -> None:
        kept = [json.dumps(each) for each in _parse(self._done_file).items() if keep(each[1])]
        if kept:
            replace(self._done_file, "".join(f"{line}\n" for line in kept))
        else:
            self._done_file.unlink(missing_ok=True)

    def _compare(self, settings: Mapping[str, Any], mend: str) -> None:
        try:
            changed = difference(json.loads(self._settings_file.read_text()), settings)
        except (ValueError, AttributeError):
            raise InputError(f"{self._settings_file} is damaged; {mend}") from None
        if changed:
            raise InputError(f"{self._settings_file}: begun with other settings, {changed}; {mend}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.close()
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            raise cannot_write(self.folder, error) from error

    def close(self) -> None:
        """Release the lock. Closing twice does nothing."""
        with suppress(OSError):  # a full disk, which `add` has reported
            self._file.close()
        self._lock.release()

    def add(self, key: str, record: Any = None) -> None:
        """Note that `key` is done, from any thread; record: JSON to keep with it."""
        line = json.dumps([key, record]).encode() + b"\n"
        with self._adding:
            self._file.write(line)
            self._file.flush()
            self.records[key] = record


def read_records(folder: Path, name: str) -> dict[str, Any]:
    """What the work `name` in `folder` has done, as `Run.records`; another process may hold it."""
    return _parse(folder / f"{name}.jsonl")


def stamp(file: Path) -> list[Any] | None:
    """Path, size in bytes and time of change of a file, as JSON; None if it is not there."""
    try:
        about = file.stat()
    except OSError:
        return None
    return [str(file.resolve()), about.st_size, about.st_mtime_ns]


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """The first setting that differs, as `name old -> new`, nested ones as `a.b`; None if none."""
    before, now = dict(flat(old)), dict(flat(json.loads(json.dumps(new))))
    changed = (key for key in [*now, *before] if before.get(key) != now.get(key))
    shown = (f"{key} {show(before.get(key))} -> {show(now.get(key))}" for key in changed)
    return next(shown, None)


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as pairs, `a.b` and its value."""
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def show(value: Any) -> str:
    """A setting as text, short."""
    if isinstance(value, str) and len(value) == 64:
        return value[:8]  # a SHA-256
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _parse(file: Path) -> dict[str, Any]:
    records = {}
    for line in file.read_bytes().splitlines() if file.is_file() else []:
        with suppress(ValueError, TypeError):  # torn when the process was killed
            key, record = json.loads(line)
            records[key] = record
    return records


def read_curves(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.csv that have a step, numbers as float, without empty cells; none
    if there is no such file."""
    file = folder / METRICS
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    rows = [{n: _value(v) for n, v in row.items() if v} for row in csv.DictReader(lines)]
    return [row for row in rows if isinstance(row.get("step"), float)]


def _value(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
