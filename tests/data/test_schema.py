"""Descriptions as people write them: read where the meaning is plain, else named in one line."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from hmsa.data.datasets import open_dataset
from hmsa.data.descriptions import read_classes
from hmsa.runs import InputError

LABEL = np.array([[0, 1, 2]], np.uint8)
SPLITS = "splits: {train: train}\n"


@pytest.fixture
def described(tmp_path):
    """`described(text)` -> dataset.yaml beside train/images and train/labels of one pair."""
    for kind, suffix in (("images", "jpg"), ("labels", "png")):
        file = tmp_path / "train" / kind / f"a.{suffix}"
        file.parent.mkdir(parents=True)
        Image.fromarray(LABEL).save(file)

    def write(text):
        (tmp_path / "dataset.yaml").write_text(text)
        return tmp_path / "dataset.yaml"

    return write


@pytest.mark.parametrize(
    "text",
    [
        "path: .\ntrain: train/images\nval: train/images\nnc: 3\nnames: {0: sky, 1: road, 2: post}",
        "path: .\ntrain: train\nnames: [sky, road, post]",
        "train: {images: train/images, masks: train/labels}\nclasses: {0: sky, 1: road, 2: post}",
        SPLITS + "names: {sky: 0, road: 1, post: 2}",
        SPLITS + "names: {00: sky, 01: road, 02: post}",
        "splits: {train: {image: train/images, label: train/labels}}\nnames: [sky, road, post]",
        "splits: {train: [train]}\nnames: [sky, road, post]",
    ],
)
def test_dialects(described, text):
    dataset = open_dataset(described(text), "train")
    assert dataset.labels.names == ("sky", "road", "post")
    assert dataset.read(0)[1].tolist() == LABEL.tolist()


@pytest.mark.parametrize(
    ("names", "read"),
    [
        ("[no, yes, on]", ("no", "yes", "on")),
        ("{no: 0, yes: 1, n: 2}", ("no", "yes", "n")),
        ("[false, 7, 1.5]", ("false", "7", "1.5")),
    ],
)
def test_names_that_yaml_takes_for_something_else(described, names, read):
    assert read_classes(described(SPLITS + f"names: {names}")).names == read


@pytest.mark.parametrize(
    "text",
    [
        "names: [sky, road]\npalette: ['#4682b4', '804080']",
        "names: [sky, road]\npalette: [steelblue, [128, 64, 128]]",
        "names: [sky, road]\npalette: {road: [128, 64, 128], sky: [70, 130, 180]}",
        "names: {0: sky, 1: road}\npalette: {1: [128, 64, 128], 0: '#4682b4'}",
        "names: {sky: [70, 130, 180], road: '#804080'}",
    ],
)
def test_colours(described, text):
    labels = read_classes(described(SPLITS + text))
    assert labels.names == ("sky", "road")
    assert labels.palette == ((70, 130, 180), (128, 64, 128))


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("names: [sky, road, post]\nignore: [sky]", [[255, 0, 1]]),
        ("names: [sky, road, post]\nignore: sky", [[255, 0, 1]]),
        ("names: [sky, road, post]\nignore_classes: [0]", [[255, 0, 1]]),
        ("names: {sky: 0, 'no': 1, post: 2}\nignore: [no, 255]", [[0, 255, 1]]),
        ("names: [sky, road]\nignore: [2]", [[0, 1, 255]]),
        ("names: {0: sky, 1: road, 2: post, 255: wall}\nignore: [255]", [[0, 1, 2]]),
    ],
)
def test_classes_that_mean_no_label(described, text, label):
    assert open_dataset(described(SPLITS + text), "train").read(0)[1].tolist() == label


def test_ignored_colours(described):
    text = SPLITS + "names: [sky, road]\npalette: ['#010203', '#040506']\nencoding: rgb\n"
    for ignored, packed in (("[0, 0, 0]", 0), ("'#000001'", 1), ("[sky]", 0x010203)):
        labels = read_classes(described(text + f"ignore: {ignored}"))
        assert labels.ignored == (packed,)
    assert labels.names == ("road",)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("names: [a]", "key 'splits' is missing; example: splits: {train: train, val: val}"),
        (SPLITS, r"key 'names' is missing; example: names: \[sky, road\]"),
        (SPLITS + "names: a, b", "names: .*not 'a, b'; example: names"),
        (SPLITS + "names: [a, [b]]", r"names.1: .*not \['b'\]; example: names"),
        (SPLITS + "names: {a: 0, b: 0}", "two names have one value"),
        (SPLITS + "names: {1: a, 01: b}", "two names have one value"),
        (SPLITS + "names: [a, [b]]\nignore: [a]", "names.1: .*not"),
        (SPLITS + "names: [a]\nnames: [b]", "line 3, .*the key 'names' stands twice; remove one"),
        (SPLITS + "names: [a]\nclasses: [b]", "unknown key 'classes'"),
        (
            SPLITS + "names: [a, b]\npalette: [red, bleu]",
            "palette.1: .*not 'bleu'; example: palette",
        ),
        (
            SPLITS + "names: [sky, road]\nignore: [skj]",
            "'skj', which is no class; .* sky",
        ),
        (SPLITS + "names: [a]\ntrain: x", "'train' stands beside splits; move it below it"),
        (SPLITS + "names: [a]\nencoding: RGB", "encoding: .*'rgb', not 'RGB'"),
        ("splits: train\nnames: [a]", "splits: .*not 'train'; example: splits"),
        ("splits: {train: 5}\nnames: [a]", "splits has train: 5; write splits: {train: FOLDER}"),
        ("splits: {names: [a], train: x}", "'names' stands under splits; move it to the left"),
        ("splits: {images: a, labels: b}\nnames: [a]", "splits has images: 'a'; write splits: "),
        (
            "splits: {train: {images: a, labels: b, names: [a]}}",
            "'names' stands under splits.train",
        ),
        (
            "splits: {train: {imgs: a, labels: b}}\nnames: [a]",
            "unknown key 'imgs'; .*'images'",
        ),
        (
            "splits: {train: {images: a}}\nnames: [a]",
            "train: key 'labels' is missing; ex",
        ),
        ("splits: {train: {images: a, labels: b, masks: c}}", "split train: unknown key 'masks'"),
        ("splits: {val: {held_out_of: train, share: 2}}", "split val: share: .*not 2"),
        (SPLITS + "names: [a, b]\npalette: 7\nencoding: rgb\nignore: [a]", "palette: .*not 7"),
        ("", "is empty; it needs keys and values"),
        ("names: [\xe4", "is no text in UTF-8; save it as UTF-8"),
        ("[" * 9999, "is not readable YAML"),
        ("names: 2026-13-45", "is not readable YAML: month"),
    ],
)
def test_mistakes(described, text, says):
    path = described("")
    path.write_text(text, "latin-1")
    with pytest.raises(InputError, match=says) as caught:
        open_dataset(path, "train")
    assert "\n" not in str(caught.value)
    assert "union" not in str(caught.value)
    assert str(path) in str(caught.value)
