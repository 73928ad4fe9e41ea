"""Which image belongs to which label, by the names of files in folders."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from fnmatch import translate
from glob import escape, has_magic
from itertools import pairwise
from pathlib import Path, PurePosixPath
from unicodedata import normalize

from ..runs import InputError, did_you_mean
from .schema import LISTS, Description, HeldOut, Split
from .walk import SUFFIXES, images_below

Files = dict[str, list[Path]]  # by the name that pairs them


@dataclass(frozen=True)
class Pair:
    name: str  # path below the image folder, or in the list, without suffix
    image: Path
    label: Path
    confidence: Path | None = None  # 8 bits, floor(255 p) that the label is right
    instances: Path | None = None  # 16 bits; above 1000: class and number of an instance
    weight: float = 1.0  # how often it is drawn, against others
    source: str = ""  # where it is from, as a list file says


def folders(root: Path, names: list[str]) -> list[Path]:
    return [root / name for name in names]


def find_split(description: Description, name: str, root: Path, source: object) -> Split | str:
    """The folders of a split below `root`, or the name of its list file."""
    splits = description.splits
    if name not in splits:
        raise InputError(f"{source} has no split {name!r}; {_mend(name, splits)}")
    split = splits[name]
    whole = split.held_out_of if isinstance(split, HeldOut) else name
    parts = {
        n: s.share for n, s in splits.items() if isinstance(s, HeldOut) and s.held_out_of == whole
    }
    if not parts and isinstance(split, str) and Path(split).suffix.lower() in LISTS:
        return split
    base = splits.get(whole)
    if base is None or isinstance(base, HeldOut) or str(base).lower().endswith((*LISTS,)):
        raise InputError(
            f"{source}, split {name}: names can be held out of a split of folders only, which "
            f"{whole} is not; make two lists, or correct held_out_of"
        )
    base = _as_split(base, root)
    rest = [*list_files(root, base)[0]] if parts else []
    for part, share in parts.items():
        if len(rest) < 2:
            raise InputError(f"{source}: {len(rest)} image(s) of {whole} cannot be divided")
        held = last_names(rest, share)
        rest = sorted({*rest} - {*held})
        if part == name:
            return _only(base, held)
    return _only(base, rest) if parts else base


def _only(split: Split, names: list[str]) -> Split:
    return split.model_copy(update={"include": [*map(escape, names)], "exclude": []})


def _mend(name: str, splits: dict[str, str | Split | HeldOut]) -> str:
    hint = did_you_mean(name, splits)
    if name != "val" or "train" not in splits:
        return hint
    if str(splits["train"]).lower().endswith((*LISTS,)):
        mend = f"move the last rows of {splits['train']} to a list val.csv"
        return f"{hint}; {mend}, and add under splits: val: val.csv"
    return (
        f"{hint}; to hold out the last fifth of train's names, add under splits: "
        "val: {held_out_of: train}"
    )


def _as_split(split: str | Split, root: Path) -> Split:
    """The folders that the name of one folder means: the first of the usual ones that exist."""
    if isinstance(split, Split):
        return split
    usual = [(f"{split}/images", f"{split}/{labels}") for labels in ("labels", "masks")]
    parts = PurePosixPath(split).parts
    for labels in ("labels", "masks"):
        usual.append((split, "/".join(labels if part == "images" else part for part in parts)))
    found = [
        (images, labels)
        for images, labels in usual
        if images != labels and all(map(os.path.isdir, (root / images, root / labels)))
    ]
    if not found and os.path.isdir(root / split):
        files = (file for file in (root / split).iterdir() if file.suffix.lower() in SUFFIXES)
        found = [(split, split)] * any(files)
    images, labels = (found or usual)[0]
    return Split(images=[images], labels=[labels])


def last_names(names: list[str], share: float) -> list[str]:
    """The last of two or more names in natural order, from where a recording ends if that is near.

    Neighbours of a recording look alike, so a block of names judges more honestly than a draw.
    """

    def natural(name: str) -> list[tuple[str, int]]:
        return [(text, int(digits or 0)) for text, digits in re.findall(r"(\D*)(\d*)", name)]

    names = sorted(names, key=natural)
    wanted, slack = len(names) * (1 - share), len(names) * share / 2
    recording = [re.sub(r"\d+\D*$", "", name) for name in names]
    cuts = range(1, len(names))
    ends = [i for i in cuts if recording[i - 1] != recording[i] and abs(i - wanted) <= slack]
    return names[min(ends or cuts, key=lambda i: abs(i - wanted)) :]


def list_files(root: Path, split: Split) -> tuple[Files, Files]:
    """Images and labels by the name that pairs them; two files may share one, or have no partner.

    A folder that is not there has no files. An ending that all labels have is found out.
    """
    images = _files(root, split.images, split.image_ending)
    labels = _files(root, split.labels, split.label_ending)
    endings = len(split.image_ending), len(split.label_ending)
    one_folder = split.images == split.labels
    if endings == (0, 0) and (ending := label_ending(images, labels, one_folder)):
        return list_files(root, split.model_copy(update={"label_ending": ending}))
    if endings[0] < endings[1]:  # in one folder, a file is of the kind that its name says more of
        images = _without(images, labels)
    elif endings[0] > endings[1]:
        labels = _without(labels, images)
    return _chosen(images, split, root), _chosen(labels, split, root)


def _without(files: Files, others: Files) -> Files:
    taken = {file for each in others.values() for file in each}
    rest = {name: [file for file in files[name] if file not in taken] for name in files}
    return {name: each for name, each in rest.items() if each}


def _files(root: Path, names: list[str], ending: str) -> Files:
    """By their path below their folder, without suffix and `ending`, which they must have.

    The ending may have the suffix. Names are compared in one form of Unicode.
    """
    found: Files = {}
    ending = normalize("NFC", ending)
    whole = ending.lower().endswith((*SUFFIXES,))
    for folder in folders(root, names):
        for file in images_below(folder):
            path = file.relative_to(folder)
            name = normalize("NFC", (path if whole else path.with_suffix("")).as_posix())
            if name.endswith(ending):
                found.setdefault(name.removesuffix(ending), []).append(file)
    return found


def label_ending(
    images: Collection[str], labels: Collection[str], one_folder: bool = False
) -> str | None:
    """What labels have behind the names of images, as in a.jpg and a_mask.png, if all do."""
    if not one_folder and {*images} & {*labels}:
        return None
    names = sorted({*images, *labels})
    more = Counter(b.removeprefix(a) for a, b in pairwise(names) if b.startswith(a))
    for ending, _ in more.most_common(5):
        alone = [name for name in images if not name.endswith(ending)]
        paired = sum(name + ending in labels for name in alone)
        all_have = one_folder or all(name.endswith(ending) for name in labels)
        if not ending[0].isalnum() and all_have and 2 * paired >= len(alone):
            return ending
    return None


def _chosen(files: Files, split: Split, root: Path) -> Files:
    wanted, unwanted = _matcher(split.include), _matcher(split.exclude)
    if len(split.include) == 1 and split.include[0].lower().endswith(".txt"):
        listed = {*read_names(root / split.include[0])}
        files = {name: files[name] for name in files if PurePosixPath(name).name in listed}
        wanted = _matcher(["*"])
    return {name: files[name] for name in files if wanted(name) and not unwanted(name)}


def read_names(file: Path) -> list[str]:
    """Names of images, without folder and suffix, that a text file lists, one a line."""
    try:
        lines = file.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}; correct `include`") from None
    first = (PurePosixPath(normalize("NFC", line.split()[0])) for line in lines if line.strip())
    return [path.stem if path.suffix.lower() in SUFFIXES else path.name for path in first]


def _matcher(patterns: list[str]) -> Callable[[str], bool]:
    """Whether a name has one of the patterns, of which there may be very many."""
    patterns = [normalize("NFC", pattern) for pattern in patterns]
    plain = {pattern for pattern in patterns if not has_magic(pattern)}
    others = "|".join(translate(pattern) for pattern in patterns if pattern not in plain)
    match = re.compile(others or "(?!)").match
    return lambda name: name in plain or match(name) is not None


def pairs_of(root: Path, split: Split, source: str) -> list[Pair]:
    """All pairs of a split. Raises InputError that names the first file without a partner."""
    for folder in (*folders(root, split.images), *folders(root, split.labels)):
        if not os.path.isdir(folder):  # unlike Path, also of names that are too long
            raise InputError(f"{source}: no folder {folder}")
    listed = (
        *list_files(root, split),
        _chosen(_files(root, split.confidence, split.confidence_ending), split, root),
        _chosen(_files(root, split.instances, split.instance_ending), split, root),
    )
    for files in (files for kind in listed for files in kind.values()):
        if len(files) > 1:
            raise InputError(f"{files[0]} and {files[1]} have the same name; remove one")
    images, labels, confidence, instances = ({n: f[0] for n, f in kind.items()} for kind in listed)
    if not images:
        ending = f" that end in {split.image_ending}" if split.image_ending else ""
        raise InputError(f"{source}: no images{ending} in {split.images}; the split is empty")
    if both := [images[name] for name in images if images[name] == labels.get(name)]:
        raise InputError(
            f"{source}: {both[0]} is image and label at once; name the ending of the labels, such "
            "as label_ending: _mask, or their folder"
        )
    partners = [(images, labels, "label"), (labels, images, "image")]
    if split.confidence:  # instances, too, are optional in a release
        partners.append((labels, confidence, "confidence"))
    for have, partner, what in partners:
        if alone := [have[name] for name in have if name not in partner]:
            raise InputError(
                f"{source}: {len(alone)} file(s) without {what}, such as {alone[0]}; add what is "
                "missing or exclude the files"
            )
    return [
        Pair(name, images[name], labels[name], confidence.get(name), instances.get(name))
        for name in images
    ]
