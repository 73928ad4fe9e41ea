"""Zip archives that strangers made, unpacked within limits and inside one folder."""

from __future__ import annotations

import shutil
import stat
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath

from ..runs import InputError, first_line

MOST_FILES = 1_000_000
MOST_GROWTH = 200  # unpacked bytes for each byte of the archive; plain masks reach some 100
ALWAYS = 1 << 28  # bytes that may be unpacked whatever the growth
_KINDS = (0, stat.S_IFREG, stat.S_IFDIR)  # of members; not links or devices


@contextmanager
def unpacked(source: Path, beside: Path) -> Iterator[Path]:
    """`source`, or the folder in `beside` where it is unpacked for the time being if it is a zip.

    An InputError in the block that names that folder is raised naming the zip.
    """
    if not source.exists():
        raise InputError(f"no file or folder {source}")
    if source.suffix.lower() != ".zip":
        yield source
        return
    with tempfile.TemporaryDirectory(prefix=f".{source.stem}.", dir=beside) as folder:
        try:
            with zipfile.ZipFile(source) as archive:
                _extract(archive, source, Path(folder))
        except InputError:
            raise
        except Exception as error:  # whatever a decoder raises for a damaged archive
            raise InputError(f"{source} cannot be unpacked: {first_line(error)}") from None
        try:
            yield Path(folder)
        except InputError as error:
            raise InputError(str(error).replace(str(Path(folder)), str(source))) from None


def _extract(archive: zipfile.ZipFile, source: Path, folder: Path) -> None:
    members = {m: m.filename.replace("\\", "/") for m in archive.infolist()}
    members = {m: name for m, name in members.items() if not name.startswith("__MACOSX/")}
    _check(members, source, shutil.disk_usage(folder).free)
    for member, name in members.items():
        place = folder / name
        (place if name.endswith("/") else place.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            # Reads no more than the declared size, which `_check` has counted
            with archive.open(member) as packed, place.open("xb") as file:
                shutil.copyfileobj(packed, file)


def _check(members: dict[zipfile.ZipInfo, str], source: Path, free: int) -> None:
    """Raise InputError for an archive that is too large or would write outside its folder."""
    total, size = sum(member.file_size for member in members), source.stat().st_size
    if len(members) > MOST_FILES:
        raise InputError(f"{source} has {len(members)} files, and at most {MOST_FILES} are taken")
    if total > max(ALWAYS, MOST_GROWTH * size):
        raise InputError(
            f"{source} would grow from {size} to {total} bytes, as hostile archives do; if you "
            "trust it, unpack it and give the folder"
        )
    if total > free:
        raise InputError(f"{source} needs {total} bytes of disk, and {free} are free; make room")
    for member, name in members.items():
        path = PureWindowsPath(name)  # it knows drives, too
        if path.anchor or ".." in path.parts or "\0" in name:
            raise InputError(f"{source}: {name!r} leads out of the archive; pack it again without")
        if stat.S_IFMT(member.external_attr >> 16) not in _KINDS:
            raise InputError(f"{source}: {name!r} is a link; pack the file that it leads to")
        if member.flag_bits & 1:
            raise InputError(f"{source} has a password; unpack it and give the folder")
    twice = [name for name, times in Counter(members.values()).items() if times > 1]
    if twice:
        raise InputError(f"{source} holds {twice[0]!r} twice; pack it again with one of them")
