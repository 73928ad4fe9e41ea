"""LabelSet: what the values in a dataset's label files mean.

`label` = train ids 0..K-1 with 255 = ignore, everywhere behind this file; `raw` = a file's own.
"""

from __future__ import annotations

import difflib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
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
            if self.encoding == "index":
                raw = np.asarray(picture)
                if raw.ndim == 3:
                    if (raw[..., :1] != raw[..., :3]).any():
                        raise InputError(
                            f"{path} holds colours, not class values; set encoding: rgb and give "
                            "the palette"
                        )
                    raw = raw[..., 0]
                if raw.dtype != np.uint8:
                    raw = raw.astype(np.int64)
            else:
                if self.encoding == "palette" and picture.mode != "P":
                    raise InputError(
                        f"{path} is a {picture.mode} picture, not a palette one; set encoding: "
                        f"{'rgb' if picture.mode.startswith('RGB') else 'index'}"
                    )
                raw = pack(np.asarray(picture.convert("RGB")))
        return self._lookup(raw, path)

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
            known = self._known()
            ids = np.array([known.get(int(v), _UNKNOWN) for v in values], dtype=np.uint8)
            label = ids[where].reshape(raw.shape)
        if (label == _UNKNOWN).any():
            raise InputError(self._diagnose(raw, label == _UNKNOWN, path))
        return label

    def _known(self) -> dict[int, int]:
        return dict.fromkeys(self.ignored, IGNORE) | {r: i for i, r in enumerate(self.raw)}

    def _table(self, size: int) -> NDArray[np.uint8]:
        table = np.full(size, _UNKNOWN, dtype=np.uint8)
        for raw, train_id in self._known().items():
            if 0 <= raw < size:
                table[raw] = train_id
        return table

    def _diagnose(self, raw: NDArray[np.integer], unknown: NDArray[np.bool_], path: Path) -> str:
        counts = Counter(dict(zip(*np.unique(raw[unknown], return_counts=True), strict=True)))
        shown = ", ".join(
            f"{self._name(int(value))} ({n} pixels)" for value, n in counts.most_common(4)
        )
        more = f" and {len(counts) - 4} more" if len(counts) > 4 else ""
        table = ", ".join(self._name(r) for r in _shorten(self.raw))
        return (
            f"{path}: {len(counts)} value(s) outside the table of {len(self.names)} classes: "
            f"{shown}{more}; the table has {table}{self._ignored_text()}: {self._guess(raw)}"
        )

    def _ignored_text(self) -> str:
        return f" (ignored: {', '.join(map(self._name, self.ignored))})" if self.ignored else ""

    def _name(self, raw: int) -> str:
        if self.encoding == "index" or raw < 0:
            return "..." if raw < 0 else str(raw)
        return "{},{},{}".format(*unpack(raw))

    def _guess(self, raw: NDArray[np.integer]) -> str:
        if self.encoding != "index":
            return "colours that are not in the palette; add them to palette or ignore"
        values = set(np.unique(raw).tolist())
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


def pack(rgb: NDArray[np.uint8]) -> NDArray[np.int64]:
    """`[...,3]` colours as one integer each."""
    wide = rgb.astype(np.int64)
    return (wide[..., 0] << 16) | (wide[..., 1] << 8) | wide[..., 2]


def unpack(raw: int) -> tuple[int, int, int]:
    return raw >> 16, (raw >> 8) & 255, raw & 255
