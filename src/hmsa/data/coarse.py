"""Labels that people drew with a broad brush, to be laid over what a network saw."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

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

    @cached_property
    def _places(self) -> dict[Path | str, int]:
        pairs = list(enumerate(self.dataset.pairs))
        by_name: dict[Path | str, int] = {pair.name: i for i, pair in pairs}
        return by_name | {pair.image.resolve(): i for i, pair in pairs}

    def find(self, image: Path, name: str) -> int | None:
        """Index of the label of this very file, or else of one that is called the same."""
        return self._places.get(image.resolve(), self._places.get(name))

    def spoken(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Label `[H,W]` and where it counts."""
        label = self.dataset.read_label(index)
        wanted = label != IGNORE if self.fill is None else np.isin(label, list(self.fill))
        return label, wanted
