"""Where each class is: an index of the tiles of a dataset's labels, for class-uniform sampling.

Labels are cut into tiles that do not overlap; what remains at the right and at the bottom is a
tile, too, and so is a picture smaller than one. For every class in a tile the index has its centre
of mass and its pixels. It is kept in a cache under a name that hashes all it was made from, so
that it is never stale, and it may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..runs.files import replace
from .datasets import Dataset

Integers = NDArray[np.int32]
Progress = Callable[[str, int], AbstractContextManager[Any]]  # such as hmsa.runtime.Progress
_FORMAT = 1  # goes up when what is in the file changes
_COLUMNS = ("image", "class", "x", "y", "pixels")


@dataclass(frozen=True)
class TileIndex:
    """Rows of equal length, sorted by class; x and y are pixels in the whole picture.

    The centre of mass is rounded down, as in the official code. It need not lie on the class.
    """

    image: Integers  # its place in the dataset
    class_: Integers
    x: Integers
    y: Integers
    pixels: Integers  # of this class in this tile

    def of(self, class_: int) -> range:
        """The rows of a class; empty where the data have none of it."""
        first, end = np.searchsorted(self.class_, (class_, class_ + 1))
        return range(int(first), int(end))

    def only(self, classes: Collection[int]) -> TileIndex:
        kept = np.isin(self.class_, list(classes))
        return TileIndex(*(column[kept] for column in vars(self).values()))


def tile_index(
    dataset: Dataset, tile: int, cache: Path | None, progress: Progress | None = None
) -> TileIndex:
    """The index of `dataset` for tiles of `tile` pixels, out of the folder `cache` or made anew.

    cache: None keeps nothing. progress: `(what, total)` -> a context whose value has `advance()`;
    only called when there is something to do. InputError where a label is bad.
    """
    if cache is None:
        return _build(dataset, tile, progress)
    file = cache / f"tiles-{_key(dataset, tile)}.parquet"
    try:
        table = pq.read_table(file, page_checksum_verification=True)
        return TileIndex(*(table[name].to_numpy() for name in _COLUMNS))
    except (OSError, KeyError, pa.ArrowException):  # not there, or not whole
        index = _build(dataset, tile, progress)
    table = pa.table(dict(zip(_COLUMNS, vars(index).values(), strict=True)))
    try:
        replace(file, lambda temporary: pq.write_table(table, temporary, write_page_checksum=True))
    except OSError as error:
        warnings.warn(f"the tile index is made anew every time: {error}", stacklevel=2)
    return index


def centres(label: NDArray[np.uint8], tile: int) -> NDArray[np.int64]:
    """Label `[H,W]` -> `[N,4]`: class, x, y, pixels of every class in every tile.

    A label is mostly long runs of one value, so we sum over runs rather than over pixels: one
    comparison of neighbours finds them all, for all classes and tiles at once.
    """
    width = label.shape[1]
    begins = np.empty(label.shape, bool)
    np.not_equal(label[:, 1:], label[:, :-1], out=begins[:, 1:])
    begins[:, ::tile] = True
    start = np.flatnonzero(begins)
    length = np.diff(start, append=label.size)
    y, x = np.divmod(start, width)
    across = -(-width // tile)
    place = (y // tile * across + x // tile) * 256 + label.ravel()[start]
    # Sums of integers below 2 ** 53, so exact as floats
    pixels = np.bincount(place, length)
    sum_x = np.bincount(place, length * (2 * x + length - 1) // 2)
    sum_y = np.bincount(place, length * y)
    found = np.flatnonzero(pixels)
    found = found[found % 256 != 255]
    count = pixels[found]
    columns = (found % 256, sum_x[found] // count, sum_y[found] // count, count)
    return np.stack(columns, axis=1).astype(np.int64)


def _build(dataset: Dataset, tile: int, progress: Progress | None) -> TileIndex:
    if not len(dataset):
        return TileIndex(*np.zeros((5, 0), np.int32))

    def rows(index: int) -> Integers:
        found = centres(dataset.read_label(index), tile)
        return np.insert(found, 0, index, axis=1).astype(np.int32)

    parts = []
    meter = progress(f"tiles of {dataset.split}", len(dataset)) if progress else None
    with ThreadPoolExecutor(os.cpu_count()) as pool, meter or nullcontext() as shown:
        for part in pool.map(rows, range(len(dataset))):
            parts.append(part)
            if shown:
                shown.advance()
    table = np.concatenate(parts)
    table = table[np.argsort(table[:, 1], kind="stable")]
    return TileIndex(*np.ascontiguousarray(table.T))


def _key(dataset: Dataset, tile: int) -> str:
    """Hash of all that the index depends on: files by name, size and time of change."""
    files = []
    for pair in dataset.pairs:
        for file in (pair.label, pair.confidence):
            if file is not None:
                status = file.stat()
                files.append((os.fspath(file.absolute()), status.st_size, status.st_mtime_ns))
    labels = dataset.labels
    table = (labels.raw, labels.ignored, labels.encoding, dataset.lowest, dataset.border)
    content = json.dumps((_FORMAT, tile, table, files))
    return hashlib.sha256(content.encode()).hexdigest()[:24]
