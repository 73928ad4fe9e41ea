"""What a check of a dataset finds: its problems, and the numbers of each split."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..data.labels import LabelSet
from .scan import File

Level = Literal["error", "warning", "note"]
LEVELS: tuple[Level, ...] = ("error", "warning", "note")
MOST_CASES = 4  # of a problem, to be shown
MOST_FILES = 20  # named in the summary of a problem; the count is always whole


@dataclass(frozen=True)
class Problem:
    """error: training would stop at it or learn nonsense; warning: scores may be false by it."""

    level: Level
    kind: str  # a few words, the same for all of its kind
    split: str  # or "train, val": between two
    message: str  # one line: what, an example, how to mend it
    files: tuple[Path, ...] = ()  # all it is about
    cases: tuple[tuple[File, ...], ...] = ()  # what to show side by side, the worst first


@dataclass(frozen=True)
class Unknown:
    """A value in label files that is neither a class nor ignored."""

    split: str
    value: str  # 26, or 0,128,192
    pixels: int
    files: tuple[Path, ...]
    diagnosis: str


@dataclass(frozen=True)
class Near:
    """Pictures that a split has nearly in common with another."""

    kind: Literal["copy", "clip"]
    splits: tuple[str, str]
    images: tuple[Path, Path]  # the nearest two, one of each split
    likeness: float  # correlation of their gray thumbnails, -1..1
    pictures: int = 1  # of the second split
    recording: str = ""  # of a clip: what the names of its pictures begin with
    apart: int = 0  # of a clip: between the numbers in the names of `images`


@dataclass
class Part:
    """One split: its files, and what they hold. K classes."""

    name: str
    images: dict[str, File]
    labels: dict[str, File]
    pixels: NDArray[np.int64]  # [K]
    pictures: NDArray[np.int64]  # [K], in which the class is
    values: Counter[int] = field(default_factory=Counter)  # raw value: pixels
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)  # height, width of images
    modes: Counter[str] = field(default_factory=Counter)  # of images
    void: int = 0  # pixels that are ignored
    unknown: int = 0  # pixels of values outside the table
    unread: int = 0  # files that could not be read, or are in another encoding
    copies: int = 0  # images with a near-copy in this split
    mean: list[float] = field(default_factory=list)  # of R, G, B in 0..1; empty without images
    std: list[float] = field(default_factory=list)

    @property
    def pairs(self) -> list[tuple[File, File]]:
        return [(self.images[n], self.labels[n]) for n in self.images if n in self.labels]

    @property
    def total(self) -> int:
        """Pixels of all labels, at least 1."""
        return max(1, self.void + self.unknown + int(self.pixels.sum()))


@dataclass
class Findings:
    source: Path  # the YAML file
    root: Path  # the folder of its pictures; every path below is absolute
    labels: LabelSet
    parts: dict[str, Part] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    unknown: list[Unknown] = field(default_factory=list)
    near: list[Near] = field(default_factory=list)

    def files(self) -> list[File]:
        """All there is to look at, each file once, in the order of the splits."""
        files = {
            file.path: file
            for part in self.parts.values()
            for file in (*part.images.values(), *part.labels.values())
        }
        return list(files.values())

    def add(
        self,
        level: Level,
        kind: str,
        split: str,
        message: str,
        files: Iterable[Path] = (),
        cases: Iterable[tuple[File, ...]] = (),
    ) -> None:
        shown = tuple(islice(cases, MOST_CASES))
        told = f"{split}: {message}"
        self.problems.append(Problem(level, kind, split, told, tuple(files), shown))

    def short(self, text: str | Path) -> str:
        """A message or path with the folder of the pictures left out, for people."""
        return str(text).replace(f"{self.root}{os.sep}", "")

    def of(self, level: Level) -> list[Problem]:
        return [problem for problem in self.problems if problem.level == level]

    def verdict(self) -> str:
        """One sentence."""
        pairs = sum(len(part.pairs) for part in self.parts.values())
        count = {level: len(self.of(level)) for level in ("error", "warning")}
        told = [f"{n} {level}{'s' if n > 1 else ''}" for level, n in count.items() if n]
        return f"{' and '.join(told) or 'Nothing wrong'} in {pairs} pairs of {_these(self.parts)}."

    def statistics(self) -> dict[str, Any]:
        """Class frequencies and pictures' mean and deviation, for JSON. Shares of all pixels."""
        parts, names = self.parts, self.labels.names
        return {
            "dataset": str(self.source),
            "folder": str(self.root),
            "frequencies": {
                name: {
                    names[k]: {
                        "pixels": int(part.pixels[k]),
                        "share": round(int(part.pixels[k]) / part.total, 8),
                        "pictures": int(part.pictures[k]),
                    }
                    for k in range(len(names))
                }
                for name, part in parts.items()
            },
            "void": {
                name: {"pixels": part.void, "share": round(part.void / part.total, 8)}
                for name, part in parts.items()
            },
            "sizes": {
                name: {f"{width}x{height}": n for (height, width), n in part.sizes.most_common()}
                for name, part in parts.items()
            },
            "mean": {name: part.mean for name, part in parts.items()},
            "std": {name: part.std for name, part in parts.items()},
        }

    def summary(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {
            "pairs": {
                name: {
                    "images": len(part.images),
                    "labels": len(part.labels),
                    "pairs": len(part.pairs),
                }
                for name, part in self.parts.items()
            },
            "errors": [_told(problem) for problem in self.of("error")],
            "warnings": [_told(problem) for problem in self.of("warning")],
            "notes": [_told(problem) for problem in self.of("note")],
            "unknown_values": [
                {
                    "split": one.split,
                    "value": one.value,
                    "pixels": one.pixels,
                    "files": len(one.files),
                    "such_as": [str(path) for path in one.files[:MOST_FILES]],
                    "diagnosis": one.diagnosis,
                }
                for one in self.unknown
            ],
            "near_duplicates": [
                {
                    "kind": near.kind,
                    "splits": list(near.splits),
                    "images": [str(path) for path in near.images],
                    "likeness": round(near.likeness, 4),
                    "pictures": near.pictures,
                }
                | ({"recording": near.recording, "apart": near.apart} if near.recording else {})
                for near in self.near
            ],
            "near_duplicates_within": {name: part.copies for name, part in self.parts.items()},
            "values": {
                name: {self.labels.value_name(value): n for value, n in sorted(part.values.items())}
                for name, part in self.parts.items()
            },
            "modes": {name: dict(part.modes) for name, part in self.parts.items()},
            **self.statistics(),
        }


def _these(parts: dict[str, Part]) -> str:
    names = list(parts)
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)


def _told(problem: Problem) -> dict[str, Any]:
    return {
        "kind": problem.kind,
        "split": problem.split,
        "message": problem.message,
        "files": len(problem.files),
        "such_as": [str(path) for path in problem.files[:MOST_FILES]],
    }
