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
from typing import Any

import numpy as np
import yaml

from ..data.datasets import list_files
from ..data.descriptions import Split, describe, find_split, folders, label_set
from ..data.labels import IGNORE, LabelSet, unpack
from ..data.lists import read_list
from ..runs import InputError
from .alike import Images, Pair, clips, near_copies
from .scan import FileScan, scan

LEVELS = ("error", "warning", "note")
STATISTICS = ("dataset", "folder", "frequencies", "void", "sizes", "mean", "std")
_KINDS = yaml.safe_load(Path(__file__).with_name("problems.yaml").read_text(encoding="utf-8"))
_MOST = 20  # files named for a problem, and unknown values of a split; counts are always whole

Case = tuple[Path, ...]  # files to be shown side by side


@dataclass(frozen=True)
class Problem:
    level: str
    kind: str  # a key of problems.yaml
    split: str  # or "train, val": between two
    message: str
    files: Sequence[Path]
    cases: Sequence[Case]  # none: each file with its partner


@dataclass
class Part:
    """One split: its files by the names that pair them."""

    name: str
    images: dict[str, Path]
    labels: dict[str, Path]

    @property
    def pairs(self) -> list[tuple[Path, Path]]:
        return [(self.images[n], self.labels[n]) for n in self.images if n in self.labels]


class Findings:
    """All that a check found. Every path is absolute, below `root`.

    numbers: what the splits hold, {key: {split: ..}} as in the JSON summary; unknown: label values
    that are neither a class nor ignored, and near: near-copies and clips, as there, too.
    """

    def __init__(self, source: Path, root: Path, classes: LabelSet) -> None:
        self.source, self.root, self.classes = source, root, classes
        self.parts: list[Part] = []
        self.scans: dict[Path, FileScan] = {}
        self.problems: list[Problem] = []
        self.numbers: dict[str, dict[str, Any]] = defaultdict(dict)
        self.unknown: list[dict[str, Any]] = []
        self.near: list[dict[str, Any]] = []

    def files(self) -> dict[Path, LabelSet | None]:
        """Every file once: the table by which a label holds its values, None for an image."""
        images = {path: None for part in self.parts for path in part.images.values()}
        return images | {path: self.classes for part in self.parts for path in part.labels.values()}

    def add(
        self,
        kind: str,
        split: str,
        files: Sequence[Path] | None = None,
        cases: Sequence[Case] = (),
        **values: object,
    ) -> None:
        """Note a problem, unless `files` are an empty list; values: for its message."""
        if files is None or files:
            files = files or ()
            first = self.scans.get(files[0]) if files else None
            values |= {"count": len(files), "files": files, "cases": cases, "scan": first}
            message = f"{split}: {_KINDS[kind]['message'].format_map(values)}"
            level = _KINDS[kind]["level"]
            self.problems.append(Problem(level, kind, split, message, files, cases))

    def of(self, *levels: str) -> list[Problem]:
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
        problems = {
            f"{level}s": [
                {"kind": p.kind, "split": p.split, "message": p.message} | _some(p.files)
                for p in self.of(level)
            ]
            for level in LEVELS
        }
        about = {"dataset": str(self.source), "folder": str(self.root)}
        rows = {"unknown_values": self.unknown, "near_duplicates": self.near}
        return about | problems | rows | self.numbers


def _some(files: Sequence[Path]) -> dict[str, Any]:
    return {"files": len(files), "such_as": [str(path) for path in files[:_MOST]]}


def check(
    path: Path, splits: Sequence[str] = (), data: Path | None = None, compare: bool = True
) -> Findings:
    """Scan every file of all splits, or of those named, and find what is wrong.

    path, data: as for `open_dataset`; compare: also images with each other.
    Raises InputError only where there is nothing to check.
    """
    found = list_splits(path, splits, data)
    found.scans = scan(found.root, found.files())
    for part in found.parts:
        _check_files(found, part)
        _check_images(found, part)
        _check_labels(found, part)
    if compare:
        _compare(found)
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
            images, labels = ({row.name: row[kind] for row in rows} for kind in (1, 2))
            found.parts.append(Part(name, images, labels))
    if not found.parts:
        raise InputError(f"{path}: nothing to check; {found.problems[0].message}; pass --data?")
    return found


def _list_folders(found: Findings, name: str, split: Split) -> None:
    places = [*folders(found.root, split.images), *folders(found.root, split.labels)]
    absent = [place for place in places if not place.is_dir()]
    kind = "absent split" if absent == places else "no folder"
    found.add(kind, name, absent, folders=" and no ".join(map(str, absent)))
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
        alone = [path for stem, path in images.items() if stem not in labels]
        found.add("image without label", name, alone)
        alone = [path for stem, path in labels.items() if stem not in images]
        found.add("label without image", name, alone)


def _check_files(found: Findings, part: Part) -> None:
    scans, files = found.scans, [*part.images.values(), *part.labels.values()]
    found.add("cannot be read", part.name, [path for path in files if scans[path].broken])
    found.add("another encoding", part.name, [path for path in files if scans[path].foreign])
    found.add("lossy labels", part.name, [path for path in files if scans[path].lossy])
    whole = [pair for pair in part.pairs if not any(scans[path].broken for path in pair)]
    differ = [(image, label) for image, label in whole if scans[image].size != scans[label].size]
    sizes = [scans[path].width_x_height for pair in differ[:1] for path in pair]
    found.add("sizes differ", part.name, [image for image, _ in differ], differ, sizes=sizes)
    counts = {"images": part.images, "labels": part.labels, "pairs": part.pairs}
    found.numbers["pairs"][part.name] = {kind: len(each) for kind, each in counts.items()}


def _check_images(found: Findings, part: Part) -> None:
    scans = {path: scan for path in part.images.values() if (scan := found.scans[path]).sums}
    sizes = Counter(scan.width_x_height for scan in scans.values())
    area = {scan.width_x_height: scan.size[0] * scan.size[1] for scan in scans.values()}
    pixels = max(1, sum(area[size] * n for size, n in sizes.items()))
    mean = sum(np.array(scan.sums) for scan in scans.values()) / pixels / 255
    square = sum(np.array(scan.squares) for scan in scans.values()) / pixels / 255**2
    std = np.sqrt(np.maximum(0, square - mean**2))
    numbers, name = found.numbers, part.name
    numbers["sizes"][name] = dict(sizes.most_common())
    numbers["modes"][name] = dict(Counter(scan.mode for scan in scans.values()))
    numbers["mean"][name] = mean.round(5).tolist() if scans else []
    numbers["std"][name] = std.round(5).tolist() if scans else []
    if len(sizes) > 1:
        small, *_, large = sorted(area, key=lambda size: area[size])
        shown = {"sizes": len(sizes), "images": len(scans)}
        found.add("mixed sizes", name, small=small, large=large, **shown)
    others = [path for path, scan in scans.items() if scan.mode not in ("RGB", "RGBA")]
    found.add("mode", name, others, modes=", ".join(sorted({scans[p].mode for p in others})))


def _check_labels(found: Findings, part: Part) -> None:
    """Values of the labels: classes, ignored ones, and what should not be there."""
    classes, known, name = found.classes, found.classes.train_ids(), part.name
    scans = {path: scan for path in part.labels.values() if (scan := found.scans[path]).values}
    plain = {path: scan.values for path, scan in scans.items() if not scan.foreign}
    values, holders = Counter[int](), Counter[int]()
    for each in plain.values():
        values.update(each)
        holders.update(each.keys())

    def share(*raw: int) -> dict[str, Any]:
        pixels = sum(values[value] for value in raw)
        return {"pixels": pixels, "share": round(pixels / max(1, values.total()), 8)}

    found.numbers["frequencies"][name] = {
        title: share(raw) | {"pictures": holders[raw]}
        for title, raw in zip(classes.names, classes.raw, strict=True)
    }
    ignored = {value for value in values if known.get(value) == IGNORE}
    found.numbers["void"][name] = share(*ignored)
    found.numbers["unknown"][name] = share(*(values.keys() - known.keys()))
    found.numbers["values"][name] = {
        classes.value_name(value): n for value, n in sorted(values.items())
    }
    foreign = [path for path in scans if path not in plain]
    if foreign:
        _list_unknown(found, name, foreign, scans[foreign[0]].foreign)
    strange = [path for path, each in plain.items() if not each.keys() <= known.keys()]
    if strange:  # the values of all such files together tell more than those of one
        together = sum((Counter(plain[path]) for path in strange), Counter[int]())
        found.add("unknown values", name, strange, diagnosis=classes.diagnose(together))
        _list_unknown(found, name, strange, classes.guess(together))
    elif values.keys() == {0, 255} == ignored | {0} and len(classes.names) > 1:
        # Nothing is unknown, and yet every object is ignored
        found.add("0/255 masks", name, list(plain), diagnosis=classes.guess(values))
    void = {
        path: sum(each.get(value, 0) for value in ignored) / sum(each.values())
        for path, each in plain.items()
    }
    _check_void(found, name, dict(sorted(void.items(), key=lambda item: -item[1])))


def _list_unknown(found: Findings, split: str, files: list[Path], diagnosis: str) -> None:
    """Add the values of label `files` that are unknown; in another encoding, all are."""
    known, name_of = found.classes.train_ids(), found.classes.value_name
    pixels, holders = Counter[str](), defaultdict[str, list[Path]](list)
    for path in files:
        foreign = found.scans[path].foreign
        for value, n in found.scans[path].values.items():
            if foreign or value not in known:
                name = "{},{},{}".format(*unpack(value)) if foreign else name_of(value)
                pixels[name] += n
                holders[name].append(path)
    for name, n in pixels.most_common(_MOST):
        row = {"split": split, "value": name, "pixels": n, "diagnosis": diagnosis}
        found.unknown.append(row | _some(holders[name]))


def _check_void(found: Findings, split: str, void: dict[Path, float]) -> None:
    """What the labels lack. void: the share of each that is ignored, the largest first."""
    wholly = [path for path, share in void.items() if share == 1]
    rest = [path for path, share in void.items() if 0 < share < 1]
    if wholly and len(wholly) == len(void):
        found.add("nothing labelled", split, wholly)
        return
    found.add("wholly void", split, wholly)
    half = [path for path in rest if void[path] >= 0.5]
    shown = {"share": found.numbers["void"][split]["share"], "half": len(half)}
    found.add("void", split, half or rest[:1], most=void[rest[0]] if rest else 0, **shown)
    frequencies = found.numbers["frequencies"][split].items()
    never = [name for name, each in frequencies if not each["pixels"]] if void else []
    if never:
        found.add("class never seen", split, classes=len(never), names=", ".join(never))


def _compare(found: Findings) -> None:
    """Add the images, near-copies and recordings that splits share."""
    scans, splits = found.scans, {part.name: part.images for part in found.parts}
    images = {
        name: Images({stem: (path, scans[path].hash) for stem, path in files.items()})
        for name, files in splits.items()
    }
    for name in splits:
        copies = [pair for _, pair in near_copies(images[name], images[name])]
        found.numbers["near_duplicates_within"][name] = len(copies)
        files = [copy for _, copy in copies]
        found.add("near-copies within", name, files, copies[:1], images=len(splits[name]))
    for pair in combinations(splits, 2):
        small, large = sorted(pair, key=lambda name: len(splits[name]))
        originals = set(splits[large].values())
        shared = [path for path in splits[small].values() if path in originals]
        found.add("shared files", f"{large}, {small}", shared)
        if not shared:  # else one is a part of the other, made a split of its own
            _compare_two(found, large, small, images[large], images[small])


def _compare_two(
    found: Findings, large: str, small: str, originals: Images, others: Images
) -> None:
    where, shown = f"{large}, {small}", {"large": large, "small": small, "images": others.count}

    def add_row(kind: str, pair: Pair, likeness: float, **more: object) -> None:
        row = {"kind": kind, "splits": [large, small], "images": [str(image) for image in pair]}
        found.near.append(row | {"likeness": round(likeness, 4), "pictures": 1} | more)

    copies = near_copies(originals, others)
    for likeness, pair in copies:
        add_row("copy", pair, likeness)
    pairs = [pair for _, pair in copies]
    found.add("near-copies", where, [copy for _, copy in pairs], pairs, **shown)
    for clip in clips(originals, others):
        more = {"recording": clip.recording, "apart": clip.apart}
        add_row("clip", clip.borders[0], clip.likeness, pictures=len(clip.files), **more)
        found.add("clip of a recording", where, clip.files, clip.borders, **shown, **more)
