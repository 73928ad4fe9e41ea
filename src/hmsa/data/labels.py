"""LabelSet: what the values in a dataset's label files mean.

`label` = train ids 0..K-1 with 255 = ignore, everywhere behind this file; `raw` = a file's own.
"""

from __future__ import annotations

import colorsys
import difflib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..runs.errors import InputError
from .images import open_picture

IGNORE = 255
Encoding = Literal["index", "palette", "rgb"]
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
        """Label file -> `[H,W]` train ids. InputError for a value outside the table."""
        with open_picture(path) as picture:
            raw = self.raw_of(picture, path)
        return self._lookup(raw, path)

    def raw_of(self, picture: Image.Image, path: Path) -> NDArray[np.integer]:
        """An open label file -> `[H,W]` values or packed colours. InputError: another encoding."""
        if self.encoding == "index":
            raw = np.asarray(picture)
            if raw.ndim == 3:
                if (raw[..., :1] != raw[..., :3]).any():
                    raise InputError(
                        f"{path} holds colours, not class values; set encoding: rgb and give "
                        "the palette"
                    )
                raw = raw[..., 0]
            return raw if raw.dtype == np.uint8 else raw.astype(np.int64)
        if self.encoding == "palette" and picture.mode != "P":
            raise InputError(
                f"{path} is a {picture.mode} picture, not a palette one; set encoding: "
                f"{'rgb' if picture.mode.startswith('RGB') else 'index'}"
            )
        return pack(np.asarray(picture.convert("RGB")))

    def to_raw(self, label: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Train ids (not 255) -> the values that files of this table hold; `index` encoding."""
        return np.array(self.raw, np.uint8)[label]

    def index(self, name: str, source: object) -> int:
        """Train id of a class; where there is none, InputError names `source` and the nearest."""
        if name not in self.names:
            near = difflib.get_close_matches(name, self.names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(self.names)}"
            raise InputError(f"{source}: no class {name!r}; {hint}")
        return self.names.index(name)

    def _lookup(self, raw: NDArray[np.integer], path: Path) -> NDArray[np.uint8]:
        if not raw.size:
            return raw.astype(np.uint8)
        if raw.dtype == np.uint8:  # by far the most files; this is the quickest table there is
            translated = bytearray(raw).translate(self._table(256).tobytes())
            label = np.frombuffer(translated, np.uint8).reshape(raw.shape)
        elif raw.max() < 65536 and raw.min() >= 0:  # a table beats a search in small ranges
            label = self._table(65536 if raw.max() > 255 else 256)[raw]
        else:
            values, where = np.unique(raw, return_inverse=True)
            known = self.train_ids()
            ids = np.array([known.get(int(v), _UNKNOWN) for v in values], dtype=np.uint8)
            label = ids[where].reshape(raw.shape)
        if (label == _UNKNOWN).any():
            values, counts = np.unique(raw, return_counts=True)
            pixels = dict(zip(values.tolist(), counts.tolist(), strict=True))
            raise InputError(f"{path}: {self.diagnose(pixels)}")
        return label

    def train_ids(self) -> dict[int, int]:
        """Raw value -> train id, for all that are known; ignored ones -> 255."""
        return dict.fromkeys(self.ignored, IGNORE) | {r: i for i, r in enumerate(self.raw)}

    def _table(self, size: int) -> NDArray[np.uint8]:
        table = np.full(size, _UNKNOWN, dtype=np.uint8)
        for raw, train_id in self.train_ids().items():
            if 0 <= raw < size:
                table[raw] = train_id
        return table

    def diagnose(self, pixels: Mapping[int, int]) -> str:
        """What is wrong with files of these raw values (value: pixels), some of them unknown."""
        known = self.train_ids()
        counts = Counter({value: n for value, n in pixels.items() if value not in known})
        shown = ", ".join(
            f"{self.value_name(value)} ({n} pixels)" for value, n in counts.most_common(4)
        )
        more = f" and {len(counts) - 4} more" if len(counts) > 4 else ""
        table = ", ".join(self.value_name(r) for r in _shorten(self.raw))
        return (
            f"{len(counts)} value(s) outside the table of {len(self.names)} classes: "
            f"{shown}{more}; the table has {table}{self._ignored_text()}: {self.guess(pixels)}"
        )

    def _ignored_text(self) -> str:
        names = ", ".join(map(self.value_name, self.ignored))
        return f" (ignored: {names})" if self.ignored else ""

    def value_name(self, raw: int) -> str:
        """A raw value as people write it: 7, or 0,128,192."""
        if self.encoding == "index" or raw < 0:
            return "..." if raw < 0 else str(raw)
        return "{},{},{}".format(*unpack(raw))

    def guess(self, raw: Iterable[int]) -> str:
        """What files of these raw values look like, and how to say so in the description."""
        if self.encoding != "index":
            return "colours that are not in the palette; add them to palette or ignore"
        values = set(raw)
        k = len(self.names)
        if values <= {0, 255} or (len(values) == 2 and max(values) == 255):
            return (
                "this looks like a 0/255 mask; name the classes by value: names: {0: .., 255: ..}"
            )
        if k == 19 and max(values - {255}) <= 33:
            return "these look like Cityscapes raw ids (labelIds), not its 19 train ids"
        if max(values - {255}, default=0) == k and self.raw == tuple(range(k)):
            return (
                f"these look like classes numbered from 1; give names as 1: .. to {k}: .., "
                f"or list {k} under ignore if it means no label"
            )
        return "list them under names (value: name) or under ignore"


def _shorten(raw: tuple[int, ...]) -> tuple[int, ...]:
    return raw if len(raw) <= 8 else (*raw[:4], -1, *raw[-2:])


def spread(count: int) -> list[tuple[int, int, int]]:
    """Colours apart in hue and lightness, for a table that gives none."""
    colors = []
    for i in range(count):
        rgb = colorsys.hls_to_rgb(i * 0.618 % 1, (0.45, 0.65, 0.3)[i % 3], 0.6)
        colors.append((round(rgb[0] * 255), round(rgb[1] * 255), round(rgb[2] * 255)))
    return colors


def pack(rgb: NDArray[np.uint8]) -> NDArray[np.int64]:
    """`[...,3]` colours as one integer each."""
    wide = rgb.astype(np.int64)
    return (wide[..., 0] << 16) | (wide[..., 1] << 8) | wide[..., 2]


def unpack(raw: int) -> tuple[int, int, int]:
    return raw >> 16, (raw >> 8) & 255, raw & 255
