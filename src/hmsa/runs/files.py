"""Files that are there whole or not at all, and where those go that can be made again."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any


def cache_folder() -> Path:
    """Where this user keeps what can be made again; the environment's XDG_CACHE_HOME moves it."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "hmsa"


def replace(path: Path, write: Callable[[Path], Any]) -> None:
    """Have `write` make a temporary file beside `path`, then put it there in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        temporary.chmod(0o644)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def sweep(paths: Iterable[Path]) -> None:
    """Remove what `replace` left behind where it was killed while it made one of `paths`."""
    wanted = set(paths)
    for folder in {path.parent for path in wanted}:
        for left in folder.glob(".*"):
            if folder / left.name[1:].rpartition(".")[0] in wanted:
                left.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """SHA-256 of the content of a file."""
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
