"""Auto-labelled folders made by no network: of a picture, red is the class, green how sure."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from PIL import Image

from hmsa.data.images import read_image
from hmsa.data.labels import LabelSet, spread
from hmsa.data.stretch import Stretch
from hmsa.inference.predictor import Prediction
from hmsa.model.pretrained import Card

NAMES = ("sky", "road", "post", "car")
LABELS = LabelSet(NAMES, tuple(spread(4)), (0, 1, 2, 3))


class Painted:
    """In place of a `Predictor`: the picture itself says what is seen of it."""

    def __init__(self, scales=(0.5, 1.0), turn=0, names=NAMES):
        self.model = SimpleNamespace(card=Card({}, list(names)))
        self.scales, self.flip, self.turn, self.shown = list(scales), False, turn, 0
        self.settings = {"scales": self.scales, "flip": False}
        self.stretch = Stretch()

    def __call__(self, image, detail=False):
        self.shown += 1
        label = ((image[..., 0] // 64 + self.turn) % 4).astype(np.uint8)
        single = {s: np.roll(label, i, 1) for i, s in enumerate(self.scales)} if detail else {}
        return Prediction(label, image[..., 1], single)


@pytest.fixture
def pictures(tmp_path):
    """Four pictures: blocks of red, noise of green, one in a folder, one that lies on its side."""
    folder = tmp_path / "in"
    (folder / "deep [x]").mkdir(parents=True)
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    for i, name in enumerate(("a.png", "b.png", "deep [x]/c d.png", "lying.png")):
        blocks = rng.integers(0, 256, (4 + i, 5), np.uint8).repeat(6, 0).repeat(7, 1)
        green = rng.integers(60 * i, 256, blocks.shape, np.uint8)
        picture = Image.fromarray(np.stack([blocks, green, blocks], -1))
        picture.save(folder / name, exif=exif if "lying" in name else Image.Exif())
    return folder


@pytest.fixture
def autolabel(label, pictures, tmp_path):
    """`autolabel(out="out", **changes)` -> the folder, and how many images were new."""

    def run(out="out", *, turn=0, labels=LABELS, images=pictures, **options):
        options = {"agreement": True} | options
        if labels.raw != LABELS.raw or labels.palette != LABELS.palette:
            content = {"splits": {}, "names": dict(zip(labels.raw, labels.names, strict=True)),
                       "palette": [list(color) for color in labels.palette]}  # fmt: skip
            options["raw"] = tmp_path / "raw.yaml"
            options["raw"].write_text(yaml.safe_dump(content))
        predictor = Painted(turn=turn, names=labels.names)
        outcome = label(predictor, images, tmp_path / out, teacher=f"t{turn}", **options)
        return tmp_path / out, outcome.summary["new"]

    return run


def seen(file, turn=0):
    """Label and confidence of a picture file, by the rule above."""
    found = Painted(turn=turn)(read_image(file), detail=True)
    return found.label, found.confidence8
