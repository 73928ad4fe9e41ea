"""Training order: which picture, cut how, at which position of an endless stream.

Every sample is a pure function of (data, seed, position), so a resumed run sees what the
uninterrupted one would have seen, whatever the number of loader processes. An epoch is as many
positions as the main set has pictures; processes share out the positions, and none is left over.

Nothing is drawn by chance that can be dealt out: a source's share of the positions is spread evenly
over them, and pictures, classes and the tiles of a class each come in shuffled passes, in which
every one comes once before any comes again.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from ..config.recipe import Sampling
from ..runs.errors import InputError
from ..runs.files import cache_folder
from .datasets import Dataset, open_dataset
from .layouts import beside
from .tiles import Integers, Progress, TileIndex, tile_index
from .transforms import collate

_EVER = sys.maxsize


@dataclass(frozen=True)
class ExtraSet:
    """A labelled set beside the main one, until position `stop`."""

    dataset: Dataset
    share: float = 0.0  # of the plain pictures
    boost: frozenset[int] = frozenset()  # classes whose tiles are added to the main set's
    stop: int = _EVER


@dataclass(frozen=True)
class Pool:
    """Where class-uniform crops come from, until position `stop`."""

    tiles: TileIndex  # of all sets together
    source: Integers  # of each row
    classes: tuple[int, ...]  # that are there at all
    stop: int


@dataclass(frozen=True)
class Mix:
    """What comes beside the plain pictures of the main set; as it is here, nothing does."""

    class_uniform: float = 0.0  # share of the positions, until `stop`
    stop: int = _EVER
    extras: tuple[ExtraSet, ...] = ()
    pools: tuple[Pool, ...] = ()  # one after the other; none without class-uniform crops


@dataclass(frozen=True)
class Draw:
    """What a position shows."""

    source: int  # 0 the main set, then the extras in their order
    index: int  # of the picture in its set
    class_: int | None = None  # that the crop is for; None: a plain picture
    point: tuple[int, int] | None = None  # x, y that the crop holds: the class's centre in a tile


@dataclass(frozen=True)
class TrainingStream(TorchDataset[tuple[Tensor, Tensor]]):
    """Position -> augmented sample. Each pass over the pictures is a new shuffle."""

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
        now, after = self._dealt(position), self._dealt(position + 1)
        turn = next(i for i, count in enumerate(now) if after[i] > count)
        number = now[turn]  # of draws that this one's source had before
        if turn == 0:
            return self._class_uniform(number, position)
        if turn <= len(self.mix.extras):
            return Draw(turn, self._picture(number, self.mix.extras[turn - 1].dataset, 1, turn))
        return Draw(0, self._picture(number, self.dataset))

    def _dealt(self, position: int) -> list[int]:
        """How many of the positions before this one went to each source.

        Class-uniform crops take their share of all, each extra set its share of what is then left,
        and the main set's plain pictures are the rest.
        """
        extras = self.mix.extras
        shares, stops = [self.mix.class_uniform], [self.mix.stop]
        given = 0.0
        for extra in extras:
            shares.append(min(1.0, extra.share / (1 - given)) if given < 1 else 0.0)
            stops.append(extra.stop)
            given += extra.share

        def rest(position: int, turn: int) -> int:
            return rest(position, turn - 1) - taken(position, turn - 1) if turn else position

        def taken(position: int, turn: int) -> int:
            return math.floor(shares[turn] * rest(min(position, stops[turn]), turn))

        return [*(taken(position, i) for i in range(len(shares))), rest(position, len(shares))]

    def _class_uniform(self, number: int, position: int) -> Draw:
        pool = next(pool for pool in self.mix.pools if position < pool.stop)
        done, place = self._shuffled(number, len(pool.classes), 2, 1)
        class_ = pool.classes[place]
        rows, tiles = pool.tiles.of(class_), pool.tiles
        row = rows[self._shuffled(done, len(rows), 3, class_ + 1)[1]]
        point = int(tiles.x[row]), int(tiles.y[row])
        return Draw(int(pool.source[row]), int(tiles.image[row]), class_, point)

    def _picture(self, number: int, dataset: Dataset, *deck: int) -> int:
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
        """The passes over `count` things done before draw `number`, and which it shows."""
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
    """One (image, label) batch for each step of `steps`; ranks share out the positions."""
    per_step = batch * processes
    order = [
        list(range(step * per_step + rank * batch, step * per_step + (rank + 1) * batch))
        for step in steps
    ]
    loader = DataLoader(
        stream,
        batch_sampler=order,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
    )
    try:
        yield from loader
    except InputError as error:
        # A loader process wraps the message in its own traceback; the last line is ours.
        message = str(error).strip().splitlines()[-1]
        raise InputError(message.removeprefix("hmsa.errors.InputError: ")) from None


def open_mix(
    dataset: Dataset,
    sampling: Sampling,
    positions: int,
    *,
    near: Path,
    pictures: Path | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Mix:
    """What `sampling` asks for beside the plain pictures of `dataset`, its tile indices included.

    positions: of the whole stage, over all processes. near: the folder that paths of extra sets
    start from; pictures: as for `open_dataset`, of extra sets in the dataset's own YAML file.
    cache: None is the user's cache folder. progress: see `tile_index`.
    """
    if sum(extra.share for extra in sampling.extra) > 1:
        raise InputError("sampling.extra: the shares come to more than 1; lower them")
    extras = []
    for extra in sampling.extra:
        if extra.boost and not sampling.class_uniform:
            raise InputError("sampling.extra: boost needs class-uniform crops; set class_uniform")
        if extra.dataset is None:
            further = open_dataset(dataset.source, extra.split, pictures)
        else:
            further = open_dataset(beside(near, extra.dataset), extra.split)
        own = extra.confidence
        further = further.trusting(sampling.confidence if own is None else own)
        further = replace(further, border=extra.border)
        if further.labels.names != dataset.labels.names:
            raise InputError(
                f"{further.source}: its classes are not those of {dataset.source}; the names of an "
                "extra set must be the same, in the same order"
            )
        boost = frozenset(further.labels.index(name, "sampling.extra") for name in extra.boost)
        stop = _stop(extra.until, positions)
        extras.append(ExtraSet(further, extra.share, boost, stop))
    stop = _stop(sampling.until, positions)
    if not sampling.class_uniform:
        return Mix(extras=tuple(extras))

    def index(one: Dataset) -> TileIndex:
        return tile_index(one, sampling.tile, cache or cache_folder(), progress)

    main = index(dataset)
    boosting = [
        (i, extra, index(extra.dataset)) for i, extra in enumerate(extras, 1) if extra.boost
    ]
    pools = []
    for end in sorted({_EVER, *(extra.stop for _, extra, _ in boosting)}):
        parts = [(0, main)]
        parts += [(i, tiles.only(e.boost)) for i, e, tiles in boosting if e.stop >= end]
        pools.append(_pool(parts, end))
        if not pools[-1].classes:
            raise InputError(
                f"{dataset.source}, split {dataset.split}: no labelled pixel, so there is nothing "
                "to cut class-uniform crops around"
            )
    return Mix(sampling.class_uniform, stop, tuple(extras), tuple(pools))


def _stop(until: float, positions: int) -> int:
    return _EVER if until == 1 else round(until * positions)


def _pool(parts: list[tuple[int, TileIndex]], stop: int) -> Pool:
    source = np.concatenate([np.full(len(t.image), i, np.int32) for i, t in parts])
    rows = zip(*(vars(t).values() for _, t in parts), strict=True)
    columns = np.stack([np.concatenate(column) for column in rows])
    order = np.argsort(columns[1], kind="stable")  # by class
    tiles = TileIndex(*columns[:, order])
    return Pool(tiles, source[order], tuple(np.unique(tiles.class_).tolist()), stop)
