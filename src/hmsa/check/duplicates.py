"""Pictures that a split should not share with another: near-copies, and clips of one recording.

A near-copy is the same view, whatever its file type, size and brightness: a hash of which way gray
goes at 480 places must agree, then the gray pictures themselves. Frames a second apart from a
moving car are no near-copies, yet as telling; those are found by what their names say, if the
pictures bear the names out.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

# On CamVid, successive frames of a standing car differ in at most 0.14 of the hash and correlate by
# 0.96 and more; two pictures of different recordings differ in at least 0.30 of it.
MOST_HASH = 0.15  # share of the hash's bits that may differ in a near-copy
LEAST_LIKENESS = 0.95  # correlation of two gray thumbnails, -1..1
MOST_RANK = 0.2  # how far down in likeness a clip's neighbours may be, 0 = nobody is more alike
_FLAT = 2.0  # gray levels; what varies less (a black frame) is no copy of anything
_ROWS = 1024  # pictures compared at a time, to bound memory
_SAMPLE = 300
_FRAME = re.compile(r"(?P<recording>.*?)(?P<number>\d+)\D*$")

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Prints:
    """What pictures are compared by. hash: [N,480] of -1 and 1; gray: [N,P], each of length 1."""

    hash: Floats
    gray: Floats

    def __getitem__(self, chosen: Sequence[int]) -> Prints:
        return Prints(self.hash[chosen], self.gray[chosen])

    def __len__(self) -> int:
        return len(self.hash)


@dataclass(frozen=True)
class Copy:
    """Picture `second` of one split is nearest to `first` of another, and nearly the same."""

    first: int
    second: int
    likeness: float  # correlation, -1..1


@dataclass(frozen=True)
class Clip:
    """Pictures of one split whose numbers lie between those of another, of the same recording."""

    recording: str  # what their names begin with
    pictures: tuple[int, ...]  # in the split they were cut out for, in order of their numbers
    borders: tuple[tuple[int, int, int], ...]  # (there, here, numbers apart), the nearest first
    likeness: float  # mean correlation across the borders


def prints(thumbs: Sequence[bytes]) -> Prints:
    """Square gray thumbnails of one size, a byte a pixel."""
    side = round(len(thumbs[0]) ** 0.5) if thumbs else 4
    gray = np.array([np.frombuffer(t, np.uint8) for t in thumbs], np.float32)
    gray, coarse = gray.reshape(-1, side * side), side // 2
    small = gray.reshape(-1, coarse, 2, coarse, 2).mean(axis=(2, 4))
    right, down = small[:, :, 1:] > small[:, :, :-1], small[:, 1:] > small[:, :-1]
    count = coarse * (coarse - 1)
    bits = np.concatenate([right.reshape(-1, count), down.reshape(-1, count)], axis=1)
    flat = gray - gray.mean(axis=1, keepdims=True)
    flat[flat.std(axis=1) < _FLAT] = 0
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    return Prints(np.where(bits, 1, -1).astype(np.float32), flat / np.maximum(length, 1e-6))


def near_copies(first: Prints, second: Prints | None = None) -> list[Copy]:
    """For each of `second` its nearest in `first`, where that is a near-copy.

    Without `second`, the same within `first`, a picture's own self left out.
    """
    among, found = first if second is None else second, []
    bits = first.hash.shape[1]
    if not len(first):
        return []
    for start in range(0, len(among), _ROWS):
        differ = (1 - among.hash[start : start + _ROWS] @ first.hash.T / bits) / 2
        if second is None:
            here = np.arange(len(differ))
            differ[here, start + here] = 1
        nearest = differ.argmin(axis=1)
        for row in np.flatnonzero(differ.min(axis=1) <= MOST_HASH):
            one, other = int(nearest[row]), start + int(row)
            likeness = float(first.gray[one] @ among.gray[other])
            if likeness >= LEAST_LIKENESS:
                found.append(Copy(one, other, likeness))
    return found


def clips(
    first: Prints, first_names: Sequence[str], second: Prints, second_names: Sequence[str]
) -> list[Clip]:
    """Recordings out of whose middle, as they stand in `first`, pictures of `second` were cut.

    Names that end in numbers may be frames, or may mean nothing. So all pictures of a recording
    must be the more alike the nearer their numbers are, and those at the borders of the clips too.
    """
    there, here = _recordings(first_names), _recordings(second_names)
    found = []
    for recording in sorted(there.keys() & here.keys()):
        a, b = there[recording], here[recording]
        inside = sorted(n for n in b if min(a) < n < max(a))
        if not inside or a.keys() & b.keys():  # each split has numbers of its own
            continue
        if not _tells_time(first[list(a.values())], list(a), second[list(b.values())], list(b)):
            continue
        numbers, gray = np.array(list(a)), first.gray[list(a.values())]
        borders = sorted(_borders(sorted(a), inside), key=lambda pair: abs(pair[0] - pair[1]))
        ranks, likeness = [], []
        for at in _some(len(borders)):
            before, after = borders[at]
            alike = gray @ second.gray[b[after]]
            likeness.append(alike[numbers == before].item())
            ranks.append((alike > likeness[-1]).mean())
        if np.mean(ranks) <= MOST_RANK:
            shown = tuple((a[n], b[m], abs(n - m)) for n, m in borders)
            chosen = tuple(b[n] for n in inside)
            found.append(Clip(recording, chosen, shown, float(np.mean(likeness))))
    return found


def _recordings(names: Sequence[str]) -> dict[str, dict[int, int]]:
    """Recording -> number of a frame -> its index."""
    found: dict[str, dict[int, int]] = defaultdict(dict)
    for index, name in enumerate(names):
        if parts := _FRAME.match(name):
            found[parts["recording"]][int(parts["number"])] = index
    return found


def _borders(there: list[int], here: list[int]) -> list[tuple[int, int]]:
    """Where sorted numbers of one kind follow the other's: pairs (there, here)."""
    both = sorted([(n, False) for n in there] + [(n, True) for n in here])
    return [(b, a) if ours else (a, b) for (a, ours), (b, other) in pairwise(both) if ours != other]


def _tells_time(first: Prints, a: Sequence[int], second: Prints, b: Sequence[int]) -> bool:
    """Whether pictures that are next to each other by number are more alike than chance has it."""
    order = np.argsort([*a, *b])
    gray = np.concatenate([first.gray, second.gray])[order]
    ranks = [
        (np.delete(gray @ gray[i], i) > gray[i] @ gray[i + 1]).mean() for i in _some(len(gray) - 1)
    ]
    # By chance alone a rank is uniform in 0..1, of deviation 0.289; three of those are no chance
    return bool(np.mean(ranks) < min(0.3, 0.5 - 3 * 0.289 / len(ranks) ** 0.5))


def _some(count: int) -> list[int]:
    """At most a few hundred indices, evenly over `count`: enough to judge by."""
    return [int(i) for i in np.linspace(0, count - 1, min(count, _SAMPLE))]
