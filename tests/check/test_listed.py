"""Image folders of Hugging Face, whose metadata pairs images and labels."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from PIL import Image

from hmsa.check.folder import described
from hmsa.data.datasets import open_dataset
from hmsa.runs import InputError


def filled(root, rows, column="mask_file_name", name="metadata.jsonl", **more):
    """rows: of image and label, which are made."""
    for number, (image, label) in enumerate(rows):
        for path in (image, label):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
        values = np.zeros((4, 6), np.uint8)
        values[:, : 1 + number] = 1
        Image.fromarray(values * np.uint8(99)).save(root / image)
        Image.fromarray(values).save(root / label)
    table = [{"file_name": image, column: label} | more for image, label in rows]
    with (root / name).open("w", newline="") as file:
        if name.endswith("csv"):
            writer = csv.DictWriter(file, table[0])
            writer.writeheader()
            writer.writerows(table)
        else:
            file.write("".join(json.dumps(row) + "\n" for row in table))
    return root


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_one_file(tmp_path, name):
    rows = [(f"pics/a{n}.jpg", f"other/x{n}.png") for n in range(5)]
    root = filled(tmp_path / "in", rows, name=name, text="a, b")
    (root / "id2label.json").write_text('{"0": "sky", "1": "road"}')
    train, val = (open_dataset(described(root), split) for split in ("train", "val"))
    assert (len(train), len(val), train.labels.names) == (4, 1, ("sky", "road"))
    for pair in (*train.pairs, *val.pairs):
        assert pair.label.name == pair.image.name.replace("a", "x").replace("jpg", "png")


def test_a_file_for_each_split(tmp_path):
    for split in ("train", "validation"):
        rows = [(f"a{n}.jpg", f"x{n}.png") for n in range(3)]
        filled(tmp_path / "in" / split, rows, "label_file_name", depth_file_name="x0.png")
    for split in ("train", "val"):
        dataset = open_dataset(described(tmp_path / "in"), split)
        assert [(dataset.read_label(n) == 1).sum() for n in range(3)] == [4, 8, 12]


def test_metadata_of_captions(tmp_path):
    root = filled(tmp_path / "in", [("images/a.jpg", "labels/a.png")], "label")
    assert open_dataset(described(root), "train").pairs[0].label.parent == root / "labels"


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"mask_file_name": "b.png"}, "metadata.jsonl row 1: no file .*b.png in .*; correct it"),
        ({"mask_file_name": "../a.png"}, "metadata.jsonl row 1: no file .*a.png in "),
        ({"gt_file_name": "x.png"}, "the columns mask_file_name and gt_file_name; rename those"),
    ],
)
def test_mistakes(tmp_path, row, says):
    root = filled(tmp_path / "in", [("a.jpg", "x.png")])
    (tmp_path / "a.png").write_bytes((root / "x.png").read_bytes())
    line = {"file_name": "a.jpg", "mask_file_name": "x.png"} | row
    (root / "metadata.jsonl").write_text(json.dumps(line))
    with pytest.raises(InputError, match=says):
        described(root)
    (root / "metadata.jsonl").write_text("{")
    with pytest.raises(InputError, match="metadata.jsonl cannot be read"):
        described(root)
