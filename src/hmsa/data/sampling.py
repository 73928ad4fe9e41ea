"""Training order: which image, cut how, at which position of an endless stream.

Every sample is a pure function of (data, seed, position), so a resumed run gets the samples that an
uninterrupted one would have got, whatever the number of loader processes. An epoch is as many
positions as the main set has images.

Nothing is drawn at random that can be dealt out: a source's share of the positions is spread evenly
over them, and images, classes and the tiles of a class each come in shuffled passes, in which every
one comes once before any comes again. Tiles do not overlap, and cover the whole label.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from ..config.recipe import Extra, Sampling
from ..runs import CannotWrite, InputError, Progress, cache_folder, first_line
from ..runs import replace as replace_file
from . import fingerprint
from .datasets import Dataset, open_dataset
from .descriptions import beside
from .transforms import collate

# [N,5]: image (place in the dataset), class, x, y, pixels of the class in the tile. x and y, in the
# whole image, are its centre of mass, rounded down as in the official code; it need not lie on it.
Tiles = NDArray[np.int32]
_FORMAT = 3  # goes up when the content of the file changes


@dataclass(frozen=True)
class ExtraSet:
    """A labelled set beside the main one, until position `stop`."""

    dataset: Dataset
    share: float = 0.0  # of the plain images
    boost: frozenset[int] = frozenset()  # classes whose tiles are added to the main set's
    stop: int = sys.maxsize


# Where class-uniform crops come from, each until a position: class -> tiles, with their source (see
# Draw) before the columns of `tile_index`
Pools = tuple[tuple[int, dict[int, Tiles]], ...]


@dataclass(frozen=True)
class Mix:
    """What is mixed with the plain images of the main set; by default nothing."""

    class_uniform: float = 0.0  # share of the positions, until `stop`
    stop: int = sys.maxsize
    extras: tuple[ExtraSet, ...] = ()
    pools: Pools = ()


@dataclass(frozen=True)
class Draw:
    """What is shown at a position."""

    source: int  # 0 the main set, then the extras in their order
    index: int  # of the image in its set
    class_: int | None = None  # that the crop is for; None: a plain image
    point: tuple[int, int] | None = None  # x, y that the crop holds: the class's centre in a tile


@dataclass(frozen=True)
class TrainingStream(TorchDataset[tuple[Tensor, Tensor]]):
    """Position -> augmented sample. Each pass over the images is a new shuffle."""

    dataset: Dataset
    transform: v2.Transform
    seed: int
    mix: Mix = Mix()

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor]:
        draw = self.draw(position)
        image, label = self.source(draw).read(draw.index)
        with torch.random.fork_rng(devices=[]):
            state = np.random.SeedSequence((self.seed, position)).generate_state(1, np.uint64)[0]
            # torch.manual_seed would seed CUDA's, too, or queue that with a stack trace each time
            torch.default_generator.manual_seed(int(state))
            sample = [
                tv_tensors.Image(torch.from_numpy(image).permute(2, 0, 1)),
                tv_tensors.Mask(torch.from_numpy(label)),
            ]
            if draw.point:
                sample.append(tv_tensors.KeyPoints([draw.point], canvas_size=label.shape))
            image, label, *_ = self.transform(*sample)
            return image, label

    def source(self, draw: Draw) -> Dataset:
        return self.mix.extras[draw.source - 1].dataset if draw.source else self.dataset

    def draw(self, position: int) -> Draw:
        sources = len(self.mix.extras) + 1
        for source in range(sources):
            left = self._left(position, source + 1)
            if self._left(position + 1, source + 1) == left:  # it takes this position
                number = self._left(position, source) - left
                if source == 0:
                    return self._class_uniform(number, position)
                dataset = self.mix.extras[source - 1].dataset
                return Draw(source, self._image(number, dataset, 1, source))
        return Draw(0, self._image(self._left(position, sources), self.dataset))

    def _left(self, position: int, sources: int) -> int:
        """How many of the positions before this one the first `sources` do not take.

        Class-uniform crops take their share of all, each extra set its share of what is then left,
        and the main set's plain images are the rest.
        """
        if sources == 0:
            return position
        share, stop = self._shares[sources - 1]
        before = self._left(min(position, stop), sources - 1)
        return self._left(position, sources - 1) - math.floor(share * before)

    @cached_property
    def _shares(self) -> list[tuple[float, int]]:
        """Of what the sources before leave, and the position from which on it is 0."""
        shares, used = [(self.mix.class_uniform, self.mix.stop)], 0.0
        for extra in self.mix.extras:
            shares.append((min(1.0, extra.share / (1 - used)) if used < 1 else 0.0, extra.stop))
            used += extra.share
        return shares

    def _class_uniform(self, number: int, position: int) -> Draw:
        pool = next(pool for stop, pool in self.mix.pools if position < stop)
        done, place = self._shuffled(number, len(pool), 2, 1)
        class_ = list(pool)[place]
        _, row = self._shuffled(done, len(pool[class_]), 3, class_ + 1)
        source, image, _, x, y, _ = pool[class_][row].tolist()
        return Draw(source, image, class_, (x, y))

    def _image(self, number: int, dataset: Dataset, *deck: int) -> int:
        """Each comes once a pass; where they have weights, as often as its share of them says.

        That is rounded up or down, and never both more and less than another of its weight by two.
        """
        done, slot = self._shuffled(number, len(dataset), *deck)
        weights = np.array([pair.weight for pair in dataset.pairs])
        if (weights == weights[0]).all():
            return slot
        edges = weights.cumsum() * (len(dataset) / weights.sum())
        shift = np.random.default_rng((self.seed, done, *deck, 4)).random()
        return int(np.searchsorted(edges, slot + shift, side="right").clip(0, len(dataset) - 1))

    def _shuffled(self, number: int, count: int, *deck: int) -> tuple[int, int]:
        """Draw `number` from shuffled passes over `count` things: passes done, and the thing."""
        done, place = divmod(number, count)
        order = np.random.default_rng((self.seed, done, *deck)).permutation(count)
        return done, int(order[place])


def batches(
    stream: TrainingStream,
    steps: range,
    batch: int,
    workers: int,
    rank: int = 0,
    processes: int = 1,
) -> Iterator[tuple[Tensor, Tensor]]:
    """One (image, label) batch for each step of `steps`; ranks share the positions out."""
    starts = ((step * processes + rank) * batch for step in steps)
    loader = DataLoader(
        stream,
        batch_sampler=[[*range(start, start + batch)] for start in starts],
        num_workers=workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
    )
    try:
        yield from loader
    except InputError as error:  # a loader process puts its traceback before the message
        raise InputError(str(error).strip().splitlines()[-1].split("InputError: ")[-1]) from None
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise InputError(
            f"a process that loads images died ({first_line(error)}); memory may have run out: "
            "lower data.workers"
        ) from None


def open_mix(
    dataset: Dataset, sampling: Sampling, positions: int, near: Path, data: Path | None = None
) -> Mix:
    """What `sampling` mixes with the plain images of `dataset`, its tile indices included.

    positions: of the whole stage, over all processes. near: the folder that paths of extra sets
    start from. data: as for `open_dataset`, of extra sets in the dataset's own YAML file.
    """
    if sum(extra.share for extra in sampling.extra) > 1:
        raise InputError("sampling.extra: the shares add up to more than 1; lower them")

    def stop(until: float) -> int:
        return sys.maxsize if until == 1 else round(until * positions)

    extras = []
    for extra in sampling.extra:
        further = _open_extra(dataset, extra, sampling, near, data)
        boost = frozenset(further.labels.index(name, "sampling.extra") for name in extra.boost)
        extras.append(ExtraSet(further, extra.share, boost, stop(extra.until)))
    pools = _pools(dataset, extras, sampling.tile) if sampling.class_uniform else ()
    return Mix(sampling.class_uniform, stop(sampling.until), tuple(extras), pools)


def _open_extra(
    dataset: Dataset, extra: Extra, sampling: Sampling, near: Path, data: Path | None
) -> Dataset:
    if extra.boost and not sampling.class_uniform:
        raise InputError("sampling.extra: boost needs class-uniform crops; set class_uniform")
    if extra.dataset is None:
        further = open_dataset(dataset.source, extra.split, data)
    else:
        further = open_dataset(beside(near, extra.dataset), extra.split)
    if further.labels.names != dataset.labels.names:
        raise InputError(
            f"{further.source}: its classes are not those of {dataset.source}; an extra set needs "
            "the same names in the same order"
        )
    own = extra.confidence
    further = further.trusting(sampling.confidence if own is None else own)
    return replace(further, border=extra.border, stretch=dataset.stretch)


def _pools(dataset: Dataset, extras: list[ExtraSet], tile: int) -> Pools:
    main = ExtraSet(dataset, boost=frozenset(range(len(dataset.labels.names))))
    indices: list[tuple[int, Tiles]] = []
    for source, part in enumerate((main, *extras)):
        if part.boost:
            tiles = np.insert(tile_index(part.dataset, tile), 0, source, axis=1)
            indices.append((part.stop, tiles[np.isin(tiles[:, 2], list(part.boost))]))
    pools = []
    for end in sorted({stop for stop, _ in indices}):
        tiles = np.concatenate([tiles for stop, tiles in indices if stop >= end])
        classes: list[int] = np.unique(tiles[:, 2]).tolist()
        pools.append((end, {class_: tiles[tiles[:, 2] == class_] for class_ in classes}))
    if not pools[-1][1]:
        raise InputError(
            f"{dataset.source}, split {dataset.split} has no labelled pixel, and class-uniform "
            "crops need one; check its labels or set sampling.class_uniform to 0"
        )
    return tuple(pools)


def tile_index(dataset: Dataset, tile: int) -> Tiles:
    """The index of `dataset` for tiles of `tile` pixels a side; it is cached, and never stale.

    Raises InputError if a label is bad.
    """
    file = cache_folder() / f"tiles-{_key(dataset, tile)}.npz"
    try:
        with file.open("rb") as opened, np.load(opened) as content:
            tiles: Tiles = content["tiles"]
            return tiles
    except Exception:  # not there, or damaged in whatever way
        tiles = _build(dataset, tile)

    def write(temporary: Path) -> None:
        with temporary.open("wb") as made:
            np.savez(made, tiles=tiles)

    try:
        replace_file(file, write)
    except CannotWrite as error:
        warnings.warn(f"the tile index is made anew every time: {error}", stacklevel=2)
    return tiles


def centres(label: NDArray[np.uint8], tile: int) -> NDArray[np.int64]:
    """Label `[H,W]` -> `[N,4]`: class, x, y, pixels of every class in every tile.

    A label is mostly long runs of one value, so we sum over runs rather than over pixels: one
    comparison of neighbours finds them all, for all classes and tiles at once.
    """
    width = label.shape[1]
    begins = np.empty(label.shape, bool)
    np.not_equal(label[:, 1:], label[:, :-1], out=begins[:, 1:])
    begins[:, ::tile] = True
    start = np.flatnonzero(begins)
    length = np.diff(start, append=label.size)
    y, x = np.divmod(start, width)
    across = -(-width // tile)
    place = (y // tile * across + x // tile) * 256 + label.ravel()[start]
    # Sums of integers below 2 ** 53, so exact as floats
    pixels = np.bincount(place, length)
    sum_x = np.bincount(place, length * (2 * x + length - 1) // 2)
    sum_y = np.bincount(place, length * y)
    found = np.flatnonzero(pixels)
    found = found[found % 256 != 255]
    count = pixels[found]
    columns = (found % 256, sum_x[found] // count, sum_y[found] // count, count)
    return np.stack(columns, axis=1).astype(np.int64)


def _build(dataset: Dataset, tile: int) -> Tiles:
    def rows(index: int) -> Tiles:
        found = centres(dataset.read_label(index), tile)
        return np.insert(found, 0, index, axis=1).astype(np.int32)

    parts, count = [np.zeros((0, 5), np.int32)], len(dataset)
    with ThreadPoolExecutor() as pool, Progress(f"tiles of {dataset.split}", count) as progress:
        for part in pool.map(rows, range(count)):
            parts.append(part)
            progress.advance()
    return np.concatenate(parts)


def _key(dataset: Dataset, tile: int) -> str:
    """Hash of all that the index depends on."""
    content = (_FORMAT, tile, fingerprint.of(dataset)["digest"], dataset.lowest, dataset.border)
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:24]
