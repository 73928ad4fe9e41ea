"""One split of a dataset: pairs of files, complete and of one size, and what their labels mean."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..runs.errors import InputError
from .descriptions import Split, describe, find_split, folders, label_set
from .images import open_picture, pictures_below, read_image, read_size
from .labels import IGNORE, LabelSet
from .lists import read_list


@dataclass(frozen=True)
class Pair:
    name: str  # path below the image folder, without suffix
    image: Path
    label: Path
    confidence: Path | None = None  # 8 bits, floor(255 p) that the label is right
    instances: Path | None = None  # 16 bits; above 1000: class and number of an instance
    weight: float = 1.0  # how often it is drawn, against others
    source: str = ""  # where it is from, as a list file says


@dataclass(frozen=True)
class Dataset:
    """One split: pairs of files and what their label values mean."""

    source: Path  # the YAML file
    split: str
    pairs: tuple[Pair, ...]
    labels: LabelSet
    lowest: tuple[int, ...] = ()  # stored confidence that a pixel of each class needs to count
    border: tuple[int, int, int, int] = (0, 0, 0, 0)  # top, right, bottom, left: labels ignored
    categories: dict[str, tuple[int, ...]] = field(default_factory=dict)  # name -> train ids
    instance_sizes: tuple[float, ...] = ()  # K mean pixels of an instance, nan: has none

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Image `[H,W,3]` RGB and label `[H,W]` train ids, 255 = ignore."""
        pair = self.pairs[index]
        image, label = read_image(pair.image), self.read_label(index)
        if image.shape[:2] != label.shape:
            raise InputError(sizes_differ(pair, image.shape[:2], label.shape))
        return image, label

    def read_label(self, index: int) -> NDArray[np.uint8]:
        """Label `[H,W]` train ids; 255 = ignore, also in the border and where it is not sure."""
        pair = self.pairs[index]
        label = self.labels.read(pair.label)
        if pair.confidence and any(self.lowest):
            with open_picture(pair.confidence) as picture:
                if picture.mode != "L" or picture.size != label.shape[::-1]:
                    raise InputError(
                        f"{pair.confidence} is a {picture.mode} picture of "
                        f"{picture.size[0]}x{picture.size[1]}; a confidence has 8 bits, one "
                        f"channel and the size of {pair.label} ({label.shape[1]}x{label.shape[0]})"
                    )
                confidence = np.asarray(picture)
            needed = np.zeros(256, np.uint16)  # 256: none is sure enough
            needed[: len(self.lowest)] = self.lowest
            label[confidence < needed[label]] = IGNORE
        if any(self.border):
            (height, width), (top, right, bottom, left) = label.shape, self.border
            inside = np.s_[top : max(top, height - bottom), left : max(left, width - right)]
            kept = np.full_like(label, IGNORE)
            kept[inside] = label[inside]
            label = kept
        return label

    def read_instances(self, index: int) -> NDArray[np.int64] | None:
        """`[H,W]`: ids of single instances, 0 where there is none; None without such a picture."""
        file = self.pairs[index].instances
        if file is None:
            return None
        with open_picture(file) as picture:
            ids = np.asarray(picture).astype(np.int64)
        return ids * (ids > 1000)  # as Cityscapes stores them: below, a class or a group

    def only(self, indices: Iterable[int]) -> Dataset:
        """The same, of these pictures alone."""
        return replace(self, pairs=tuple(self.pairs[index] for index in indices))

    def trusting(self, confidence: float | Mapping[str, float]) -> Dataset:
        """The same, with labels that ignore what was stored with less than this `confidence`.

        One number for all classes, or class name -> number; 0 keeps everything.
        """
        names = self.labels.names
        if isinstance(confidence, Mapping):
            for name in confidence:
                self.labels.index(name, "confidence")
            wanted = [confidence.get(name, 0.0) for name in names]
        else:
            wanted = [confidence] * len(names)
        lowest = np.searchsorted(np.arange(256) / 255, wanted)
        return replace(self, lowest=tuple(lowest.tolist()))

    def frequencies(self) -> NDArray[np.int64]:
        """Pixels of each class `[K]`. Reads every label, so it also finds bad ones before a run."""

        def count(index: int) -> NDArray[np.int64]:
            return np.bincount(self.read_label(index).ravel(), minlength=256)

        with ThreadPoolExecutor() as pool:
            total = sum(pool.map(count, range(len(self))), np.zeros(256, np.int64))
        return total[: len(self.labels.names)]


def open_dataset(path: Path, split: str, data: Path | None = None) -> Dataset:
    """The split of the dataset that `path` means; `locate` says what it may be.

    data: where its pictures are, if not where the file says. Every pair is checked to be complete
    and of equal size; InputError names the first that is not.
    """
    file, description, root = describe(path, data)
    labels = label_set(description, file)
    chosen = find_split(description, split, path)
    source = f"{path}, split {split}"
    if isinstance(chosen, Split):
        pairs = _pairs(root, chosen, source)
    else:
        rows = read_list(chosen, root, file.parent, source)
        pairs = tuple(Pair(**row._asdict()) for row in rows)
    with ThreadPoolExecutor() as pool:
        for problem in pool.map(_check_size, pairs):
            if problem:
                raise InputError(problem)
    sizes = description.instance_sizes
    return Dataset(
        file,
        split,
        pairs,
        labels,
        categories={
            category: tuple(labels.index(name, f"{file}: categories") for name in names)
            for category, names in description.categories.items()
        },
        instance_sizes=tuple(sizes.get(name, np.nan) for name in labels.names) if sizes else (),
    )


def list_files(root: Path, split: Split) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
    """Images and labels by the name that pairs them; two files may share one, or have no partner.

    A folder that is not there has no files.
    """

    wanted, unwanted = _any_of(split.include), _any_of(split.exclude)

    def files(names: str | list[str], ending: str) -> dict[str, list[Path]]:
        found = _by_stem(folders(root, names), ending).items()
        return {name: files for name, files in found if wanted(name) and not unwanted(name)}

    return files(split.images, split.image_ending), files(split.labels, split.label_ending)


def _any_of(patterns: Sequence[str]) -> Callable[[str], bool]:
    """Whether a name matches one; plain names are looked up, as there may be very many."""
    plain = {pattern for pattern in patterns if not any(sign in pattern for sign in "*?[")}
    others = [pattern for pattern in patterns if pattern not in plain]
    return lambda name: name in plain or any(fnmatch(name, pattern) for pattern in others)


def _by_stem(places: list[Path], ending: str) -> dict[str, list[Path]]:
    """Pictures below `places` by their path there without suffix and `ending`, if they have it."""
    found: dict[str, list[Path]] = {}
    for root, file in ((place, file) for place in places for file in pictures_below(place)):
        stem = file.relative_to(root).with_suffix("").as_posix()
        if not stem.endswith(ending):
            continue
        found.setdefault(stem.removesuffix(ending), []).append(file)
    return found


def _pairs(root: Path, split: Split, source: str) -> tuple[Pair, ...]:
    for kind, names in (("images", split.images), ("labels", split.labels)):
        for folder in folders(root, names):
            if not folder.is_dir():
                raise InputError(f"{source}: no folder {folder} for its {kind}")
    listed = list_files(root, split)
    for files in (*listed[0].values(), *listed[1].values()):
        if len(files) > 1:
            raise InputError(f"{files[0]} and {files[1]} share one name; which is it? keep one")
    images, labels = ({stem: file for stem, (file,) in files.items()} for files in listed)
    if not images:
        ending = f" that end in {split.image_ending}" if split.image_ending else ""
        raise InputError(f"{source}: no pictures{ending} in {split.images}; the split is empty")
    for have, lack, what in ((images, labels, "label"), (labels, images, "image")):
        alone = [have[stem] for stem in have if stem not in lack]
        if alone:
            raise InputError(
                f"{source}: {len(alone)} file(s) without {what}, such as {alone[0]}; "
                f"add the {what}s or exclude the files"
            )
    confidence = _beside(root, split.confidence, split.confidence_ending)
    alone = [file for stem, file in labels.items() if stem not in confidence]
    if split.confidence is not None and alone:
        raise InputError(
            f"{source}: {len(alone)} label(s) without confidence, such as {alone[0]}; add the "
            f"pictures to {root / split.confidence} or leave out `confidence`"
        )
    instances = _beside(root, split.instances, split.instance_ending)  # optional in a release
    return tuple(
        Pair(stem, images[stem], labels[stem], confidence.get(stem), instances.get(stem))
        for stem in images
    )


def _beside(root: Path, names: str | list[str] | None, ending: str) -> dict[str, Path]:
    """Further pictures by the name that pairs them."""
    places = [] if names is None else folders(root, names)
    return {stem: files[0] for stem, files in _by_stem(places, ending).items()}


def _check_size(pair: Pair) -> str | None:
    image, label = read_size(pair.image), read_size(pair.label)
    if image != label and image == label[::-1]:  # a PNG may say last that it lies on its side
        height, width, _ = read_image(pair.image).shape
        image = height, width
    return None if image == label else sizes_differ(pair, image, label)


def sizes_differ(pair: Pair, image: tuple[int, ...], label: tuple[int, ...]) -> str:
    return (
        f"{pair.image} is {image[1]}x{image[0]} but {pair.label} is {label[1]}x{label[0]} "
        "(width x height); an image and its label must have one size"
    )
