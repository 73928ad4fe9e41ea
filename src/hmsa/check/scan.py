"""One look at every file of a dataset, in parallel; what was seen is kept for the next time.

Knows nothing about classes: a label file's own values are counted, whatever they mean.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict

from ..data.images import open_image, open_pillow
from ..data.labels import LabelSet, pack
from ..runs.errors import InputError
from ..runs.files import cache_folder

THUMB = 32  # pixels a side of the picture that near-copies are found by
MOST_VALUES = 1000  # kept of a label file; a photograph in its place has hundreds of thousands
_VERSION = 2  # of what is kept; raise it whenever a look finds something else
_SAVE_EVERY = 64  # looks; as many may be lost when the process is killed


class Seen(BaseModel):
    """What one look told. `broken`: why the file cannot be decoded; the rest is empty then."""

    model_config = ConfigDict(frozen=True, ser_json_bytes="base64", val_json_bytes="base64")

    broken: str = ""
    mode: str = ""  # Pillow's name: L, P, RGB, CMYK, I;16, .. or bands and type
    size: tuple[int, int] = (0, 0)  # height, width as shown
    # of an image
    sums: tuple[int, ...] = ()  # of the values of each channel, 0..255
    squares: tuple[int, ...] = ()
    thumb: bytes = b""  # THUMB x THUMB, gray
    # of a label
    values: dict[int, int] = {}  # raw value or packed colour: pixels
    lossy: bool = False  # a format that may change values
    foreign: str = ""  # why it is not in the encoding that the description says; values: colours


@dataclass(frozen=True)
class File:
    """A file to look at; labels: how its values are held, None for an image."""

    path: Path
    labels: LabelSet | None = None


def look(file: File) -> Seen:
    """Decodes the whole file. Never fails: what stands against it is in the answer."""
    try:
        if file.labels is None:
            return _image(file.path)
        with open_pillow(file.path) as picture:
            picture.load()
            return _label(picture, file.path, file.labels)
    except InputError as error:
        return Seen(broken=str(error))
    except Exception as error:  # whatever else a decoder may raise must not stop the others
        return Seen(broken=f"{file.path} cannot be decoded ({error}); replace or remove it")


def _image(path: Path) -> Seen:
    with open_image(path) as image:
        rgb = Image.fromarray(image.read())
    counts = np.array(rgb.histogram(), np.int64).reshape(3, 256)
    levels = np.arange(256)
    thumb = rgb.convert("L").resize((THUMB, THUMB), Image.Resampling.BOX)
    return Seen(
        mode=image.mode,
        size=image.size,
        sums=tuple((counts @ levels).tolist()),
        squares=tuple((counts @ levels**2).tolist()),
        thumb=thumb.tobytes(),
    )


def _label(picture: Image.Image, path: Path, labels: LabelSet) -> Seen:
    foreign = ""
    try:
        raw = labels.raw_of(picture, path).astype(np.int64)
    except InputError as error:
        foreign = str(error)
        raw = pack(np.asarray(picture.convert("RGB")))
    return Seen(
        mode=picture.mode,
        size=picture.size[::-1],
        values=_count(raw),
        lossy=picture.format == "JPEG",
        foreign=foreign,
    )


def _count(raw: NDArray[np.int64]) -> dict[int, int]:
    """Value: pixels, the commonest first."""
    if raw.size and raw.min() >= 0 and raw.max() < 65536:  # a table beats a sort in small ranges
        table = np.bincount(raw.ravel())
        values = np.flatnonzero(table)
        counts = table[values]
    else:
        values, counts = np.unique(raw, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:MOST_VALUES]
    return dict(zip(values[order].tolist(), counts[order].tolist(), strict=True))


class Memory:
    """Looks kept in one SQLite file per folder; each stands until its file's time or size changes.

    SQLite because rows are added as they come and a process that is killed leaves it whole.
    """

    def __init__(self, root: Path) -> None:
        name = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]
        path = cache_folder() / "looks" / f"{root.resolve().name}-{name}.sqlite"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._base = _open(path)
        except (OSError, sqlite3.Error):  # a home that cannot be written costs the memory only
            self._base = _open(":memory:")
        self._unsaved = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._base.commit()
        self._base.close()

    def recall(self, file: File) -> Seen | None:
        row = self._base.execute(
            "SELECT seen FROM looks WHERE key = ? AND stamp = ?", (_key(file), _stamp(file.path))
        ).fetchone()
        return Seen.model_validate_json(row[0]) if row else None

    def keep(self, file: File, seen: Seen) -> None:
        row = (_key(file), _stamp(file.path), seen.model_dump_json(exclude_defaults=True))
        self._base.execute("INSERT OR REPLACE INTO looks VALUES (?, ?, ?)", row)
        self._unsaved += 1
        if self._unsaved >= _SAVE_EVERY:
            self._base.commit()
            self._unsaved = 0


def _open(path: Path | str) -> sqlite3.Connection:
    base = sqlite3.connect(path, timeout=30)
    base.execute("CREATE TABLE IF NOT EXISTS looks (key PRIMARY KEY, stamp, seen)")
    return base


def _key(file: File) -> str:
    return f"{_VERSION} {file.labels.encoding if file.labels else 'image'} {file.path.resolve()}"


def _stamp(path: Path) -> str:
    try:
        about = path.stat()
    except OSError:  # gone since it was listed; the look will say so
        return "gone"
    return f"{about.st_mtime_ns} {about.st_size}"


def scan(files: Iterable[File], memory: Memory) -> Iterator[tuple[File, Seen]]:
    """Every file with what is in it: first those remembered, then the others as they are read."""
    unknown = []
    for file in files:
        if seen := memory.recall(file):
            yield file, seen
        else:
            unknown.append(file)
    pool = ThreadPoolExecutor()
    try:
        for file, seen in zip(unknown, pool.map(look, unknown), strict=True):
            memory.keep(file, seen)
            yield file, seen
    finally:  # also on Ctrl-C: what has not been begun is not begun any more
        pool.shutdown(cancel_futures=True)
