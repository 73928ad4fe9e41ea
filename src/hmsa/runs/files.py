"""Files that are there whole or not at all, and where those go that can be made again."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from .errors import CannotWrite, InputError

DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}  # only writing raises these
UNFINISHED = ".hmsa-"  # begins the name of a file that is being written; its process follows


def cache_folder() -> Path:
    """Where this user keeps what can be made again; the environment's XDG_CACHE_HOME moves it."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "hmsa"


def replace(path: Path, content: Callable[[Path], Any] | bytes | str) -> None:
    """Make a temporary file beside `path`, then put it there in one step.

    content: what writes the file that it is given; or bytes; or text, which becomes UTF-8.
    Raises CannotWrite if the folder cannot be written to or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        prefix = f"{UNFINISHED}{os.getpid()}-"
        handle, name = tempfile.mkstemp(".part", prefix, path.parent)  # torch wants a suffix
    except OSError as error:
        raise cannot_write(path.parent, error) from None
    os.close(handle)
    temporary = Path(name)
    try:
        _fill(temporary, content)
        temporary.chmod(0o644)
        os.replace(temporary, path)
    except Exception as error:
        reason = error if isinstance(error, OSError) else _refusal(temporary)
        if reason is None or reason.errno not in DISK_FULL:
            raise
        size = max((f.stat().st_size for f in (temporary, path) if f.exists()), default=0)
        temporary.unlink(missing_ok=True)
        needed = f"{path.name} needs more than {_mb(size)}"
        raise cannot_write(path.parent, reason, needed) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `path` at the end of the block, unless that raises.

    Raises InputError if something is there already.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f"{path} is not empty; name a new folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as temporary:
        folder = Path(temporary) / path.name
        folder.mkdir()
        yield folder
        if path.exists():
            path.rmdir()
        folder.rename(path)


def _fill(file: Path, content: Callable[[Path], Any] | bytes | str) -> None:
    if isinstance(content, str):
        content = escaped(content).encode()
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        content(file)


def escaped(text: str) -> str:
    """The text with backslashes where it is not Unicode, as file names that are not UTF-8 are."""
    return text.encode("utf-8", "backslashreplace").decode()


def _refusal(file: Path) -> OSError | None:
    """Why no more can be written: libraries raise errors of their own when a disk is full."""
    try:
        with file.open("ab") as stream:
            stream.write(bytes(1 << 16))
    except OSError as error:
        return error
    return None


def cannot_write(folder: Path, error: OSError, needed: str = "") -> CannotWrite:
    """The error to raise where `error` came of writing into `folder`; needed: how much room."""
    facts = [error.strerror or str(error)]
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        there = next(each for each in (folder, *folder.parents) if each.exists())
        facts.append(f"{_mb(shutil.disk_usage(there).free)} are left")
    facts += [needed] if needed else []
    return CannotWrite(
        f"cannot write into {folder} ({', '.join(facts)}); mend that and run the command again"
    )


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def sweep(folder: Path) -> None:
    """Remove what `replace` left anywhere below `folder` when its process was killed."""
    for left in folder.rglob(f"{UNFINISHED}*-*"):
        if not _is_being_written(left):
            left.unlink(missing_ok=True)


def _is_being_written(file: Path) -> bool:
    """Whether its process runs, and is no later one of the same number."""
    try:
        process = psutil.Process(int(file.name.split("-")[1]))
        return bool(process.create_time() - 1 < file.stat().st_mtime)  # of a second's accuracy
    except (psutil.Error, ValueError, OSError):
        return False


def sha256(path: Path) -> str:
    """SHA-256 of the content of a file."""
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
