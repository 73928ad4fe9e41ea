"""What a folder without a description holds, with evidence, and the dataset.yaml that reads it.

Files are grouped by folder and by an ending such as _mask; folders below one whose name says what
it holds (images, gtFine, train, ..) belong to it. These names, or else the content of the files,
distinguish images from labels; what is left of the names pairs them. Where two readings are
possible, an InputError names both and how to choose.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple
from unicodedata import normalize

import yaml

from ..data.lists import list_text
from ..data.pairs import label_ending, last_names, list_files
from ..data.schema import Split
from ..data.walk import images_below
from ..report.page import Table
from ..runs import InputError
from .classes import named
from .encodings import MOST, PLAIN, Guess, Scans, guess
from .scan import FileScan, scan, scan_file

_KINDS = yaml.safe_load(Path(__file__).with_name("words.yaml").read_text(encoding="utf-8"))
_KIND = {word: kind for kind, words in _KINDS.items() for word in words}
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")  # of train_masks, gtFine, JPEGImages
_ENDING = re.compile(
    r"[-_. ](leftImg8bit|gt|mask|label|seg|annot|image|img|sat|rgb|color|instance|target|truth)"
    r"[a-z0-9]*([-_. ][a-z]+)*$",
    re.IGNORECASE,
)
_BEGINNING = re.compile(r"(?<![^/])(mask|label|gt|seg|image|img|photo)[-_ ]?(?=\d)", re.IGNORECASE)
_PARTS = {"train": "train", "val": "val", "valid": "val", "test": "test"}  # in names of lists
_SHARES = (0.2, 0.25, 0.3, 0.35, 0.4)  # of the pairs, to become val where there is none
_HELD = "val: {} of {} pairs, the last by name, are held out of train: {} to {}"
_SAMPLE = 8  # files by whose content images are distinguished from labels

_IMAGES = Guess("images", "")


@dataclass(eq=False)
class Group:
    """Files of one folder with one beginning and ending, by their path without these and the
    suffix. Beginnings count only where names of labels have one, as mask_1 has."""

    folder: str
    ending: str
    beginning: str = ""
    files: dict[str, Path] = field(default_factory=dict)
    scans: Scans = field(default_factory=dict)  # of labels
    guess: Guess = _IMAGES
    candidates: list[Group] = field(default_factory=list)  # of labels: what they may pair with

    @property
    def images(self) -> Group | None:
        return self.candidates[0] if self.candidates else None

    @property
    def pattern(self) -> str:
        return f"{self.folder}/{self.beginning}*{self.ending}".removeprefix("./")

    @property
    def split(self) -> str:
        """train, val or test if the folder says so, or else its name without words like images."""
        found = [kind for kind in kinds(self.folder) if kind not in ("image", "label")]
        rest = [part for part in Path(self.folder).parts if not kinds(part)]
        return found[0] if found else "-".join(rest)

    @property
    def pairs(self) -> dict[str, tuple[Path, Path]]:
        """Of labels: image and label by their common name."""
        images = self.images.files if self.images else {}
        return {name: (images[name], self.files[name]) for name in self.files if name in images}

    def common(self, images: Group) -> int:
        return len(self.files.keys() & images.files.keys())

    def is_called(self, name: str | None) -> bool:
        return name is None or name.strip("/") in (self.folder, self.pattern)

    def holds_labels(self) -> bool:
        said = [kind for kind in kinds(self.pattern) if kind in ("image", "label")]
        if said:
            return said[-1] == "label"
        files = [*self.files.values()][:: -(-len(self.files) // _SAMPLE)]
        return all(0 < len(scan_file(file, PLAIN).values) <= MOST for file in files)


class Draft(NamedTuple):
    """A description that is not yet written; lists: text of list files that it names."""

    content: dict[str, Any]
    lists: dict[str, str]
    notes: list[str]


def examine(root: Path, image: str | None = None, label: str | None = None) -> list[Group]:
    """All groups below a folder. image, label: the folder or pattern of the only ones to pair.

    Returns [] if there are no images.
    """
    found: dict[tuple[str, str, str], Group] = {}
    files = images_below(root := root.resolve())
    mixed = {file.parent for file in files if _ENDING.search(file.stem)}
    others = {file.parent for file in files if not _beginning(file.stem)}
    for file in files:
        folder, name = _divide(file.relative_to(root), file.parent in mixed)
        ending = match[0] if (match := _ENDING.search(name)) else ""
        apart = file.parent in others or "image" not in kinds(folder)
        beginning = _beginning(file.stem) if apart else ""  # not of images/seg2_001.jpg
        group = found.setdefault((folder, beginning, ending), Group(folder, ending, beginning))
        name = normalize("NFC", name.removesuffix(ending))  # archives of macOS have NFD
        if beginning:
            name = _BEGINNING.sub("", name)
        if (other := group.files.setdefault(name, file)) != file:
            raise InputError(
                f"{other} and {file} have the same name; put images and labels into two folders"
            )
    if not found:
        return []
    groups = [*found.values()]
    for chosen in (image, label):
        if not any(group.is_called(chosen) for group in groups):
            known = ", ".join(sorted(group.pattern for group in groups))
            raise InputError(f"{root} has no {chosen}, but {known}; name one of these")
    labels = [group for group in groups if group.holds_labels()]
    images = [g for g in groups if (g.is_called(image) if image else g not in labels)]
    labels = [group for group in groups if group.is_called(label)] if label else labels
    scans = scan(root, {file: PLAIN for each in labels for file in each.files.values()})
    for group in labels:
        group.scans = {file: scans[file] for file in group.files.values()}
        _find_images(group, images)
        group.guess = guess(group.scans, group.ending)
    return groups


def draft(root: Path, groups: Sequence[Group]) -> Draft | None:
    """What a dataset.yaml in the folder shall hold; None if no usable labels pair with images.

    Raises InputError where two readings are possible.
    """
    root, alike = root.resolve(), defaultdict[str, list[Group]](list)
    chosen = _unrivalled(root, [g for g in groups if g.guess.table and g.images])
    for group in chosen:
        alike[group.guess.what].append(group)
    by_size = sorted(alike.values(), key=lambda same: -sum(len(g.files) for g in same))
    for most in [chosen, *by_size]:  # all, if one table reads them
        scans = {file: facts for group in most for file, facts in group.scans.items()}
        if scans and (table := guess(scans, most[0].ending).table):
            break
    else:
        return None
    table = named(table, root)
    parts: dict[str, list[Group]] = {}
    for group in sorted(most, key=lambda each: each.pattern):
        split = (group.images.split if group.images else "") or group.split
        parts.setdefault((split if len(most) > 1 else "") or "train", []).append(group)
    parts = dict(sorted(parts.items(), key=lambda part: [*_PARTS, part[0]].index(part[0])))
    if not {*parts} & {*_PARTS}:  # of cities or patients, say
        parts = {"train": [group for each in parts.values() for group in each]}
    notes, lists = _left_out(most), dict[str, str]()
    splits: dict[str, Any] = {name: _split(each[0], groups) for name, each in parts.items()}
    if listed := _by_lists(root, splits["train"], most[0]) if len(most) == 1 else {}:
        splits = listed
    elif not all(len(e) == 1 and _reads(root, splits[name], e[0]) for name, e in parts.items()):
        splits, lists = _as_lists(root, parts, table, notes)
    elif "train" in parts and "val" not in parts and len(parts["train"][0].files) > 1:
        group = parts["train"][0]
        held, share = _held_out({n: group.scans[f] for n, f in group.files.items()}, table)
        splits["val"] = {"held_out_of": "train", "share": share}
        notes.append(_HELD.format(len(held), len(group.files), held[0], held[-1]))
    return Draft({"path": ".", "splits": splits, **table}, lists, notes)


def text(content: Mapping[str, Any]) -> str:
    """A description as YAML."""
    head = "# Written by hmsa, which knows only the files; correct what is wrong, such as names"
    form: Any = {"sort_keys": False, "default_flow_style": None, "allow_unicode": True}
    return f"{head}\n{yaml.safe_dump({**content}, **form)}"


def table(groups: Sequence[Group]) -> Table:
    """One row for each group."""
    rows = []
    for group in sorted(groups, key=lambda each: (each.folder, each.ending)):
        pairs = f"{len(group.pairs):,} with {group.images.pattern}" if group.images else ""
        rows.append([group.pattern, f"{len(group.files):,}", *group.guess[:2], pairs])
    return Table(["files", "number", "guess", "evidence", "pairs"], rows)


def kinds(name: str) -> list[str]:
    return [_KIND[w] for word in _WORD.findall(name) if (w := word.lower()) in _KIND]


def _beginning(stem: str) -> str:
    """What names of labels may begin with, as in mask_1."""
    found = _BEGINNING.match(stem)
    return found[0] if found and "label" in kinds(found[0]) else ""


def _divide(file: Path, mixed: bool) -> tuple[str, str]:
    """The folder that a file belongs to, and its path below that without suffix; mixed: whether
    endings tell the files of its own folder apart."""
    parts = file.parts[:-1]
    depth = max((i + 1 for i, part in enumerate(parts) if kinds(part)), default=0)
    if not depth and not mixed:
        depth = len(parts)
    return "/".join(parts[:depth]) or ".", "/".join((*parts[depth:], file.stem))


def _find_images(group: Group, images: Iterable[Group]) -> None:
    """Set the candidates of labels, whose names may have an ending or a beginning of their own."""
    for each in images:
        if not group.common(each) and (more := label_ending(each.files, group.files)):
            group.ending = f"{more}{group.ending}"
            group.files = {name.removesuffix(more): f for name, f in group.files.items()}
    plain = [*images]
    if not any(map(group.common, plain)):
        plain = [
            replace(each, files={_BEGINNING.sub("", n): file for n, file in each.files.items()})
            for each in plain
        ]
    # Splits may number their images alike, so the split goes before the number of pairs
    rank = {e: (e.split == group.split, n) for e in plain if (n := group.common(e))}
    best = [each for each in rank if rank[each] == max(rank.values())]
    group.candidates = [e for e in best if "image" in kinds(e.pattern)] or best


def _unrivalled(root: Path, usable: Iterable[Group]) -> list[Group]:
    """The most useful labels for each kind of images. Raises InputError if several are so."""
    chosen: list[Group] = []
    for group in sorted(usable, key=_usefulness, reverse=True):
        images = {image for image, _ in group.pairs.values()}
        others = [e for e in chosen if images & {image for image, _ in e.pairs.values()}]
        if others and _usefulness(others[0]) > _usefulness(group):
            continue
        for what, of, two in (
            ("labels", group.images, [*others[:1], group]),
            ("images", group, group.candidates),
        ):
            if len(two) > 1:
                said = " or ".join(f"{each.pattern} ({each.guess.what})" for each in two)
                name = "{0.pattern!r}" if two[0].folder == two[1].folder else "{0.folder}"
                names = " or ".join(f"--{what} {name.format(each)}" for each in two)
                raise InputError(
                    f"{root}: the {what} of {of.pattern if of else ''} could be {said}; choose "
                    f"with: hmsa data check {root} --overwrite {names}"
                )
        chosen.append(group)
    return chosen


def _usefulness(group: Group) -> tuple[bool, ...]:
    table, of_objects = group.guess.table or {}, re.search("object|instance", group.pattern.lower())
    return not of_objects, table.get("encoding") != "rgb", "ignore" in table


def _left_out(labels: Iterable[Group]) -> list[str]:
    """Say how many files have no partner."""
    paired = {file for group in labels for pair in group.pairs.values() for file in pair}
    images = {f for g in labels if g.images for f in g.images.files.values()} - paired
    unpaired = {f for g in labels for f in g.files.values()} - paired
    found = (("image(s) without label", images), ("label(s) without image", unpaired))
    return [f"{len(f)} {what} left out, such as {min(f).name}" for what, f in found if f]


def _split(labels: Group, groups: Iterable[Group]) -> dict[str, Any]:
    images = labels.images
    assert images
    found: dict[str, Any] = {"images": images.folder, "labels": labels.folder}
    if images.ending:
        found["image_ending"] = images.ending
    if labels.ending:
        found["label_ending"] = labels.ending
    plain = {each.folder for each in (images, labels) if not each.ending}
    others = sorted({f"*{each.ending}" for each in groups if each.ending and each.folder in plain})
    return found | ({"exclude": others} if others else {})


def _reads(root: Path, split: Mapping[str, Any], labels: Group, some: bool = False) -> bool:
    """Whether a split means the pairs of these labels, or some of them, and nothing else."""
    images, partners = list_files(root, Split(**split))
    if images.keys() != partners.keys() or not images:
        return False
    pairs = [(images[name], partners[name]) for name in images]
    wanted = {*labels.pairs.values()}
    found = {(one[0], other[0]) for one, other in pairs if len(one) == len(other) == 1}
    return len(found) == len(pairs) and (found <= wanted if some else found == wanted)


def _by_lists(root: Path, split: dict[str, Any], labels: Group) -> dict[str, Any]:
    """The splits of train.txt, val.txt and test.txt somewhere below the folder, as VOC has them."""
    for file in sorted(root.rglob("train.txt")):
        found = {}
        for other in sorted(file.parent.glob("*.txt")):
            part = split | {"include": other.relative_to(root).as_posix()}
            if other.stem in _PARTS and _reads(root, part, labels, some=True):
                found[_PARTS[other.stem]] = part
        if {"train", "val"} <= found.keys():
            return found
    return {}


def _held_out(labels: Mapping[str, FileScan], table: Mapping[str, Any]) -> tuple[list[str], float]:
    """The last names, and their share: a fifth, or more if else one of two parts lacks a class."""
    width = 128 if table["encoding"] == "binary" else 1

    def classes(names: Iterable[str]) -> set[int]:
        return {value // width for name in names for value in labels[name].values}

    held = {share: last_names([*labels], share) for share in _SHARES}
    share = max(
        held,  # the first of several that are equally good
        key=lambda share: len(classes(held[share]) & classes(labels.keys() - {*held[share]})),
    )
    return held[share], share


def _as_lists(
    root: Path,
    parts: Mapping[str, Sequence[Group]],
    table: Mapping[str, Any],
    notes: list[str],
) -> tuple[dict[str, Any], dict[str, str]]:
    """Splits as list files, for what folders and endings cannot say; and the text of these."""
    rows = {
        split: {f"{g.pattern}/{name}": pair for g in labels for name, pair in g.pairs.items()}
        for split, labels in parts.items()
    }
    if "val" not in rows and len(train := rows.get("train", {})) > 1:
        scans = {file: facts for group in parts["train"] for file, facts in group.scans.items()}
        held, _ = _held_out({name: scans[label] for name, (_, label) in train.items()}, table)
        rows["val"] = {name: train.pop(name) for name in held}
        notes.append(_HELD.format(len(held), len(held) + len(train), held[0], held[-1]))
    files = {split: f"hmsa-{split}.csv" for split in rows}
    paths = {
        split: [
            (image.relative_to(root), label.relative_to(root)) for image, label in pairs.values()
        ]
        for split, pairs in rows.items()
    }
    return files, {files[split]: list_text(paths[split]) for split in rows}
