"""Every recipe in configs/: short, and it takes a step on its dataset in the exact layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hmsa import HMSA
from hmsa.config.reading import read
from hmsa.config.recipe import Recipe, preset
from hmsa.runs.folder import flat

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
PAPER = {
    "mapillary": ("mapillary", ["0.25,0.5,1,2", True, 65]),
    "cityscapes": ("cityscapes", ["0.5,1,2", False, 19]),
    "cityscapes-best": ("cityscapes", ["0.5,1,2", False, 19]),
    "cityscapes-deeplab": ("cityscapes", ["0.5,1,2", False, 19]),
}
# One step of the paper's network on pictures of 64x96; everything else is the recipe's own
SMALL = (
    "joint.steps=1", "joint.batch=2", "joint.crop=[64, 64]", "joint.validate_every=1", "devices=1",
    "accelerator=cpu", "model.pretrained=false", "data.workers=0",
)  # fmt: skip


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.stem)
def test_short_and_valid(config):
    assert len(config.read_text().splitlines()) <= 30
    read(Recipe, config)


def test_recipes_of_the_paper_are_all_there():
    assert PAPER.keys() < {config.stem for config in CONFIGS}


def test_the_preset_of_the_paper_is_its_recipe():
    """But for what depends on the dataset and the machine, and the network it begins from."""
    recipe = read(Recipe, CONFIGS[0].with_name("cityscapes.yaml"))
    chosen = read(Recipe, None, ["data.dataset=cityscapes", *preset("paper")])
    recipe, chosen = (dict(flat(each.model_dump())) for each in (recipe, chosen))
    assert {name for name in recipe if recipe[name] != chosen[name]} == {
        "start", "joint.steps", "joint.validate_every", "devices"
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", PAPER)
def test_takes_a_step(hmsa, layout, tmp_path, name):
    dataset, (scales, flip, classes) = PAPER[name]
    root = layout(dataset, [7, 8, 26, 33] if dataset == "cityscapes" else [0, 1, 64], (64, 96))
    for file in (root / "autolabelled").rglob("*_prob.png"):
        Image.fromarray(np.full((64, 96), 200, np.uint8)).save(file)
    recipe = next(config for config in CONFIGS if config.stem == name)
    changes = [*SMALL, "data.long_edge=96"] if name == "mapillary" else [*SMALL]
    if "start:" in recipe.read_text():
        HMSA(65, "hrnet_w48", head="ocr", width=256, official=True).save_pretrained(tmp_path / "m")
        changes.append(f"start={tmp_path / 'm'}")
    settings = [argument for change in changes for argument in ("--set", change)]
    ran = hmsa("train", recipe, "--data", root, "--out", tmp_path / "run", *settings)
    assert ran.code == 0, ran.err
    card = HMSA.from_pretrained(tmp_path / "run").card
    assert ",".join(f"{s:g}" for s in card.scales) == scales
    assert card.flip == flip
    assert len(card.names) == classes
    if "start" in recipe.read_text():
        assert "new: head.aux.1.weight, head.aux.1.bias, head.semantic.weight" in ran.err
