"""An auto-labelled folder as it lies on disk, opened to be looked at. No network is run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.coarse import Coarse
from ..data.datasets import Dataset
from ..data.descriptions import read_classes
from ..data.images import open_pillow, read_image
from ..data.labels import LabelSet
from ..runs.errors import InputError
from .out import DESCRIPTION, SETTINGS, THRESHOLD_FILE
from .rows import PERSON, Row, rows_below, sha256, total


@dataclass(frozen=True)
class Labelled:
    """OUT of `hmsa autolabel`. rows: what it says of each image that is labelled, by name."""

    out: Path
    labels: LabelSet
    settings: dict[str, Any]
    rows: dict[str, Row]
    failed: dict[str, Row]  # of the images that are not

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """`[K,256]`: pixels by class and stored confidence."""
        return self.count(self.rows)

    def count(self, names: Iterable[str]) -> NDArray[np.int64]:
        """The same of these images alone."""
        return total((self.rows[name] for name in names), len(self.labels.names))

    @cached_property
    def thresholds(self) -> dict[str, dict[str, float]]:
        """Rule -> class -> threshold, as proposed; none where they were not."""
        file = self.out / THRESHOLD_FILE
        return json.loads(file.read_bytes()) if file.is_file() else {}

    @cached_property
    def by_people(self) -> set[str]:
        """Names of the images that a person has corrected."""
        return {name for name, row in self.rows.items() if row.get("source") == PERSON}

    @property
    def agreement_known(self) -> bool:
        return bool(self.rows) and all("mean_agreement" in row for row in self.rows.values())

    def image_file(self, name: str) -> Path:
        return self.out / str(self.rows[name]["image"])

    def image(self, name: str) -> NDArray[np.uint8]:
        return read_image(self.image_file(name))

    def label(self, name: str) -> NDArray[np.uint8]:
        """`[H,W]` train ids; 255 where a person left it open."""
        return self.labels.read(self.out / "labels" / f"{name}.png")

    def level(self, kind: str, name: str) -> NDArray[np.uint8] | None:
        """`[H,W]` of 8 bits: "confidence" or "agreement"; None where it was not stored."""
        file = self.out / kind / f"{name}.png"
        if not file.is_file():
            return None
        with open_pillow(file) as picture:
            return np.array(picture)

    def beside(self, dataset: Dataset, others: bool = False) -> Coarse:
        """The labels of another dataset, found by image or name.

        InputError: other classes; none of these images, unless it may be all `others`.
        """
        if dataset.labels.names != self.labels.names:
            raise InputError(
                f"{dataset.source} has the classes {_some(dataset.labels.names)}, {self.out} has "
                f"{_some(self.labels.names)}; they must be the same in the same order"
            )
        found = Coarse(dataset)
        if not others:
            images = {name: self.image_file(name) for name in self.rows}
            found.check_names(images, self.out)
        return found

    def place(self, other: Coarse, name: str) -> int | None:
        return other.find(self.image_file(name), name)

    def is_same_picture(self, other: Coarse, name: str) -> bool:
        """Whether `other` has a label of this very image, not only of one that is called so."""
        place = self.place(other, name)
        if place is None:
            return False
        return sha256(other.dataset.pairs[place].image) == str(self.rows[name]["sha256"])

    def beside_label(self, other: Coarse, name: str) -> NDArray[np.uint8] | None:
        """The label `[H,W]` that `other` has of this image, if it has one. InputError: its size."""
        place = self.place(other, name)
        if place is None:
            return None
        label, row = other.dataset.read_label(place), self.rows[name]
        if label.shape != (row["height"], row["width"]):
            raise InputError(
                f"{other.dataset.pairs[place].label} is {label.shape[1]}x{label.shape[0]}, but "
                f"{self.image_file(name)} is {row['width']}x{row['height']}; they do not belong "
                "together"
            )
        return label


def open_labelled(out: Path) -> Labelled:
    """InputError: `out` is no such folder, or not finished, or has no picture."""
    if not (out / SETTINGS).is_file():
        raise InputError(f"{out} is no folder that hmsa autolabel made (it has no {SETTINGS})")
    if not (out / DESCRIPTION).is_file():
        raise InputError(f"{out} is not finished; the hmsa autolabel that began it goes on with it")
    try:
        settings = json.loads((out / SETTINGS).read_bytes())
    except ValueError:
        raise InputError(f"{out / SETTINGS} is damaged; make {out} anew") from None
    rows = present(out)
    done = {name: row for name, row in rows.items() if row["status"] == "done"}
    if not done:
        raise InputError(f"{out} has no labelled picture")
    failed = {name: row for name, row in rows.items() if name not in done}
    return Labelled(out, read_classes(out), settings, done, failed)


def present(out: Path) -> dict[str, Row]:
    """All rows of images that are still there, by name."""
    return {name: row for name, row in rows_below(out) if (out / row["image"]).is_file()}


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
