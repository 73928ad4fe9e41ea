"""Which bands of an image a network sees, and which of their values become 0 and 255.

8-bit images are taken as they are. For wider types a range of values is brought to 0..255 and cut
off beyond. The range is decided once for a set of files and then stored, with the first of these:

1. what the dataset's description, the network's card or `--stretch` says;
2. a range that the files declare (bits, minimum and maximum) or that is usual for their type
   (0..255, 0..65535, 0..1), if the robust range of the values lies in it and fills half of it;
3. the robust range itself: without the lowest and the highest 0.5 % of the values.

Values without data (nodata, masks, alpha, NaN) decide nothing, nor can a single pixel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..model.pretrained import Card
from ..runs import InputError, say_once

Range = tuple[float, float]
_CUT = 0.005  # share of the values that is cut off at each end
_SIDE, _SPOT = 512, 64  # pixels: longer sides are sampled in 8 spots of this side


@dataclass(frozen=True)
class Stretch:
    """bands: numbers from 1; None: a gray band, or the three of RGB. ranges: (low, high) of all
    bands or of each; none: still to be decided. per_image: whether one image may decide its own.
    Raises InputError for ranges that do not fit."""

    bands: tuple[int, ...] | None = None
    ranges: tuple[Range, ...] = ()
    per_image: bool = True

    def __post_init__(self) -> None:
        if not all(low < high for low, high in self.ranges):
            raise InputError(f"stretch {self.text}: the first number of a range is the smaller one")
        if len(self.ranges) not in (0, 1, self.channels):
            raise InputError(
                f"stretch has {len(self.ranges)} ranges for {self.channels} bands; give one for "
                "all, or one for each"
            )

    @property
    def channels(self) -> int:
        """Of the images that are read with it."""
        return len(self.bands) if self.bands else 3

    @property
    def text(self) -> str:
        return ", ".join(f"{low:g}..{high:g}" for low, high in self.ranges)

    def apply(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        """`[h,w,n]` -> uint8; NaN becomes 0. The ranges must have been decided."""
        if values.dtype == np.uint8:
            return values
        low, high = np.array(self.ranges, np.float32).T
        pixels: NDArray[np.uint8]
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):  # of absurd ranges
            scaled = np.nan_to_num((values - low) * (255 / (high - low)), copy=False)
        pixels = scaled.round().clip(0, 255).astype(np.uint8)
        return pixels


def stretch_of(card: Card, ranges: Sequence[tuple[float, float]] | None = None) -> Stretch:
    """How the images of a network become 8 bits; ranges: others than those of its card."""
    stored = [(low, high) for low, high in card.stretch]
    return Stretch(tuple(card.bands) if card.bands else None, tuple(ranges or stored))


def store_stretch(card: Card, stretch: Stretch) -> None:
    """Keep in the card of a network how the images that it learns from become 8 bits."""
    card.bands = [*stretch.bands] if stretch.bands else None
    card.stretch = [[low, high] for low, high in stretch.ranges]


@dataclass(frozen=True)
class Sample:
    """Some pixels of a file: values `[N,n]`, NaN = no data, and ranges as in rule 2."""

    values: NDArray[np.float32]
    usual: tuple[Range, ...]


def usual_ranges(dtype: np.dtype[Any]) -> tuple[Range, ...]:
    """What the values of a type commonly span."""
    return ((0, 1), (0, 255)) if dtype.kind == "f" else ((0, 255), (0, 65535))


def settle(stretch: Stretch, samples: Sequence[Sample]) -> Stretch:
    """`stretch` with ranges for images such as the `samples`; as it is if it has some already.

    Bands that were not chosen share one range, so that colours stay as they are.
    """
    if stretch.ranges or not samples:
        return stretch
    values = np.concatenate([sample.values for sample in samples])
    low, high = _robust(values.ravel())
    common = set.intersection(*({*sample.usual} for sample in samples))
    fitting = [each for each in common if each[0] <= low and high <= each[1]]
    filled = [each for each in fitting if 2 * (high - low) >= each[1] - each[0]]
    if low == high:
        filled = fitting or [(low, low + 1)]
    if filled:
        return replace(stretch, ranges=(min(filled, key=lambda each: each[1] - each[0]),))
    bands = values.T if stretch.bands else [values.ravel()]
    ranges = (_robust(band) for band in bands)
    return replace(stretch, ranges=tuple((a, b if b > a else a + 1) for a, b in ranges))


def _robust(values: NDArray[np.float32]) -> Range:
    """The lowest and highest value without a share at each end, and without two pixels at least."""
    found = values[np.isfinite(values)]
    if not len(found):
        return 0.0, 0.0
    cut = min(0.25, max(_CUT, 2 / len(found)))
    low, high = np.quantile(found, (cut, 1 - cut)).tolist()
    return float(f"{low:.6g}"), float(f"{high:.6g}")


def settled(stretch: Stretch, path: Path | str, sample: Sample) -> Stretch:
    """`stretch` with a range for one image; says which. Raises InputError if it may have none."""
    if stretch.ranges:
        return stretch
    if not stretch.per_image:
        raise InputError(
            f"{path} has more than 8 bits, and no range is known for all images; add --stretch "
            "MIN,MAX"
        )
    decided = settle(stretch, [sample])
    say_once(
        f"{path} has more than 8 bits: {decided.text} becomes 0..255, by its own values; "
        "so it is for each such image, unless stretch says what to take for all",
        "range",
    )
    return decided


def sample_of(values: NDArray[Any]) -> Sample:
    """Of an image `[H,W,n]` in memory."""

    def load(rows: slice, cols: slice) -> NDArray[Any]:
        return values[rows, cols]

    return sample(values.shape[:2], load, usual_ranges(values.dtype))


def sample(
    size: Sequence[int], load: Callable[[slice, slice], NDArray[Any]], usual: tuple[Range, ...]
) -> Sample:
    """All of a small image, and spots all over a large one. load: rows, columns -> `[h,w,n]`."""
    places = []
    for side in size:
        firsts = np.linspace(0, side - _SPOT, 8).astype(int).tolist()
        spots = [slice(first, first + _SPOT) for first in firsts]
        places.append([slice(0, side)] if side <= _SIDE else spots)
    parts = [load(rows, cols) for rows in places[0] for cols in places[1]]
    flat = [part.reshape(-1, part.shape[-1]) for part in parts]
    return Sample(np.concatenate(flat).astype(np.float32), usual)


def require_bands(path: Path | str, stretch: Stretch, count: int) -> None:
    if stretch.bands and max(stretch.bands) > count:
        raise InputError(
            f"{path} has {count} band(s), and band {max(stretch.bands)} is needed; give images "
            "with more bands, or correct bands in the dataset's description"
        )
