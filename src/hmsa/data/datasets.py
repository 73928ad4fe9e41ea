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
    confidence: str | None = Field(
        None, description="folder of 8-bit pictures beside the labels; value = floor(255 p)"
    )
    confidence_ending: str = Field("", description="end of such a picture's name")


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
    confidence: Path | None = None  # 8 bits, floor(255 p) that the label is right


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
            raise InputError(_sizes_differ(pair, image.shape[:2], label.shape))
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
    """The split of the dataset that `path` (a YAML file, or a folder with dataset.yaml) describes.

    data: where its pictures are, if not where the file says. Every pair is checked to be complete
    and of equal size; InputError names the first that is not.
    """
    if path.is_dir():
        path = path / "dataset.yaml"
    description = read(Description, path)
    root = data or path.parent / description.path
    if not root.is_dir():
        raise InputError(f"{path}: no folder {root}; mend `path` there or pass --data FOLDER")
    if split not in description.splits:
        near = difflib.get_close_matches(split, description.splits, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        known = ", ".join(description.splits)
        raise InputError(f"{path} has no split {split!r}, only {known}{hint}")
    chosen = description.splits[split]
    if isinstance(chosen, str):
        chosen = Split(images=f"{chosen}/images", labels=f"{chosen}/labels")
    pairs = _pairs(root, chosen, f"{path}, split {split}")
    with ThreadPoolExecutor() as pool:
        for problem in pool.map(_check_size, pairs):
            if problem:
                raise InputError(problem)
    return Dataset(path, split, pairs, label_set(description, path))


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


def _by_stem(folder: Path, ending: str) -> dict[str, Path]:
    """Pictures below `folder` by their path without suffix and `ending`, if they have it."""
    found: dict[str, Path] = {}
    for file in pictures_below(folder):
        stem = file.relative_to(folder).with_suffix("").as_posix()
        if not stem.endswith(ending):
            continue
        stem = stem.removesuffix(ending)
        if found.setdefault(stem, file) != file:
            raise InputError(f"{found[stem]} and {file} share one name; which is it? keep one")
    return found


def _pairs(root: Path, split: Split, source: str) -> tuple[Pair, ...]:
    files = []
    for kind, name, ending in (
        ("images", split.images, split.image_ending),
        ("labels", split.labels, split.label_ending),
    ):
        if not (root / name).is_dir():
            raise InputError(f"{source}: no folder {root / name} for its {kind}")
        files.append(
            {
                stem: file
                for stem, file in _by_stem(root / name, ending).items()
                if any(fnmatch(stem, p) for p in split.include)
                and not any(fnmatch(stem, p) for p in split.exclude)
            }
        )
    images, labels = files
    if not images:
        raise InputError(f"{source}: no pictures in {root / split.images}; the split is empty")
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
        confidences = _by_stem(root / split.confidence, split.confidence_ending)
        alone = [labels[stem] for stem in labels if stem not in confidences]
        if alone:
            raise InputError(
                f"{source}: {len(alone)} label(s) without confidence, such as {alone[0]}; add the "
                f"pictures to {root / split.confidence} or leave out `confidence`"
            )
    return tuple(Pair(s, images[s], labels[s], confidences.get(s)) for s in images)


def _check_size(pair: Pair) -> str | None:
    image, label = read_size(pair.image), read_size(pair.label)
    return None if image == label else _sizes_differ(pair, image, label)


def _sizes_differ(pair: Pair, image: tuple[int, ...], label: tuple[int, ...]) -> str:
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
