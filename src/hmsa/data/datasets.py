"""One split of a dataset: pairs of files, complete and of one size, and what their labels mean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..runs import InputError
from .descriptions import describe, label_set
from .images import decide, open_pillow, read_image, require_one_size
from .labels import IGNORE, LabelSet
from .lists import read_list
from .pairs import Pair, find_split, pairs_of
from .schema import Split
from .stretch import Stretch


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
    stretch: Stretch = Stretch()  # how its images become 8 bits

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Image `[H,W,C]`, RGB or its bands, and label `[H,W]` train ids, 255 = ignore."""
        image = read_image(self.pairs[index].image, stretch=self.stretch)
        return image, self.read_label(index)

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

    def stretched(self, stretch: Stretch) -> Dataset:
        """The same, with images as a network with `stretch` takes them; where that leaves the range
        open, the description's counts, or else one is decided and said."""
        known = replace(stretch, ranges=stretch.ranges or self.stretch.ranges)
        return replace(self, stretch=decide([pair.image for pair in self.pairs], known))

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

    def require_labels(self) -> None:
        """Read every label. Raises InputError for a bad one, and where all pixels are ignored."""
        if not self.frequencies().any():
            raise InputError(
                f"{self.source}: nothing is labelled in split {self.split}, all is ignored; "
                "label images there, name another split, or correct `ignore` in the description"
            )


def open_dataset(path: Path, split: str, data: Path | None = None) -> Dataset:
    """The split of the dataset that `path` means; see `locate` for what it may be.

    data: folder of its images, if not where the file says. Raises InputError that names the first
    pair that is incomplete or of two sizes.
    """
    file, description, root = describe(path, data)
    labels = label_set(description, file)
    chosen = find_split(description, split, root, path)
    source = f"{path}, split {split}"
    if isinstance(chosen, Split):
        pairs = pairs_of(root, chosen, source)
    else:
        pairs = read_list(chosen, root, file.parent, source)
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda pair: require_one_size(pair.image, pair.label), pairs))
    categories = {
        category: tuple(labels.index(name, f"{file}: categories") for name in names)
        for category, names in description.categories.items()
    }
    sizes = description.instance_sizes
    instances = tuple(sizes.get(name, np.nan) for name in labels.names) if sizes else ()
    bands = tuple(description.bands) if description.bands else None
    stretch = Stretch(bands, tuple(description.stretch))
    return Dataset(
        file, split, tuple(pairs), labels, categories=categories, instance_sizes=instances,
        stretch=stretch,
    )  # fmt: skip
