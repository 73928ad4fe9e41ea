"""What is done in a folder, and with what settings, so that an interrupted run can go on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from .. import __version__
from ..runs.errors import InputError
from ..runs.files import replace

SETTINGS, DONE = "predict.json", "predict-done.jsonl"
_MEND = "name another -o, or do all of it anew with --overwrite"


class Ledger:
    """The account of the folder `out`; InputError if other settings have been at work there.

    A picture is done once `add` has noted it, and stays so until it, its results or the settings
    change. settings: anything in JSON that the results depend on, by the name that users know.
    overwrite: begin a new account.
    """

    def __init__(self, out: Path, settings: Mapping[str, Any], *, overwrite: bool = False) -> None:
        self._file = out / DONE
        self._done: dict[str, list[Any]] = {}
        self._seen: dict[str, list[Any]] = {}
        kept = out / SETTINGS
        if not overwrite and kept.is_file():
            _compare(kept, settings)
            self._done = _read(self._file)
        else:
            self._file.unlink(missing_ok=True)  # first: it must never stand beside other settings
            text = json.dumps({"hmsa": __version__, "settings": settings}, indent=1)
            replace(kept, lambda temporary: temporary.write_text(text + "\n"))

    def __enter__(self) -> Self:
        torn = self._file.is_file() and not self._file.read_bytes().endswith(b"\n")
        self._lines = self._file.open("ab", buffering=0)  # a line is one write, from any thread
        if torn:
            self._lines.write(b"\n")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._lines.close()

    def has(self, name: str, source: Path, results: Iterable[Path]) -> bool:
        """Whether `name` was made of this very file, and all its results are there."""
        try:
            about = source.stat()
        except OSError:
            return False  # whoever reads it will say why
        self._seen[name] = [str(source.resolve()), about.st_size, about.st_mtime_ns]
        return self._done.get(name) == self._seen[name] and all(r.is_file() for r in results)

    def add(self, name: str) -> None:
        """Note that all results of `name`, as `has` last saw its source, are there."""
        line = json.dumps([name, *self._seen[name]])
        self._lines.write(line.encode() + b"\n")


def _compare(kept: Path, settings: Mapping[str, Any]) -> None:
    try:
        before = dict(json.loads(kept.read_text())["settings"])
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{kept} is damaged; {_MEND}") from None
    now = json.loads(json.dumps(settings))
    for key in dict.fromkeys([*now, *before]):
        if before.get(key) != now.get(key):
            if key == "checkpoint":
                raise InputError(f"{kept}: the results there are of another checkpoint; {_MEND}")
            old, new = _show(before.get(key)), _show(now.get(key))
            raise InputError(f"{kept}: results there have {key} {old}, asked is {new}; {_MEND}")


def _show(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _read(file: Path) -> dict[str, list[Any]]:
    done: dict[str, list[Any]] = {}
    for line in file.read_bytes().splitlines() if file.is_file() else ():
        try:
            name, *source = json.loads(line)
        except ValueError:  # torn when the process was killed
            continue
        done[name] = source
    return done
