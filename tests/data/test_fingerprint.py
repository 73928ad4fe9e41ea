"""Whatever changes in a dataset is noticed, and named in one line."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import yaml
from PIL import Image

from hmsa.data import fingerprint
from hmsa.data.datasets import open_dataset

LABEL = np.array([[0, 1, 2, 255], [2, 2, 1, 0]], np.uint8)


@pytest.fixture
def path(folder_dataset):
    return folder_dataset({"a": LABEL, "b": LABEL, "c": LABEL})


def taken(path):
    """As it comes back out of a file."""
    return json.loads(json.dumps(fingerprint.of(open_dataset(path, "train"))))


def describe(file, **changes):
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | changes))


def change(path, how):
    root = path.parent / "pictures" / "train"
    image, label = root / "images" / "b.jpg", root / "labels" / "b.png"
    if how == "image b changed":
        Image.new("RGB", (4, 2), (255, 0, 9)).save(image, comment=b"edited")
    elif how == "label b changed":  # in the same number of bytes, at the same time
        about = label.stat()
        Image.fromarray(LABEL[::-1]).save(label)
        label.write_bytes(label.read_bytes().ljust(about.st_size, b"\0"))
        os.utime(label, ns=(about.st_atime_ns, about.st_mtime_ns + 1))
    elif how == "image b removed":
        image.unlink(), label.unlink()
    elif how == "2 images added, such as d":
        for name in "de":
            Image.open(image).save(root / "images" / f"{name}.jpg")
            Image.open(label).save(root / "labels" / f"{name}.png")
    elif how == "class post added":
        describe(path, names=["land", "water", "road", "post"], palette=None)
    elif how == "another order of the classes; class water 1 -> 0; class land 0 -> 1":
        describe(path, names=["water", "land", "road"])
    elif how.startswith("class post added; class road removed"):
        describe(path, names=["land", "water", "post"])
    elif how == "ignore ['255'] -> ['255', '7']":
        describe(path, ignore=[255, 7])


@pytest.mark.parametrize(
    "how",
    [
        "image b changed",
        "label b changed",
        "image b removed",
        "2 images added, such as d",
        "class post added",
        "class post added; class road removed",
        "another order of the classes; class water 1 -> 0; class land 0 -> 1",
        "ignore ['255'] -> ['255', '7']",
    ],
)
def test_each_change_is_named(path, how):
    before = taken(path)
    change(path, how)
    assert fingerprint.changes(before, taken(path)) == how


def test_a_copy_elsewhere_is_the_same(path, tmp_path):
    before = taken(path)
    for file in (tmp_path / "pictures").rglob("*.*"):
        os.utime(file, (1, 1))
    (tmp_path / "pictures").rename(tmp_path / "moved")
    describe(path, path="moved", palette=[[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    assert fingerprint.changes(before, taken(path)) is None
    assert taken(path)["digest"] == before["digest"]


def test_weights_of_a_list(path):
    rows = [f"pictures/train/images/{n}.jpg,pictures/train/labels/{n}.png" for n in "ab"]
    listed = path.parent / "list.csv"
    describe(path, splits={"train": "list.csv"}, path=".")
    listed.write_text(f"image,label,weight\n{rows[0]},1\n{rows[1]},1\n")
    before = taken(path)
    listed.write_text(f"image,label,weight\n{rows[1]},1\n{rows[0]},2\n")
    assert fingerprint.changes(before, taken(path)) == (
        "another order of the images; weight pictures/train/images/a changed"
    )
