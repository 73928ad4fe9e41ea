"""`hmsa data check FOLDER`: what a folder holds, and a dataset.yaml that then reads it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml
from PIL import Image

from hmsa.data.datasets import open_dataset

INDEX = np.array([[0, 1, 2, 4], [2, 2, 1, 3]], np.uint8)
MASK = np.array([[0, 255, 0, 255], [0, 0, 0, 255]], np.uint8)
IDS = np.array([[7, 8, 11, 26], [0, 3, 24, 23]], np.uint8)
OBJECTS = IDS.astype(np.uint16) * 1000
COLOURS = np.array([[0, 0, 0], [128, 64, 128], [70, 130, 180]], np.uint8)
RGB = COLOURS[np.array([[0, 1, 2, 0], [2, 2, 1, 0]])]


def palette(shift=0):
    picture = Image.fromarray(np.roll(INDEX, shift, 0) % 3)
    picture.putpalette(np.roll(COLOURS, shift, 0).tobytes())
    return picture


def picture(label):
    """So large that random pixels have more colours than a label has."""
    small = label if isinstance(label, Image.Image) else Image.fromarray(label)
    return small.resize((16 * small.width, 16 * small.height), Image.Resampling.NEAREST)


@pytest.fixture
def folder(tmp_path):
    """`folder(image pattern, label pattern, label, ..)` -> a folder of three pairs of each."""

    def make(*parts):
        root = tmp_path / "mine"
        for images, labels, label in parts:
            for number in range(3):
                image, file = root / images.format(number), root / labels.format(number)
                image.parent.mkdir(parents=True, exist_ok=True)
                file.parent.mkdir(parents=True, exist_ok=True)
                size = picture(label).size
                noise = np.random.default_rng(number).integers(0, 256, (*size[::-1], 3), np.uint8)
                Image.fromarray(noise).save(image)
                picture(label).save(file)
        return root

    return make


BOTH = ("train", "val")
LAYOUTS = {
    "parallel": [("images/{}.jpg", "labels/{}.png", INDEX)],
    "masks with endings": [("img/a{}.jpg", "mask/a{}_mask.png", INDEX)],
    "one folder": [("a{}.jpg", "a{}_mask.png", MASK)],
    "one folder for each patient": [("p{0}/a{0}.png", "p{0}/a{0}_mask.png", MASK)],
    "both with endings": [("all/a{}_sat.jpg", "all/a{}_gt.png", INDEX)],
    "hyphens": [("a{}.jpg", "a{}-seg.png", INDEX)],
    "Pascal VOC": [("JPEGImages/a{}.jpg", "SegmentationClass/a{}.png", palette())],
    "splits outside": [(f"{s}/images/{{}}.jpg", f"{s}/masks/{{}}.png", INDEX) for s in BOTH],
    "splits inside": [(f"images/{s}/{{}}.jpg", f"annotations/{s}/{{}}.png", RGB) for s in BOTH],
    "splits in names": [(f"{s}_images/{{}}.jpg", f"{s}_masks/{{}}.png", MASK) for s in BOTH],
    "cities": [
        (f"left/{s}/ulm/{{}}_leftImg8bit.png", f"gtFine/{s}/ulm/{{}}_gtFine_{kind}.png", label)
        for s in BOTH
        for kind, label in (("labelIds", IDS), ("color", RGB), ("instanceIds", OBJECTS))
    ],
    "names of macOS": [("images/e\u0301{}.jpg", "labels/\u00e9{}.png", INDEX)],
    "names that say nothing": [("A/{}.png", "B/{}.png", INDEX)],
    "endings that nobody knows": [("pics/{}.jpg", "labels/{}_L.png", INDEX)],
    "beginnings": [("imgs/img_{}.jpg", "seg/mask_{}.png", INDEX)],
    "names that begin like labels": [("images/seg2_{}.jpg", "masks/seg2_{}.png", INDEX)],
    "beginnings in one folder": [("image{}.jpg", "mask{}.png", INDEX)],
    "cities and no splits": [(f"{s}/img/{{}}.jpg", f"{s}/gt/{{}}.png", INDEX) for s in "ab"],
    "Roboflow": [
        (f"{s}/a{{}}_jpg.rf.0af3.jpg", f"{s}/a{{}}_jpg.rf.0af3_mask.png", INDEX)
        for s in ("train", "valid")
    ],
}  # fmt: skip


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Pages go to runs/ of the folder one is in."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_written_is_read(hmsa, folder, layout):
    root = folder(*LAYOUTS[layout])
    read = hmsa("data", "check", root)
    assert read.code == 0, read.err
    written = (root / "dataset.yaml").read_text()
    checked = hmsa("data", "check", root, "--json")
    found = json.loads(checked.out)
    assert checked.code == 0, found["errors"]
    assert (root / "dataset.yaml").read_text() == written
    each = {split: n["pairs"] for split, n in found["pairs"].items()}
    given = "train" in LAYOUTS[layout][0][0]
    pairs = 3 * len({images for images, _, _ in LAYOUTS[layout]})
    assert each == ({"train": 3, "val": 3} if given else {"train": pairs - 1, "val": 1})
    for split in BOTH:
        assert open_dataset(root, split).frequencies().sum() > 0


@pytest.mark.parametrize(
    ("label", "guess", "evidence", "written"),
    [
        (INDEX, "class values", "values 0..4 in 3 of 3 files",
         {"names": {i: f"class_{i}" for i in range(5)}, "encoding": "index"}),
        (INDEX * 50, "class values", "values 0, 50, 100, 150, 200 in 3 of 3 files",
         {"names": {i: f"class_{i}" for i in range(0, 201, 50)}, "encoding": "index"}),
        (np.where(INDEX > 1, 255, INDEX).astype(np.uint8), "class values",
         "values 0..1, 255 in 3 of 3 files, 255 = no label",
         {"names": {0: "background", 1: "foreground"}, "encoding": "index"}),
        (MASK, "0/255 masks", "values 0, 255 in 3 of 3 files",
         {"names": {0: "background", 255: "foreground"}, "encoding": "index"}),
        (palette(), "class values with palette", "values 0..2 in 3 of 3 files",
         {"names": {i: f"class_{i}" for i in range(3)}, "encoding": "index",
          "palette": COLOURS.tolist()}),
        (RGB, "colours", "3 colours in 3 of 3 files",
         {"names": ["#000000", "#4682b4", "#804080"], "encoding": "rgb",
          "palette": COLOURS[[0, 2, 1]].tolist()}),
        (np.arange(80).reshape(4, 20).astype(np.uint8)[..., None] * [3, 2, 1], "blended colours",
         "80 colours in 3 of 3 files; export again without smoothing", None),
        (INDEX * 60 + 15, "class values", "values 15, 75, 135, 195, 255 in 3 of 3 files",
         {"names": {i: f"class_{i}" for i in range(15, 256, 60)}, "encoding": "index"}),
        (INDEX.astype(np.uint16) * 1000, "values beyond 255",
         "values 0, 1000, 2000, 3000, 4000 in 3 of 3 files; of instances or distances?", None),
        (np.arange(256, dtype=np.uint8)[None], "gray levels",
         "values 0..255 in 3 of 3 files; export again without smoothing", None),
    ],
)  # fmt: skip
def test_encodings(hmsa, folder, label, guess, evidence, written):
    root = folder(("images/{}.jpg", "labels/{}.png", label.astype(np.uint8) if
                   isinstance(label, np.ndarray) and label.ndim == 3 else label))  # fmt: skip
    ran = hmsa("data", "check", root, "--json")
    found = json.loads(ran.out)
    (row,) = (row for row in found["groups"] if row["files"] == "labels/*")
    assert (row["guess"], row["evidence"]) == (guess, evidence)
    assert row["pairs"] == "3 with images/*"
    if written is None:
        assert (ran.code, found["description"]) == (2, None)
    else:
        names = written["names"]
        written["names"] = (
            names if isinstance(names, list) else {str(k): v for k, v in names.items()}
        )
        held = {"held_out_of": "train", "share": 0.2}
        splits = {"train": {"images": "images", "labels": "labels"}, "val": held}
        rest = {"path": ".", "splits": splits}
        assert found["description"] == rest | written


def test_palettes_that_differ_are_colours(hmsa, folder):
    root = folder(("images/{}.jpg", "labels/{}.png", palette()))
    picture(palette(1)).save(root / "labels" / "0.png")
    assert hmsa("data", "check", root).code == 0
    assert yaml.safe_load((root / "dataset.yaml").read_text())["encoding"] == "palette"
    train = open_dataset(root, "train")
    shares = [train.only([i]).frequencies().tolist() for i in range(2)]
    assert all(sum(each) == 8 * 16**2 for each in shares)


def test_values_in_some_files_and_colours_in_others(hmsa, folder):
    root = folder(("images/{}.jpg", "labels/{}.png", INDEX))
    picture(RGB).save(root / "labels" / "0.png")
    ran = hmsa("data", "check", root)
    assert ran.code == 2
    assert "values and colours" in " ".join(ran.out.split())


def test_labels_as_jpeg(hmsa, folder):
    ran = hmsa("data", "check", folder(("images/{}.png", "labels/{}.jpg", INDEX)))
    assert ran.code == 2
    text = " ".join(ran.out.split())
    assert "JPEG masks" in text
    assert "No labels that can be read" in text


def test_nothing_is_overwritten_unasked(hmsa, folder):
    root = folder(("images/{}.jpg", "labels/{}.png", INDEX))
    (root / "dataset.yaml").write_text("mine")
    ran = hmsa("data", "check", root, "--labels", "labels")
    assert (ran.code, (root / "dataset.yaml").read_text()) == (2, "mine")
    assert "--overwrite" in ran.err
    assert hmsa("data", "check", root, "--overwrite").code == 0
    assert hmsa("data", "check", root / "dataset.yaml", "--overwrite").code == 2


@pytest.mark.parametrize(
    ("images", "labels", "says"),
    [
        ("{}.jpg", "{}.png", "have the same name; put images and labels into two folders"),
        (None, None, "no image files"),
    ],
)
def test_refused(hmsa, folder, tmp_path, images, labels, says):
    root = folder((images, labels, INDEX)) if images else tmp_path
    ran = hmsa("data", "check", root)
    assert (ran.code, ran.out) == (2, "")
    assert says in ran.err
    assert len(ran.err.splitlines()) == 1
