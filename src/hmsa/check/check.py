"""What is wrong with a dataset, all of it at once, before hours are wasted on it.

Lenient where `open_dataset` is strict: no problem hides another, and one bad file stops nothing.
problems.yaml lists what can be found.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from ..data.datasets import list_files
from ..data.descriptions import Split, describe, find_split, folders, label_set
from ..data.labels import IGNORE, LabelSet, unpack
from ..data.lists import read_list
from ..runs import InputError
from .alike import Match, clips, near_copies
from .scan import FileScan, scan

Files = Sequence[Path]
Cases = Sequence[Sequence[Path]]
Level = Literal["error", "warning", "note"]
LEVELS: tuple[Level, ...] = ("error", "warning", "note")
STATISTICS = ("dataset", "folder", "frequencies", "void", "sizes", "mean", "std")
_MOST = 20  # files named in the summary of a problem; their count is always whole
_KINDS = yaml.safe_load(Path(__file__).with_name("problems.yaml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Problem:
    level: Level
    kind: str  # a key of problems.yaml
    split: str  # or "train, val": between two
    message: str
    files: Files
    cases: Cases  # to be shown side by side; none: each file with its partner


@dataclass
class Part:
    """One split: its files by the names that pair them; numbers: what they hold, as JSON."""

    name: str
    images: dict[str, Path]
    labels: dict[str, Path]
    examples: Sequence[tuple[Path, Path]] = ()  # pairs that can be shown
    hashes: dict[str, str] = field(default_factory=dict)  # of the images that can be compared
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

    def add(
        self, kind: str, split: str, files: Files | None = None, cases: Cases = (), **values: object
    ) -> None:
        """Note a problem, unless `files` are an empty list; values: for its message."""
        if files is not None and not files:
            return
        files = files or ()
        first = self.scans.get(files[0]) if files else None
        values |= {"count": len(files), "files": files, "cases": cases, "scan": first}
        message = f"{split}: {_KINDS[kind]['message'].format_map(values)}"
        self.problems.append(Problem(_KINDS[kind]["level"], kind, split, message, files, cases))

    def of(self, level: str) -> list[Problem]:
        return [problem for problem in self.problems if problem.level == level]

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
                {"kind": p.kind, "split": p.split, "message": p.message} | _some(p.files)
                for p in self.of(level)
            ]
        return found | {"unknown_values": self.unknown, "near_duplicates": self.near}


def _some(files: Files) -> dict[str, Any]:
    """How many files, and the first of them, as JSON."""
    return {"files": len(files), "such_as": [str(path) for path in files[:_MOST]]}


def check(
    path: Path, splits: Sequence[str] = (), data: Path | None = None, compare: bool = True
) -> Findings:
    """Scan every file of all splits, or of those named, and find what is wrong.

    path, data: as for `open_dataset`; compare: also images with each other.
    Raises InputError only where there is nothing to check.
    """
    found = list_splits(path, splits, data)
    files: dict[Path, LabelSet | None] = {}
    for part in found.parts:
        files |= dict.fromkeys(part.images.values())
        files |= dict.fromkeys(part.labels.values(), found.classes)
    found.scans = scan(found.root, files)
    for part in found.parts:
        _check_files(found, part)
        _check_images(found, part)
        _check_labels(found, part)
    if compare:
        _compare(found)
    found.problems.sort(key=lambda problem: LEVELS.index(problem.level))
    return found


def list_splits(path: Path, splits: Sequence[str] = (), data: Path | None = None) -> Findings:
    """The files of all splits, or of those named, and the problems that their names alone show."""
    file, description, root = describe(path, data)
    found = Findings(path, root.resolve(), label_set(description, file))
    for name in splits or description.splits:
        split = find_split(description, name, path)
        if isinstance(split, Split):
            _list_folders(found, name, split)
            continue
        try:
            rows = read_list(split, found.root, file.parent, f"{file}, split {name}")
        except InputError as error:
            found.add("no list", name, reason=error)
        else:
            images = {row.name: row.image for row in rows}
            found.parts.append(Part(name, images, {row.name: row.label for row in rows}))
    if not found.parts:
        raise InputError(f"{path}: nothing to check; {found.problems[0].message}; pass --data?")
    return found


def _list_folders(found: Findings, name: str, split: Split) -> None:
    places = [*folders(found.root, split.images), *folders(found.root, split.labels)]
    absent = [place for place in places if not place.is_dir()]
    if absent:
        kind = "absent split" if absent == places else "no folder"
        found.add(kind, name, folders=" and no ".join(map(str, absent)))
    if absent == places:
        return
    listed = list_files(found.root, split)
    for files in (files for kind in listed for files in kind.values() if len(files) > 1):
        found.add("two files of one name", name, files)
    images, labels = ({stem: files[0] for stem, files in kind.items()} for kind in listed)
    found.parts.append(Part(name, images, labels))
    if not images and not labels:
        found.add("empty split", name, folder=places[0])
    elif not absent:
        found.add("image without label", name, [images[n] for n in images if n not in labels])
        found.add("label without image", name, [labels[n] for n in labels if n not in images])


def _check_files(found: Findings, part: Part) -> None:
    scans, files = found.scans, [*part.images.values(), *part.labels.values()]
    found.add("cannot be read", part.name, [path for path in files if scans[path].broken])
    found.add("another encoding", part.name, [path for path in files if scans[path].foreign])
    found.add("lossy labels", part.name, [path for path in files if scans[path].lossy])
    whole = [(i, j) for i, j in part.pairs if not scans[i].broken and not scans[j].broken]
    differ = [(i, j) for i, j in whole if scans[i].size != scans[j].size]
    fit = [(i, j) for i, j in whole if scans[i].size == scans[j].size]
    part.examples = [(i, j) for i, j in fit if not scans[j].foreign]
    sizes = [scans[path].size for pair in differ[:1] for path in pair]
    found.add("sizes differ", part.name, [image for image, _ in differ], differ, sizes=sizes)
    counts = {"images": part.images, "labels": part.labels, "pairs": part.pairs}
    part.numbers["pairs"] = {kind: len(each) for kind, each in counts.items()}


def _check_images(found: Findings, part: Part) -> None:
    scans = {path: scan for path in part.images.values() if (scan := found.scans[path]).sums}
    part.hashes = {n: text for n, p in part.images.items() if (text := found.scans[p].hash)}
    pixels = max(1, sum(scan.pixels for scan in scans.values()))
    mean = np.array([scan.sums for scan in scans.values()]).sum(0) / pixels / 255
    square = np.array([scan.squares for scan in scans.values()]).sum(0) / pixels / 255**2
    sizes = Counter(scan.size for scan in scans.values()).most_common()
    part.numbers |= {
        "sizes": dict(sizes),
        "modes": Counter(scan.mode for scan in scans.values()),
        "mean": mean.round(5).tolist() if scans else [],
        "std": np.sqrt(np.maximum(0, square - mean**2)).round(5).tolist() if scans else [],
    }
    if len(sizes) > 1:
        found.add("mixed sizes", part.name, sizes=len(sizes), common=sizes[0][0])
    found.add("mode", part.name, [p for p in scans if scans[p].mode not in ("RGB", "RGBA")])


def _check_labels(found: Findings, part: Part) -> None:
    """Values of the labels: classes, ignored ones, and what should not be there."""
    classes, known, name = found.classes, found.classes.train_ids(), part.name
    scans = {path: scan for path in part.labels.values() if (scan := found.scans[path]).values}
    plain = {path: scan.values for path, scan in scans.items() if not scan.foreign}
    values, holders, void = Counter[int](), Counter[int](), {}
    for path, each in plain.items():
        values.update(each)
        holders.update(each.keys())
        ignored = sum(n for value, n in each.items() if known.get(value) == IGNORE)
        void[path] = ignored / sum(each.values())

    def share(*raw: int) -> dict[str, Any]:
        pixels = sum(values[value] for value in raw)
        return {"pixels": pixels, "share": round(pixels / max(1, values.total()), 8)}

    table = list(zip(classes.names, classes.raw, strict=True))
    part.numbers |= {
        "frequencies": {title: share(raw) | {"pictures": holders[raw]} for title, raw in table},
        "void": share(*(value for value in values if known.get(value) == IGNORE)),
        "unknown": share(*(values.keys() - known.keys())),
        "values": {classes.value_name(value): n for value, n in sorted(values.items())},
    }
    _list_unknown(found, name, scans, classes.guess(values))
    if strange := [path for path, each in plain.items() if not each.keys() <= known.keys()]:
        found.add("unknown values", name, strange, diagnosis=classes.diagnose(values))
    elif set(values) == {0, 255} and known.get(255) == IGNORE and len(classes.names) > 1:
        # Nothing is unknown, and yet every object is ignored
        found.add("0/255 masks", name, list(plain), diagnosis=classes.guess(values))
    wholly = [path for path in void if void[path] == 1]
    found.add("nothing labelled" if len(wholly) == len(void) else "wholly void", name, wholly)
    found.add("mostly void", name, [path for path in void if 0.5 <= void[path] < 1])
    never = [title for title, raw in table if not values[raw]]
    if never and len(wholly) < len(void):
        found.add("class without pixels", name, classes=len(never), names=", ".join(never))


def _list_unknown(found: Findings, split: str, scans: dict[Path, FileScan], guess: str) -> None:
    """Add the values of labels that are unknown; in another encoding, all are."""
    known, name_of = found.classes.train_ids(), found.classes.value_name
    pixels, holders = Counter[str](), defaultdict[str, list[Path]](list)
    for path, each in scans.items():
        for value, n in each.values.items():
            if each.foreign or value not in known:
                name = "{},{},{}".format(*unpack(value)) if each.foreign else name_of(value)
                pixels[name] += n
                holders[name].append(path)
    for name, n in pixels.most_common(_MOST):
        diagnosis = scans[holders[name][0]].foreign or guess
        row = {"split": split, "value": name, "pixels": n, "diagnosis": diagnosis}
        found.unknown.append(row | _some(holders[name]))


def _compare(found: Findings) -> None:
    """Find the images, near-copies and recordings that splits share."""
    for part in found.parts:
        matches = near_copies(part.hashes, part.hashes)
        part.numbers["near_duplicates_within"] = len(matches)
        pairs = [(part.images[match.original], part.images[match.copy]) for match in matches]
        copies = [copy for _, copy in pairs]
        found.add("near-copies within", part.name, copies, pairs[:1], images=len(part.images))
    for two in combinations(found.parts, 2):
        small, large = sorted(two, key=lambda part: len(part.images))
        originals = set(large.images.values())
        shared = [path for path in small.images.values() if path in originals]
        found.add("shared files", f"{large.name}, {small.name}", shared, [()])  # nothing to show
        if not shared:  # else one is a part of the other, made a split of its own
            _compare_two(found, large, small)


def _compare_two(found: Findings, large: Part, small: Part) -> None:
    splits, shown = [large.name, small.name], {"large": large.name, "small": small.name}

    def add(kind: str, names: Sequence[str], matches: Sequence[Match], **more: object) -> None:
        pairs = [(large.images[match.original], small.images[match.copy]) for match in matches]
        files, count = [small.images[name] for name in names], len(small.images)
        found.add(kind, ", ".join(splits), files, pairs, images=count, **shown, **more)

    def add_row(kind: str, match: Match, pictures: int = 1, **more: object) -> None:
        images = [str(large.images[match.original]), str(small.images[match.copy])]
        row = {"kind": kind, "splits": splits, "images": images, "pictures": pictures}
        found.near.append(row | {"likeness": round(match.likeness, 4)} | more)

    copies = near_copies(large.hashes, small.hashes)
    add("near-copies", [match.copy for match in copies], copies)
    for match in copies:
        add_row("copy", match)
    for clip in clips(large.hashes, small.hashes):
        more = {"recording": clip.recording, "apart": clip.apart}
        add("clip of a recording", clip.names, clip.borders, **more)
        add_row("clip", clip.borders[0], len(clip.names), **more)
