"""Exports of annotation tools become folders of ours, whole or not at all."""

from __future__ import annotations

import json
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hmsa.data.datasets import open_dataset
from hmsa.data.imports import import_masks as work
from hmsa.runs.errors import InputError


def import_masks(source, out, images=None, ignore=(), split="train"):
    return work(source, out, images, ignore, split)


COLORS = {"background": (0, 0, 0), "road": (128, 64, 128), "a: b": (10, 20, 30)}
LABELMAP = "# label:color_rgb:parts:actions\n" + "".join(
    f"{name}:{','.join(map(str, color))}::\n" for name, color in COLORS.items()
)
LABEL = np.array([[0, 1, 2], [2, 2, 0]], np.uint8)
PAINTED = np.array(list(COLORS.values()), np.uint8)[LABEL]


def save(array, file):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(file)


@pytest.fixture
def cvat(tmp_path):
    """The folder inside a CVAT export, pictures and all, and `zipped()` of it."""
    root = tmp_path / "cvat"
    for name in ("a", "day 1/b"):
        save(PAINTED, root / "SegmentationClass" / f"{name}.png")
        save(PAINTED, root / "SegmentationObject" / f"{name}.png")
        save(PAINTED, root / "JPEGImages" / f"{name}.jpg")
    save(PAINTED, root / "JPEGImages" / "c.jpg")
    (root / "labelmap.txt").write_text(LABELMAP)
    sets = root / "ImageSets" / "Segmentation"
    sets.mkdir(parents=True)
    (sets / "default.txt").write_text("a\nc\n")
    (sets / "Validation.txt").write_text("day 1/b\n")
    return root


def zipped(root, more=()):
    file = root.with_suffix(".zip")
    with zipfile.ZipFile(file, "w") as archive:
        for path in sorted(root.rglob("*")):
            archive.write(path, path.relative_to(root))
        for name in more:
            archive.writestr(name, "x")
    return file


@pytest.fixture
def coco(tmp_path):
    """COCO panoptic: `(**changes to the JSON) -> its file`; pictures are in tmp_path/val2017."""

    def make(**changes):
        ids = np.array([[0, 70000, 256], [256, 256, 0]])
        rgb = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)
        save(rgb, tmp_path / "panoptic_val2017" / "000139_panoptic.png")
        save(PAINTED, tmp_path / "val2017" / "000139.jpg")
        content = {
            "images": [{"id": 139, "file_name": "000139.jpg"}, {"id": 7, "file_name": "7.jpg"}],
            "annotations": [
                {
                    "image_id": 139,
                    "file_name": "000139_panoptic.png",
                    "segments_info": [
                        {"id": 70000, "category_id": 184, "iscrowd": 0},
                        {"id": 256, "category_id": 1, "iscrowd": 1},
                    ],
                }
            ],
            "categories": [
                {"id": 184, "name": "tree-merged", "isthing": 0, "color": [9, 9, 9]},
                {"id": 1, "name": "person", "isthing": 1, "color": [220, 20, 60]},
            ],
        } | changes
        file = tmp_path / "panoptic_val2017.json"
        file.write_text(json.dumps(content))
        return file

    return make


class TestCvat:
    @pytest.mark.parametrize("as_zip", [True, False])
    def test_import(self, cvat, tmp_path, as_zip):
        made = import_masks(zipped(cvat) if as_zip else cvat, tmp_path / "out" / "mine")
        assert made.path == tmp_path / "out" / "mine" / "dataset.yaml"
        assert made.notes == ["labelled images: 1 in train, 1 in val; 1 have no label yet"]
        for split, name in (("train", "a"), ("val", "day 1/b")):
            dataset = open_dataset(made.path, split)
            assert dataset.labels.names == tuple(COLORS)
            assert dataset.labels.palette == tuple(COLORS.values())
            assert (dataset.read(0)[1] == LABEL).all()
            assert dataset.pairs[0].name.endswith(f"{'images/' if as_zip else ''}{name}")
        assert (cvat / "JPEGImages" / "a.jpg").exists()
        assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine"]

    def test_masks_are_palette_pictures_of_indices(self, cvat, tmp_path):
        import_masks(cvat, tmp_path / "out")
        with Image.open(tmp_path / "out" / "labels" / "a.png") as picture:
            assert picture.mode == "P"
            assert (np.asarray(picture) == LABEL).all()
            assert (np.asarray(picture.convert("RGB")) == PAINTED).all()

    @pytest.mark.parametrize("mode", ["L", "P"])
    def test_masks_of_one_channel(self, cvat, tmp_path, mode):
        picture = Image.fromarray(LABEL)
        if mode == "P":  # then its colours count, in whatever order
            picture = Image.fromarray(2 - LABEL)
            picture.putpalette([value for color in [*COLORS.values()][::-1] for value in color])
        picture.save(cvat / "SegmentationClass" / "a.png")
        made = import_masks(cvat, tmp_path / "out")
        assert (open_dataset(made.path, "train").read(0)[1] == LABEL).all()

    def test_classes_that_mean_no_label(self, cvat, tmp_path):
        save(LABEL, cvat / "SegmentationClass" / "day 1" / "b.png")
        made = import_masks(cvat, tmp_path / "out", ignore=["background"])
        for split in ("train", "val"):
            dataset = open_dataset(made.path, split)
            assert dataset.labels.names == ("road", "a: b")
            assert (dataset.read(0)[1] == np.array([255, 0, 1], np.uint8)[LABEL]).all()

    def test_pictures_from_elsewhere(self, cvat, tmp_path):
        (cvat / "JPEGImages").rename(tmp_path / "pictures")
        made = import_masks(zipped(cvat), tmp_path / "out", tmp_path / "pictures", split="extra")
        (pair,) = open_dataset(made.path, "extra").pairs
        assert pair.image == tmp_path / "pictures" / "a.jpg"

    def test_two_pictures_of_one_name(self, cvat, tmp_path, monkeypatch):
        save(PAINTED, cvat / "JPEGImages" / "a.png")
        monkeypatch.chdir(zipped(cvat).parent)
        one, two = (f"cvat.zip/JPEGImages/a.{suffix}" for suffix in ("jpg", "png"))
        with pytest.raises(InputError, match=f"{one} and {two} have the same name, .* rename one"):
            import_masks(Path("cvat.zip"), Path("out"))

    def test_names_in_two_forms_of_unicode(self, cvat, tmp_path):
        for folder, form in (("JPEGImages", "NFD"), ("SegmentationClass", "NFC")):
            save(PAINTED, cvat / folder / unicodedata.normalize(form, "mü.png"))
        dataset = open_dataset(import_masks(cvat, tmp_path / "out").path, "train")
        assert [p.name.rsplit("/")[-1] for p in dataset.pairs] == ["a", "mü"]

    def test_a_background_that_the_labelmap_lacks(self, cvat, tmp_path):
        (cvat / "labelmap.txt").write_text(LABELMAP.replace("background:0,0,0::\n", ""))
        made = import_masks(cvat, tmp_path / "out", ignore=["background"])
        dataset = open_dataset(made.path, "train")
        assert dataset.labels.names == ("road", "a: b")
        assert (dataset.read(0)[1] == np.array([255, 0, 1], np.uint8)[LABEL]).all()

    def test_of_one_split_the_last_names_are_held_out(self, cvat, tmp_path):
        (cvat / "ImageSets" / "Segmentation" / "Validation.txt").unlink()
        for number in range(8):
            save(PAINTED, cvat / "JPEGImages" / f"clip_{number + 5}.jpg")
            save(PAINTED, cvat / "SegmentationClass" / f"clip_{number + 5}.png")
        made = import_masks(cvat, tmp_path / "out")
        assert made.notes[0] == "labelled images: 9 in train, 1 in val; 1 have no label yet"
        assert "its last 1 images by name, from day 1/b on, are val (--val 0:" in made.notes[1]
        assert [p.image.stem for p in open_dataset(made.path, "val").pairs] == ["b"]
        work(cvat, tmp_path / "whole", val=0)
        assert len(open_dataset(tmp_path / "whole", "train")) == 10


def spoil(root, how):
    mask = root / "SegmentationClass" / "a.png"
    if how == "no pictures":
        for file in (root / "JPEGImages").rglob("*.jpg"):
            file.unlink()
    elif how == "no folder of pictures":
        (root / "JPEGImages").rename(root / "Images")
    elif how == "no masks":
        (root / "SegmentationClass").rename(root / "Masks")
    elif how == "empty":
        for file in (root / "SegmentationClass").rglob("*.png"):
            file.unlink()
    elif how == "no labelmap":
        (root / "labelmap.txt").unlink()
    elif how == "line":
        (root / "labelmap.txt").write_text(LABELMAP + "sky:1,2::\n")
    elif how == "one colour":
        (root / "labelmap.txt").write_text(LABELMAP + "sky:10,20,30::\n")
    elif how == "colour":
        save(PAINTED + 1, mask)
    elif how == "broken":
        mask.write_bytes(mask.read_bytes()[:40])
    elif how == "size":
        save(PAINTED[:1], mask)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("no pictures", r"SegmentationClass/a.png: there is no image a\.\*"),
        ("no folder of pictures", "no folder .*JPEGImages; name it with --images"),
        ("no masks", "is not one CVAT export"),
        ("empty", "holds no masks; export once"),
        ("no labelmap", "is not one CVAT export"),
        ("line", "labelmap.txt: 'sky:1,2::' is not name:red,green,blue"),
        ("one colour", "labelmap.txt: two classes have one colour"),
        ("colour", "SegmentationClass/a.png: 3 value.*, such as 1,1,1, are not listed"),
        ("broken", "SegmentationClass/a.png (cannot be decoded|is not an image)"),
        ("size", "SegmentationClass/a.png: .*a.jpg has another size"),
    ],
)
def test_bad_exports(cvat, tmp_path, how, says):
    spoil(cvat, how)
    with pytest.raises(InputError, match=says) as caught:
        import_masks(zipped(cvat), tmp_path / "out" / "mine")
    assert "\n" not in str(caught.value)
    assert "cvat.zip" in str(caught.value) or how == "empty"
    assert not list((tmp_path / "out").iterdir())


def test_an_archive_that_is_none(cvat, tmp_path):
    file = zipped(cvat)
    whole = file.read_bytes()
    file.write_bytes(whole[:100])
    with pytest.raises(InputError, match="cvat.zip .*cannot be unpacked"):
        import_masks(file, tmp_path / "out")
    file.write_bytes(whole.replace(LABELMAP.encode(), LABELMAP.upper().encode()))
    with pytest.raises(InputError, match="cvat.zip cannot be unpacked: .*labelmap.txt"):
        import_masks(file, tmp_path / "out")


class TestCoco:
    def test_import(self, coco, tmp_path):
        made = import_masks(coco(), tmp_path / "out", tmp_path / "val2017", split="val")
        dataset = open_dataset(made.path, "val")
        assert dataset.labels.names == ("person", "tree-merged")
        assert dataset.labels.palette == ((220, 20, 60), (9, 9, 9))
        assert dataset.read(0)[1].tolist() == [[255, 1, 0], [0, 0, 255]]
        assert dataset.pairs[0].image == tmp_path / "val2017" / "000139.jpg"
        assert made.notes == ["labelled images: 1 in val; 0 have no label yet"]

    def test_classes_that_mean_no_label(self, coco, tmp_path):
        made = import_masks(coco(), tmp_path / "out", tmp_path / "val2017", ["person"])
        dataset = open_dataset(made.path, "train")
        assert dataset.read(0)[1].tolist() == [[255, 0, 255], [255, 255, 255]]

    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"annotations": []}, "holds no areas; draw some"),
            ({"annotations": [{"segmentation": [], "id": 1}]}, r"damaged \(KeyError 'image_id'\)"),
            ({"categories": [{"id": 1, "name": "person"}]}, r"damaged \(KeyError 184\)"),
            ({"images": []}, r"damaged \(KeyError 139\)"),
            ({"images": [{"id": 139, "file_name": "../a.jpg"}]}, "../a.jpg' leads out"),
            ({"images": [{"id": 139, "file_name": "b.jpg"}]}, "there is no image b"),
        ],
    )
    def test_bad_json(self, coco, tmp_path, changes, says):
        with pytest.raises(InputError, match=says) as caught:
            import_masks(coco(**changes), tmp_path / "out", tmp_path / "val2017")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()

    def test_a_segment_that_the_json_does_not_know(self, coco, tmp_path):
        file = coco()
        save(PAINTED, tmp_path / "panoptic_val2017" / "000139_panoptic.png")
        with pytest.raises(
            InputError, match="000139_panoptic.png: 2 value.*not listed in the export"
        ):
            import_masks(file, tmp_path / "out", tmp_path / "val2017")

    def test_needs_pictures_and_pngs(self, coco, tmp_path):
        made = import_masks(coco(), tmp_path / "out")
        assert open_dataset(made.path, "train").pairs[0].image.parent == tmp_path / "val2017"
        file = coco().rename(tmp_path / "other.json")
        with pytest.raises(InputError, match="other/000139_panoptic.png cannot be decoded"):
            import_masks(file, tmp_path / "out2", tmp_path / "val2017")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("x.json", '[{"id": 1, "annotations": []}]', "holds no areas; draw some"),
        ("x.json", '[{"id": 1, "annotations": [{"result": [{}]}]}]', "damaged .KeyError 'type'"),
        ("x.json", '{"samples": []}', "of FiftyOne; with it export ImageSegmentationDirectory"),
        (
            "task-7-annotation-1-by-1-tag-car-0.png",
            "",
            "car-0.png does not name its image; .* export JSON",
        ),
        ("x.json", '{"classes": [], "tags": []}', "of Supervisely; with its app Export as Masks"),
        ("x.json", '{"objects": [], "size": {}}', "of Supervisely; with its app Export as Masks"),
        ("x.json", '{"_via_settings": {}}', "of the VGG Image Annotator; export COCO"),
        ("x.xml", "<annotation/>", "of Pascal VOC, which holds boxes; export masks"),
        ("x.xml", "<annotations><track/></annotations>", "CVAT for video.*Segmentation mask 1.1"),
        ("x.xml", "<annotations", "x.xml cannot be read"),
        ("x.json", "{not json", "x.json cannot be read .Expecting"),
        ("x.json", "[" * 100000, "x.json cannot be read"),
        ("x.json", '"text"', "x.json is no export of CVAT"),
        ("x.json", "\xff", "x.json cannot be read"),
        ("x.csv", "", "x.csv is no export of CVAT"),
        ("gone.zip", None, "no file or folder .*gone.zip"),
    ],
)
def test_other_sources(tmp_path, name, content, says):
    if content is not None:
        (tmp_path / name).write_text(content, encoding="latin-1")
    with pytest.raises(InputError, match=says):
        import_masks(tmp_path / name, tmp_path / "out", tmp_path)


def test_mistakes_of_the_command(cvat, tmp_path):
    with pytest.raises(InputError, match="is not empty; name a new folder"):
        import_masks(cvat, cvat)
    with pytest.raises(InputError, match="no folder .*nowhere; name it with --images"):
        import_masks(cvat, tmp_path / "out", tmp_path / "nowhere")
    with pytest.raises(InputError, match="no class 'sky' to ignore, only background, road"):
        import_masks(cvat, tmp_path / "out", ignore=["sky"])


def test_command(hmsa, cvat, tmp_path):
    ran = hmsa("data", "import", zipped(cvat), tmp_path / "out", "--ignore", "background")
    assert ran.code == 0
    assert Path(ran.out.strip()) == tmp_path / "out" / "dataset.yaml"
    assert "1 in train, 1 in val; 1 have no label" in ran.err
    ran = hmsa("data", "import", tmp_path / "gone.zip", tmp_path / "out2")
    assert ran.code == 2
    assert len(ran.err.splitlines()) == 1
