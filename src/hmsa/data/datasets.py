"""A dataset = a folder and one small YAML file that says what is in it; no code.

    path: ../pictures            # relative to this file
    splits:                      # a folder with images/ and labels/, or both named, or a list file
      train: train
      val: {images: val/images, labels: val/labels, exclude: ["night_*"]}
      drawn: pictures.csv        # see lists.py
    names: [sky, road, post]     # or value: name, where the values in the files are not 0, 1, 2
    palette: [[70, 130, 180], [128, 64, 128], [220, 220, 0]]
    encoding: index              # index | palette | rgb
    ignore: [255]                # values (rgb: colours) that mean "no label"

An image and its label share the path below their folders, but for `.jpg`, `.png` and the like, and
for what the split says they end in: {.., image_ending: _leftImg8bit, label_ending: _labelIds}.
Images and labels may also be lists of folders, read as one.
"""

from __future__ import annotations

import difflib
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ..config import Strict, read
from ..errors import InputError
from .images import open_picture, pictures_below, read_image, read_size
from .labels import IGNORE, Encoding, LabelSet, pack, spread
from .layouts import locate
from .lists import SUFFIXES, read_list

Byte = Annotated[int, Field(ge=0, le=255)]
Color = tuple[Byte, Byte, Byte]


class Split(Strict):
    images: str | list[str]
    labels: str | list[str]
    include: list[str] = Field(["*"], description="file-name patterns to take")
    exclude: list[str] = Field([], description="file-name patterns to leave out")
    image_ending: str = Field("", description="end of an image's name; other files are passed by")
    label_ending: str = Field("", description="end of a label's name; other files are passed by")
    confidence: str | None = Field(
        None, description="folder of 8-bit pictures beside the labels; value = floor(255 p)"
    )
    confidence_ending: str = Field("", description="end of such a picture's name")


class Description(Strict):
    """The YAML file."""

    path: str = Field(".", description="where its pictures are; relative to the file")
    path_from: str | None = Field(None, description="environment variable that overrules path")
    known_by: list[str] = Field([], description="what its folder holds, or is called; layouts.py")
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
    confidence: Path | None = None  # 8 bits, floor(255 p) that the label is right
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
        """Label `[H,W]` train ids; 255 = ignore, also where it is less sure than it must be."""
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
            needed = np.zeros(256, np.uint8)
            needed[: len(self.lowest)] = self.lowest
            label[confidence < needed[label]] = IGNORE
        return label

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
    return Dataset(file, split, pairs, labels)


def describe(path: Path, data: Path | None = None) -> tuple[Path, Description, Path]:
    """The YAML file that `path` means, what it says, and the folder of its pictures, which is."""
    file, folder = locate(path)
    description = read(Description, file)
    root = data or folder or _root(description, file)
    if not root.is_dir():
        mend = f"mend {description.path_from or '`path` there'} or pass --data FOLDER"
        raise InputError(f"{path}: no folder {root}; {mend}")
    return file, description, root


def find_split(description: Description, name: str, source: object) -> Split | str:
    """The folders of a split, or the name of its list file."""
    if name not in description.splits:
        near = difflib.get_close_matches(name, description.splits, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        known = ", ".join(description.splits)
        raise InputError(f"{source} has no split {name!r}, only {known}{hint}")
    split = description.splits[name]
    if isinstance(split, Split) or Path(split).suffix.lower() in SUFFIXES:
        return split
    return Split(images=f"{split}/images", labels=f"{split}/labels")


def list_files(root: Path, split: Split) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
    """Images and labels by the name that pairs them; two files may share one, or have no partner.

    A folder that is not there has no files.
    """

    def files(names: str | list[str], ending: str) -> dict[str, list[Path]]:
        return {
            name: files
            for name, files in _by_stem(folders(root, names), ending).items()
            if any(fnmatch(name, p) for p in split.include)
            and not any(fnmatch(name, p) for p in split.exclude)
        }

    return files(split.images, split.image_ending), files(split.labels, split.label_ending)


def folders(root: Path, names: str | list[str]) -> list[Path]:
    return [root / name for name in ([names] if isinstance(names, str) else names)]


def read_classes(path: Path) -> LabelSet:
    """The class table of the dataset that `path` means, its pictures left alone."""
    file, _ = locate(path)
    return label_set(read(Description, file), file)


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
    palette = description.palette or spread(count)
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


def _root(description: Description, file: Path) -> Path:
    """Where the pictures are by the description alone."""
    variable = description.path_from
    if variable and os.environ.get(variable):
        return Path(os.environ[variable])
    if variable and "path" not in description.model_fields_set:
        raise InputError(
            f"{file.stem}: where are its pictures? pass --data FOLDER or set {variable}=FOLDER"
        )
    return file.parent / description.path


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
    confidences: dict[str, Path] = {}
    if split.confidence is not None:
        if not (root / split.confidence).is_dir():
            raise InputError(f"{source}: no folder {root / split.confidence} for its confidence")
        found = _by_stem([root / split.confidence], split.confidence_ending)
        confidences = {stem: files[0] for stem, files in found.items()}
        alone = [labels[stem] for stem in labels if stem not in confidences]
        if alone:
            raise InputError(
                f"{source}: {len(alone)} label(s) without confidence, such as {alone[0]}; add the "
                f"pictures to {root / split.confidence} or leave out `confidence`"
            )
    return tuple(Pair(s, images[s], labels[s], confidences.get(s)) for s in images)


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
