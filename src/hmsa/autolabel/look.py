"""One image in memory -> label and confidence as pictures, and what its row says of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..data.labels import LabelSet
from ..pictures import palette_png
from ..predictor import Predictor
from .rows import Row, figures

People = tuple[NDArray[np.uint8], NDArray[np.bool_]]  # label [H,W] by people, where it counts


def look(
    predictor: Predictor, pixels: NDArray[np.uint8], labels: LabelSet, people: People | None = None
) -> tuple[dict[str, Image.Image], Row]:
    """Pictures by kind, in the values of `labels`, of an image [H,W,3]; the figures of its row."""
    seen = predictor(pixels)
    label, confidence = seen.label, seen.confidence
    told: Row = {"status": "done", "height": label.shape[0], "width": label.shape[1]}
    if people:
        by_people, wanted = people
        label = np.where(wanted, by_people, label)
        confidence = np.where(wanted, np.uint8(255), confidence)
        told["coarse_pixels"] = int(wanted.sum())
    palette = np.zeros((max(labels.raw) + 1, 3), np.uint8)
    palette[list(labels.raw)] = labels.palette
    pictures = {
        "label": palette_png(labels.to_raw(label), palette),
        "confidence": Image.fromarray(confidence),
    }
    k = len(labels.names)
    bins = np.bincount((label.astype(np.int64) << 8 | confidence).ravel(), minlength=k << 8)
    return pictures, told | figures(bins.reshape(k, 256))
