"""What a recipe's section `selftrain` names; every reason to refuse it before the first step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..checkpoint.files import require_unseen
from ..checkpoint.networks import load
from ..config.options import Rules
from ..config.recipe import Confidence, Extra, Mixed, Recipe, Selftrain
from ..data.coarse import Coarse
from ..data.datasets import Dataset, open_dataset
from ..data.descriptions import beside
from ..data.sampling import open_mix
from ..data.walk import images_below
from ..model.pretrained import Card
from ..runs import InputError, sha256

LEVEL = {"fixed": "threshold", "quantile": "keep", "precision": "precision_target"}  # in Rules


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
    people: Coarse | None  # coarse labels of the images, those that count before the network's

    @property
    def images(self) -> Path:
        """Folder of the images to label."""
        return self.near / self.section.images

    @property
    def rules(self) -> Rules:
        """Those of auto-labelling, with the level that the recipe gives for its rule."""
        level = self.section.level
        return Rules() if level is None else Rules(**{LEVEL[self.section.rule]: level})

    @property
    def level(self) -> float:
        """Confidence, share kept or precision, by the rule; in 0..1."""
        return float(getattr(self.rules, LEVEL[self.section.rule]))

    def mixed(
        self, dataset: str | None, split: str, confidence: Confidence | None = None
    ) -> Recipe:
        """The recipe with another extra set, used as the section says."""
        use = self.section.model_dump(include=set(Mixed.model_fields))
        extra = Extra(dataset=dataset, split=split, confidence=confidence, **use)
        sampling = self.recipe.sampling
        sampling = sampling.model_copy(update={"extra": [*sampling.extra, extra]})
        return self.recipe.model_copy(update={"sampling": sampling})


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
    learn, val = dataset(None, recipe.data.train), dataset(None, recipe.data.val)
    people = None
    if coarse := section.coarse:
        drawn = dataset(coarse.dataset, coarse.split)
        if drawn.labels.names != learn.labels.names:
            raise InputError(
                f"selftrain.coarse: the classes of {drawn.source} are not those of "
                f"{learn.source}; both must have the same classes in the same order"
            )
        ids = [drawn.labels.index(name, "selftrain.coarse.fill") for name in coarse.fill or ()]
        people = Coarse(drawn, frozenset(ids) or None)
    return Plan(recipe, data, files, near, section, learn, val, held_out, people)


def check_plan(plan: Plan, folder: Path) -> None:
    """Raise InputError for whatever would fail only after the teacher has been trained.

    folder: where the rounds go.
    """
    try:  # with labels that are there already, in place of those to come
        sampling = plan.mixed(None, plan.learn.split).sampling
        open_mix(plan.learn, sampling, 1, plan.near, plan.files)
    except InputError as error:
        raise InputError(f"selftrain, with sampling.extra: {error}") from None
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
    for option, dataset in (("data.val", plan.val), ("selftrain.held_out", plan.held_out)):
        for card, source in cards if dataset else ():
            assert dataset
            require_unseen(card, dataset.source, dataset.split, source, option)
    plan.val.require_labels()


def _check_images(plan: Plan, folder: Path) -> None:
    """No image that scores a network may be learnt from, under whatever name."""
    images = plan.images
    found = images_below(images) if images.is_dir() else []
    if not found:
        raise InputError(f"selftrain: no images below {images}; they are found by suffix")
    if folder.resolve().is_relative_to(images.resolve()):
        raise InputError(f"{folder} is inside {images}; give an --out elsewhere")
    if plan.people:
        named = {f.relative_to(images).with_suffix("").as_posix(): f for f in found}
        plan.people.check_names(named, images)
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
