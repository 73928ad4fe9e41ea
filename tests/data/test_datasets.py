"""A YAML file and a folder are enough; what is wrong with them is said in one line."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from hmsa.data.datasets import open_dataset
from hmsa.runs.errors import InputError

LABEL = np.array([[0, 1, 2, 255], [2, 2, 1, 0]], np.uint8)
COLORS = np.array([[10, 20, 30], [0, 0, 200], [99, 99, 99]], np.uint8)


def palette_picture(label, colors):
    table = np.zeros((256, 3), np.uint8)
    table[: len(colors)] = colors
    picture = Image.frombytes("P", label.shape[::-1], label.tobytes())
    picture.putpalette(table.ravel().tolist())
    return picture


def read_only(path, split="train"):
    dataset = open_dataset(path, split)
    assert len(dataset) == 1
    return dataset.read(0)[1]


class TestEncodings:
    def test_index(self, folder_dataset):
        assert (read_only(folder_dataset({"a": LABEL})) == LABEL).all()

    def test_index_in_a_palette_picture_is_its_index(self, folder_dataset):
        path = folder_dataset({"a": palette_picture(LABEL, COLORS[::-1])})
        assert (read_only(path) == LABEL).all()

    def test_index_in_grey_rgb(self, folder_dataset):
        assert (read_only(folder_dataset({"a": np.stack([LABEL] * 3, -1)})) == LABEL).all()

    def test_index_by_value(self, folder_dataset):
        raw = np.array([[7, 11, 26, 3]], np.uint8)
        path = folder_dataset({"a": raw}, names={7: "a", 11: "b", 26: "c"}, ignore=3)
        assert read_only(path).tolist() == [[0, 1, 2, 255]]

    def test_index_of_16_bits(self, folder_dataset):
        raw = np.array([[1000, 2000, 3000]], np.uint16)
        path = folder_dataset({"a": raw}, names={1000: "a", 2000: "b", 3000: "c"})
        assert read_only(path).tolist() == [[0, 1, 2]]

    def test_a_0_255_mask_named_by_value(self, folder_dataset):
        raw = np.array([[0, 255]], np.uint8)
        path = folder_dataset({"a": raw}, names={0: "a", 255: "b"}, palette=None)
        assert read_only(path).tolist() == [[0, 1]]

    def test_rgb(self, folder_dataset):
        colors = np.vstack([COLORS, np.zeros((253, 3), np.uint8)])[LABEL]
        path = folder_dataset({"a": colors}, encoding="rgb", ignore=[[0, 0, 0]])
        assert (read_only(path) == LABEL).all()

    def test_palette_goes_by_colour_not_by_index(self, folder_dataset):
        label = np.array([[0, 1, 2]], np.uint8)
        path = folder_dataset(
            {"a": palette_picture(label, COLORS[::-1])}, encoding="palette", ignore=[]
        )
        assert read_only(path).tolist() == [[2, 1, 0]]


def turned(picture: Image.Image, path: Path) -> None:
    """A PNG that says behind its pixels that it is to be shown a quarter turned."""
    picture.save(path)
    exif = Image.Exif()
    exif[0x0112] = 6
    body = exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = b"eXIf" + body
    whole, end = path.read_bytes()[:-12], path.read_bytes()[-12:]
    crc = struct.pack(">I", zlib.crc32(chunk))
    path.write_bytes(whole + struct.pack(">I", len(body)) + chunk + crc + end)


class TestSplits:
    def test_include_and_exclude(self, folder_dataset):
        split = {"images": "train/images", "labels": "train/labels"}
        path = folder_dataset(
            dict.fromkeys(("day_1", "day_2", "night_1"), LABEL),
            splits={
                "day": split | {"include": ["day_*"]},
                "rest": split | {"exclude": ["day_*"]},
            },
        )
        assert [p.name for p in open_dataset(path, "day").pairs] == ["day_1", "day_2"]
        assert [p.name for p in open_dataset(path, "rest").pairs] == ["night_1"]

    def test_endings_pair_cityscapes_names(self, folder_dataset, tmp_path):
        path = folder_dataset({})
        root = tmp_path / "pictures"
        for kind, ending in (
            ("left", "left.png"),
            ("fine", "fine_ids.png"),
            ("fine", "fine_x.png"),
        ):
            file = root / kind / "aachen" / f"a_1_{ending}"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(LABEL).save(file)
        split = {"images": "left", "labels": "fine"}
        split |= {"image_ending": "_left", "label_ending": "_fine_ids"}
        content = yaml.safe_load(path.read_text()) | {"splits": {"train": split}}
        path.write_text(yaml.safe_dump(content))
        (pair,) = open_dataset(path, "train").pairs
        assert pair.name == "aachen/a_1"
        assert pair.label.name == "a_1_fine_ids.png"

    def test_folders_are_read_as_one(self, folder_dataset, tmp_path):
        split = {"images": ["train/images", "more"], "labels": ["train/labels", "more_labels"]}
        path = folder_dataset({"a": LABEL}, splits={"train": split})
        for folder in ("more", "more_labels"):
            (tmp_path / "pictures" / folder).mkdir()
            Image.fromarray(LABEL).save(tmp_path / "pictures" / folder / "b.png")
        assert [p.name for p in open_dataset(path, "train").pairs] == ["a", "b"]
        Image.fromarray(LABEL).save(tmp_path / "pictures" / "more" / "a.png")
        with pytest.raises(InputError, match="images/a.jpg and .*more/a.png have the same name"):
            open_dataset(path, "train")

    def test_a_picture_that_says_last_how_it_lies(self, folder_dataset, tmp_path):
        path = folder_dataset({"a": LABEL})
        folder = tmp_path / "pictures" / "train" / "images"
        (folder / "a.jpg").unlink()
        turned(Image.fromarray(LABEL.T.copy()), folder / "a.png")
        assert open_dataset(path, "train").read(0)[0].shape == (2, 4, 3)

    def test_folder_means_its_dataset_yaml(self, folder_dataset):
        assert len(open_dataset(folder_dataset({"a": LABEL}).parent, "train")) == 1

    def test_data_overrides_the_path(self, folder_dataset, tmp_path):
        path = folder_dataset({"a": LABEL}, path="elsewhere")
        assert len(open_dataset(path, "train", tmp_path / "pictures")) == 1

    def test_frequencies(self, folder_dataset):
        dataset = open_dataset(folder_dataset({"a": LABEL, "b": LABEL}), "train")
        assert dataset.frequencies().tolist() == [4, 4, 6]


class TestConfidence:
    VALUES = np.array([[255, 128, 127, 0], [0, 229, 0, 230]], np.uint8)

    @pytest.fixture
    def sure(self, folder_dataset, tmp_path):
        """`(values) -> dataset.yaml` whose one label has them as its confidence."""

        def make(values, name="a_sure.png"):
            split = {"images": "train/images", "labels": "train/labels", "confidence": "sure"}
            path = folder_dataset(
                {"a": LABEL}, splits={"train": split | {"confidence_ending": "_sure"}}
            )
            (tmp_path / "pictures" / "sure").mkdir()
            Image.fromarray(values).save(tmp_path / "pictures" / "sure" / name)
            return path

        return make

    @pytest.mark.parametrize(
        ("least", "label"),
        [
            (0, [[0, 1, 2, 255], [2, 2, 1, 0]]),
            (0.5, [[0, 1, 255, 255], [255, 2, 255, 0]]),  # as official: 127 / 255 < 0.5
            (0.9, [[0, 255, 255, 255], [255, 255, 255, 0]]),
            (1, [[0, 255, 255, 255], [255, 255, 255, 255]]),
            ({"water": 0.6}, [[0, 255, 2, 255], [2, 2, 255, 0]]),
            ({"road": 0.6, "land": 1.0}, [[0, 1, 255, 255], [255, 2, 1, 255]]),
        ],
    )
    def test_less_sure_is_ignored(self, sure, least, label):
        dataset = open_dataset(sure(self.VALUES), "train").trusting(least)
        assert dataset.read(0)[1].tolist() == label
        counts = np.bincount(np.ravel(label), minlength=256)[:3]
        assert dataset.frequencies().tolist() == counts.tolist()

    def test_without_confidence_everything_counts(self, folder_dataset):
        dataset = open_dataset(folder_dataset({"a": LABEL}), "train").trusting(0.9)
        assert (dataset.read(0)[1] == LABEL).all()

    @pytest.mark.parametrize(
        ("values", "name", "says"),
        [
            (VALUES, "b_sure.png", r"1 file\(s\) without confidence, such as .*a.png"),
            (
                VALUES[:1],
                "a_sure.png",
                r"a_sure.png must have .* the size of .*, not \(1, 4\) of uint8",
            ),
            (VALUES.astype(np.uint16), "a_sure.png", "must have one channel of 8 bits.* of uint16"),
        ],
    )
    def test_mistakes(self, sure, values, name, says):
        with pytest.raises(InputError, match=says):
            open_dataset(sure(values, name), "train").trusting(0.5).read(0)

    def test_no_folder(self, folder_dataset):
        split = {"images": "train/images", "labels": "train/labels", "confidence": "nowhere"}
        path = folder_dataset({"a": LABEL}, splits={"train": split})
        with pytest.raises(InputError, match=r"1 file\(s\) without confidence"):
            open_dataset(path, "train")

    def test_a_class_by_a_wrong_name(self, folder_dataset):
        dataset = open_dataset(folder_dataset({"a": LABEL}), "train")
        with pytest.raises(InputError, match="no class 'watr'; did you mean 'water'"):
            dataset.trusting({"watr": 0.5})


def spoil(path, how):
    root = path.parent / "pictures" / "train"
    if how == "no label":
        (root / "labels" / "a.png").unlink()
    elif how == "no image":
        (root / "images" / "a.jpg").unlink()
        Image.new("RGB", (4, 2)).save(root / "images" / "b.jpg")
        Image.new("L", (4, 2)).save(root / "labels" / "b.png")
    elif how == "size":
        Image.new("RGB", (5, 2)).save(root / "images" / "a.jpg")
    elif how == "empty":
        (root / "images" / "a.jpg").unlink()
        (root / "labels" / "a.png").unlink()
    elif how == "twice":
        Image.new("RGB", (4, 2)).save(root / "images" / "a.png")
    elif how == "broken":
        (root / "images" / "a.jpg").write_bytes(b"\xff\xd8\xff")


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("no label", r"1 file\(s\) without label, such as .*a.jpg"),
        ("no image", r"1 file\(s\) without image, such as .*a.png"),
        ("size", r"a.jpg is 5x2 but .*a.png is 4x2"),
        ("empty", "the split is empty"),
        ("twice", "have the same name"),
        ("broken", "a.jpg"),
    ],
)
def test_broken_pairs(folder_dataset, how, says):
    path = folder_dataset({"a": LABEL})
    spoil(path, how)
    with pytest.raises(InputError, match=says):
        open_dataset(path, "train")


@pytest.mark.parametrize(
    ("label", "changes", "says"),
    [
        ([[0, 255]], {"ignore": []}, "0/255 mask"),
        ([[1, 3, 3]], {}, r"3 \(2 pixels\).*numbered from 1"),
        ([[0, 3, 3]], {}, "values from 0 to 3 are 4 classes and names has 3, one too few"),
        ([[0] * 9 + [*range(3, 12)]], {}, "9 value.* list them under names"),
        ([[0] * 9 + [*range(20, 250, 29)]], {}, "8 value.* saved with smoothing"),
        ([[0, 255, 61]], {}, "under ignore or, if smoothing made them, export .* without"),
        ([[0, 9, 77]], {}, r"a.png: 2 value\(s\) outside the table of 3 classes.*names"),
        ([[7, 26, 33]], {"names": [str(i) for i in range(19)], "palette": None}, "Cityscapes raw"),
    ],
)
def test_values_outside_the_table(folder_dataset, label, changes, says):
    path = folder_dataset({"a": np.array(label, np.uint8)}, **changes)
    with pytest.raises(InputError, match=says):
        open_dataset(path, "train").frequencies()


def test_colours_where_indices_were_promised(folder_dataset):
    path = folder_dataset({"a": COLORS[None]})
    with pytest.raises(InputError, match="holds colours.*encoding: rgb"):
        open_dataset(path, "train").read(0)


def test_colour_outside_the_palette(folder_dataset):
    path = folder_dataset({"a": np.array([[[1, 2, 3]]], np.uint8)}, encoding="rgb", ignore=[])
    with pytest.raises(InputError, match=r"1,2,3 \(1 pixels\)"):
        open_dataset(path, "train").read(0)


@pytest.mark.parametrize(
    ("changes", "split", "says"),
    [
        ({"path": "nowhere"}, "train", "no folder .*nowhere"),
        ({"splits": {"train": "missing"}}, "train", "no folder .*missing.images"),
        ({}, "trian", "did you mean train"),
        ({"palette": [[0, 0, 0]]}, "train", "1 colours for 3 names; give each"),
        ({"encoding": "rgb", "palette": None}, "train", "needs a palette"),
        ({"encoding": "rgb", "ignore": [7]}, "train", "needs colours"),
        ({"encodng": "rgb"}, "train", "unknown key 'encodng'; did you mean 'encoding'"),
        ({"names": []}, "train", "at least 1 item"),
        ({"names": ["a", "b", "a"]}, "train", r"\['a'\] twice"),
        ({"palette": [[0, 0, 0], [1, 2, 300], [4, 4, 4]]}, "train", "palette.*not 300"),
        ({"encoding": "rgb", "palette": [[9, 9, 9]] * 3, "ignore": []}, "train", "one colour"),
        ({"ignore": [2]}, "train", r"also a class: \[2\]"),
    ],
)
def test_bad_descriptions(folder_dataset, changes, split, says):
    with pytest.raises(InputError, match=says):
        open_dataset(folder_dataset({"a": LABEL}, **changes), split)


def test_camvid(camvid):
    path = Path("camvid")
    sizes = {s: len(open_dataset(path, s, camvid)) for s in ("train", "val", "fit", "heldout")}
    assert sizes == {"train": 367, "val": 101, "fit": 266, "heldout": 101}
    image, label = open_dataset(path, "val", camvid).read(0)
    assert image.shape == (360, 480, 3)
    assert set(np.unique(label)) <= {*range(11), 255}
