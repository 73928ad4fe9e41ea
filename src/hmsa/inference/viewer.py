"""An offline page in which a person compares scales pixel by pixel; `view.html.j2` draws it."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.labels import IGNORE
from ..model.pretrained import Card
from ..report.page import Figure, css, made_by, render, uri
from ..report.pictures import RIGHT, UNKNOWN, WRONG, heat, shown, thin
from .result import Prediction

SIDE = 512  # pixels of the longer side of maps that stay at least: of up to 1023, all stay
ROUGH = 200  # the same of weights, which are smooth, and of probabilities, which are many
PHOTO = 1024  # pixels of the longer side of an image, at most
TOP = 3  # classes whose probabilities are shown
PRESENT = 0.001  # share of an image from which on it has a class

Bytes = NDArray[np.uint8]


def view_item(
    name: str,
    image: Bytes,
    made: Prediction,
    truth: Bytes | None = None,
    iou: Sequence[float | None] = (),
    miou: float | None = None,
) -> dict[str, Any]:
    """What the page holds of an image `[H,W,C]`, as JSON has it.

    made: with `detail` and `probabilities`. truth: label `[H,W]`. iou: of each class; None where
    there is no score. `maps` of the item is base64 of zlib of the differences, modulo 256, of
    neighbours among these bytes: of size `fine` the label of each scale, the fused one, confidence
    and, if any, truth; of size `rough` the weight of each scale, the attention of each but the
    finest, the TOP classes, and their probabilities, all where 1 is 255.
    """
    assert made.probabilities is not None
    known = [made.label] if truth is None else [made.label, truth]
    fine = [thin(each, SIDE) for each in (*made.single.values(), made.label, made.confidence8)]
    fine += [thin(each, SIDE) for each in known[1:]]
    kept = _rough(np.moveaxis(made.probabilities, 0, 2)).astype(np.float32)
    top = np.argsort(-kept, 2, kind="stable")[..., :TOP]
    weights = [_bytes(_rough(weight)) for weight in made.weights.values()]
    trust = [_bytes(_rough(attention)) for attention in made.attention.values()]
    chances = _bytes(np.take_along_axis(kept, top, 2))
    planes = [*fine, *weights, *trust, *np.moveaxis(top, 2, 0), *np.moveaxis(chances, 2, 0)]
    maps = np.concatenate([each.ravel() for each in planes]).astype(np.uint8)
    packed = zlib.compress(np.diff(maps, prepend=np.uint8(0)).tobytes(), 9)
    counts = np.max([np.bincount(each.ravel(), minlength=256) for each in known], 0)
    return {
        "name": name, "photo": uri(Figure(name, shown(image)), PHOTO),
        "size": made.label.shape, "fine": fine[0].shape, "rough": kept.shape[:2],
        "maps": base64.b64encode(packed).decode("ascii"), "truth": truth is not None,
        "present": np.flatnonzero(counts[:IGNORE] >= PRESENT * made.label.size).tolist(),
        "iou": list(iou), "miou": miou, "confidence": float(made.confidence8.mean()) / 255,
    }  # fmt: skip


def view_page(
    title: str, items: Sequence[dict[str, Any]], card: Card, scales: Sequence[float],
    palette: Sequence[Sequence[int]], command: str = "",
) -> str:  # fmt: skip
    """The HTML of the page of items of a network that has this card, with these scales."""
    data = {
        "classes": [[name, css(colour)] for name, colour in zip(card.names, palette, strict=True)],
        "scales": [f"{scale:g}×" for scale in scales],
        "weighted": card.network.get("fusion") != "max", "top": min(TOP, len(card.names)),
        "heat": [css(colour) for colour in heat(np.linspace(0, 1, 256))],
        "error": [css(colour) for colour in (RIGHT, WRONG, UNKNOWN)], "items": items,
    }  # fmt: skip
    return render("view.html.j2", title=title, data=data, made=made_by(), command=command)


def _rough(plane: NDArray[Any]) -> NDArray[Any]:
    return thin(thin(plane, SIDE), ROUGH)


def _bytes(shares: NDArray[np.floating]) -> Bytes:
    rounded: Bytes = np.rint(shares * np.float32(255)).astype(np.uint8)
    return rounded
