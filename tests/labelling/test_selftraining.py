from __future__ import annotations

import numpy as np
import pytest
import yaml
from hmsa.labelling.selftraining import Given, changed
from PIL import Image

from hmsa.config.recipe import Recipe
from hmsa.data.datasets import open_dataset
from hmsa.runs.errors import InputError


@pytest.fixture
def images(scenes, tmp_path):
    """`images(selftrain={..})` -> the folder to label; there is also tmp_path/other.yaml."""
    content = yaml.safe_load(scenes.read_text()) | {"path": str(scenes.parent)}
    some = {"images": "train/images", "labels": "train/labels", "include": ["0*"]}
    both = {"images": ["train/images", "val/images"], "labels": ["train/labels", "val/labels"]}
    content["splits"] = {"all": "train", "some": some, "both": both, "listed": "pictures.csv"}
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(content))

    def images(**asked):
        recipe = Recipe.model_validate({"data": {"dataset": "d"}, "selftrain": asked})
        return Given(recipe, scenes, None, tmp_path).images

    return images


def test_pictures_to_label(images, scenes, tmp_path):
    assert images(images="more") == tmp_path / "more"
    assert images(split="train") == scenes.parent / "train" / "images"
    assert images(dataset="other.yaml", split="all") == scenes.parent / "train" / "images"


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({}, "either images, a folder, or split"),
        ({"images": "more", "dataset": "other.yaml"}, "dataset belongs to split"),
        ({"dataset": "other.yaml", "split": "al"}, "did you mean all"),
        ({"dataset": "other.yaml", "split": "some"}, "takes some of the pictures"),
        ({"dataset": "other.yaml", "split": "both"}, "name one folder"),
        ({"dataset": "other.yaml", "split": "listed"}, "is a list of files"),
    ],
)
def test_pictures_that_are_no_folder(images, asked, says):
    with pytest.raises(InputError, match=says) as caught:
        images(**asked)
    assert "\n" not in str(caught.value)


def test_share_of_labels_that_are_others(folder_dataset, tmp_path):
    """Of pictures in both sets alone; one of another size is another altogether."""
    before = {name: np.zeros((4, 5), np.uint8) for name in ("a", "b", "gone")}
    path = folder_dataset(before, splits={"train": "train", "now": "now"})
    now = {"a": np.zeros((4, 5), np.uint8), "b": np.zeros((2, 5), np.uint8), "new": before["a"]}
    now["a"][1] = [0, 1, 2, 1, 255]
    for kind in ("images", "labels"):
        (tmp_path / "pictures" / "now" / kind).mkdir(parents=True)
        for name, label in now.items():
            Image.fromarray(label).save(tmp_path / "pictures" / "now" / kind / f"{name}.png")
    first, second = open_dataset(path, "train"), open_dataset(path, "now")
    assert changed(first, first) == 0
    assert changed(first, second) == pytest.approx((4 + 10) / (20 + 10))
    (tmp_path / "pictures" / "now" / "labels" / "a.png").unlink()
    (tmp_path / "pictures" / "now" / "images" / "a.png").unlink()
    assert changed(first, open_dataset(path, "now")) == 1
