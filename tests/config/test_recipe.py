from __future__ import annotations

from pathlib import Path

import pytest

from hmsa.config.reading import read
from hmsa.config.recipe import Recipe
from hmsa.runs.errors import InputError

RECIPES = sorted(Path(__file__).parents[2].glob("configs/*.yaml"))


@pytest.fixture
def recipe_file(tmp_path):
    def write(text: str) -> Path:
        file = tmp_path / "recipe.yaml"
        file.write_text(text)
        return file

    return write


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_shipped_recipes_are_short_and_valid(path):
    read(Recipe, path)
    assert len(path.read_text().splitlines()) <= 30


def test_there_are_shipped_recipes():
    assert RECIPES


def test_changes_are_laid_over(recipe_file):
    file = recipe_file("data: {dataset: d.yaml}\njoint: {lr: 1e-2}\n")
    recipe = read(Recipe, file, ["joint.steps=7", "attention.scales=[0.5, 1, 1.5]", "seed=3"])
    assert recipe.joint.lr == 0.01
    assert recipe.joint.steps == 7
    assert recipe.attention.scales == (0.5, 1.0, 1.5)
    assert recipe.seed == 3
    assert recipe.joint.scales == (0.5, 1.0)


@pytest.mark.parametrize(
    ("text", "changes", "says"),
    [
        ("data: {dataset: d}\njiont: {}", [], "unknown key 'jiont'; did you mean 'joint'"),
        ("data: {dataset: d}\njoint: {step: 3}", [], "'joint.step'; did you mean 'steps'"),
        (
            "data: {dataset: d}\nsampling: {extra: [{split: a, shar: 1}]}",
            [],
            "did you mean 'share'",
        ),
        ("data: {dataset: d}\nselftrain: {images: more, rul: fixed}", [], "did you mean 'rule'"),
        ("data: {dataset: d}\nselftrain: {images: i, share: 2}", [], "selftrain.share: .*, not 2"),
        ("data: {dataset: d, long_edge: 20000}", [], "data.long_edge: .*16384"),
        ("data: {dataset: d}\nattention: {scales: [1, 20]}", [], "attention.scales.*16"),
        ("data: {dataset: d}", ["joint.lrr=1"], "'joint.lrr'; did you mean 'lr'"),
        ("data: {dataset: d}", ["joint.steps=many"], "joint.steps: .*integer.*, not 'many'"),
        ("data: {dataset: d}", ["joint.steps=-1"], "joint.steps: .*greater.*, not -1"),
        ("data: {dataset: d}", ["joint.scales=[0, 1]"], "joint.scales.0: .*, not 0"),
        ("data: {dataset: d}", ["joint.scales=[]"], "joint.scales: .*at least 1"),
        ("data: {dataset: d}", ["model.stride=16"], "model.stride"),
        ("data: {dataset: d}", ["lr"], "section.key=value"),
        ("data: {dataset: d}", ["seed.x=1"], "'seed' is a value"),
        ("joint: {}", [], "key 'data' is missing"),
        ("data: [1", [], "not readable YAML"),
        ("just text", [], "contains a str"),
    ],
)
def test_mistakes_are_named(recipe_file, text, changes, says):
    if "seed.x=1" in changes:
        text += "\nseed: 1"
    with pytest.raises(InputError, match=says) as caught:
        read(Recipe, recipe_file(text), changes)
    assert "\n" not in str(caught.value)


def test_missing_file_names_the_nearest(recipe_file):
    file = recipe_file("data: {dataset: d}")
    with pytest.raises(InputError, match="did you mean .*recipe.yaml"):
        read(Recipe, file.with_name("recip.yaml"))
