"""A folder of images and labels, and nothing else, to every verb."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import yaml
from PIL import Image

from hmsa.check.folder import described
from hmsa.data.datasets import open_dataset
from hmsa.runs import CannotWrite, InputError
from hmsa.runs.files import replace
from samples import TINY_RECIPE

TINY = [
    f"--set={section}.{key}={value}"
    for section in ("model", "joint", "attention")
    for key, value in TINY_RECIPE[section].items()
]
TINY.append("--set=precision=fp32")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def pair(number):
    """An image of 64x64 with a bright square, and a label: 0, 1 where it is."""
    rng = np.random.default_rng(number)
    image, label = rng.integers(0, 90, (64, 64, 3), np.uint8), np.zeros((64, 64), np.uint8)
    top, left = rng.integers(0, 32, 2)
    label[top : top + 32, left : left + 32] = 1
    image[label == 1] += 120
    return image, label


def flat(root, scale=1, suffix="png", count=20):
    root.mkdir()
    for number in range(count):
        image, label = pair(number)
        Image.fromarray(image).save(root / f"a{number}.jpg")
        Image.fromarray(label * np.uint8(scale)).save(root / f"a{number}_mask.{suffix}")
    return root


def roboflow(root):
    for number, split in enumerate(["train"] * 12 + ["valid"] * 4 + ["test"] * 4):
        (root / split).mkdir(parents=True, exist_ok=True)
        image, label = pair(number)
        Image.fromarray(image).save(root / split / f"a{number}_jpg.rf.7.jpg")
        Image.fromarray(label).save(root / split / f"a{number}_jpg.rf.7_mask.png")
        (root / split / "_classes.csv").write_text("Pixel Value, Class\n0, ground\n1, roof\n")
    return root


PLAIN = ["background", "foreground"]


@pytest.mark.parametrize(
    ("make", "names", "sizes"),
    [
        (flat, PLAIN, [16, 4]),
        (lambda root: flat(root, 255), PLAIN, [16, 4]),
        (roboflow, ["ground", "roof"], [12, 4, 4]),
    ],
    ids=["index", "0/255", "Roboflow"],
)
def test_train_and_evaluate(hmsa, tmp_path, make, names, sizes):
    root = make(tmp_path / "mine")
    ran = hmsa("train", root, *TINY)
    assert ran.code == 0, ran.err
    said = "".join(ran.err.split())  # a long path is wrapped
    for word in (*names, "dataset.yaml", "dataset.png"):
        assert word in said
    splits = yaml.safe_load((root / "dataset.yaml").read_text())["splits"]
    opened = [open_dataset(root, split) for split in splits]
    assert [len(each) for each in opened] == sizes
    assert [*opened[0].labels.names] == names
    assert all(np.array_equal(each.read_label(0), pair_of(each)) for each in opened)
    with Image.open(root / "dataset.png") as sheet:
        assert sheet.width > 1000
    assert hmsa("evaluate", "runs/mine", root).code == 0


def pair_of(opened):
    return pair(int("".join(filter(str.isdigit, opened.pairs[0].name.split("_")[0]))))[1]


def test_the_picture_is_no_image_of_the_folder(hmsa, tmp_path):
    root = flat(tmp_path / "mine")
    assert hmsa("data", "check", root).code == 0
    assert hmsa("data", "check", root, "--overwrite").code == 0
    assert len(open_dataset(root, "train")) == 16


def test_images_without_label_are_left_out(hmsa, tmp_path):
    root = flat(tmp_path / "mine")
    (root / "a3_mask.png").unlink()
    ran = hmsa("data", "check", root)
    assert "1 image(s) without label left out, such as a3.jpg" in ran.err
    assert "a3" not in {
        pair.name for split in ("train", "val") for pair in open_dataset(root, split).pairs
    }


def test_lists_of_names(hmsa, tmp_path):
    root = flat(tmp_path / "mine")
    for split, numbers in {"train": range(5), "val": range(7, 10)}.items():
        lines = "".join(f"a{number}\n" for number in numbers)
        (root / "sets").mkdir(exist_ok=True)
        (root / "sets" / f"{split}.txt").write_text(lines)
    assert hmsa("data", "check", root).code == 0
    assert [len(open_dataset(root, split)) for split in ("train", "val")] == [5, 3]


@pytest.mark.parametrize("choice", [["--labels", "masks_b"], ["--labels", "masks_a"]])
def test_two_kinds_of_labels(hmsa, tmp_path, choice):
    root = flat(tmp_path / "mine")
    for folder in ("masks_a", "masks_b"):
        (root / folder).mkdir()
        for file in root.glob("*_mask.png"):
            shutil.copy(file, root / folder / file.name.replace("_mask", ""))
    for file in root.glob("*_mask.png"):
        file.unlink()
    ran = hmsa("train", root)
    assert (ran.code, ran.out) == (2, "")
    assert "masks_a/* (class values) or masks_b/* (class" in ran.err
    assert f"hmsa data check {root} --overwrite --labels masks_" in ran.err
    assert hmsa("data", "check", root, *choice).code == 0
    assert {p.label.parent.name for p in open_dataset(root, "train").pairs} == {choice[1]}


def test_a_folder_of_labelme(tmp_path, capsys):
    root = flat(tmp_path / "mine")
    for file in root.glob("*_mask.png"):
        file.unlink()
        name, corners = file.name.replace("_mask.png", ".jpg"), [[0, 0], [30, 0], [30, 63], [0, 63]]
        shape = {"label": "roof", "points": corners, "shape_type": "polygon"}
        content = {"shapes": [shape], "imagePath": name, "imageHeight": 64, "imageWidth": 64}
        (root / name).with_suffix(".json").write_text(json.dumps(content))
    made = described(root)
    assert "made of the export in" in capsys.readouterr().err
    assert made == described(root) == tmp_path / "mine-labels"
    assert "was made into" in capsys.readouterr().err
    assert [len(open_dataset(made, split)) for split in ("train", "val")] == [16, 4]


def test_nothing_to_read(tmp_path):
    root = flat(tmp_path / "mine")
    for file in root.glob("*_mask.png"):
        file.unlink()
    with pytest.raises(InputError, match="data check .* lists what is there.* is no export"):
        described(root)


def test_two_kinds_of_images(hmsa, tmp_path):
    root = flat(tmp_path / "mine")
    for folder in ("rgb", "orig"):
        (root / folder).mkdir()
        for file in root.glob("*.jpg"):
            shutil.copy(file, root / folder)
    for file in root.glob("*.jpg"):
        file.unlink()
    ran = hmsa("data", "check", root)
    assert (ran.code, "--images orig or --images rgb" in ran.err) == (2, True)
    assert hmsa("data", "check", root, "--images", "orig").code == 0


def test_blurred_masks(tmp_path):
    opened = open_dataset(described(flat(tmp_path / "mine", 255, "jpg")), "train")
    assert [*opened.labels.names] == PLAIN
    assert all(np.array_equal(opened.read_label(n), pair(n)[1]) for n in (0, 1))


def test_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch, capsys):
    root = flat(tmp_path / "mine")

    def refuse(path, content):
        if path.is_relative_to(root):
            raise CannotWrite(f"cannot write into {path.parent}")
        replace(path, content)

    monkeypatch.setattr("hmsa.check.folder.replace", refuse)
    made = described(root)
    assert len(open_dataset(made, "train")) == 16
    assert "is in runs/data-mine" in capsys.readouterr().err
    assert not (root / "dataset.yaml").exists()
    assert described(root) == made
    assert "is described in runs/data-mine" in capsys.readouterr().err


def test_what_is_held_out_has_every_class(hmsa, tmp_path):
    root = flat(tmp_path / "mine")
    for number in (16, 17, 18, 19):
        Image.new("L", (64, 64)).save(root / f"a{number}_mask.png")
    assert "val: 5 of 20 pairs, the last by name" in hmsa("data", "check", root).err
    assert open_dataset(root, "val").frequencies().all()


def coco(root, folder="images"):
    """20 images in a folder, and one COCO file of all."""
    images, annotations = [], []
    (root / folder).mkdir(parents=True)
    for number in range(20):
        image, label = pair(number)
        Image.fromarray(image).save(root / folder / f"a{number}.jpg")
        top, left = (int(each[0]) for each in label.nonzero())
        box = [left, top, left + 32, top, left + 32, top + 32, left, top + 32]
        images.append({"id": number, "file_name": f"a{number}.jpg", "height": 64, "width": 64})
        annotations.append({"image_id": number, "category_id": 1, "segmentation": [box]})
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "roof"}],
    }
    (root / "result.json").write_text(json.dumps(content))
    return root


def test_an_export_to_data_check(hmsa, tmp_path):
    root = coco(tmp_path / "mine", "data")
    ran = hmsa("data", "check", root)
    assert (ran.code, "made of the export in" in ran.err) == (0, True), ran.err
    assert "roof" in ran.out
    opened = open_dataset(described(root), "train")
    assert [p.label.parents[2] for p in opened.pairs] == [tmp_path / "mine-labels"] * 16
    assert np.array_equal(opened.read_label(0), pair(int(opened.pairs[0].image.stem[1:]))[1])


def test_an_export_without_images_names_the_command(hmsa, tmp_path):
    root = coco(tmp_path / "mine")
    (root / "images").rename(tmp_path / "elsewhere")
    for verb in (("data", "check"), ("train",)):
        ran = hmsa(*verb, root)
        assert (ran.code, len(ran.err.splitlines())) == (2, 1)
    command = ran.err[ran.err.index("hmsa data import") :].replace("FOLDER", "elsewhere").split()
    assert hmsa(*command[1:]).code == 0
    assert len(open_dataset(described(root), "train")) == 16


def test_black_may_mean_no_label(tmp_path, capsys):
    root = flat(tmp_path / "tiles", count=3)
    for file in root.glob("*_mask.png"):
        label = np.array(Image.open(file))
        label[:8] = 2
        Image.fromarray(np.array([[0, 0, 0], [9, 9, 200], [200, 9, 9]], np.uint8)[label]).save(file)
    file = described(root)
    assert "black is a class" in capsys.readouterr().err
    content = yaml.safe_load(file.read_text()) | {"ignore": ["#000000"]}
    file.write_text(yaml.safe_dump(content))
    assert {*open_dataset(file, "train").labels.names} == {"#0909c8", "#c80909"}
