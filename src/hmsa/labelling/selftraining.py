"""What rounds of self-training are given; what is wrong with it is said before the first step."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..checkpoint.files import require_unseen
from ..checkpoint.networks import load
from ..config.recipe import Recipe, Selftrain
from ..data.coarse import Coarse
from ..data.datasets import Dataset, open_dataset
from ..data.descriptions import Split, describe, find_split, folders
from ..data.images import pictures_below
from ..data.layouts import beside
from ..model.pretrained import Card
from ..runs.errors import InputError
from ..runs.progress import Progress

LEVELS = {"fixed": 0.5, "quantile": 0.5, "precision": 0.95}  # where the recipe says none


@dataclass
class Given:
    """A recipe and where its paths start; its sets are opened when they are asked for.

    data: the dataset's YAML file; pictures: where its pictures are, if not where that says; near:
    the folder that the recipe's other paths start from.
    """

    recipe: Recipe
    data: Path
    pictures: Path | None
    near: Path

    @cached_property
    def asked(self) -> Selftrain:
        if self.recipe.selftrain is None:
            raise InputError(
                "the recipe has no section selftrain; it says at least what to label, such as "
                "selftrain: {images: more-pictures}"
            )
        return self.recipe.selftrain

    @cached_property
    def learn(self) -> Dataset:
        return open_dataset(self.data, self.recipe.data.train, self.pictures)

    @cached_property
    def judge(self) -> Dataset:
        return open_dataset(self.data, self.recipe.data.val, self.pictures)

    @cached_property
    def held_out(self) -> Dataset | None:
        """Where precision is measured; None where nothing asks for it."""
        if self.asked.rule != "precision":
            return None
        split = self.asked.held_out or self.recipe.data.val
        return open_dataset(self.data, split, self.pictures)

    @cached_property
    def coarse(self) -> Dataset | None:
        people = self.asked.coarse
        return None if people is None else self._further(people.dataset, people.split)

    def _further(self, dataset: str | None, split: str) -> Dataset:
        if dataset is None:
            return open_dataset(self.data, split, self.pictures)
        return open_dataset(beside(self.near, dataset), split)

    @cached_property
    def images(self) -> Path:
        """The folder of pictures to label."""
        asked = self.asked
        if (asked.images is None) == (asked.split is None):
            raise InputError("selftrain: either images, a folder, or split says what to label")
        if asked.images is not None:
            if asked.dataset is not None:
                raise InputError("selftrain: dataset belongs to split; images needs none")
            return self.near / asked.images
        assert asked.split is not None
        own = asked.dataset is None
        source = self.data if own else beside(self.near, str(asked.dataset))
        _, description, root = describe(source, self.pictures if own else None)
        split = find_split(description, asked.split, source)
        if isinstance(split, str):
            raise InputError(
                f"selftrain.split: {source}, split {asked.split} is a list of files; name the "
                "folder that holds them as selftrain.images"
            )
        return _one_folder(split, root, f"{source}, split {asked.split}")

    @property
    def fill(self) -> list[str] | None:
        return self.asked.coarse.fill if self.asked.coarse else None

    @property
    def level(self) -> float:
        return LEVELS[self.asked.rule] if self.asked.level is None else self.asked.level

    def refuse(self, folder: Path) -> None:
        """InputError for whatever would else come out only when the teacher has been trained.

        folder: where the rounds go.
        """
        recipe, asked, names = self.recipe, self.asked, self.learn.labels.names
        if sum(extra.share for extra in recipe.sampling.extra) + asked.share > 1:
            raise InputError(
                f"selftrain.share: {asked.share:g} and the shares of sampling.extra come to more "
                "than 1; lower them"
            )
        if asked.boost and not recipe.sampling.class_uniform:
            raise InputError(
                "selftrain.boost needs class-uniform crops; set sampling.class_uniform"
            )
        for name in asked.boost:
            self.learn.labels.index(name, "selftrain.boost")
        if self.coarse:
            if self.coarse.labels.names != names:
                raise InputError(
                    f"selftrain.coarse: the classes of {self.coarse.source} are not those of "
                    f"{self.learn.source}; both must name the same in the same order"
                )
            for name in self.fill or ():
                self.learn.labels.index(name, "selftrain.coarse.fill")
        self._refuse_learnt()
        self._refuse_images(folder)

    def _refuse_learnt(self) -> None:
        """Nobody is judged where he learnt: not here, nor where a network that he begins from did.

        So is precision. The pictures that get labels are looked after by `_refuse_images`.
        """
        trained = {"dataset": self.learn.source.name, "split": self.learn.split}
        dump = self.recipe.model_dump(mode="json")
        card = Card(
            network={}, names=list(self.learn.labels.names), trained_on=trained, recipe=dump
        )
        learnt = [(card, "the recipe's teacher")]
        if self.recipe.start:
            learnt.append((load(self.recipe.start).card, self.recipe.start))
        for asked, judge in (("data.val", self.judge), ("selftrain.held_out", self.held_out)):
            for card, source in learnt:
                if judge is not None:
                    require_unseen(card, judge.source, judge.split, source, asked)
        if not self.judge.frequencies().any():
            raise InputError(
                f"{self.judge.source}, split {self.judge.split}: no labelled pixel, so no round "
                "could be judged there"
            )

    def _refuse_images(self, folder: Path) -> None:
        """No picture that a network is judged by may be learnt from, under whatever name."""
        images = self.images
        if not images.is_dir():
            raise InputError(f"selftrain: no folder {images}; give the one that holds the pictures")
        found = pictures_below(images)
        if not found:
            raise InputError(f"selftrain: no pictures below {images}; the suffix tells them")
        if folder.resolve().is_relative_to(images.resolve()):
            raise InputError(f"{folder} is inside {images}; give an --out elsewhere")
        if self.coarse:
            coarse = Coarse(self.coarse)
            named = ((f, f.relative_to(images).with_suffix("").as_posix()) for f in found)
            if all(coarse.find(file, name) is None for file, name in named):
                raise InputError(
                    f"selftrain.coarse: {self.coarse.source}, split {self.coarse.split}, has no "
                    f"label of a picture below {images}; which split has them?"
                )
        judged = {
            pair.image: judge.split
            for judge in (self.judge, self.held_out) if judge for pair in judge.pairs
        }  # fmt: skip
        sizes = {file.stat().st_size for file in judged}
        likely = [file for file in found if file.stat().st_size in sizes]
        if not likely:
            return
        splits = {_sha256(file): split for file, split in judged.items()}
        for file in likely:
            split = splits.get(_sha256(file))
            if split:
                raise InputError(
                    f"selftrain: {file} is a picture of split {split}, on which networks are "
                    "judged; they may not learn from it, so take it away"
                )


def changed(before: Dataset, now: Dataset) -> float | None:
    """Share of the pixels, sure or not, whose label is another; None if no picture is in both."""
    place = {pair.name: i for i, pair in enumerate(before.pairs)}
    both = [(place[p.name], i) for i, p in enumerate(now.pairs) if p.name in place]

    def count(one: tuple[int, int]) -> tuple[int, int]:
        old, new = before.read_label(one[0]), now.read_label(one[1])
        return int((old != new).sum()) if old.shape == new.shape else new.size, new.size

    other = pixels = 0
    with ThreadPoolExecutor() as pool, Progress("compare", len(both)) as meter:
        for differ, size in pool.map(count, both):
            other, pixels = other + differ, pixels + size
            meter.advance()
    return other / pixels if pixels else None


def _one_folder(split: Split, root: Path, source: str) -> Path:
    places = folders(root, split.images)
    if len(places) > 1 or split.include != ["*"]:
        raise InputError(
            f"selftrain.split: {source}, takes some of the pictures of its folders; name one "
            "folder, of which all are to be labelled, as selftrain.images"
        )
    return places[0]


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
