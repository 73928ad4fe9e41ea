"""Images that are nearly the same, and clips that were cut out of a recording.

A near-copy is the same view, whatever its file type, size and brightness: its difference hash is
nearly the same. Frames that a moving car took a second apart are not, yet scores on them mislead as
much; they are found by the numbers in their names, if the images confirm what the names say.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# On CamVid, successive frames of a standing car have a likeness of 0.7 and more, those of two
# recordings at most 0.34; copies in another format or size have at least 0.98.
LEAST_LIKENESS = 0.7  # of near-copies
_ROWS = 1024  # images compared at a time, to bound memory
_FRAME = re.compile(r"(.*?)(\d+)\D*$")  # recording, number

Hashes = Mapping[str, str]  # {name of an image: its hash, hexadecimal}


class Match(NamedTuple):
    """likeness: share of equal bits less that of the others; 1: the same, 0: nothing in common."""

    likeness: float
    original: str
    copy: str


class Clip(NamedTuple):
    """Images whose numbers lie between those of other images, of the same recording."""

    recording: str  # what their names begin with
    names: list[str]  # in order of their numbers
    apart: int  # between the nearest numbers of an original and an image of the clip
    borders: list[Match]  # the nearest first


def _bits(images: Hashes) -> NDArray[np.float32]:
    """`[N,B]` of -1 and 1."""
    data = np.frombuffer(bytes.fromhex("".join(images.values())), np.uint8)
    return np.unpackbits(data).reshape(len(images) or 1, -1).astype(np.float32) * 2 - 1


def near_copies(first: Hashes, second: Hashes) -> list[Match]:
    """For each of `second` its nearest in `first`, if that is a near-copy; the most alike first.

    If both are the same object, no image is a copy of itself.
    """
    found, originals, bits = [], _bits(first).T, _bits(second)
    names, copies = list(first), list(second)
    for start in range(0, len(copies) if names else 0, _ROWS):
        alike = bits[start : start + _ROWS] @ originals / bits.shape[1]
        if first is second:
            np.fill_diagonal(alike[:, start:], -1)
        for row, nearest in enumerate(alike.argmax(axis=1)):
            likeness = float(alike[row, nearest])
            if likeness >= LEAST_LIKENESS:
                found.append(Match(likeness, names[nearest], copies[start + row]))
    return sorted(found, key=lambda match: -match.likeness)


def clips(first: Hashes, second: Hashes) -> Iterator[Clip]:
    """Recordings of `first` out of whose middle images of `second` were cut.

    Names that end in numbers may be frames, or may mean nothing. So all images of a recording must
    be the more alike the nearer their numbers are.
    """
    there, here = _recordings(first), _recordings(second)
    for recording in sorted(there.keys() & here.keys()):
        a, b = there[recording], here[recording]
        frames, inside = sorted(a | b), [n for n in sorted(b) if min(a) < n < max(a)]
        if not inside or a.keys() & b.keys():  # each split has numbers of its own
            continue
        bits = _bits({str(n): first[a[n]] if n in a else second[b[n]] for n in frames})
        if not _in_order(bits):
            continue
        borders = []
        for i, (n, m) in enumerate(pairwise(frames)):
            if (n in a) != (m in a):
                likeness = float(bits[i] @ bits[i + 1]) / bits.shape[1]
                ends = (a[n], b[m]) if n in a else (a[m], b[n])
                borders.append((m - n, Match(likeness, *ends)))
        borders.sort(key=lambda border: border[0])
        matches = [match for _, match in borders]
        yield Clip(recording, [b[n] for n in inside], borders[0][0], matches)


def _recordings(images: Hashes) -> dict[str, dict[int, str]]:
    """{recording: {number: name}}"""
    found: dict[str, dict[int, str]] = defaultdict(dict)
    for name in images:
        if frame := _FRAME.match(name):
            found[frame[1]][int(frame[2])] = name
    return found


def _in_order(bits: NDArray[np.float32]) -> bool:
    """Whether each image is more like the next one than chance has it."""
    ranks = []  # share of the images that are more alike
    for i in np.unique(np.linspace(0, len(bits) - 2, 300).astype(int)):  # enough to judge by
        alike = bits @ bits[i]
        ranks.append((np.delete(alike, i) > alike[i + 1]).mean())
    # By chance a rank is uniform in 0..1, of deviation 0.289; three of those are no chance
    return bool(np.mean(ranks) < min(0.3, 0.5 - 3 * 0.289 / len(ranks) ** 0.5))
