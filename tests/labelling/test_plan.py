"""Which folder of images a recipe's section `selftrain` names."""

from __future__ import annotations

import pytest
import yaml

from hmsa.config.recipe import Recipe
from hmsa.labelling.plan import open_plan
from hmsa.runs import InputError


@pytest.fixture
def images(scenes, tmp_path):
    """`images(**selftrain)` -> the folder to label; there is also tmp_path/other.yaml."""
    content = yaml.safe_load(scenes.read_text()) | {"path": str(scenes.parent)}
    some = {"images": "train/images", "labels": "train/labels", "include": ["0*1"]}
    both = {"images": ["train/images", "val/images"], "labels": ["train/labels", "val/labels"]}
    content["splits"] = {"all": "train", "some": some, "both": both}
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(content))

    def images(**section):
        recipe = Recipe.model_validate({"data": {"dataset": "d"}, "selftrain": section})
        return open_plan(recipe, scenes, None, tmp_path).images

    return images


def test_images_to_label(images, scenes, tmp_path):
    assert images(images="more") == tmp_path / "more"
    folder = scenes.parent / "train" / "images"
    assert images(split="train").samefile(folder)
    assert images(dataset="other.yaml", split="all").samefile(folder)


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({}, "either images, a folder, or split"),
        ({"dataset": "other.yaml", "split": "al"}, "did you mean all"),
        ({"dataset": "other.yaml", "split": "some"}, "is not all images of one folder"),
    ],
)
def test_images_that_are_no_folder(images, section, says):
    with pytest.raises(InputError, match=says) as caught:
        images(**section)
    assert "\n" not in str(caught.value)
