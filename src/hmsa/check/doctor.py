"""What a folder without a description holds, with evidence, and the dataset.yaml that reads it.

Files are grouped by folder and by an ending such as _mask; folders below one whose name says what
it holds (images, gtFine, train, ..) belong to it. These names, or else the content of the files,
distinguish images from labels; what is left of the names pairs them.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unicodedata import normalize

import yaml

from ..data.walk import images_below
from ..report.page import Table
from ..runs import InputError
from .encodings import MOST, PLAIN, Guess, Scans, guess
from .scan import scan, scan_file

_KINDS = yaml.safe_load(Path(__file__).with_name("words.yaml").read_text(encoding="utf-8"))
_KIND = {word: kind for kind, words in _KINDS.items() for word in words}
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")  # of train_masks, gtFine, JPEGImages
_ENDING = re.compile(
    r"[-_. ](leftImg8bit|gt|mask|label|seg|annot|image|img|sat|rgb|color|instance|target|truth)"
    r"[a-z0-9]*([-_. ][a-z]+)*$",
    re.IGNORECASE,
)
_HOLD_OUT_OF = 10  # pairs, at least, a fifth of which becomes val where there is none
_SAMPLE = 8  # files by whose content images are distinguished from labels


_IMAGES = Guess("images", "")


@dataclass(eq=False)
class Group:
    """Files of one folder with one ending, by their path without these and the suffix."""

    folder: str
    ending: str
    files: dict[str, Path] = field(default_factory=dict)
    scans: Scans = field(default_factory=dict)  # of labels
    guess: Guess = _IMAGES
    images: Group | None = None  # of labels: what they pair with

    @property
    def pattern(self) -> str:
        return f"{self.folder}/*{self.ending}".removeprefix("./")

    @property
    def split(self) -> str:
        """train, val or test if the folder says so, or else its name without words like images."""
        found = [kind for kind in _kinds(self.folder) if kind not in ("image", "label")]
        rest = [part for part in Path(self.folder).parts if not _kinds(part)]
        return found[0] if found else "-".join(rest)

    def pairs(self, images: Group) -> int:
        return len(self.files.keys() & images.files.keys())

    def holds_labels(self) -> bool:
        kinds = [kind for kind in _kinds(self.pattern) if kind in ("image", "label")]
        if kinds:
            return kinds[-1] == "label"
        files = [*self.files.values()][:: -(-len(self.files) // _SAMPLE)]
        return all(0 < len(scan_file(file, PLAIN).values) <= MOST for file in files)


def examine(root: Path) -> list[Group]:
    """All groups below a folder. Raises InputError if there are none."""
    found: dict[tuple[str, str], Group] = {}
    root = root.resolve()
    files = images_below(root)
    mixed = {file.parent for file in files if _ENDING.search(file.stem)}
    for file in files:
        folder, name = _divide(file.relative_to(root), file.parent in mixed)
        ending = match[0] if (match := _ENDING.search(name)) else ""
        group = found.setdefault((folder, ending), Group(folder, ending))
        name = normalize("NFC", name.removesuffix(ending))  # archives of macOS have NFD
        if (other := group.files.setdefault(name, file)) != file:
            raise InputError(
                f"{other} and {file} have the same name; put images and labels into two folders"
            )
    if not found:
        raise InputError(f"{root}: no image files; name a folder of images and labels")
    labels = [group for group in found.values() if group.holds_labels()]
    images = [group for group in found.values() if group not in labels]
    scans = scan(root.resolve(), {file: PLAIN for each in labels for file in each.files.values()})
    for group in labels:
        group.scans = {file: scans[file] for file in group.files.values()}
        group.guess = guess(group.scans, group.ending)
        # Splits may number their images alike, so the split goes before the number of pairs
        rank = {e: (e.split == group.split, n) for e in images if (n := group.pairs(e))}
        group.images = max(rank, key=rank.__getitem__, default=None)
    return [*found.values()]


def description(groups: Sequence[Group]) -> dict[str, Any] | None:
    """What a dataset.yaml in the folder shall hold; None if no usable labels pair with images."""
    usable = sorted((g for g in groups if g.guess.table and g.images), key=_usefulness)
    chosen = {group.images: group for group in usable}  # the most useful for each kind of images
    alike = defaultdict[str, list[Group]](list)
    for group in chosen.values():
        alike[group.guess.what].append(group)
    most = max(alike.values(), key=lambda same: sum(len(g.files) for g in same), default=None)
    if not most:
        return None
    scans = {file: facts for group in most for file, facts in group.scans.items()}
    if not (table := guess(scans, most[0].ending).table):
        return None
    splits: dict[str, Any] = {}
    for group in sorted(most, key=lambda each: each.folder):
        name = (group.images.split if group.images and len(most) > 1 else "") or "train"
        splits[group.pattern if name in splits else name] = _split(group, groups)
    if splits.keys() == {"train"} and len(most[0].files) >= _HOLD_OUT_OF:
        splits["val"] = {"held_out_of": "train"}
    return {"path": ".", "splits": splits, **table}


def text(content: dict[str, Any]) -> str:
    """A description as YAML."""
    yaml_text = yaml.safe_dump(content, sort_keys=False, default_flow_style=None)
    return f"# Written by hmsa data check --fix; give the classes their names\n{yaml_text}"


def table(groups: Sequence[Group]) -> Table:
    """One row for each group."""
    rows = []
    for group in sorted(groups, key=lambda each: (each.folder, each.ending)):
        pairs = f"{group.pairs(group.images):,} with {group.images.pattern}" if group.images else ""
        rows.append([group.pattern, f"{len(group.files):,}", *group.guess[:2], pairs])
    return Table(["files", "number", "guess", "evidence", "pairs"], rows)


def _kinds(name: str) -> list[str]:
    return [_KIND[w] for word in _WORD.findall(name) if (w := word.lower()) in _KIND]


def _divide(file: Path, mixed: bool) -> tuple[str, str]:
    """The folder that a file belongs to, and its path below that without suffix; mixed: whether
    endings tell the files of its own folder apart."""
    parts = file.parts[:-1]
    depth = max((i + 1 for i, part in enumerate(parts) if _kinds(part)), default=0)
    if not depth and not mixed:
        depth = len(parts)
    return "/".join(parts[:depth]) or ".", "/".join((*parts[depth:], file.stem))


def _usefulness(group: Group) -> tuple[bool, ...]:
    table, of_objects = group.guess.table or {}, re.search("object|instance", group.pattern.lower())
    return not of_objects, table.get("encoding") != "rgb", "ignore" in table


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
