"""Images that are nearly the same, and clips that were cut out of a recording.

A near-copy is the same view, whatever its file type, size and brightness: its difference hash is
nearly the same. Frames that a moving car took a second apart are not, yet scores on them mislead as
much; they are found by the numbers in their names, if the images confirm what the names say.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# On CamVid, successive frames of a standing car have a likeness of 0.7 and more, those of two
# recordings at most 0.34; copies in another format or size have at least 0.98.
LEAST_LIKENESS = 0.7  # of near-copies
_ROWS = 1024  # images compared at a time, to bound memory
_FRAME = re.compile(r"(.*?)(\d+)\D*$")  # recording, number


class Hashed(NamedTuple):
    name: str  # path below the image folder, without suffix
    path: Path
    hash: str  # hexadecimal


class Clip(NamedTuple):
    """Images of one split that were cut out of a recording that another split has, too."""

    recording: str  # what the names of all its frames begin with
    apart: int  # between the numbers of the first pair, which are the nearest
    files: list[Path]
    pairs: list[tuple[Path, Path]]  # a frame of the other split and its neighbour in this one


def _bits(images: Sequence[Hashed]) -> NDArray[np.float32]:
    """`[N,B]` of -1 and 1."""
    data = np.array([[*bytes.fromhex(image.hash)] for image in images], np.uint8, ndmin=2)
    return np.unpackbits(data, axis=1).astype(np.float32) * 2 - 1


def near_copies(first: Sequence[Hashed], second: Sequence[Hashed]) -> list[tuple[Path, Path]]:
    """Images of `first` with their near-copies in `second`; the most alike pair comes first.

    If both are the same object, no image is a copy of itself.
    """
    found, originals, bits = [], _bits(first).T, _bits(second)
    for start in range(0, len(second) if first else 0, _ROWS):
        alike = bits[start : start + _ROWS] @ originals / bits.shape[1]
        if first is second:
            np.fill_diagonal(alike[:, start:], -1)
        for copy, row in zip(second[start:], alike, strict=False):
            if row.max() >= LEAST_LIKENESS:
                found.append((row.max(), first[row.argmax()].path, copy.path))
    found.sort(key=itemgetter(0), reverse=True)
    return [(original, copy) for _, original, copy in found]


def clips(first: Sequence[Hashed], second: Sequence[Hashed]) -> Iterator[Clip]:
    """Recordings of `first` out of whose middle images of `second` were cut.

    Names that end in numbers may be frames, or may mean nothing. So all images of a recording must
    be the more alike the nearer their numbers are.
    """
    there, here = _recordings(first), _recordings(second)
    for recording in sorted(there.keys() & here.keys()):
        a, b = there[recording], here[recording]
        images = dict(sorted((a | b).items()))
        inside = [b[n].path for n in images if n in b and min(a) < n < max(a)]
        # Where both have a number, each split has numbers of its own
        if not inside or a.keys() & b.keys() or not _in_order(_bits([*images.values()])):
            continue
        borders = [
            (m - n, ((a.get(n) or a[m]).path, (b.get(n) or b[m]).path))
            for n, m in pairwise(images)
            if (n in a) != (m in a)
        ]
        borders.sort(key=itemgetter(0))
        yield Clip(recording, borders[0][0], inside, [pair for _, pair in borders])


def _recordings(images: Sequence[Hashed]) -> dict[str, dict[int, Hashed]]:
    """{recording: {number: image}}"""
    found: dict[str, dict[int, Hashed]] = defaultdict(dict)
    for image in images:
        if frame := _FRAME.match(image.name):
            found[frame[1]][int(frame[2])] = image
    return found


def _in_order(bits: NDArray[np.float32]) -> bool:
    """Whether each image is more like the next one than chance has it."""
    ranks = []  # share of the images that are more alike
    for i in np.unique(np.linspace(0, len(bits) - 2, 300).astype(int)):  # enough to judge by
        alike = bits @ bits[i]
        ranks.append((np.delete(alike, i) > alike[i + 1]).mean())
    # By chance a rank is uniform in 0..1, of deviation 0.289; three of those are no chance
    return bool(np.mean(ranks) < min(0.3, 0.5 - 3 * 0.289 / len(ranks) ** 0.5))
