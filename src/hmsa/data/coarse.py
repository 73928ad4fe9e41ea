"""Labels that people drew with a broad brush, to be laid over what a network saw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..runs.errors import InputError
from .datasets import Dataset
from .labels import IGNORE


@dataclass(frozen=True)
class Coarse:
    """Labels by people. Where one speaks it counts, with confidence 255.

    fill: train ids of the only classes that are taken over; None: all of them. The official code
    fills truck, bus and train so, but only in pictures where the network saw the class, too.
    """

    dataset: Dataset
    fill: frozenset[int] | None = None
    grow: int = 0  # pixels around what was drawn that count, too; the nearest label speaks

    @cached_property
    def _places(self) -> dict[Path | str, int]:
        pairs = list(enumerate(self.dataset.pairs))
        by_name: dict[Path | str, int] = {pair.name: i for i, pair in pairs}
        return by_name | {pair.image.resolve(): i for i, pair in pairs}

    @property
    def settings(self) -> dict[str, Any]:
        """All that a result depends on but the labels themselves, as JSON has it."""
        return {
            "dataset": self.dataset.source.name, "split": self.dataset.split,
            "values": list(self.dataset.labels.raw),
            "fill": None if self.fill is None else sorted(self.fill), "grow": self.grow,
        }  # fmt: skip

    def find(self, image: Path, name: str) -> int | None:
        """Index of the label of this very file, or else of one that is called the same."""
        return self._places.get(image.resolve(), self._places.get(name))

    def refuse_strangers(self, images: Mapping[str, Path], source: object) -> None:
        """InputError if there is no label of any of the `images` by name, from `source`."""
        if not any(self.find(file, name) is not None for name, file in images.items()):
            raise InputError(
                f"{self.dataset.source}, split {self.dataset.split}: no label of a picture below "
                f"{source}, neither by file nor by name; which split has them?"
            )

    def spoken(
        self, index: int, image: object, size: tuple[int, ...]
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Label `[H,W]` and where it counts. InputError: that is not the size of its `image`."""
        label = self.dataset.read_label(index)
        if label.shape != size:
            (h, w), (height, width) = label.shape, size
            raise InputError(
                f"{self.dataset.pairs[index].label} is {w}x{h}, but {image} is {width}x{height}; "
                "an image and its coarse label must have one size"
            )
        label = grown(label, self.grow)
        wanted = label != IGNORE if self.fill is None else np.isin(label, list(self.fill))
        return label, wanted


def grown(label: NDArray[np.uint8], reach: int) -> NDArray[np.uint8]:
    """Label `[H,W]` in which ignored pixels up to `reach` from a labelled one are like the nearest.

    Of two that are as near, the upper counts, or else the left one.
    """
    if not reach:
        return label
    (height, width), row = label.shape, label.shape[1] + 2 * reach
    wide = np.pad(label, reach, constant_values=IGNORE)
    drawn, out = wide.ravel(), wide.ravel().copy()
    inner = slice(reach, reach + height), slice(reach, reach + width)
    places = np.arange(wide.size).reshape(wide.shape)[inner]
    left = places[label == IGNORE]  # still without a label, as places in the padded picture
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    far = (y * y + x * x).ravel()
    order = np.argsort(far, kind="stable")
    for step in (y * row + x).ravel()[order[far[order] <= reach * reach]]:
        near = drawn[left + step]
        found = near != IGNORE
        out[left[found]] = near[found]
        left = left[~found]
    return out.reshape(wide.shape)[inner]
