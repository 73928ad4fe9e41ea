"""Where each class is: an index of the tiles of a dataset's labels, for class-uniform sampling.

Labels are cut into tiles that do not overlap; what remains at the right and at the bottom is a
tile, too, and so is an image smaller than one. For every class in a tile the index has its centre
of mass and its pixels. It is cached under a name that hashes all it was made from, so it is never
stale, and it may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..runs import Progress, cache_folder, replace, stamp
from .datasets import Dataset

# [N,5]: image (place in the dataset), class, x, y, pixels of the class in the tile. x and y, in the
# whole image, are its centre of mass, rounded down as in the official code; it need not lie on it.
Tiles = NDArray[np.int32]
_FORMAT = 2  # goes up when the content of the file changes


def tile_index(dataset: Dataset, tile: int) -> Tiles:
    """The index of `dataset` for tiles of `tile` pixels a side, cached or made anew.

    Raises InputError if a label is bad.
    """
    file = cache_folder() / f"tiles-{_key(dataset, tile)}.npz"
    try:
        with file.open("rb") as opened, np.load(opened) as content:
            tiles: Tiles = content["tiles"]
            return tiles
    except Exception:  # not there, or damaged in whatever way
        tiles = _build(dataset, tile)

    def write(temporary: Path) -> None:
        with temporary.open("wb") as made:
            np.savez(made, tiles=tiles)

    try:
        replace(file, write)
    except OSError as error:
        warnings.warn(f"the tile index is made anew every time: {error}", stacklevel=2)
    return tiles


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


def _build(dataset: Dataset, tile: int) -> Tiles:
    def rows(index: int) -> Tiles:
        found = centres(dataset.read_label(index), tile)
        return np.insert(found, 0, index, axis=1).astype(np.int32)

    parts = [np.zeros((0, 5), np.int32)]
    what = f"tiles of {dataset.split}"
    with ThreadPoolExecutor() as pool, Progress(what, len(dataset)) as progress:
        for part in pool.map(rows, range(len(dataset))):
            parts.append(part)
            progress.advance()
    return np.concatenate(parts)


def _key(dataset: Dataset, tile: int) -> str:
    """Hash of all that the index depends on: files by name, size and time of change."""
    files = [
        stamp(file) for pair in dataset.pairs for file in (pair.label, pair.confidence) if file
    ]
    labels = dataset.labels
    table = (labels.raw, labels.ignored, labels.encoding, dataset.lowest, dataset.border)
    content = json.dumps((_FORMAT, tile, table, files))
    return hashlib.sha256(content.encode()).hexdigest()[:24]
