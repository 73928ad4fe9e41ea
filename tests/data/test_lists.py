"""List files: what a row means, in CSV and Parquet alike; what is wrong is named with its line."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hmsa.data.datasets import open_dataset
from hmsa.data.lists import read_list
from hmsa.runs.errors import InputError

LABEL = np.array([[0, 1, 2, 255]], np.uint8)
COLUMNS = ["image", "label", "weight", "source"]
ROWS = [
    ["train/images/a.jpg", "train/labels/a.png", "2.5", "drawn"],
    ["train/images/b.jpg", "train/labels/b.png", "", ""],
]


def write(file, rows, columns=COLUMNS):
    if file.suffix == ".csv":
        file.write_text("".join(",".join(row) + "\n" for row in [columns, *rows]))
    else:
        cells = zip(*rows, strict=True) if rows else [[] for _ in columns]
        parquet.write_table(pa.table([pa.array(c, pa.string()) for c in cells], columns), file)


@pytest.fixture(params=["csv", "parquet"])
def listed(request, folder_dataset, tmp_path):
    """Make a dataset whose train split is a list: `(rows, columns) -> dataset.yaml`."""

    def make(rows=ROWS, columns=COLUMNS, place="pictures") -> Path:
        name = f"chosen.{request.param}"
        path = folder_dataset({"a": LABEL, "b": LABEL}, splits={"train": name})
        write(tmp_path / place / name, rows, columns)
        return path

    return make


@pytest.mark.parametrize("place", ["pictures", "."])  # with the pictures, or with the description
def test_rows(listed, place):
    dataset = open_dataset(listed(place=place), "train")
    assert [(p.name, p.weight, p.source) for p in dataset.pairs] == [
        ("train/images/a", 2.5, "drawn"),
        ("train/images/b", 1.0, ""),
    ]
    assert (dataset.read(1)[1] == LABEL).all()


def test_two_columns_are_enough_and_further_ones_left_alone(listed):
    pairs = open_dataset(listed([["x", *row[:2]] for row in ROWS], ["note", *COLUMNS[:2]]), "train")
    assert [p.weight for p in pairs.pairs] == [1.0, 1.0]


def test_absolute_paths_keep_out_of_names(listed, tmp_path):
    absolute = [str(tmp_path / "pictures" / cell) for cell in ROWS[0][:2]]
    upward = ["../pictures/" + cell for cell in ROWS[1][:2]]
    a, b = open_dataset(listed([absolute, upward], COLUMNS[:2]), "train").pairs
    assert a.name == str(tmp_path / "pictures/train/images/a")[1:]
    assert b.name == "pictures/train/images/b"


def test_numbers_of_parquet_are_weights(folder_dataset, tmp_path):
    path = folder_dataset({"a": LABEL}, splits={"train": "x.parquet"})
    table = pa.table({"image": [ROWS[0][0]], "label": [ROWS[0][1]], "weight": [3]})
    parquet.write_table(table, tmp_path / "x.parquet")
    assert open_dataset(path, "train").pairs[0].weight == 3.0


@pytest.mark.parametrize(
    ("rows", "columns", "says"),
    [
        ([ROWS[0], ["train/images/c.jpg", *ROWS[0][1:]]], COLUMNS, "row 2: no file .*c.jpg"),
        ([[ROWS[0][0], "", "", ""]], COLUMNS, "row 1: key 'label' is missing"),
        ([[*ROWS[0][:2], "much", ""]], COLUMNS, "row 1: weight: .* valid number.*'much'"),
        ([[*ROWS[0][:2], "0", ""]], COLUMNS, "weight: .*greater than 0, not '0'"),
        ([[*ROWS[0][:2], "inf", ""]], COLUMNS, "weight: .*finite number, not 'inf'"),
        (
            [ROWS[0], ROWS[1], ROWS[0]],
            COLUMNS,
            "row 3: .* has the name of .*a.jpg; list an image once",
        ),
        ([ROWS[0][:2]], ["image", "mask"], "has the columns image, mask; .* image and label be"),
        ([], COLUMNS, "lists no images"),
    ],
)
def test_mistakes(listed, rows, columns, says):
    with pytest.raises(InputError, match=says) as caught:
        open_dataset(listed(rows, columns), "train")
    assert "\n" not in str(caught.value)
    assert "chosen." in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("x.csv", b"image,label\na.jpg,a,png\n", "Expected 2 columns, got 3"),
        ("x.csv", b"image,label\na.jpg\n", "Expected 2 columns, got 1"),
        ("x.csv", b"image|label\na.jpg|a.png\n", "has the columns image.label; its first line"),
        ("x.csv", b"a.jpg,a.png\n", "has the columns a.jpg, a.png; its first line must name"),
        ("x.csv", b"image,label\ntr\xe4in.jpg,a.png\n", "UTF8 data; save it as UTF-8"),
        ("x.csv", b"image,l\xe4bel\na.jpg,a.png\n", "save it as UTF-8"),
        ("x.txt", b"\na.jpg\n", "line 2: 'a.jpg' is not an image and its label; write"),
        ("x.txt", b"a.jpg b.png\n", "line 1: no file b.png in"),
        ("x.csv", b"", "Empty CSV file"),
        ("x.csv", b"image,label\n\xff\xfe,\x00\n", "x.csv cannot be read as a list"),
        ("x.csv", b'image,label\n"a.jpg,a.png\n', "x.csv cannot be read as a list"),
        ("x.parquet", b"PAR1 not really", "x.parquet cannot be read as a list"),
        ("y.csv", b"", "no list x.csv in"),
    ],
)
def test_broken_files(folder_dataset, tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    listed = "x.csv" if name == "y.csv" else name
    path = folder_dataset({"a": LABEL}, splits={"train": listed})
    (tmp_path / "a.jpg").touch()
    with pytest.raises(InputError, match=says) as caught:
        open_dataset(path, "train")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("separator", [",", ";", "\t", " "])
@pytest.mark.parametrize("slash", ["/", "\\"])
def test_lists_of_other_tools_are_read(folder_dataset, tmp_path, encoding, separator, slash):
    rows = [[cell.replace("/", slash) for cell in row[:2]] for row in ROWS]
    lists = {"x.csv": [["image", "label"], *rows], "x.txt": rows}
    for name in lists if separator != " " else ["x.txt"]:
        path = folder_dataset({"a": LABEL, "b": LABEL}, splits={"train": name})
        (tmp_path / name).write_text("\r\n".join(map(separator.join, lists[name])), encoding)
        pairs = open_dataset(path, "train").pairs
        assert [p.name for p in pairs] == ["train/images/a", "train/images/b"]


def test_a_path_with_spaces_or_in_the_other_unicode(folder_dataset, tmp_path):
    path = folder_dataset({"my mülл": LABEL}, splits={"train": "x.txt"})
    line = "train/images/my mülл.jpg train/labels/my mülл.png"
    for form in ("NFC", "NFD"):
        (tmp_path / "x.txt").write_text(unicodedata.normalize(form, line), "utf-8")
        (pair,) = open_dataset(path, "train").pairs
        assert pair.name == unicodedata.normalize("NFC", "train/images/my mülл")


def test_sizes_are_checked_like_those_of_folders(listed, tmp_path):
    path = listed()
    Image.new("L", (9, 9)).save(tmp_path / "pictures/train/labels/b.png")
    with pytest.raises(InputError, match="b.jpg is 4x1 but .*b.png is 9x9"):
        open_dataset(path, "train")


@given(st.lists(st.floats(0, exclude_min=True, allow_infinity=False), min_size=1, max_size=5))
def test_weights_come_back_from_both_kinds(tmp_path_factory, weights):
    folder = tmp_path_factory.mktemp("list")
    rows = []
    for i, weight in enumerate(weights):
        (folder / f"{i}.png").touch()
        rows.append([f"{i}.png", f"{i}.png", repr(weight)])
    for kind in ("csv", "parquet"):
        write(folder / f"x.{kind}", rows, COLUMNS[:3])
        assert [row.weight for row in read_list(f"x.{kind}", folder, folder, "")] == weights
