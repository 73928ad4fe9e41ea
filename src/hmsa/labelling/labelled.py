"""The folder of `hmsa autolabel`, opened for review. Runs no network."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..data.coarse import Coarse
from ..data.datasets import Dataset
from ..data.descriptions import read_classes
from ..data.images import read_image
from ..data.labels import LabelSet
from ..runs import InputError, read_records, sha256
from .folder import DESCRIPTION, MANIFEST, NAME, THRESHOLD_FILE, is_by_person, is_done, total
from .sources import Row


@dataclass(frozen=True)
class Labelled:
    """A finished folder `out`. rows: of each labelled image, by name; failed: of the others."""

    out: Path
    labels: LabelSet
    settings: dict[str, Any]
    rows: dict[str, Row]
    failed: dict[str, Row]

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """`[K,256]`: pixels by class and stored confidence."""
        return self.count(self.rows)

    def count(self, names: Iterable[str]) -> NDArray[np.int64]:
        """The same of some images."""
        return total((self.rows[name] for name in names), len(self.labels.names))

    @cached_property
    def thresholds(self) -> dict[str, dict[str, float]]:
        """Rule -> class -> proposed threshold; empty if none was proposed."""
        file = self.out / THRESHOLD_FILE
        return json.loads(file.read_bytes()) if file.is_file() else {}

    @cached_property
    def by_people(self) -> set[str]:
        """Names of the images that a person has corrected."""
        return {name for name, row in self.rows.items() if is_by_person(row)}

    @property
    def agreement_known(self) -> bool:
        """Whether agreement was stored for all images."""
        return bool(self.rows) and all("mean_agreement" in row for row in self.rows.values())

    def image_file(self, name: str) -> Path:
        """Path of the image."""
        return self.out / str(self.rows[name]["image"])

    def image(self, name: str) -> NDArray[np.uint8]:
        """`[H,W,3]`."""
        return read_image(self.image_file(name))

    def label(self, name: str) -> NDArray[np.uint8]:
        """`[H,W]` train ids; 255 where a person left it open."""
        return self.labels.read(self.out / "labels" / f"{name}.png")

    def level(self, kind: str, name: str) -> NDArray[np.uint8] | None:
        """`[H,W]` of 8 bits: "confidence" or "agreement"; None if it was not stored."""
        file = self.out / kind / f"{name}.png"
        if not file.is_file():
            return None
        with Image.open(file) as image:
            return np.array(image)

    def beside(self, dataset: Dataset, others: bool = False) -> Coarse:
        """The labels of another dataset, to be found by image or name.

        Raises InputError for other classes and, unless `others` are allowed, if it has none of
        these images.
        """
        if dataset.labels.names != self.labels.names:
            raise InputError(
                f"{dataset.source} has the classes {', '.join(dataset.labels.names)}; {self.out} "
                f"has {', '.join(self.labels.names)}; they must be the same in the same order"
            )
        found = Coarse(dataset)
        if not others:
            found.check_names({name: self.image_file(name) for name in self.rows}, self.out)
        return found

    def place(self, other: Coarse, name: str) -> int | None:
        """Index of the label that `other` has of this image or of one with its name."""
        return other.find(self.image_file(name), name)

    def has_same_image(self, other: Coarse, name: str) -> bool:
        """Whether `other` has a label of this very image, not only of one with its name."""
        place = self.place(other, name)
        return place is not None and (
            sha256(other.dataset.pairs[place].image) == self.rows[name]["sha256"]
        )

    def label_in(self, other: Coarse, name: str) -> NDArray[np.uint8] | None:
        """The label `[H,W]` in `other`, if there is one. Raises InputError for another size."""
        place = self.place(other, name)
        if place is None:
            return None
        label, row = other.dataset.read_label(place), self.rows[name]
        if label.shape != (row["height"], row["width"]):
            raise InputError(
                f"{other.dataset.pairs[place].label} is {label.shape[1]}x{label.shape[0]}, but "
                f"{self.image_file(name)} is {row['width']}x{row['height']}; give the label of "
                "this image"
            )
        return label


def open_labelled(out: Path) -> Labelled:
    """Raises InputError if `out` is no such folder, is unfinished, or has no labelled image."""
    settings_file = out / f"{NAME}.json"
    if not settings_file.is_file():
        raise InputError(f"{out} was not made by hmsa autolabel (it has no {settings_file.name})")
    if not (out / DESCRIPTION).is_file():
        raise InputError(f"{out} is not finished; run the same hmsa autolabel again")
    records = read_records(out, NAME)
    settings = json.loads(settings_file.read_bytes())
    present = {name: row for name, row in records.items() if (out / row["image"]).is_file()}
    if records and not present:
        images = os.path.normpath(out.resolve() / settings["images"])
        raise InputError(
            f"{out} has labels of images that were in {images}, and none is there; bring these "
            f"images there, or {out} to its earlier place beside them"
        )
    done = {name: row for name, row in sorted(present.items()) if is_done(row)}
    if not done:
        raise InputError(f"{out} has no labelled image; see the reasons in {out / MANIFEST}")
    failed = {name: row for name, row in present.items() if name not in done}
    return Labelled(out, read_classes(out), settings, done, failed)
