"""What a check found: problems in the words of problems.yaml, and the numbers of each split."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from ..data.labels import LabelSet
from .scan import FileScan

Level = Literal["error", "warning", "note"]
LEVELS: tuple[Level, ...] = ("error", "warning", "note")
STATISTICS = ("dataset", "folder", "frequencies", "void", "sizes", "mean", "std")
MOST = 20  # files named in the summary of a problem; their count is always whole
_KINDS = yaml.safe_load(Path(__file__).with_name("problems.yaml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Problem:
    level: Level
    kind: str  # a key of problems.yaml
    split: str  # or "train, val": between two
    message: str
    files: Sequence[Path]
    cases: Sequence[Sequence[Path]]  # to be shown side by side; none: each file with its partner


@dataclass
class Part:
    """One split: its files by the names that pair them; numbers: what they hold, as JSON."""

    name: str
    images: dict[str, Path]
    labels: dict[str, Path]
    numbers: dict[str, Any] = field(default_factory=dict)

    @property
    def pairs(self) -> list[tuple[Path, Path]]:
        return [(self.images[n], self.labels[n]) for n in self.images if n in self.labels]


@dataclass
class Findings:
    """All that a check found. Every path is absolute, below `root`."""

    source: Path  # the dataset, as named by the user
    root: Path
    classes: LabelSet
    parts: list[Part] = field(default_factory=list)
    scans: dict[Path, FileScan] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    unknown: list[dict[str, Any]] = field(default_factory=list)  # label values, as JSON
    near: list[dict[str, Any]] = field(default_factory=list)  # near-copies and clips, as JSON

    def files(self) -> dict[Path, LabelSet | None]:
        """Every file once: the table by which a label holds its values, None for an image."""
        files: dict[Path, LabelSet | None] = {}
        for part in self.parts:
            files |= dict.fromkeys(part.images.values())
            files |= dict.fromkeys(part.labels.values(), self.classes)
        return files

    def add(
        self,
        kind: str,
        split: str,
        files: Sequence[Path] | None = None,
        cases: Sequence[Sequence[Path]] = (),
        **values: object,
    ) -> None:
        """Note a problem, unless `files` are an empty list; values: for its message."""
        if files is not None and not files:
            return
        files = files or ()
        first = self.scans.get(files[0]) if files else None
        values |= {"count": len(files), "files": files, "cases": cases, "scan": first}
        message = f"{split}: {_KINDS[kind]['message'].format_map(values)}"
        self.problems.append(Problem(_KINDS[kind]["level"], kind, split, message, files, cases))

    def of(self, *levels: Level) -> list[Problem]:
        """The problems of these levels, by default of all, the worst first."""
        return [p for level in levels or LEVELS for p in self.problems if p.level == level]

    def short(self, text: str | Path) -> str:
        """A message or path with the folder of the dataset left out, for people."""
        return str(text).replace(f"{self.root}{os.sep}", "")

    def verdict(self) -> str:
        """One sentence."""
        errors, warnings = len(self.of("error")), len(self.of("warning"))
        wrong = f"Errors: {errors}, warnings: {warnings}," if errors + warnings else "Nothing wrong"
        pairs = sum(len(part.pairs) for part in self.parts)
        return f"{wrong} in {pairs} pairs of {', '.join(part.name for part in self.parts)}."

    def summary(self) -> dict[str, Any]:
        """All of it, for JSON."""
        found: dict[str, Any] = {"dataset": str(self.source), "folder": str(self.root)}
        for key in self.parts[0].numbers:
            found[key] = {part.name: part.numbers[key] for part in self.parts}
        for level in LEVELS:
            found[f"{level}s"] = [
                {"kind": p.kind, "split": p.split, "message": p.message} | some(p.files)
                for p in self.of(level)
            ]
        return found | {"unknown_values": self.unknown, "near_duplicates": self.near}


def some(files: Sequence[Path]) -> dict[str, Any]:
    """How many files, and the first of them, as JSON."""
    return {"files": len(files), "such_as": [str(path) for path in files[:MOST]]}
