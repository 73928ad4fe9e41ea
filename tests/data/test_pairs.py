"""Which files belong together, whatever tools call them; honest parts of a split."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest
import yaml
from PIL import Image

from hmsa.check.check import check
from hmsa.data.datasets import open_dataset
from hmsa.data.pairs import last_names
from hmsa.runs import InputError

LABEL = np.array([[0, 1]], np.uint8)


@pytest.fixture
def files(tmp_path):
    """`files(names, split)` -> dataset.yaml beside files of these names."""

    def make(names, split="train", **splits):
        for name in names:
            file = tmp_path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(LABEL).save(file)
        content = {"splits": {"train": split} | splits, "names": ["a", "b"]}
        (tmp_path / "dataset.yaml").write_text(yaml.safe_dump(content))
        return tmp_path / "dataset.yaml"

    return make


def found(path, split="train"):
    assert not check(path, [split]).of("error")
    return [(p.name, p.image.name, p.label.name) for p in open_dataset(path, split).pairs]


ONE = ["train/img_1.jpg", "train/img_1_mask.png", "train/img_10.jpg", "train/img_10_mask.png"]
TWO = ["train/images/a.jpg", "train/labels/a_mask.png", "train/images/b.jpg"]


@pytest.mark.parametrize(
    "split",
    [
        "train",
        {"images": "train", "labels": "train"},
        {"images": "train", "labels": "train", "label_ending": "_mask"},
        {"images": "train", "labels": "train", "label_ending": "_mask.png"},
        {"images": "train", "labels": "train", "image_ending": ".jpg", "label_ending": "_mask.png"},
    ],
)
def test_images_and_labels_in_one_folder(files, split):
    path = files(ONE, split)
    assert found(path) == [
        ("img_1", "img_1.jpg", "img_1_mask.png"), ("img_10", "img_10.jpg", "img_10_mask.png"),
    ]  # fmt: skip


def test_suffixes_alone_tell_images_and_labels(files):
    split = {"images": "x", "labels": "x", "image_ending": ".jpg", "label_ending": ".png"}
    assert found(files(["x/a.jpg", "x/a.png"], split)) == [("a", "a.jpg", "a.png")]


@pytest.mark.parametrize("folder", ["train/labels", "train/masks"])
def test_an_ending_that_all_labels_have(files, folder):
    names = [f"train/images/{n}.jpg" for n in "abc"] + [f"{folder}/{n}-gt.png" for n in "abc"]
    assert found(files(names)) == [(n, f"{n}.jpg", f"{n}-gt.png") for n in "abc"]


def test_files_that_lack_a_partner_are_still_named(files):
    with pytest.raises(InputError, match=r"1 file\(s\) without label, such as .*b.jpg"):
        open_dataset(files(TWO), "train")
    (problem,) = check(files(TWO)).of("error")
    assert problem.kind == "image without label"


def test_folders_of_ultralytics(files):
    names = ["images/train/a.jpg", "labels/train/a.png"]
    assert found(files(names, "images/train")) == [("a", "a.jpg", "a.png")]


def test_one_file_is_not_image_and_label(files):
    split = {"images": "x", "labels": "x"}
    with pytest.raises(InputError, match="x/a.png is image and label at once; .*label_ending"):
        open_dataset(files(["x/a.png"], split), "train")


@pytest.mark.parametrize("forms", [("NFD", "NFC"), ("NFC", "NFD")])
def test_names_in_two_forms_of_unicode(files, forms):
    kinds = zip(("train/images/mü.png", "train/labels/mü.png"), forms, strict=True)
    path = files([unicodedata.normalize(form, name) for name, form in kinds])
    assert [name for name, *_ in found(path)] == [unicodedata.normalize("NFC", "mü")]


class TestHeldOut:
    @pytest.mark.parametrize(
        ("names", "share", "held"),
        [
            (["a2", "a10", "a1", "a3", "a4"], 0.2, ["a10"]),
            ([f"{n}" for n in range(10)], 0.2, ["8", "9"]),
            (["x1", "x2", "x3", "x4", "x5", "x6", "x7", "y1", "y2", "y3"], 0.2, ["y1", "y2", "y3"]),
            (["b", "a"], 0.01, ["b"]),
            (["b", "a"], 0.99, ["b"]),
        ],
    )
    def test_names(self, names, share, held):
        assert last_names(names, share) == held

    def test_splits_share_nothing(self, files):
        names = [f"train/{k}/{n}{s}" for n in range(10) for k, s in
                 (("images", ".jpg"), ("labels", "_mask.png"))]  # fmt: skip
        held = {"held_out_of": "train"}
        path = files(names, test=held, val=held | {"share": 0.5})
        parts = {
            split: "".join(name for name, *_ in found(path, split))
            for split in ("train", "val", "test")
        }
        assert parts == {"train": "0123", "val": "4567", "test": "89"}

    @pytest.mark.parametrize(
        ("names", "train", "says"),
        [
            (["train/images/a.png", "train/labels/a.png"], "train", "1 image.* cannot be divided"),
            ([], "x.csv", "of folders only, which train is not; make two"),
            ([], {"held_out_of": "val"}, "of folders only"),
            ([], {"held_out_of": "trian"}, "of folders only"),
        ],
    )
    def test_mistakes(self, files, names, train, says):
        path = files(names, train, val={"held_out_of": "train"})
        with pytest.raises(InputError, match=says):
            open_dataset(path, "val")
