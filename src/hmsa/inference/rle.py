"""Labels as run lengths, the way COCO holds masks.

A mask is read column by column; its runs are the lengths of 0, 1, 0, 1, .. in turn, the first of
which may be 0. Definition: maskApi.h of the COCO API.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_Runs = NDArray[np.int64]


def class_runs(label: NDArray[np.uint8]) -> dict[int, _Runs]:
    """Label [H,W] -> the runs of the mask of every value that occurs."""
    pixels = label.T.ravel()
    bounds = np.flatnonzero(np.diff(pixels)) + 1
    starts, ends = np.append(0, bounds), np.append(bounds, pixels.size)
    values = pixels[starts]
    found: dict[int, _Runs] = {}
    for value in np.unique(values):
        mine = values == value
        edges = np.stack([starts[mine], ends[mine]], axis=1).ravel()
        runs = np.diff(edges, prepend=0, append=pixels.size)
        found[int(value)] = runs if runs[-1] else runs[:-1]
    return found


def pack_runs(runs: _Runs) -> str:
    """COCO's compressed counts: from the fourth run on its difference to the last but one, in
    digits of 5 bits, the lowest first, as characters from "0" on; a sixth bit says more follow.
    """
    rest = runs.copy()
    rest[3:] -= runs[1:-2]
    digits, unfinished = [], np.ones(len(runs), bool)
    while unfinished.any():
        low, rest = rest & 31, rest >> 5
        more = unfinished & (rest != np.where(low & 16, -1, 0))
        digits.append(np.where(unfinished, 48 + low + 32 * more, 0))
        unfinished = more
    text = np.stack(digits, axis=1).astype(np.uint8)
    return text[text > 0].tobytes().decode("ascii")


def coco(label: NDArray[np.uint8], file: str, names: Sequence[str]) -> dict[str, Any]:
    """A COCO file of one picture: one annotation for each class in it; ids are class indices."""
    height, width = label.shape
    annotations: list[dict[str, Any]] = []
    for k, runs in class_runs(label).items():
        mask = label == k
        rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
        top, left = int(rows[0]), int(columns[0])
        annotations.append({
            "id": len(annotations) + 1, "image_id": 1, "category_id": k, "iscrowd": 0,
            "area": int(runs[1::2].sum()),
            "bbox": [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1],
            "segmentation": {"size": [height, width], "counts": pack_runs(runs)},
        })  # fmt: skip
    return {
        "images": [{"id": 1, "file_name": file, "height": height, "width": width}],
        "annotations": annotations,
        "categories": [{"id": k, "name": name} for k, name in enumerate(names)],
    }
