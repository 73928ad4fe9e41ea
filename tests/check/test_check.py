"""Each fault that a dataset can have is found, named, and hides no other."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hmsa.check.check import check
from hmsa.data.descriptions import KNOWN
from hmsa.data.schema import read_description
from hmsa.runs import InputError

LABEL = np.array([[0, 1, 2, 255], [2, 2, 1, 0]], np.uint8)


def kinds(found, level="error"):
    return [problem.kind for problem in found.of(level)]


def train(path) -> Path:
    return path.parent / "pictures" / "train"


def save_image(path, name, pixels, **options):
    Image.fromarray(pixels).save(train(path) / "images" / name, **options)


def test_nothing_wrong(folder_dataset, checked):
    found = checked(folder_dataset({"a": LABEL, "b": LABEL}))
    assert not found.problems
    assert found.verdict() == "Nothing wrong in 2 pairs of train."
    summary = found.summary()
    assert summary["frequencies"]["train"]["road"] == {"pixels": 6, "share": 0.375, "pictures": 2}
    assert summary["void"]["train"] == {"pixels": 2, "share": 0.125}
    assert summary["values"]["train"] == {"0": 4, "1": 4, "2": 6, "255": 2}
    assert summary["sizes"]["train"] == {"4x2": 2}


def spoil(path, how):
    images, labels = train(path) / "images", train(path) / "labels"
    if how == "image without label":
        (labels / "a.png").unlink()
    elif how == "label without image":
        (images / "a.jpg").unlink()
    elif how == "sizes differ":
        Image.new("RGB", (5, 2)).save(images / "a.jpg")
    elif how == "two files of one name":
        Image.new("RGB", (4, 2)).save(images / "a.png")
    elif how == "empty split":
        for file in [*images.iterdir(), *labels.iterdir()]:
            file.unlink()
    elif how == "no folder":
        for file in labels.iterdir():
            file.unlink()
        labels.rmdir()


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("image without label", r"train: 1 image\(s\) without label, such as .*images/a.jpg; add"),
        ("label without image", r"train: 1 label\(s\) without image, such as .*labels/a.png; add"),
        ("sizes differ", r"1 pair\(s\).*a.jpg is 5x2 but .*a.png is 4x2"),
        ("two files of one name", "a.jpg and .*a.png have the same name"),
        ("empty split", "no images in .*images"),
        ("no folder", "no folder .*labels"),
    ],
)
def test_pairs(folder_dataset, how, says, checked):
    path = folder_dataset({"a": LABEL, "b": LABEL})
    spoil(path, how)
    (error,) = checked(path).of("error")
    assert error.kind == how
    assert re.search(says, error.message), error.message


def test_one_truncated_file_stops_nothing(folder_dataset, checked):
    path = folder_dataset({name: np.zeros((96, 96), np.uint8) for name in "abc"})
    save_image(path, "b.jpg", np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8))
    file = train(path) / "images" / "b.jpg"
    file.write_bytes(file.read_bytes()[:1500])
    (train(path) / "labels" / "c.png").write_bytes(b"no picture")
    found = checked(path)
    (error,) = found.of("error")
    assert [f.name for f in error.files] == ["b.jpg", "c.png"]
    assert "b.jpg cannot be decoded (image file is truncated" in error.message
    assert found.summary()["sizes"]["train"] == {"96x96": 2}
    assert found.summary()["frequencies"]["train"]["land"]["pictures"] == 2


def test_a_decoder_that_fails_in_its_own_way_stops_nothing(folder_dataset, monkeypatch, checked):
    path = folder_dataset({"a": LABEL})
    monkeypatch.setattr(Image, "open", lambda *_: 1 / 0)
    (error,) = checked(path).of("error")
    assert "division by zero" in error.message


@pytest.mark.parametrize(
    ("labels", "changes", "kind", "says"),
    [
        (
            {"a": [[7, 26, 33]], "b": [[0, 18, 255]]},
            {"names": [str(i) for i in range(19)], "palette": None},
            "unknown values",
            "a.png: 2 value.*Cityscapes raw ids",
        ),
        ({"a": [[0, 255]], "b": [[0, 0]]}, {"ignore": []}, "unknown values", "0/255 mask"),
        ({"a": [[0, 255]], "b": [[0, 0]]}, {}, "0/255 masks", "255 is ignored.*0/255 mask"),
        ({"a": [[1, 2]], "b": [[3, 1]]}, {}, "unknown values", "b.png.*numbered from 1"),
        ({"a": [[0, 1, 2, 77]]}, {}, "unknown values", r"77 \(1 pixels\).*list them under names"),
    ],
)
def test_values(folder_dataset, labels, changes, kind, says, checked):
    arrays = {name: np.array(values, np.uint8) for name, values in labels.items()}
    (error,) = checked(folder_dataset(arrays, **changes)).of("error")
    assert error.kind == kind
    assert re.search(says, error.message), error.message


def test_unknown_values_have_pixels_and_file_names(folder_dataset, checked):
    path = folder_dataset({"a": np.array([[0, 9, 9, 8]], np.uint8), "b": np.array([[9]], np.uint8)})
    found = checked(path)
    (error,) = found.of("error")
    assert [file.name for file in error.files] == ["a.png", "b.png"]
    assert "2 value(s) outside the table of 3 classes: 9 (3 pixels), 8 (1 pixels)" in error.message
    assert found.summary()["values"]["train"] == {"0": 1, "8": 1, "9": 3}
    assert found.summary()["unknown"]["train"] == {"pixels": 4, "share": 0.8}


def test_rgb_masks_where_indices_were_promised(folder_dataset, checked):
    colors = np.array([[[10, 20, 30], [10, 20, 30], [0, 0, 200]]], np.uint8)
    found = checked(folder_dataset({"a": colors, "b": LABEL}))
    assert kinds(found) == ["another encoding"]
    assert "set encoding: rgb" in found.of("error")[0].message
    frequencies = found.summary()["frequencies"]["train"].values()
    assert [each["pixels"] for each in frequencies] == [2, 2, 3]


def test_colours_outside_the_palette(folder_dataset, checked):
    path = folder_dataset({"a": np.array([[[1, 2, 3]]], np.uint8)}, encoding="rgb", ignore=[])
    assert "1,2,3 (1 pixels)" in checked(path).of("error")[0].message


def test_jpeg_labels(folder_dataset, checked):
    path = folder_dataset({"a": np.zeros((8, 8), np.uint8)})
    (train(path) / "labels" / "a.png").unlink()
    Image.new("L", (8, 8), 0).save(train(path) / "labels" / "a.jpg")
    assert "lossy labels" in kinds(checked(path), "warning")


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_spoiled_jpeg_labels_get_one_advice(folder_dataset, checked, mode):
    label = np.zeros((16, 16), np.uint8)
    path = folder_dataset({"a": label, "b": label})
    file = train(path) / "labels" / "a.png"
    label[5:, 3:] = 2 if mode == "L" else 200
    Image.fromarray(label).convert(mode).save(file.with_suffix(".jpg"), quality=20)
    file.unlink()
    found = checked(path)
    (error,) = found.of("error")
    assert error.kind == "labels spoiled by JPEG"
    assert "lossy labels" not in kinds(found, "warning")
    assert "export them as PNG" in error.message
    assert "names" not in error.message


def test_void_and_classes_never_seen(folder_dataset, checked):
    void, half = np.full((2, 2), 255, np.uint8), np.array([[0, 1], [255, 255]], np.uint8)
    found = checked(folder_dataset({"a": LABEL[:, :2], "b": void, "c": half}))
    assert kinds(found, "warning") == ["wholly void"]
    assert [p.name for p in found.of("warning")[0].files] == ["b.png"]
    assert found.summary()["void"]["train"] == {"pixels": 6, "share": 0.5}
    (note,) = (p for p in found.of("note") if p.kind == "mostly void")
    assert [p.name for p in note.files] == ["c.png"]


def test_a_class_never_seen_is_named(folder_dataset, checked):
    found = checked(folder_dataset({"a": LABEL[:, :1]}))
    assert found.of("warning")[0].message == "train: no pixel of 1 class(es): water"


def test_nothing_labelled(folder_dataset, checked):
    assert kinds(checked(folder_dataset({"a": np.full((2, 2), 255, np.uint8)}))) == [
        "nothing labelled"
    ]


def test_modes_and_mixed_sizes_are_noted(folder_dataset, checked):
    path = folder_dataset({"a": LABEL, "b": LABEL[:1], "c": LABEL, "d": LABEL})
    for name, mode in (("a", "L"), ("c", "CMYK"), ("d", "I;16")):
        (train(path) / "images" / f"{name}.jpg").unlink()
        Image.new(mode, (4, 2)).save(train(path) / "images" / f"{name}.tif")
    notes = " ".join(p.message for p in checked(path).of("note"))
    assert "the images have 2 sizes (width x height): 4x2 (3), 4x1 (1)" in notes
    assert re.search(r"3 image\(s\) are not RGB, such as .*a.tif \(L\)", notes)


def test_images_that_exif_turns_are_named(folder_dataset, checked):
    path = folder_dataset({"a": LABEL.repeat(2, 0), "b": LABEL.repeat(2, 0)})
    exif = Image.Exif()
    exif[0x0112] = 6
    save_image(path, "b.jpg", np.zeros((4, 4, 3), np.uint8), exif=exif)
    (found,) = [p for p in checked(path).of("warning") if p.kind == "turned by EXIF"]
    assert [file.name for file in found.files] == ["b.jpg"]


def test_absent_splits_are_warnings(folder_dataset, checked):
    path = folder_dataset({"a": LABEL}, splits={"train": "train", "val": "val", "test": "test"})
    assert kinds(checked(path), "warning") == ["absent split", "absent split"]
    with pytest.raises(InputError, match="nothing to check; val: no folder"):
        check(path, ["val"])


@pytest.mark.parametrize("name", ["cityscapes", "camvid", "mapillary", "camvid-segnet"])
def test_known_layouts_know_what_is_optional_and_overlaps(layout, checked, name):
    """The main splits alone, as most people have them, and then all that the release can hold."""
    root = layout(name, [7, 8, 11, 26, 0] if name == "cityscapes" else [0, 1, 2])
    expected = {"near-copies within", "near-copies", "class without pixels"}  # small random images
    for removed in ("", "gtCoarse", "autolabelled", "leftImg8bit/train_extra", "test", "testannot"):
        if removed:
            shutil.rmtree(root / removed, ignore_errors=True)
        found = checked(root)
        assert {problem.kind for problem in found.of("error") + found.of("warning")} <= expected
        assert {"train", "val"} <= {part.name for part in found.parts}
    assert not {"cv0_train", "fit"} & {part.name for part in found.parts}
    assert [part.name for part in checked(root, "train").parts] == ["train"]


def test_an_optional_split_can_be_named(layout, checked):
    root = layout("cityscapes", [7, 8, 11, 26, 0])
    assert [part.name for part in checked(root, "cv1_val").parts] == ["cv1_val"]
    with pytest.raises(InputError, match="nothing to check; test: no folder"):
        checked(root, "test")


TWO = np.array([[0, 255, 255]], np.uint8)
FROM_0 = np.array([[0, 1, 2, 3]], np.uint8)
ELEVEN = np.array([[0, 1, 11, 255]], np.uint8)
ONES = np.array([[1, 2], [3, 1]], np.uint8)
RGB = np.array([[[10, 20, 30], [0, 0, 200]]], np.uint8)


@pytest.mark.parametrize(
    ("label", "mend", "says"),
    [
        (TWO, {"names": {0: "background", 255: "building"}, "palette": None},
         r"name the classes by value: names: {0: .*, 255: .*}"),
        (ONES, {"names": {1: "land", 2: "water", 3: "road"}}, r"give names as 1: \.\. to 3: \.\."),
        (FROM_0, {"ignore": [3, 255]}, "list 3 under ignore"),
        (FROM_0, {"names": ["land", "water", "road", "post"], "palette": None},
         "add the name of the last"),
        (FROM_0, {"names": {1: "land", 2: "water", 3: "road"}, "ignore": [0]},
         r"if 0 means no label, give names as 1: \.\. to 3: \.\. and ignore: \[0\]"),
        (ELEVEN, {"names": {0: "land", 1: "water", 11: "road"}},
         r"list them under names \(value: name\)"),
        (RGB, {"encoding": "rgb", "names": ["land", "water"],
               "palette": [[10, 20, 30], [0, 0, 200]]}, "set encoding: rgb and a palette"),
    ],
)  # fmt: skip
def test_what_a_message_proposes_works(folder_dataset, checked, label, mend, says):
    (error,) = checked(folder_dataset({"a": label})).of("error")
    assert re.search(says, error.message), error.message
    assert not checked(folder_dataset({"a": label}, **mend)).of("error")


def test_optional_splits_of_known_layouts_exist():
    for file in KNOWN.values():
        description = read_description(file)
        assert {*description.optional} < description.splits.keys(), file
