"""LabelSet: what the values in a dataset's label files mean.

A `label` holds train ids 0..K-1 with 255 = ignore, everywhere outside this file; `raw` values are
those of a label file.
"""

from __future__ import annotations

import colorsys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..runs import InputError, did_you_mean, say_once
from .images import read_stored
from .rasters import Stored

IGNORE = 255
Encoding = Literal["index", "binary", "palette", "rgb"]
COLOURED = ("palette", "rgb")  # encodings whose raw values are packed colours
_UNKNOWN = 254  # in look-up tables only; K is at most 254


@dataclass(frozen=True)
class LabelSet:
    """names K; palette K x RGB; raw K: the value (or packed colour) of each class in the files;
    ignored: raw values that mean "no label"; encoding: how the files hold them."""

    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    raw: tuple[int, ...]
    ignored: tuple[int, ...] = (IGNORE,)
    encoding: Encoding = "index"

    def read(self, path: Path) -> NDArray[np.uint8]:
        """Label file -> `[H,W]` train ids. Raises InputError for a value outside the table."""
        stored = read_stored(path)
        raw, lossy = self.raw_of(stored, path), stored.lossy
        known = self.train_ids()
        if raw.dtype == np.uint8:  # by far the most files, and this is the fastest look-up
            table = bytes(known.get(value, _UNKNOWN) for value in range(256))
            label = np.frombuffer(bytearray(raw).translate(table), np.uint8).reshape(raw.shape)
        else:
            values, where = np.unique(raw, return_inverse=True)
            ids = [known.get(value, _UNKNOWN) for value in values.tolist()]
            label = np.array(ids, np.uint8)[where].reshape(raw.shape)
        if (label == _UNKNOWN).any():
            values, counts = np.unique(raw, return_counts=True)
            pixels = dict(zip(values.tolist(), counts.tolist(), strict=True))
            raise InputError(f"{path}: {self.diagnose(pixels, lossy)}")
        return label

    def raw_of(self, stored: Stored, path: Path) -> NDArray[np.integer]:
        """The content of a label file -> `[H,W]` values or packed colours.

        What the file calls "no data" is ignored, unless it is a class. Raises InputError if the
        file has another encoding.
        """
        if self.encoding == "binary":  # blurred edges, as of JPEG, go to the nearer of 0 and 255
            plane = stored.values if stored.values.ndim == 2 else stored.values[..., 0]
            return np.where(plane < 128, 0, 255).astype(np.uint8)
        if self.encoding == "index":
            raw, nodata = stored.values, stored.nodata
            if raw.ndim == 3:
                if (raw[..., :1] != raw[..., :3]).any():
                    mend = "set encoding: rgb and a palette"
                    if stored.lossy:
                        mend = "JPEG changes them near edges; export it as PNG"
                    raise InputError(f"{path} holds colours, not class values; {mend}")
                raw = raw[..., 0]
            raw = raw if raw.dtype == np.uint8 else raw.astype(np.int64)
            if nodata in self.raw:
                name = self.names[self.raw.index(nodata)]
                say_once(
                    f"{path}: {nodata} is its nodata, but also {name}; it counts as {name}",
                    "nodata",
                )
            elif nodata is not None and self.ignored:
                raw = np.where(raw == nodata, self.ignored[0], raw).astype(raw.dtype)
            return raw
        if self.encoding == "palette" and stored.mode != "P":
            encoding = "rgb" if stored.mode.startswith("RGB") else "index"
            raise InputError(
                f"{path} is a {stored.mode} image without palette; set encoding: {encoding}"
            )
        return pack(stored.rgb())

    def to_raw(self, label: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Train ids (not 255) -> the values that files of this table hold; `index` encoding."""
        return np.array(self.raw, np.uint8)[label]

    def index(self, name: str, source: object) -> int:
        """Train id of a class. Raises InputError, naming `source`, if there is no such class."""
        if name not in self.names:
            hint = did_you_mean(repr(name), map(repr, self.names))
            raise InputError(f"{source}: no class {name!r}; {hint}")
        return self.names.index(name)

    def train_ids(self) -> dict[int, int]:
        """Raw value -> train id, for all that are known; ignored ones -> 255."""
        return dict.fromkeys(self.ignored, IGNORE) | {r: i for i, r in enumerate(self.raw)}

    def diagnose(self, pixels: Mapping[int, int], lossy: bool = False) -> str:
        """What is wrong with files of these raw values (value: pixels), some of them unknown."""
        unknown = pixels.keys() - self.train_ids().keys()
        worst = sorted(unknown, key=lambda value: (-pixels[value], value))
        shown = ", ".join(f"{self.value_name(v)} ({pixels[v]} pixels)" for v in worst[:4])
        more = f" and {len(worst) - 4} more" if len(worst) > 4 else ""
        table = [self.value_name(value) for value in self.raw]
        if len(table) > 8:
            table[4:-2] = ["..."]
        ignored = ", ".join(map(self.value_name, self.ignored))
        return (
            f"{len(worst)} value(s) outside the table of {len(self.names)} classes: {shown}{more}; "
            f"the table has {', '.join(table)} (ignored: {ignored or 'none'}): "
            f"{self.guess(pixels, lossy)}"
        )

    def value_name(self, raw: int) -> str:
        """A raw value as people write it: 7, or 0,128,192."""
        return ",".join(map(str, unpack(raw))) if self.encoding in COLOURED else str(raw)

    def guess(self, pixels: Mapping[int, int], lossy: bool = False) -> str:
        """What files of these raw values look like, and how to mend that; lossy: they are JPEG."""
        values, k = pixels.keys(), len(self.names)
        most = max(values - {255}, default=0)
        if lossy:
            return "the files are JPEG, which changes values near edges; export them as PNG"
        if self._is_smoothed(pixels):
            what = "colours" if self.encoding in COLOURED else "values"
            return (
                f"the unknown {what} lie between those of the table, as if the files were saved "
                "with smoothing; export them again with nearest neighbour, without antialiasing"
            )
        if self.encoding in COLOURED:
            return "colours that are not in the palette; add them to palette or ignore"
        if values <= {0, 255} or (len(values) == 2 and 255 in values):
            named = self.names if k == 2 else ("..", "..")
            return (
                "this looks like a 0/255 mask; name the classes by value: "
                f"names: {{{min(values, default=0)}: {named[0]}, 255: {named[1]}}}"
            )
        if k == 19 and most <= 33:
            return "these look like Cityscapes raw ids (labelIds), not its 19 train ids"
        if most == k and self.raw == tuple(range(k)):
            by_value = f"give names as 1: .. to {k}: .."
            if 0 not in values:
                return f"these look like classes numbered from 1; {by_value}"
            return (
                f"values from 0 to {k} are {k + 1} classes and names has {k}, one too few; add the "
                f"name of the last, or list {k} under ignore; or, if 0 means no label, {by_value} "
                "and ignore: [0]"
            )
        blends = " or, if smoothing made them, export the files again without"
        return f"list them under names (value: name) or under ignore{blends * ({0, 255} <= values)}"

    def _is_smoothed(self, pixels: Mapping[int, int]) -> bool:
        """Whether many unknown values are mixtures of two that are known, not further classes."""
        table, index = {*self.train_ids()}, self.encoding not in COLOURED
        unknown = sorted(pixels.keys() - table, key=lambda value: -pixels[value])[:64]
        if len(unknown) < (8 if index else 4):
            return False
        if index:  # on a line all lies between: rare, and not numbered one after the other
            known = sum(count for value, count in pixels.items() if value in table)
            dense = max(unknown) - min(unknown) < 4 * len(unknown) and len(unknown) < 64
            return not dense and sum(pixels[value] for value in unknown) <= known
        colors = np.array([unpack(value) for value in (*table, *unknown)], float)
        first, last = (colors[i] for i in np.triu_indices(len(table), 1))
        way, mixed = last - first, colors[len(table) :, None]
        share = ((mixed - first) * way).sum(-1) / (way**2).sum(-1)
        away = np.abs(first + share.clip(0, 1)[..., None] * way - mixed).max(-1)
        return bool(np.mean(away.min(1, initial=255) <= 3) >= 0.75)


def spread(count: int) -> list[tuple[int, int, int]]:
    """Colours apart in hue and lightness, for a table without a palette."""
    shades = [
        colorsys.hls_to_rgb(i * 0.618 % 1, (0.45, 0.65, 0.3)[i % 3], 0.6) for i in range(count)
    ]
    return [
        (round(red * 255), round(green * 255), round(blue * 255)) for red, green, blue in shades
    ]


def pack(rgb: NDArray[np.uint8]) -> NDArray[np.int64]:
    """`[...,3]` colours as one integer each."""
    wide = rgb.astype(np.int64)
    return (wide[..., 0] << 16) | (wide[..., 1] << 8) | wide[..., 2]


def unpack(raw: int) -> tuple[int, int, int]:
    return raw >> 16, (raw >> 8) & 255, raw & 255
