"""Coarse labels, drawn by people, that replace parts of the labels that a network predicts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from ..runs import InputError
from .datasets import Dataset
from .labels import IGNORE


@dataclass(frozen=True)
class Coarse:
    """Labels by people; where there is one it counts, with confidence 255.

    fill: train ids of the only classes to take over; None: all. The official code fills truck, bus
    and train so, but only in images where the network predicts the class, too.
    grow: pixels around a label that get it, too; between labels the nearest counts.
    """

    dataset: Dataset
    fill: frozenset[int] | None = None
    grow: int = 0

    @cached_property
    def _places(self) -> dict[Path | str, int]:
        pairs = self.dataset.pairs
        places: dict[Path | str, int] = {pair.name: i for i, pair in enumerate(pairs)}
        return places | {pair.image.resolve(): i for i, pair in enumerate(pairs)}

    @property
    def settings(self) -> dict[str, Any]:
        """All that a result depends on but the labels themselves, as JSON."""
        fill = None if self.fill is None else sorted(self.fill)
        values = list(self.dataset.labels.raw)
        return {"dataset": self.dataset.source.name, "split": self.dataset.split,
                "values": values, "fill": fill, "grow": self.grow}  # fmt: skip

    def find(self, image: Path, name: str) -> int | None:
        """Index of the label of this very file, or else of one with the same name."""
        return self._places.get(image.resolve(), self._places.get(name))

    def check_names(self, images: Mapping[str, Path], source: object) -> None:
        """Raise InputError if none of the `images` (by name) from `source` has a label."""
        if all(self.find(file, name) is None for name, file in images.items()):
            raise InputError(
                f"{self.dataset.source}, split {self.dataset.split} has no label of an image in "
                f"{source}, neither by file nor by name; name the split that has them"
            )

    def read(
        self, index: int, image: object, size: tuple[int, ...]
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Label `[H,W]` and where it counts. Raises InputError if `image` has another size."""
        label = self.dataset.read_label(index)
        if label.shape != size:
            (h, w), (height, width) = label.shape, size
            raise InputError(
                f"{self.dataset.pairs[index].label} is {w}x{h}, but {image} is {width}x{height}; "
                "an image and its coarse label must have one size"
            )
        label = grown(label, self.grow)
        return label, label != IGNORE if self.fill is None else np.isin(label, list(self.fill))


def grown(label: NDArray[np.uint8], reach: int) -> NDArray[np.uint8]:
    """Label `[H,W]` in which ignored pixels get the nearest label up to `reach` pixels away."""
    far, (y, x) = distance_transform_edt(label == IGNORE, return_indices=True)
    return np.where(far <= reach, label[y, x], label)
