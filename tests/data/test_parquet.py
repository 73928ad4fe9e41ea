"""Datasets of Hugging Face, in and out; what their library reads if it is installed."""

from __future__ import annotations

import io
import json

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from hmsa.check.folder import described
from hmsa.data.datasets import open_dataset
from hmsa.data.imports import import_masks
from hmsa.data.parquet import export
from hmsa.runs import InputError

FILE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def content(number, kind):
    """The bytes of an image, or of its label of 0 and 1."""
    file, label = io.BytesIO(), np.zeros((4, 6), np.uint8)
    label[:, : 1 + number] = 1
    Image.fromarray(label if kind == "label" else label * np.uint8(99)).save(file, "PNG")
    return file.getvalue()


def table(numbers, **columns):
    """columns: image or label, by their names; default: of one name each."""
    columns = columns or {"image": "image", "label": "label"}
    rows = {
        name: pa.array(
            [{"bytes": content(n, kind), "path": f"day 1/{n}.png"} for n in numbers], FILE
        )
        for name, kind in columns.items()
    }
    return pa.table(rows | {"text": ["x"] * len(numbers)})


@pytest.fixture
def root(tmp_path):
    (tmp_path / "in" / "data").mkdir(parents=True)
    for split, numbers in (("train", [0, 1]), ("validation", [2])):
        file = tmp_path / "in" / "data" / f"{split}-00000-of-00001.parquet"
        parquet.write_table(table(numbers), file)
    (tmp_path / "in" / "id2label.json").write_text('{"0": "sky", "1": "road"}')
    return tmp_path / "in"


def test_given_as_a_folder(root, hmsa, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert hmsa("data", "check", root).code == 0
    made = described(root)
    assert made == tmp_path / "in-labels"
    train, val = (open_dataset(made, split) for split in ("train", "val"))
    assert ([pair.name for pair in train.pairs], len(val)) == (["day 1/0", "day 1/1"], 1)
    assert train.labels.names == ("sky", "road")
    assert [(train.read_label(n) == 1).sum() for n in (0, 1)] == [4, 8]
    assert train.pairs[1].image.read_bytes() == content(1, "image")


def test_arrow_files(tmp_path):
    for split, names in (("train", {"label": "label", "pixels": "image"}), ("test", None)):
        file = tmp_path / "in" / split / "data-00000-of-00001.arrow"
        file.parent.mkdir(parents=True)
        made = table([0, 0], **names or {})
        with pa.ipc.new_stream(file, made.schema) as stream:
            stream.write_table(made)
        file.with_name("cache-1.arrow").write_text("x")
    made = import_masks(tmp_path / "in", tmp_path / "out")
    assert sorted(made.notes[0].removeprefix("labelled images: ").split(", ")) == [
        "2 in test", "2 in train",
    ]  # fmt: skip
    assert len([*(made.path / "images" / "train").rglob("*.png")]) == 2, "of one name"


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        (
            {"image": "image", "depth": "image"},
            "the columns image, depth, text; it needs one of im",
        ),
        ({"image": "image", "mask": "label", "label": "label"}, "the columns image, mask, label"),
    ],
)
def test_other_columns(root, tmp_path, columns, says):
    file = root / "data" / "train-00000-of-00001.parquet"
    parquet.write_table(table([0], **columns), file)
    with pytest.raises(InputError, match=says):
        import_masks(root, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("cell", "says"),
    [
        ({"bytes": None, "path": "a.png"}, "image 1 of train: a file is not inside"),
        ({"bytes": b"x", "path": "a.png"}, "image 1 of train is not an image"),
        ({"bytes": b"x", "path": "../../a.png"}, "leads out of its folder"),
    ],
)
def test_bad_rows(root, tmp_path, cell, says):
    rows = pa.table({name: pa.array([cell], FILE) for name in ("image", "label")})
    parquet.write_table(rows, root / "data" / "train-00000-of-00001.parquet")
    with pytest.raises(InputError, match=says):
        import_masks(root, tmp_path / "out")
    (root / "data" / "train-00000-of-00001.parquet").write_text("x")
    with pytest.raises(InputError, match="train-00000-of-00001.parquet cannot be read"):
        import_masks(root, tmp_path / "out")


@pytest.fixture
def exported(root, tmp_path, hmsa):
    dataset = import_masks(root, tmp_path / "mine").path
    splits = {
        split: {kind: f"{kind}/{split}" for kind in ("images", "labels")}
        for split in ("train", "val")
    }
    content = {"names": ["sky", "road"], "splits": splits}
    (dataset / "dataset.yaml").write_text(json.dumps(content))
    ran = hmsa("data", "export", dataset, tmp_path / "out")
    assert (ran.code, ran.out.strip()) == (0, str(tmp_path / "out"))
    return tmp_path / "out"


def test_there_and_back(exported, tmp_path):
    back = open_dataset(described(exported), "train")
    assert back.labels.names == ("sky", "road")
    assert [(back.read_label(n) == 1).sum() for n in (0, 1)] == [4, 8]
    assert back.pairs[0].image.read_bytes() == content(0, "image")
    with pytest.raises(InputError, match="is not empty"):
        export(tmp_path / "mine", exported)
    with pytest.raises(InputError, match="with which --images and --ignore do nothing"):
        import_masks(exported, tmp_path / "out2", ignore=["sky"])


def test_what_datasets_loads(exported, tmp_path):
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_dataset(str(exported), cache_dir=str(tmp_path / "cache"))
    assert {split: len(rows) for split, rows in loaded.items()} == {"train": 2, "val": 1}
    assert [type(f).__name__ for f in loaded["train"].features.values()] == ["Image", "Image"]
    assert (np.asarray(loaded["train"][1]["label"]) == 1).sum() == 8
