"""One split of a dataset: pairs of files, complete and of one size, and what their labels mean.

The pairs are found in folders, or in a list, CSV or Parquet, one image a row:

    image,label,weight,source
    day/1.jpg,day/1.png,1,fine
    night/7.jpg,masks/7.png,2.5,drawn by hand

weight (how often it is drawn, against others; 1) and source (any text) may be missing; further
columns are ignored. Paths are relative to the list, or else to the dataset's folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from fnmatch import translate
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict

from ..config.reading import Strict, validate
from ..config.recipe import Positive
from ..runs import InputError, first_line
from .descriptions import Split, describe, find_split, folders, label_set
from .images import open_pillow, read_image, require_one_size
from .labels import IGNORE, LabelSet
from .stretch import Stretch
from .walk import images_below

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


class Row(Strict):
    model_config = ConfigDict(extra="ignore", coerce_numbers_to_str=True)

    image: str
    label: str
    weight: Positive = 1.0
    source: str = ""


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
        return read_image(self.pairs[index].image), self.read_label(index)

    def read_label(self, index: int) -> NDArray[np.uint8]:
        """Label `[H,W]` train ids; 255 = ignore, also in the border and at low confidence."""
        pair = self.pairs[index]
        label = self.labels.read(pair.label)
        if pair.confidence and any(self.lowest):
            with open_pillow(pair.confidence) as image:
                confidence = np.asarray(image)
            if confidence.shape != label.shape or confidence.dtype != np.uint8:
                raise InputError(
                    f"{pair.confidence} must have one channel of 8 bits and the size of "
                    f"{pair.label}, not {confidence.shape} of {confidence.dtype}"
                )
            needed = np.zeros(256, np.uint16)  # 256: no confidence is enough
            needed[: len(self.lowest)] = self.lowest
            label[confidence < needed[label]] = IGNORE
        (height, width), (top, right, bottom, left) = label.shape, self.border
        label[:top] = label[max(0, height - bottom) :] = IGNORE
        label[:, :left] = label[:, max(0, width - right) :] = IGNORE
        return label

    def read_instances(self, index: int) -> NDArray[np.int64] | None:
        """`[H,W]`: ids of single instances, 0 elsewhere; None without such a file."""
        file = self.pairs[index].instances
        if file is None:
            return None
        with open_pillow(file) as image:
            ids = np.asarray(image).astype(np.int64)
        return ids * (ids > 1000)  # as Cityscapes stores them: below, a class or a group

    def only(self, indices: Iterable[int]) -> Dataset:
        """The same, of these images alone."""
        return replace(self, pairs=tuple(self.pairs[index] for index in indices))

    def trusting(self, confidence: float | Mapping[str, float]) -> Dataset:
        """The same, with labels that ignore what was stored with less than this `confidence`.

        One number for all classes, or class name -> number; 0 keeps everything.
        """
        names = self.labels.names
        if not isinstance(confidence, Mapping):
            confidence = dict.fromkeys(names, confidence)
        wanted = np.zeros(len(names))
        for name, number in confidence.items():
            wanted[self.labels.index(name, "confidence")] = number
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
    """The split of the dataset that `path` means; see `locate` for what it may be.

    data: folder of its images, if not where the file says. Raises InputError that names the first
    pair that is incomplete or of two sizes.
    """
    file, description, root = describe(path, data)
    labels = label_set(description, file)
    chosen = find_split(description, split, path)
    source = f"{path}, split {split}"
    if isinstance(chosen, Split):
        pairs = _pairs(root, chosen, source)
    else:
        pairs = read_list(chosen, root, file.parent, source)
    with ThreadPoolExecutor() as pool:
        list(pool.map(_check_size, pairs))
    categories = {
        category: tuple(labels.index(name, f"{file}: categories") for name in names)
        for category, names in description.categories.items()
    }
    sizes = description.instance_sizes
    instances = tuple(sizes.get(name, np.nan) for name in labels.names) if sizes else ()
    return Dataset(
        file, split, tuple(pairs), labels, categories=categories, instance_sizes=instances
    )


def list_files(root: Path, split: Split) -> tuple[Files, Files]:
    """Images and labels by the name that pairs them; two files may share one, or have no partner.

    A folder that is not there has no files.
    """
    images = _files(root, split, split.images, split.image_ending)
    return images, _files(root, split, split.labels, split.label_ending)


def _files(root: Path, split: Split, names: list[str], ending: str) -> Files:
    """By their path below their folder, without suffix and `ending`, which they must have."""
    found: Files = {}
    # As one expression, for there may be very many patterns
    wanted, unwanted = (
        re.compile("|".join(map(translate, patterns)) or "(?!)").match
        for patterns in (split.include, split.exclude)
    )
    for folder in folders(root, names):
        for file in images_below(folder):
            name = file.relative_to(folder).with_suffix("").as_posix()
            if name.endswith(ending):
                name = name.removesuffix(ending)
                if wanted(name) and not unwanted(name):
                    found.setdefault(name, []).append(file)
    return found


def _pairs(root: Path, split: Split, source: str) -> list[Pair]:
    for folder in (*folders(root, split.images), *folders(root, split.labels)):
        if not folder.is_dir():
            raise InputError(f"{source}: no folder {folder}")
    listed = (
        *list_files(root, split),
        _files(root, split, split.confidence, split.confidence_ending),
        _files(root, split, split.instances, split.instance_ending),
    )
    for files in (files for kind in listed for files in kind.values()):
        if len(files) > 1:
            raise InputError(f"{files[0]} and {files[1]} have the same name; remove one")
    images, labels, confidence, instances = ({n: f[0] for n, f in kind.items()} for kind in listed)
    if not images:
        ending = f" that end in {split.image_ending}" if split.image_ending else ""
        raise InputError(f"{source}: no images{ending} in {split.images}; the split is empty")
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


def _check_size(pair: Pair) -> None:
    image, label = read_size(pair.image), read_size(pair.label)
    if image == label[::-1] != label:  # a PNG may have its orientation at its end
        height, width, _ = read_image(pair.image).shape
        image = height, width
    if image != label:
        raise InputError(
            f"{pair.image} is {image[1]}x{image[0]} but {pair.label} is {label[1]}x{label[0]} "
            "(width x height); an image and its label must have one size"
        )


def read_list(name: str, root: Path, beside: Path, source: str) -> list[Pair]:
    """The pairs of the list `name`, which lies in `root`, with the images, or in `beside`.

    Raises InputError that names the row, or `source` if there is no list.
    """
    file = next((f / name for f in (root, beside) if (f / name).is_file()), None)
    if not file:
        raise InputError(f"{source}: no list {name} in {root} or {beside}")
    pairs: dict[str, Pair] = {}
    for number, cells in enumerate(_cells(file), 1):
        where = f"{file} row {number}"
        row = validate(Row, {k: v for k, v in cells.items() if v not in (None, "")}, where)
        stem = PurePath(row.image).with_suffix("")
        name = "/".join(part for part in stem.parts if part not in (stem.anchor, ".."))
        if name in pairs:
            raise InputError(
                f"{where}: {row.image} has the name of {pairs[name].image}; list an image once (a "
                "weight says how often it is drawn)"
            )
        image, label = (_find(path, (file.parent, root), where) for path in (row.image, row.label))
        pairs[name] = Pair(name, image, label, weight=row.weight, source=row.source)
    if not pairs:
        raise InputError(f"{source}: {file} lists no images; the split is empty")
    return list(pairs.values())


def _cells(file: Path) -> list[dict[str, Any]]:
    """Column name -> cell, for each row."""
    import pyarrow as pa
    from pyarrow import csv, parquet

    try:
        if file.suffix.lower() == ".parquet":
            table = parquet.read_table(file)
        else:
            types = pa.schema([(key, pa.string()) for key in Row.model_fields])
            texts = csv.ConvertOptions(column_types=types, strings_can_be_null=True)
            table = csv.read_csv(file, csv.ReadOptions(use_threads=False), convert_options=texts)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{file} cannot be read as a list: {first_line(error)}") from None
    return table.to_pylist()  # type: ignore[no-any-return]


def _find(path: str, folders: tuple[Path, ...], where: str) -> Path:
    for folder in folders:
        if (folder / path.strip()).is_file():
            return folder / path.strip()
    raise InputError(f"{where}: no file {path} in {' or '.join(map(str, folders))}; correct it")
