"""What a recipe's section `selftrain` names; every reason to refuse it before the first step."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..checkpoint.files import Card
from ..config.recipe import Recipe, Selftrain
from ..data.coarse import Coarse
from ..data.datasets import Dataset, open_dataset
from ..data.images import pictures_below
from ..data.layouts import beside
from ..model import HMSA
from ..runs import InputError
from .rows import sha256

LEVELS = {"fixed": 0.5, "quantile": 0.5, "precision": 0.95}  # where the recipe gives none


@dataclass
class Plan:
    """A recipe and the datasets that it names, opened when they are first used.

    data: the dataset's YAML file; files: folder of its files, if elsewhere; near: the folder that
    the recipe's other paths start from.
    """

    recipe: Recipe
    data: Path
    files: Path | None
    near: Path

    @cached_property
    def section(self) -> Selftrain:
        """Raises InputError if the recipe has no such section."""
        if self.recipe.selftrain is None:
            raise InputError(
                "the recipe has no section selftrain; it needs at least the images to label, such "
                "as selftrain: {images: more-images}"
            )
        return self.recipe.selftrain

    @cached_property
    def learn(self) -> Dataset:
        """The labelled images that every round learns from."""
        return open_dataset(self.data, self.recipe.data.train, self.files)

    @cached_property
    def val(self) -> Dataset:
        """The labelled images that rounds are compared on."""
        return open_dataset(self.data, self.recipe.data.val, self.files)

    @cached_property
    def held_out(self) -> Dataset | None:
        """Where precision is measured; None for the other rules."""
        if self.section.rule != "precision":
            return None
        split = self.section.held_out or self.recipe.data.val
        return open_dataset(self.data, split, self.files)

    @cached_property
    def coarse(self) -> Dataset | None:
        """Coarse labels of the images, if the section names any."""
        coarse = self.section.coarse
        return None if coarse is None else self._dataset(coarse.dataset, coarse.split)

    @property
    def fill(self) -> list[str] | None:
        """Classes that alone are taken from the coarse labels; None: all."""
        return self.section.coarse.fill if self.section.coarse else None

    @property
    def level(self) -> float:
        """Confidence, share kept or precision, by the rule; in 0..1."""
        return LEVELS[self.section.rule] if self.section.level is None else self.section.level

    @cached_property
    def images(self) -> Path:
        """The folder of images to label. Raises InputError if a split is not a whole folder."""
        section = self.section
        if (section.images is None) == (section.split is None):
            raise InputError("selftrain: give either images, a folder, or split, not both")
        if section.images is not None:
            if section.dataset is not None:
                raise InputError("selftrain: dataset belongs to split; images needs none")
            return self.near / section.images
        assert section.split is not None
        dataset = self._dataset(section.dataset, section.split)
        images = {pair.image.resolve() for pair in dataset.pairs}
        folder = Path(os.path.commonpath([image.parent for image in images]))
        if {image.resolve() for image in pictures_below(folder)} != images:
            raise InputError(
                f"selftrain.split: {dataset.source}, split {section.split} is not all images of "
                f"one folder ({folder} has others); give a folder as selftrain.images"
            )
        return folder

    def _dataset(self, name: str | None, split: str) -> Dataset:
        if name is None:
            return open_dataset(self.data, split, self.files)
        return open_dataset(beside(self.near, name), split)

    def refuse(self, folder: Path) -> None:
        """Raise InputError for whatever would fail only after the teacher has been trained.

        folder: where the rounds go.
        """
        recipe, section, names = self.recipe, self.section, self.learn.labels.names
        if (total := sum(e.share for e in recipe.sampling.extra) + section.share) > 1:
            raise InputError(
                f"selftrain.share: with the shares of sampling.extra it is {total:g}, more than 1; "
                "lower them"
            )
        if section.boost and not recipe.sampling.class_uniform:
            raise InputError(
                "selftrain.boost needs class-uniform crops; set sampling.class_uniform"
            )
        for name in section.boost:
            self.learn.labels.index(name, "selftrain.boost")
        if self.coarse and self.coarse.labels.names != names:
            raise InputError(
                f"selftrain.coarse: the classes of {self.coarse.source} are not those of "
                f"{self.learn.source}; both must have the same classes in the same order"
            )
        for name in self.fill or ():
            self.learn.labels.index(name, "selftrain.coarse.fill")
        self._refuse_trained_splits()
        self._refuse_images(folder)

    def _refuse_trained_splits(self) -> None:
        """No split that a network learns from may score it, be it through `start`."""
        trained = {"dataset": self.learn.source.name, "split": self.learn.split}
        own = Card(
            network={}, names=list(self.learn.labels.names), trained_on=trained,
            recipe=self.recipe.model_dump(mode="json"),
        )  # fmt: skip
        cards = [(own, "the recipe's teacher")]
        if self.recipe.start:
            cards.append((HMSA.from_pretrained(self.recipe.start).card, self.recipe.start))
        for option, dataset in (("data.val", self.val), ("selftrain.held_out", self.held_out)):
            for card, source in cards:
                if dataset is not None:
                    card.refuse_learnt(dataset.source, dataset.split, source, option)
        if not self.val.frequencies().any():
            raise InputError(
                f"{self.val.source}, split {self.val.split}: nothing is labelled, so no round "
                "could be scored there"
            )

    def _refuse_images(self, folder: Path) -> None:
        """No image that scores a network may be learnt from, under whatever name."""
        images = self.images
        if not images.is_dir():
            raise InputError(f"selftrain: no folder {images}; give the one with the images")
        found = pictures_below(images)
        if not found:
            raise InputError(f"selftrain: no images below {images}; they are found by suffix")
        if folder.resolve().is_relative_to(images.resolve()):
            raise InputError(f"{folder} is inside {images}; give an --out elsewhere")
        if self.coarse:
            coarse = Coarse(self.coarse)
            named = ((f, f.relative_to(images).with_suffix("").as_posix()) for f in found)
            if all(coarse.find(file, name) is None for file, name in named):
                raise InputError(
                    f"selftrain.coarse: {self.coarse.source}, split {self.coarse.split}, has no "
                    f"label of an image below {images}; name the split that has"
                )
        for file, split in self._copies(found):
            raise InputError(
                f"selftrain: {file} is an image of split {split}, which scores the networks; "
                "remove it from the images to label"
            )

    def _copies(self, found: list[Path]) -> Iterator[tuple[Path, str]]:
        """Those of the files whose content is that of an image of val or the held-out split."""
        scored = {
            pair.image: dataset.split
            for dataset in (self.val, self.held_out) if dataset for pair in dataset.pairs
        }  # fmt: skip
        sizes = {file.stat().st_size for file in scored}
        same_size = [file for file in found if file.stat().st_size in sizes]
        if same_size:
            splits = {sha256(file): split for file, split in scored.items()}
            yield from ((f, splits[key]) for f in same_size if (key := sha256(f)) in splits)
