"""Every mend that a message proposes is applied here, and then it works."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hmsa.check.check import check
from hmsa.data import archives
from hmsa.data.archives import unpacked
from hmsa.data.datasets import open_dataset
from hmsa.data.imports import import_masks
from hmsa.runs import InputError

LABEL = np.repeat(np.array([[0, 1, 2], [2, 1, 0]], np.uint8), 8, 1).repeat(8, 0)
COLORS = np.array([[70, 130, 180], [128, 64, 128], [220, 220, 0]], np.uint8)
SPLITS = "splits: {train: train}\n"
NAMES = "names: [a, b, c]\n"
PALETTE = "palette: [[70, 130, 180], [128, 64, 128], [220, 220, 0]]\n"
RGB = SPLITS + NAMES + PALETTE + "encoding: rgb\nignore: []\n"


def write(root: Path, label=LABEL, suffix=".png", kinds=("images", "labels")):
    for name in "123456":
        for kind, pixels, ending in (("images", LABEL, ".jpg"), ("labels", label, suffix)):
            if kind in kinds:
                file = root / "train" / kind / f"{name}{ending}"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(file)


def smooth(pixels: np.ndarray) -> np.ndarray:
    small = Image.fromarray(pixels).resize((15, 10), Image.Resampling.BICUBIC)
    return np.asarray(small.resize((24, 16), Image.Resampling.BILINEAR))


def complaint(root: Path) -> str:
    """What is said about a dataset when it is read, or else by the check."""
    try:
        open_dataset(root, "train").frequencies()
    except InputError as error:
        return str(error)
    return check(root).of("error")[0].message


def passes(root: Path, split: str = "train") -> None:
    assert open_dataset(root, split).frequencies().any()
    assert not check(root, [split]).of("error")


@pytest.mark.parametrize(
    ("text", "label", "says", "mends"),
    [
        (NAMES, LABEL, "'splits' is missing; example: (.*), val: val", [NAMES + "<0>}"]),
        (SPLITS, LABEL, r"'names' is missing; example: ", [SPLITS + NAMES]),
        (SPLITS + NAMES + NAMES, LABEL, "stands twice; remove one", [SPLITS + NAMES]),
        (
            SPLITS + "names: [a, b]\n",
            (LABEL > 0).astype(np.uint8) * 255,
            r"name the classes by value: (names: \{0: a, 255: b\})",
            [SPLITS + "<0>\n", SPLITS + "<0>\nignore: [255]\n"],
        ),
        (SPLITS + NAMES, LABEL + 1, "give names as 1: .. to 3: ..",
         [SPLITS + "names: {1: a, 2: b, 3: c}\n"]),
        (
            SPLITS + "names: [a, b]\n",
            LABEL,
            "add the name of the last, or list 2 under ignore; or, .* 1: .. to 2: .. and ignore",
            [SPLITS + NAMES, SPLITS + "names: [a, b]\nignore: [2]\n",
             SPLITS + "names: {1: a, 2: b}\nignore: [0]\n"],
        ),
        (SPLITS + NAMES, LABEL * 50, r"list them under names \(value: name\) or under ignore",
         [SPLITS + "names: {0: a, 50: b, 100: c}\n",
          SPLITS + "names: {0: a}\nignore: [50, 100]\n"]),
        (SPLITS + NAMES, COLORS[LABEL], "set encoding: rgb and a palette", [RGB]),
        (RGB.replace(PALETTE, ""), COLORS[LABEL], "encoding rgb needs a palette", [RGB]),
        (RGB.replace(", [220, 220, 0]", ""), COLORS[LABEL], "give each name a colour", [RGB]),
        (
            "splits: {train: train}\nnames: [a, b]\npalette: ['#4682b4', '#804080']\nencoding: rgb",
            COLORS[LABEL],
            "220,220,0 .*add them to palette or ignore",
            [RGB, RGB.replace("ignore: []", "").replace(", [220, 220, 0]", "").replace(", c]", "]")
             + "ignore: [[220, 220, 0]]\n"],
        ),
        (RGB.replace("[]", "[7]"), COLORS[LABEL], r"needs colours such as \[0, 0, 0\]",
         [RGB.replace("[]", "[[0, 0, 0]]")]),
        (SPLITS + NAMES + "ignore: [[0, 0, 0]]", LABEL, "needs values such as 255",
         [SPLITS + NAMES + "ignore: [255]"]),
        (SPLITS + NAMES + "ignore: [2]", LABEL, r"also a class: \[2\]; remove it there or from",
         [SPLITS + NAMES, SPLITS + "names: [a, b]\nignore: [2]"]),
        (SPLITS + NAMES + "ignore: [cc]", LABEL, "no class; did you mean c.; .*255",
         [SPLITS + NAMES + "ignore: [c]", SPLITS + NAMES + "ignore: [255]"]),
        ("splits:\n  train: train\n  " + NAMES, LABEL, "move it to the left", [SPLITS + NAMES]),
        (NAMES + "splits: {images: x, labels: y}", LABEL, "write (splits: .*)$",
         [NAMES + "splits: {train: {images: train/images, labels: train/labels}}"]),
        (NAMES + "train: train\nsplits: {val: val}", LABEL, "move it below it",
         [NAMES + "splits: {val: val, train: train}"]),
        (NAMES + "splits: {train: 7}", LABEL, r"write (splits: \{train: FOLDER\}) or",
         [NAMES + "splits: {train: train}"]),
        (NAMES + "splits: {train: {image: train/images, labelz: train/labels}}", LABEL,
         "did you mean 'labels'",
         [NAMES + "splits: {train: {image: train/images, labels: train/labels}}"]),
        (NAMES + "splits: {train: {images: train, labels: train}}", LABEL,
         "image and label at once; name the ending of the labels, .*, or their folder",
         [NAMES + "splits: {train: {images: train/images, labels: train/labels}}"]),
        (NAMES + SPLITS + "path: nowhere", LABEL, "no folder .*nowhere; correct `path`",
         [NAMES + SPLITS + "path: ."]),
    ],
)  # fmt: skip
def test_descriptions(tmp_path, text, label, says, mends):
    """mends: other texts, with what the message says to write."""
    write(tmp_path, label)
    (tmp_path / "dataset.yaml").write_text(text)
    written = re.search(says, complaint(tmp_path)).groups()
    for mend in mends:
        (tmp_path / "dataset.yaml").write_text(mend.replace("<0>", "".join(written)))
        passes(tmp_path)


def test_no_split_val(tmp_path):
    write(tmp_path)
    (tmp_path / "dataset.yaml").write_text(SPLITS + NAMES)
    with pytest.raises(InputError, match="add under splits: (.*)") as caught:
        open_dataset(tmp_path, "val")
    added = re.search("add under splits: (.*)", str(caught.value))[1]
    (tmp_path / "dataset.yaml").write_text(f"{NAMES}splits:\n  train: train\n  {added}\n")
    passes(tmp_path)
    passes(tmp_path, "val")
    assert {p.name for p in open_dataset(tmp_path, "val").pairs} == {"6"}


def test_no_split_val_beside_a_list(tmp_path):
    write(tmp_path)
    (tmp_path / "dataset.yaml").write_text(NAMES + "splits:\n  train: x.csv\n")
    rows = [f"train/images/{n}.jpg,train/labels/{n}.png" for n in "123456"]
    (tmp_path / "x.csv").write_text("\n".join(["image,label", *rows]))
    says = "move the last rows of x.csv to a list val.csv, and add under splits: (val: val.csv)"
    with pytest.raises(InputError, match=says) as caught:
        open_dataset(tmp_path, "val")
    (tmp_path / "x.csv").write_text("\n".join(["image,label", *rows[:4]]))
    (tmp_path / "val.csv").write_text("\n".join(["image,label", *rows[4:]]))
    with (tmp_path / "dataset.yaml").open("a") as file:
        file.write(f"  {re.search(says, str(caught.value))[1]}\n")
    passes(tmp_path)
    passes(tmp_path, "val")


def test_a_folder_without_description(tmp_path, hmsa):
    write(tmp_path)
    with pytest.raises(InputError, match="hmsa (data check .*) writes") as caught:
        open_dataset(tmp_path, "train")
    command = re.search("hmsa (data check .*) writes", str(caught.value))[1]
    assert hmsa(*command.split()).code == 0
    passes(tmp_path)


@pytest.mark.parametrize(
    ("text", "label", "suffix", "says", "mended"),
    [
        (RGB, smooth(COLORS[LABEL]), ".png", "saved with smoothing; .* nearest", COLORS[LABEL]),
        (SPLITS + "names: {0: a, 255: b}", smooth((LABEL > 0).astype(np.uint8) * 255), ".png",
         "saved with smoothing; .* nearest", (LABEL > 0).astype(np.uint8) * 255),
        (RGB, COLORS[LABEL], ".jpg", "JPEG, .*; export them as PNG", COLORS[LABEL]),
        (SPLITS + "names: {0: a, 255: b}", np.roll(LABEL > 0, 3).astype(np.uint8) * 255, ".jpg",
         "JPEG, .*; export them as PNG", (LABEL > 0).astype(np.uint8) * 255),
        (SPLITS + NAMES, COLORS[LABEL], ".jpg", "JPEG changes them .*; export it as PNG", LABEL),
    ],
)  # fmt: skip
def test_label_files(tmp_path, text, label, suffix, says, mended):
    write(tmp_path, label, suffix)
    (tmp_path / "dataset.yaml").write_text(text)
    with pytest.raises(InputError, match=says):
        open_dataset(tmp_path, "train").frequencies()
    found = check(tmp_path)
    advice = [p.message for p in found.problems if "list them" in p.message or "PNG" in p.message]
    assert len(advice) <= 1  # never two that contradict each other
    for file in (tmp_path / "train" / "labels").iterdir():
        file.unlink()
    write(tmp_path, mended)
    passes(tmp_path)


def test_files_without_partner_or_of_one_name(tmp_path):
    write(tmp_path)
    (tmp_path / "dataset.yaml").write_text(SPLITS + NAMES)
    lost = tmp_path / "train" / "labels" / "6.png"
    lost.rename(tmp_path / "6.png")
    with pytest.raises(InputError, match="add what is missing or exclude"):
        open_dataset(tmp_path, "train")
    excluded = "{train: {images: train/images, labels: train/labels, exclude: ['6']}}"
    (tmp_path / "dataset.yaml").write_text(f"splits: {excluded}\n{NAMES}")
    passes(tmp_path)
    (tmp_path / "6.png").rename(lost)
    (tmp_path / "dataset.yaml").write_text(SPLITS + NAMES)
    passes(tmp_path)
    twice = tmp_path / "train" / "images" / "6.png"
    Image.fromarray(LABEL).save(twice)
    with pytest.raises(InputError, match="6.jpg and .*6.png have the same name; remove one"):
        open_dataset(tmp_path, "train")
    twice.unlink()
    passes(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "says", "mended"),
    [
        ("x.csv", b"{row}\n{row}", "first line must name the columns", b"image,label\n{row}"),
        ("x.csv", b"image,label,source\n{row},\xe4", "save it as UTF-8",
         "image,label,source\n{row},ä".encode()),
        ("x.txt", b"{image}", "write two files, such as", b"{image} {label}"),
        ("x.csv", b"image,label\n{row}\n{row}", "list an image once", b"image,label\n{row}"),
    ],
)  # fmt: skip
def test_lists(tmp_path, name, content, says, mended):
    write(tmp_path)
    (tmp_path / "dataset.yaml").write_text(f"splits: {{train: {name}}}\n{NAMES}")
    image, label = b"train/images/1.jpg", b"train/labels/1.png"
    values = {b"{image}": image, b"{label}": label, b"{row}": image + b"," + label}

    def fill(text):
        for key, value in values.items():
            text = text.replace(key, value)
        (tmp_path / name).write_bytes(text)

    fill(content)
    with pytest.raises(InputError, match=says):
        open_dataset(tmp_path, "train")
    fill(mended)
    passes(tmp_path)


class TestImports:
    @pytest.fixture
    def cvat(self, tmp_path):
        root = tmp_path / "cvat"
        for name in "12":
            for kind, pixels in (("JPEGImages", LABEL), ("SegmentationClass", COLORS[LABEL])):
                (root / kind).mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(root / kind / f"{name}.png")
        lines = (f"{name}:{','.join(map(str, COLORS[i]))}::" for i, name in enumerate("abc"))
        (root / "labelmap.txt").write_text("\n".join(lines))
        return root

    def blacken(self, cvat):
        pixels = COLORS[LABEL]
        pixels[0] = 0
        Image.fromarray(pixels).save(cvat / "SegmentationClass" / "1.png")

    def test_no_background(self, cvat, tmp_path):
        self.blacken(cvat)
        says = "add the line (.*) to labelmap.txt, or import with --ignore (.*)$"
        with pytest.raises(InputError, match=says) as caught:
            import_masks(cvat, tmp_path / "out")
        line, ignored = re.search(says, str(caught.value)).groups()
        passes(import_masks(cvat, tmp_path / "one", ignore=[ignored]).path)
        with (cvat / "labelmap.txt").open("a") as file:
            file.write(f"\n{line}\n")
        passes(import_masks(cvat, tmp_path / "two").path)

    def test_two_pictures_of_one_name(self, cvat, tmp_path):
        Image.fromarray(LABEL).save(cvat / "JPEGImages" / "1.jpg")
        with pytest.raises(InputError, match="have the same name.* rename one"):
            import_masks(cvat, tmp_path / "out")
        (cvat / "JPEGImages" / "1.jpg").rename(cvat / "JPEGImages" / "other.jpg")
        passes(import_masks(cvat, tmp_path / "out").path)

    def test_images_elsewhere_and_a_folder_that_is_not_empty(self, cvat, tmp_path):
        (cvat / "JPEGImages").rename(tmp_path / "elsewhere")
        with pytest.raises(InputError, match="name it with --images"):
            import_masks(cvat, tmp_path / "out")
        with pytest.raises(InputError, match="is not empty; name a new folder"):
            import_masks(cvat, cvat)
        passes(import_masks(cvat, tmp_path / "out", tmp_path / "elsewhere").path)

    @pytest.mark.parametrize("growth", [False, True])
    def test_archives(self, cvat, tmp_path, growth, monkeypatch):
        """A bomb, or a name that leads out: the mend is a folder, or to pack it again."""
        file = tmp_path / "x.zip"
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("zeros" if growth else "../x", bytes(growth << 20))
        monkeypatch.setattr(archives, "ALWAYS", 1 << 10)
        says = "unpack it and give the folder" if growth else "pack it again without"
        with pytest.raises(InputError, match=says), unpacked(file, tmp_path):
            pass
        passes(import_masks(cvat, tmp_path / "out").path)

    def test_two_exports_at_once(self, tmp_path):
        (tmp_path / "in").mkdir()
        Image.new("RGB", (24, 16)).save(tmp_path / "in" / "a.jpg")
        coco = {
            "images": [{"id": 1, "file_name": "a.jpg", "height": 16, "width": 24}],
            "categories": [{"id": 1, "name": "car"}],
        }
        area = {"image_id": 1, "category_id": 1, "segmentation": [[0, 0, 9, 0, 9, 9]]}
        files = [tmp_path / "in" / f"{name}.json" for name in "ab"]
        for file in files:
            file.write_text(json.dumps(coco | {"annotations": [area]}))
        with pytest.raises(InputError, match="import each by itself"):
            import_masks(tmp_path / "in", tmp_path / "out")
        for file in files:
            passes(import_masks(file, tmp_path / file.stem).path)
