"""A run folder: work that can be stopped at any moment, SIGKILL included, and continued later.

NAME.json     the settings that the results depend on; written first, compared ever after
NAME.jsonl    one line for each finished piece of work, appended when its files are complete
.NAME.lock    locked while a process writes into the folder
"""

from __future__ import annotations

import errno
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout

from .errors import InputError
from .files import replace, sweep

MEND = "name another folder, or start again with --overwrite"
DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}  # only writing raises these


class Run:
    """The work `name` in `folder`, locked until `close` or the end of a `with` block.

    settings: JSON values that the results depend on, by the names that users know.
    overwrite: forget what was done there, and with which settings.
    keep: which records are kept even then, as they do not depend on the settings.
    mend: what the user can do where settings differ, for the message.
    Raises InputError if the folder was begun with other settings or holds another work, is in use
    by another process, or cannot be written to; the `with` block raises it when the disk is full.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        settings: Mapping[str, Any],
        *,
        overwrite: bool = False,
        keep: Callable[[Any], bool] | None = None,
        mend: str = MEND,
    ) -> None:
        self.folder = folder
        self.records: dict[str, Any] = {}  # key -> what `add` was given
        self._settings_file = folder / f"{name}.json"
        self._done_file = folder / f"{name}.jsonl"
        for file in sorted(folder.glob("*.jsonl")):
            if file != self._done_file and file.with_suffix(".json").is_file():
                raise InputError(
                    f"{folder} holds results of hmsa {file.stem}, which might be overwritten; name "
                    "another folder"
                )
        self._adding = threading.Lock()
        self._lock = FileLock(folder / f".{name}.lock", timeout=0, thread_local=False)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
            self._begin(settings, overwrite, keep, mend)
        except Timeout:
            raise InputError(
                f"{folder}: another process is writing into this folder; wait for it or stop it"
            ) from None
        except BaseException as error:
            self._lock.release()
            if isinstance(error, OSError):
                raise _cannot_write(folder, error) from None
            raise

    def _begin(
        self, settings: Mapping[str, Any], overwrite: bool,
        keep: Callable[[Any], bool] | None, mend: str,
    ) -> None:  # fmt: skip
        sweep([self._settings_file, self._done_file])
        if self._settings_file.is_file() and not overwrite:
            self._compare(settings, mend)
        else:
            text = json.dumps(settings, indent=1) + "\n"
            self._forget(keep)  # first: it belongs to other settings
            replace(self._settings_file, lambda temporary: temporary.write_text(text))
        self._file = self._done_file.open("ab")
        content = self._done_file.read_bytes()
        self.records = _parse(content)
        if content and not content.endswith(b"\n"):  # killed while it wrote a line
            self._file.write(b"\n")

    def _forget(self, keep: Callable[[Any], bool] | None) -> None:
        records = _parse(self._done_file.read_bytes()) if keep and self._done_file.is_file() else {}
        kept = [json.dumps(record) for record in records.items() if keep and keep(record[1])]
        if kept:
            replace(self._done_file, lambda temporary: temporary.write_text("\n".join(kept) + "\n"))
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
            raise _cannot_write(self.folder, error) from error

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
    file = folder / f"{name}.jsonl"
    return _parse(file.read_bytes()) if file.is_file() else {}


def stamp(file: Path) -> list[Any] | None:
    """Path, size in bytes and time of change of a file, as JSON; None if it is not there."""
    try:
        about = file.stat()
    except OSError:
        return None
    return [str(file.resolve()), about.st_size, about.st_mtime_ns]


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """The first setting that differs, as `name old -> new`, nested ones as `a.b`; None if none."""
    before, now = dict(_flat(old)), dict(_flat(json.loads(json.dumps(new))))
    changed = (key for key in [*now, *before] if before.get(key) != now.get(key))
    shown = (f"{key} {_show(before.get(key))} -> {_show(now.get(key))}" for key in changed)
    return next(shown, None)


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


def _parse(content: bytes) -> dict[str, Any]:
    records = {}
    for line in content.splitlines():
        with suppress(ValueError, TypeError):  # torn when the process was killed
            key, record = json.loads(line)
            records[key] = record
    return records


def _cannot_write(folder: Path, error: OSError) -> InputError:
    why = error.strerror or error
    return InputError(f"cannot write into {folder} ({why}); mend that and run the command again")
