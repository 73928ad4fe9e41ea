"""What a recipe's section `selftrain` names; every reason to refuse it before the first step."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ..checkpoint.files import require_unseen
from ..checkpoint.networks import load
from ..config.recipe import Recipe, Selftrain
from ..data.coarse import Coarse
from ..data.datasets import Dataset, open_dataset
from ..data.descriptions import beside
from ..data.walk import images_below
from ..model.pretrained import Card
from ..runs import InputError, sha256

LEVELS = {"fixed": 0.5, "quantile": 0.5, "precision": 0.95}  # where the recipe gives none


@dataclass(frozen=True)
class Plan:
    """A recipe, and the datasets that it names.

    data: the dataset's YAML file; files: folder of its files, if elsewhere; near: the folder that
    the recipe's other paths start from.
    """

    recipe: Recipe
    data: Path
    files: Path | None
    near: Path
    section: Selftrain
    learn: Dataset  # labelled images that every round learns from
    val: Dataset  # labelled images that rounds are compared on
    held_out: Dataset | None  # labelled images for the rule precision
    coarse: Dataset | None  # coarse labels of the images
    images: Path  # folder of images to label

    @property
    def level(self) -> float:
        """Confidence, share kept or precision, by the rule; in 0..1."""
        return LEVELS[self.section.rule] if self.section.level is None else self.section.level

    @property
    def people(self) -> Coarse | None:
        """The coarse labels, those that count before the labels of the network."""
        if self.coarse is None or self.section.coarse is None:
            return None
        fill, classes = self.section.coarse.fill, self.coarse.labels
        ids = fill and frozenset(classes.index(name, "selftrain.coarse.fill") for name in fill)
        return Coarse(self.coarse, ids or None)


def open_plan(recipe: Recipe, data: Path, files: Path | None, near: Path) -> Plan:
    """Open all datasets. Raises InputError for what a recipe cannot name."""
    section = recipe.selftrain
    if section is None:
        raise InputError(
            "the recipe has no section selftrain; it needs at least the images to label, such as "
            "selftrain: {images: more-images}"
        )

    def dataset(name: str | None, split: str) -> Dataset:
        if name is None:
            return open_dataset(data, split, files)
        return open_dataset(beside(near, name), split)

    precise = section.rule == "precision"
    held_out = dataset(None, section.held_out or recipe.data.val) if precise else None
    coarse = dataset(section.coarse.dataset, section.coarse.split) if section.coarse else None
    if (section.images is None) == (section.split is None):
        raise InputError("selftrain: give either images, a folder, or split, not both")
    if section.split is None:
        images = near / str(section.images)
    else:
        images = _folder_of(dataset(section.dataset, section.split))
    learn, val = dataset(None, recipe.data.train), dataset(None, recipe.data.val)
    return Plan(recipe, data, files, near, section, learn, val, held_out, coarse, images)


def _folder_of(dataset: Dataset) -> Path:
    """The folder whose images are exactly those of the split."""
    images = {pair.image.resolve() for pair in dataset.pairs}
    folder = Path(os.path.commonpath([image.parent for image in images]))
    if {image.resolve() for image in images_below(folder)} != images:
        raise InputError(
            f"selftrain.split: {dataset.source}, split {dataset.split} is not all images of one "
            f"folder ({folder} has others); give a folder as selftrain.images"
        )
    return folder


def check_plan(plan: Plan, folder: Path) -> None:
    """Raise InputError for whatever would fail only after the teacher has been trained.

    folder: where the rounds go.
    """
    labels, section = plan.learn.labels, plan.section
    if sum(extra.share for extra in plan.recipe.sampling.extra) + section.share > 1:
        raise InputError(
            "selftrain.share and the shares of sampling.extra are more than 1; lower them"
        )
    if section.boost and not plan.recipe.sampling.class_uniform:
        raise InputError("selftrain.boost needs class-uniform crops; set sampling.class_uniform")
    for name in section.boost:
        labels.index(name, "selftrain.boost")
    if plan.coarse and section.coarse:
        if plan.coarse.labels.names != labels.names:
            raise InputError(
                f"selftrain.coarse: the classes of {plan.coarse.source} are not those of "
                f"{plan.learn.source}; both must have the same classes in the same order"
            )
        for name in section.coarse.fill or ():
            labels.index(name, "selftrain.coarse.fill")
    _check_splits(plan)
    _check_images(plan, folder)


def _check_splits(plan: Plan) -> None:
    """No split that a network learns from may score it, be it through `start`."""
    trained = {"dataset": plan.learn.source.name, "split": plan.learn.split}
    recipe = plan.recipe.model_dump(mode="json")
    own = Card({}, list(plan.learn.labels.names), trained_on=trained, recipe=recipe)
    cards = [(own, "the recipe's teacher")]
    if start := plan.recipe.start:
        cards.append((load(start).card, start))
    scored = {"data.val": plan.val} | (
        {"selftrain.held_out": plan.held_out} if plan.held_out else {}
    )
    for option, dataset in scored.items():
        for card, source in cards:
            require_unseen(card, dataset.source, dataset.split, source, option)
    if not plan.val.frequencies().any():
        raise InputError(
            f"{plan.val.source}, split {plan.val.split}: nothing is labelled, so no round could be "
            "scored there"
        )


def _check_images(plan: Plan, folder: Path) -> None:
    """No image that scores a network may be learnt from, under whatever name."""
    images = plan.images
    found = images_below(images) if images.is_dir() else []
    if not found:
        raise InputError(f"selftrain: no images below {images}; they are found by suffix")
    if folder.resolve().is_relative_to(images.resolve()):
        raise InputError(f"{folder} is inside {images}; give an --out elsewhere")
    if plan.coarse:
        named = {f.relative_to(images).with_suffix("").as_posix(): f for f in found}
        Coarse(plan.coarse).check_names(named, images)
    scored = {
        pair.image: dataset.split
        for dataset in (plan.val, plan.held_out) if dataset for pair in dataset.pairs
    }  # fmt: skip
    sizes = {file.stat().st_size for file in scored}
    same_size = [file for file in found if file.stat().st_size in sizes]
    splits = {sha256(file): split for file, split in scored.items()} if same_size else {}
    for file in same_size:
        if split := splits.get(sha256(file)):
            raise InputError(
                f"selftrain: {file} is an image of split {split}, which scores the networks; "
                "remove it from the images to label"
            )
