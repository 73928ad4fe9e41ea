"""What is wrong with a dataset, all of it at once, before hours are wasted on it.

Lenient where `open_dataset` is strict: no problem hides another, and one bad file stops nothing.
problems.yaml lists what can be found.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import yaml

from ..data.descriptions import describe, label_set
from ..data.labels import IGNORE, LabelSet
from ..data.lists import read_list
from ..data.pairs import find_split, folders, list_files
from ..data.schema import Split
from ..runs import InputError
from .alike import Hashed, clips, near_copies
from .scan import FileScan, scan

Level = Literal["error", "warning", "note"]
Files = Sequence[Path]
Cases = Sequence[Files]
LEVELS: tuple[Level, ...] = ("error", "warning", "note")
_MOST = 20  # files named in the summary of a problem; their count is always whole
_KINDS = yaml.safe_load(Path(__file__).with_name("problems.yaml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Problem:
    kind: str  # a key of problems.yaml
    level: Level
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
    optional: bool = False  # it may be absent, or divide the images of the others anew
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

    def add(
        self, kind: str, split: str, files: Files | None = None, cases: Cases = (), **values: object
    ) -> None:
        """Note a problem, unless `files` are an empty list; values: for its message."""
        if files is not None and not files:
            return
        level, message = _KINDS[kind]["level"], _KINDS[kind]["message"]
        files = files or ()
        scan = self.scans.get(files[0]) if files else None
        message = message.format(count=len(files), files=files, cases=cases, scan=scan, **values)
        self.problems.append(Problem(kind, level, split, f"{split}: {message}", files, cases))

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
                {"kind": p.kind, "split": p.split, "message": p.message, "files": len(p.files),
                 "such_as": [str(path) for path in p.files[:_MOST]]}
                for p in self.of(level)
            ]  # fmt: skip
        return found


def check(path: Path, splits: Sequence[str] = (), data: Path | None = None) -> Findings:
    """Scan every file of all splits, or of those named, and find what is wrong.

    path, data: as for `open_dataset`. Raises InputError only where there is nothing to check.
    """
    file, description, root = describe(path, data)
    found = Findings(path, root.resolve(), label_set(description, file))
    for name in splits or description.splits:
        split = find_split(description, name, root, path)
        optional = name in description.optional and not splits
        if isinstance(split, Split):
            _list_folders(found, name, split, optional)
            continue
        try:
            pairs = read_list(split, found.root, file.parent, f"{file}, split {name}")
        except InputError as error:
            found.add("no list", name, reason=error)
            continue
        images, labels = {p.name: p.image for p in pairs}, {p.name: p.label for p in pairs}
        found.parts.append(Part(name, images, labels, optional))
    if not found.parts:
        reason, mend = "no split is there", "; correct it or pass --data FOLDER"
        if found.problems:
            reason = found.problems[0].message
            mend *= found.problems[0].kind != "no list"
        raise InputError(f"{path}: nothing to check; {reason}{mend}")
    own = {pair for part in found.parts if not part.optional for pair in part.pairs}
    found.parts = [p for p in found.parts if not p.optional or {*p.pairs} - own]
    files: dict[Path, LabelSet | None] = {}
    for part in found.parts:
        files |= dict.fromkeys(part.images.values())
        files |= dict.fromkeys(part.labels.values(), found.classes)
    found.scans = scan(found.root, files)
    for part in found.parts:
        _check_files(found, part)
        _check_images(found, part)
        _check_labels(found, part)
    _compare(found)
    found.problems.sort(key=lambda problem: LEVELS.index(problem.level))
    return found


def _list_folders(found: Findings, name: str, split: Split, optional: bool) -> None:
    """Add the files of a split, and the problems that their names alone show."""
    places = [*folders(found.root, split.images), *folders(found.root, split.labels)]
    absent = [place for place in places if not os.path.isdir(place)]
    listed = list_files(found.root, split)
    if optional and (absent or not any(listed)):
        return
    if absent:
        kind = "absent split" if absent == places else "no folder"
        found.add(kind, name, folders=" and no ".join(map(str, absent)))
    if absent == places:
        return
    for files in (*listed[0].values(), *listed[1].values()):
        if len(files) > 1:
            found.add("two files of one name", name, files)
    images, labels = ({stem: files[0] for stem, files in kind.items()} for kind in listed)
    found.parts.append(Part(name, images, labels, optional))
    if not images and not labels:
        found.add("empty split", name, folder=places[0])
    elif not absent:
        found.add("image without label", name, [images[n] for n in images if n not in labels])
        found.add("label without image", name, [labels[n] for n in labels if n not in images])


def _check_files(found: Findings, part: Part) -> None:
    scans = {p: found.scans[p] for p in (*part.images.values(), *part.labels.values())}
    found.add("cannot be read", part.name, [p for p, scan in scans.items() if scan.broken])
    foreign = [p for p, scan in scans.items() if scan.foreign and not scan.lossy]
    found.add("another encoding", part.name, foreign)
    sizes = {pair: [scans[path].size for path in pair] for pair in part.pairs}
    differ = [pair for pair, (one, other) in sizes.items() if one and other and one != other]
    first = sizes[differ[0]] if differ else ()
    found.add("sizes differ", part.name, [image for image, _ in differ], differ, sizes=first)
    counts = {"images": part.images, "labels": part.labels, "pairs": part.pairs}
    part.numbers["pairs"] = {kind: len(each) for kind, each in counts.items()}


def _check_images(found: Findings, part: Part) -> None:
    scans = {path: scan for path in part.images.values() if (scan := found.scans[path]).size}
    sizes = Counter(scan.size for scan in scans.values()).most_common()
    part.numbers |= {"sizes": dict(sizes), "modes": Counter(s.mode for s in scans.values())}
    if len(sizes) > 1:
        shown = ", ".join(f"{size} ({count})" for size, count in sizes[:4])
        found.add(
            "mixed sizes", part.name, sizes=len(sizes), shown=shown + ", .." * (len(sizes) > 4)
        )
    found.add("turned by EXIF", part.name, [path for path in scans if scans[path].turned])
    found.add("mode", part.name, [p for p in scans if scans[p].mode not in ("RGB", "RGBA")])


def _check_labels(found: Findings, part: Part) -> None:
    """Values of the labels: classes, ignored ones, and what should not be there."""
    classes, known, name = found.classes, found.classes.train_ids(), part.name
    scans = {path: scan for path in part.labels.values() if (scan := found.scans[path]).values}
    lossy = [path for path, scan in scans.items() if scan.lossy and classes.encoding != "binary"]
    changed = [p for p in lossy if scans[p].foreign or scans[p].values.keys() - known.keys()]
    found.add("labels spoiled by JPEG" if changed else "lossy labels", name, changed or lossy)
    plain = {
        path: scan.values
        for path, scan in scans.items()
        if not scan.foreign and path not in changed
    }
    values, holders = Counter[int](), Counter[int]()
    for each in plain.values():
        values.update(each)
        holders.update(each.keys())

    def share(*raw: int) -> dict[str, Any]:
        pixels = sum(values[value] for value in raw)
        return {"pixels": pixels, "share": round(pixels / max(1, values.total()), 8)}

    ignored = {value for value, train_id in known.items() if train_id == IGNORE}
    table = list(zip(classes.names, classes.raw, strict=True))
    part.numbers |= {
        "frequencies": {title: share(raw) | {"pictures": holders[raw]} for title, raw in table},
        "void": share(*ignored),
        "unknown": share(*(values.keys() - known.keys())),
        "values": {classes.value_name(value): n for value, n in sorted(values.items())},
    }
    if strange := [path for path, each in plain.items() if each.keys() - known.keys()]:
        found.add("unknown values", name, strange, diagnosis=classes.diagnose(values))
    elif set(values) == {0, 255} and known.get(255) == IGNORE and len(classes.names) > 1:
        # Nothing is unknown, and yet every object is ignored
        found.add("0/255 masks", name, list(plain), diagnosis=classes.guess(values))
    void = {
        path: sum(each[v] for v in each.keys() & ignored) / sum(each.values())
        for path, each in plain.items()
    }
    wholly = [path for path in void if void[path] == 1]
    of_all = "unlabelled split" if part.optional else "nothing labelled"
    found.add(of_all if len(wholly) == len(void) else "wholly void", name, wholly)
    found.add("mostly void", name, [path for path in void if 0.5 <= void[path] < 1])
    never = [title for title, raw in table if not values[raw]]
    if never and len(wholly) < len(void):
        found.add("class without pixels", name, classes=len(never), names=", ".join(never))


def _compare(found: Findings) -> None:
    """Find the images, near-copies and recordings that splits share."""
    hashed = {
        part.name: [Hashed(n, p, h) for n, p in part.images.items() if (h := found.scans[p].hash)]
        for part in found.parts
    }
    for name, images in hashed.items():
        copies = near_copies(images, images)
        found.add("near-copies within", name, [copy for _, copy in copies], copies)
    for two in combinations(found.parts, 2):
        small, large = sorted(two, key=lambda part: len(part.images))
        both, originals = f"{large.name}, {small.name}", set(large.images.values())
        shared = [path for path in small.images.values() if path in originals]
        if shared:  # one is a part of the other, made a split of its own
            if not any(part.optional for part in two):
                found.add("shared files", both, shared, [()])  # nothing to show
            continue
        first, second = hashed[large.name], hashed[small.name]
        copies = near_copies(first, second)
        found.add("near-copies", both, [copy for _, copy in copies], copies)
        for clip in clips(first, second):
            found.add("clip of a recording", both, clip.files, clip.pairs, clip=clip)
