"""A run folder: work that can be stopped at any moment, SIGKILL included, and go on later.

    NAME.json     the settings that the results depend on; written first, compared ever after
    NAME.jsonl    one line for each finished piece of work, appended when its files are complete
    .NAME.lock    held while a process writes into the folder

Training, prediction, auto-labelling, cached passes, dataset scans and self-training all use it.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from filelock import FileLock, Timeout

from .errors import InputError
from .files import replace, sweep

MEND = "name another folder, or start again with --overwrite"


class Run:
    """The work `name` in `folder`, locked until `close` or the end of a `with` block.

    settings: JSON values that the results depend on, by the names that users know.
    overwrite: forget what was done there, and with which settings.
    mend: what the user can do where settings differ, for the message.
    Raises InputError if the folder was begun with other settings, is in use by another process,
    or cannot be written to.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        settings: Mapping[str, Any],
        *,
        overwrite: bool = False,
        mend: str = MEND,
    ) -> None:
        self.folder, self.settings_file = folder, folder / f"{name}.json"
        self._done_file = folder / f"{name}.jsonl"
        self._lines = threading.Lock()
        self.records: dict[str, Any] = {}  # key -> what `add` was given
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(folder / f".{name}.lock", timeout=0)
            self._lock.acquire()
        except Timeout:
            raise InputError(
                f"{folder}: another process is writing into this folder; wait for it or stop it"
            ) from None
        except OSError as error:
            raise InputError(f"cannot write into {folder}: {error.strerror or error}") from None
        try:
            self._begin(settings, overwrite, mend)
        except BaseException:
            self._lock.release()
            raise

    def _begin(self, settings: Mapping[str, Any], overwrite: bool, mend: str) -> None:
        sweep([self.settings_file])
        text = json.dumps(settings, indent=1) + "\n"
        if self.settings_file.is_file() and not overwrite:
            compare(self.settings_file, settings, mend)
            self.records = dict(_read(self._done_file))
        else:
            self._done_file.unlink(missing_ok=True)  # first: it belongs to other settings
            replace(self.settings_file, lambda temporary: temporary.write_text(text))
        torn = self._done_file.is_file() and not self._done_file.read_bytes().endswith(b"\n")
        self._file = self._done_file.open("ab", buffering=0)  # one write for each line
        if torn:
            self._file.write(b"\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the lock. Closing twice does nothing."""
        self._file.close()
        self._lock.release()

    def add(self, key: str, record: Any = None) -> None:
        """Note that `key` is done, from any thread; record: JSON to keep with it."""
        line = json.dumps([key, record]).encode() + b"\n"
        with self._lines:
            self.records[key] = record
            self._file.write(line)


def stamp(file: Path) -> list[Any] | None:
    """Path, size in bytes and time of change of a file, as JSON; None if it is not there."""
    try:
        about = file.stat()
    except OSError:
        return None
    return [str(file.resolve()), about.st_size, about.st_mtime_ns]


def compare(file: Path, settings: Mapping[str, Any], mend: str) -> None:
    """Raise InputError, naming the first difference, if `file` holds other settings."""
    try:
        before = json.loads(file.read_text())
        old, new = dict(_flat(before)), dict(_flat(json.loads(json.dumps(settings))))
    except (OSError, ValueError, AttributeError):
        raise InputError(f"{file} is damaged; {mend}") from None
    for key in dict.fromkeys([*new, *old]):
        if old.get(key) != new.get(key):
            raise InputError(
                f"{file}: begun with other settings, {key} {_show(old.get(key))} -> "
                f"{_show(new.get(key))}; {mend}"
            )


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _show(value: Any) -> str:
    if isinstance(value, str) and len(value) == 64:
        return value[:8]  # a SHA-256
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _read(file: Path) -> Iterator[tuple[str, Any]]:
    for line in file.read_bytes().splitlines() if file.is_file() else ():
        try:
            key, record = json.loads(line)
        except ValueError:  # torn when the process was killed
            continue
        yield key, record
