"""Images that are nearly the same, and clips that were cut out of a recording.

A near-copy is the same view, whatever its file type, size and brightness: its difference hash is
nearly the same. Frames that a moving car took a second apart are not, yet scores on them mislead as
much; they are found by the numbers in their names, if the images confirm what the names say.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

# On CamVid, hashes of successive frames of a standing car have up to 0.15 of their bits different,
# those of two recordings at least 0.33; copies in another format or size have up to 0.01.
LEAST_LIKENESS = 0.85  # share of equal bits in the hashes of near-copies
_ROWS = 1024  # images compared at a time, to bound memory
_FRAME = re.compile(r"(.*?)(\d+)\D*$")  # recording, number

Pair = tuple[Path, Path]
Hashes = NDArray[np.float32]  # [N,B], bits as -1 and 1


class Images:
    """Images to compare, {name: (path, hash in hexadecimal)}; those without a hash are left out."""

    def __init__(self, images: Mapping[str, tuple[Path, str]]) -> None:
        hashed = {name: image for name, image in images.items() if image[1]}
        self.count = len(images)
        self.paths = [path for path, _ in hashed.values()]
        data = bytes.fromhex("".join(text for _, text in hashed.values()))
        bits = np.unpackbits(np.frombuffer(data, np.uint8)).reshape(len(hashed), len(data) and -1)
        self.hashes: Hashes = bits.astype(np.float32) * 2 - 1
        self.recordings: dict[str, dict[int, int]] = defaultdict(dict)  # {number: index}
        for index, name in enumerate(hashed):
            if frame := _FRAME.match(name):
                self.recordings[frame[1]][int(frame[2])] = index


class Clip(NamedTuple):
    """Images whose numbers lie between those of other images, of the same recording."""

    recording: str  # what their names begin with
    files: list[Path]  # in order of their numbers
    borders: list[Pair]  # (another image, one of the clip) with successive numbers, nearest first
    apart: int  # between the numbers of the nearest
    likeness: float  # mean across the borders


def near_copies(first: Images, second: Images) -> list[tuple[float, Pair]]:
    """Likeness and (original, copy) of each of `second` that has a near-copy in `first`.

    The most alike come first. If both are the same object, no image is a copy of itself.
    """
    found = []
    for start in range(0, len(second.paths) if first.paths else 0, _ROWS):
        alike = _likeness(second.hashes[start : start + _ROWS], first.hashes)
        if first is second:
            np.fill_diagonal(alike[:, start:], 0)
        for row, nearest in enumerate(alike.argmax(axis=1)):
            if (likeness := float(alike[row, nearest])) >= LEAST_LIKENESS:
                found.append((likeness, (first.paths[nearest], second.paths[start + row])))
    return sorted(found, key=lambda copy: -copy[0])


def clips(first: Images, second: Images) -> Iterator[Clip]:
    """Recordings of `first` out of whose middle images of `second` were cut.

    Names that end in numbers may be frames, or may mean nothing. So all images of a recording must
    be the more alike the nearer their numbers are.
    """
    for recording in sorted(first.recordings.keys() & second.recordings.keys()):
        a, b = first.recordings[recording], second.recordings[recording]  # {number: index}
        inside = [number for number in sorted(b) if min(a) < number < max(a)]
        frames = sorted(a | b)
        hashes = np.array([first.hashes[a[n]] if n in a else second.hashes[b[n]] for n in frames])
        if not inside or a.keys() & b.keys() or not _in_order(hashes):
            continue
        steps = [sorted(frames[i : i + 2], key=b.__contains__) for i in range(len(frames) - 1)]
        cuts = sorted(((n, m) for n, m in steps if n in a and m in b), key=_apart)
        alike = [_likeness(first.hashes[a[n]], second.hashes[b[m]]) for n, m in cuts]
        files = [second.paths[b[number]] for number in inside]
        borders = [(first.paths[a[n]], second.paths[b[m]]) for n, m in cuts]
        yield Clip(recording, files, borders, _apart(cuts[0]), float(np.mean(alike)))


def _likeness(hashes: Hashes, others: Hashes) -> Any:
    """Share of equal bits: 1 for the same image, about 0.5 for two that have nothing in common."""
    return (1 + hashes @ others.T / hashes.shape[-1]) / 2


def _apart(numbers: tuple[int, int]) -> int:
    return abs(numbers[0] - numbers[1])


def _in_order(hashes: Hashes) -> bool:
    """Whether each image is more like the next one than chance has it."""
    ranks = []  # share of the images that are more alike
    for i in np.unique(np.linspace(0, len(hashes) - 2, 300).astype(int)):  # enough to judge by
        alike = hashes @ hashes[i]
        ranks.append((np.delete(alike, i) > alike[i + 1]).mean())
    # By chance a rank is uniform in 0..1, of deviation 0.289; three of those are no chance
    return bool(np.mean(ranks) < min(0.3, 0.5 - 3 * 0.289 / len(ranks) ** 0.5))
