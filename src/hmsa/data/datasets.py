"""A dataset = a folder and one small YAML file that says what is in it; no code.

    path: ../pictures            # relative to this file
    splits:                      # a folder with images/ and labels/, or both named
      train: train
      val: {images: val/images, labels: val/labels, exclude: ["night_*"]}
    names: [sky, road, post]     # or value: name, where the values in the files are not 0, 1, 2
    palette: [[70, 130, 180], [128, 64, 128], [220, 220, 0]]
    encoding: index              # index | palette | rgb
    ignore: [255]                # values (rgb: colours) that mean "no label"

An image and its label share the path below their folders, but for `.jpg`, `.png` and the like, and
for what the split says they end in: {.., image_ending: _leftImg8bit, label_ending: _labelIds}.
"""

from __future__ import annotations

import colorsys
import difflib
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ..config import Strict, read
from ..errors import InputError
from .images import pictures_below, read_image, read_size
from .labels import IGNORE, Encoding, LabelSet, pack

Byte = Annotated[int, Field(ge=0, le=255)]
Color = tuple[Byte, Byte, Byte]


class Split(Strict):
    images: str
    labels: str
    include: list[str] = Field(["*"], description="file-name patterns to take")
    exclude: list[str] = Field([], description="file-name patterns to leave out")
    image_ending: str = Field("", description="end of an image's name; other files are passed by")
    label_ending: str = Field("", description="end of a label's name; other files are passed by")


class Description(Strict):
    """The YAML file."""

    path: str = "."
    splits: dict[str, str | Split]
    names: list[str] | dict[int, str]
    palette: list[Color] | None = None
    encoding: Encoding = "index"
    ignore: list[int | Color] | int = IGNORE


@dataclass(frozen=True)
class Pair:
    name: str  # path below the image folder, without suffix
    image: Path
    label: Path


@dataclass(frozen=True)
class Dataset:
    """One split: pairs of files and what their label values mean."""

    source: Path  # the YAML file
    split: str
    pairs: tuple[Pair, ...]
    labels: LabelSet

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Image `[H,W,3]` RGB and label `[H,W]` train ids, 255 = ignore."""
        pair = self.pairs[index]
        image, label = read_image(pair.image), self.labels.read(pair.label)
        if image.shape[:2] != label.shape:
            raise InputError(sizes_differ(pair, image.shape[:2], label.shape))
        return image, label

    def frequencies(self) -> NDArray[np.int64]:
        """Pixels of each class `[K]`. Reads every label, so it also finds bad ones before a run."""

        def count(pair: Pair) -> NDArray[np.int64]:
            return np.bincount(self.labels.read(pair.label).ravel(), minlength=256)

        with ThreadPoolExecutor() as pool:
            total = sum(pool.map(count, self.pairs), np.zeros(256, np.int64))
        return total[: len(self.labels.names)]


def open_dataset(path: Path, split: str, data: Path | None = None) -> Dataset:
    """The split of the dataset that `path` (a YAML file, or a folder with dataset.yaml) describes.

    data: where its pictures are, if not where the file says. Every pair is checked to be complete
    and of equal size; InputError names the first that is not.
    """
    path, description, root = describe(path, data)
    pairs = _pairs(root, find_split(description, split, path), f"{path}, split {split}")
    with ThreadPoolExecutor() as pool:
        for problem in pool.map(_check_size, pairs):
            if problem:
                raise InputError(problem)
    return Dataset(path, split, pairs, label_set(description, path))


def describe(path: Path, data: Path | None = None) -> tuple[Path, Description, Path]:
    """The YAML file, what it says, and the folder that its splits are in, which is there."""
    if path.is_dir():
        path = path / "dataset.yaml"
    description = read(Description, path)
    root = data or path.parent / description.path
    if not root.is_dir():
        raise InputError(f"{path}: no folder {root}; mend `path` there or pass --data FOLDER")
    return path, description, root


def find_split(description: Description, name: str, source: object) -> Split:
    if name not in description.splits:
        near = difflib.get_close_matches(name, description.splits, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        known = ", ".join(description.splits)
        raise InputError(f"{source} has no split {name!r}, only {known}{hint}")
    split = description.splits[name]
    if isinstance(split, str):
        split = Split(images=f"{split}/images", labels=f"{split}/labels")
    return split


def list_files(root: Path, split: Split) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
    """Images and labels by the name that pairs them; two files may share one, or have no partner.

    A folder that is not there has no files.
    """

    def wanted(name: str) -> bool:
        return any(fnmatch(name, p) for p in split.include) and not any(
            fnmatch(name, p) for p in split.exclude
        )

    images = _by_stem(root / split.images, split.image_ending)
    labels = _by_stem(root / split.labels, split.label_ending)
    return (
        {name: files for name, files in images.items() if wanted(name)},
        {name: files for name, files in labels.items() if wanted(name)},
    )


def read_classes(path: Path) -> LabelSet:
    """The class table of a dataset's YAML file, its pictures left alone."""
    return label_set(read(Description, path), path)


def label_set(description: Description, source: object) -> LabelSet:
    names = description.names
    if isinstance(names, list):
        names = dict(enumerate(names))
    count = len(names)
    if not 1 <= count <= 254:
        raise InputError(f"{source}: names lists {count} classes; 1 to 254 can be handled")
    twice = [name for name, times in Counter(names.values()).items() if times > 1]
    if twice:
        raise InputError(f"{source}: names has {twice[0]!r} twice; every class needs its own name")
    palette = description.palette or _spread(count)
    if len(palette) != count:
        raise InputError(f"{source}: palette has {len(palette)} colours for {count} names")
    ignore = description.ignore if isinstance(description.ignore, list) else [description.ignore]
    colored = description.encoding != "index"
    if colored and description.palette is None:
        raise InputError(f"{source}: encoding {description.encoding} needs a palette")
    wrong = [v for v in ignore if isinstance(v, tuple) != colored and v != IGNORE]
    if wrong:
        wanted = "colours such as [0, 0, 0]" if colored else "values such as 255"
        raise InputError(f"{source}: ignore has {wrong[0]!r}, but this encoding needs {wanted}")

    def packed(colors: Iterable[Color]) -> tuple[int, ...]:
        return tuple(int(pack(np.array(c, np.uint8))) for c in colors)

    if colored:
        raw, ignored = packed(palette), packed(c for c in ignore if isinstance(c, tuple))
    else:
        raw, ignored = tuple(names), tuple(v for v in ignore if isinstance(v, int))
    if len(set(raw)) < count:
        raise InputError(f"{source}: two classes have one colour; give each its own")
    both = set(raw) & set(ignored)
    if both and "ignore" in description.model_fields_set:  # a class may take over the default 255
        raise InputError(f"{source}: ignore has a value that is also a class ({min(both)})")
    return LabelSet(tuple(names.values()), tuple(palette), raw, ignored, description.encoding)


def _by_stem(folder: Path, ending: str) -> dict[str, list[Path]]:
    """Pictures below `folder` by their path without suffix and `ending`, if they have it."""
    found: dict[str, list[Path]] = {}
    for file in pictures_below(folder):
        stem = file.relative_to(folder).with_suffix("").as_posix()
        if not stem.endswith(ending):
            continue
        found.setdefault(stem.removesuffix(ending), []).append(file)
    return found


def _pairs(root: Path, split: Split, source: str) -> tuple[Pair, ...]:
    for kind, name in (("images", split.images), ("labels", split.labels)):
        if not (root / name).is_dir():
            raise InputError(f"{source}: no folder {root / name} for its {kind}")
    found = list_files(root, split)
    for files in (*found[0].values(), *found[1].values()):
        if len(files) > 1:
            raise InputError(f"{files[0]} and {files[1]} share one name; which is it? keep one")
    images, labels = ({stem: file for stem, (file,) in files.items()} for files in found)
    if not images:
        raise InputError(f"{source}: no pictures in {root / split.images}; the split is empty")
    for have, lack, what in ((images, labels, "label"), (labels, images, "image")):
        alone = [have[stem] for stem in have if stem not in lack]
        if alone:
            raise InputError(
                f"{source}: {len(alone)} file(s) without {what}, such as {alone[0]}; "
                f"add the {what}s or exclude the files"
            )
    return tuple(Pair(stem, images[stem], labels[stem]) for stem in images)


def _check_size(pair: Pair) -> str | None:
    image, label = read_size(pair.image), read_size(pair.label)
    return None if image == label else sizes_differ(pair, image, label)


def sizes_differ(pair: Pair, image: tuple[int, ...], label: tuple[int, ...]) -> str:
    return (
        f"{pair.image} is {image[1]}x{image[0]} but {pair.label} is {label[1]}x{label[0]} "
        "(width x height); an image and its label must have one size"
    )


def _spread(count: int) -> list[Color]:
    """Colours apart in hue and lightness, for a table that gives none."""
    spread = []
    for i in range(count):
        rgb = colorsys.hls_to_rgb(i * 0.618 % 1, (0.45, 0.65, 0.3)[i % 3], 0.6)
        spread.append((round(rgb[0] * 255), round(rgb[1] * 255), round(rgb[2] * 255)))
    return spread
