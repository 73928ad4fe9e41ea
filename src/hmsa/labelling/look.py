"""One image in memory -> label and confidence as pictures, and what its row says of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..data.labels import LabelSet
from ..inference.predictor import Predictor
from ..report.pictures import palette_png
from .rows import Row, figures, tally

People = tuple[NDArray[np.uint8], NDArray[np.bool_]]  # label [H,W] by people, where it counts


def look(
    predictor: Predictor,
    pixels: NDArray[np.uint8],
    labels: LabelSet,
    people: People | None = None,
    agreement: bool = False,
) -> tuple[dict[str, Image.Image], Row]:
    """Pictures by kind, in the values of `labels`, of an image [H,W,3]; the figures of its row.

    agreement: also a picture of 8 bits, floor(255 s) for the share s of the scales, and of the
    looks at the picture and its mirror image, that say by themselves what all say together.
    """
    seen = predictor(pixels, detail=agreement)
    label, confidence = seen.label, seen.confidence
    told: Row = {"status": "done", "height": label.shape[0], "width": label.shape[1]}
    agreed = None
    if agreement:
        voices = [*seen.single.values(), *seen.flips.values()]
        same = np.sum([one == seen.label for one in voices], 0)
        agreed = (same * 255 // len(voices)).astype(np.uint8)
    if people:
        by_people, wanted = people
        label = np.where(wanted, by_people, label)
        confidence = np.where(wanted, np.uint8(255), confidence)
        agreed = None if agreed is None else np.where(wanted, np.uint8(255), agreed)
        told["coarse_pixels"] = int(wanted.sum())
    palette = np.zeros((max(labels.raw) + 1, 3), np.uint8)
    palette[list(labels.raw)] = labels.palette
    pictures = {
        "label": palette_png(labels.to_raw(label), palette),
        "confidence": Image.fromarray(confidence),
    }
    if agreed is not None:
        pictures["agreement"] = Image.fromarray(agreed)
        told["mean_agreement"] = float(agreed.mean()) / 255
    return pictures, told | figures(tally(label, confidence, len(labels.names)))
