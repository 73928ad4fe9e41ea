"""Datasets as they are released: by name, by pointing at the folder, each label value right."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from hmsa.data.datasets import open_dataset
from hmsa.data.descriptions import KNOWN, beside, locate, read_classes
from hmsa.runs.errors import InputError
from samples import LAYOUTS, SHARED, TINY_RECIPE

# Values in the files, and the classes they are
VALUES = {
    "cityscapes": ([7, 8, 26, 33, 0, 4, 29], [0, 1, 13, 18, 255, 255, 255]),
    "mapillary": ([0, 13, 64, 65], [0, 13, 64, 255]),
    "mapillary-v2": ([0, 1, 2, 3, 31, 122, 123], [0, 1, 255, 2, 255, 115, 255]),
    "ade20k": ([0, 1, 150], [255, 0, 149]),
    "camvid": ([0, 10, 11], [0, 10, 255]),
    "camvid-segnet": ([0, 10, 11], [0, 10, 255]),
    "voc": ([0, 20, 255], [0, 20, 255]),
    "aerial": ([0, 4, 255], [0, 4, 255]),
    "lums-road": ([0, 4], [0, 4]),
}
COUNTS = {"cityscapes": 19, "mapillary": 65, "mapillary-v2": 116, "ade20k": 150, "camvid": 11,
          "camvid-segnet": 11, "voc": 21, "aerial": 5, "lums-road": 5}  # fmt: skip


def test_every_known_dataset_is_tested():
    assert KNOWN.keys() == VALUES.keys() == LAYOUTS.keys()


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("how", ["name", "folder"])
def test_each_is_found_and_read(layout, name, how):
    raw, label = VALUES[name]
    root = layout(name, raw)
    for split in ("train", "val"):
        path, data = (Path(name), root) if how == "name" else (root, None)
        dataset = open_dataset(path, split, data)
        assert dataset.source.stem == name
        assert len(dataset.labels.names) == COUNTS[name]
        assert (dataset.read(0)[1] == np.resize(label, (4, 6))).all()


@pytest.mark.parametrize("name", KNOWN)
def test_each_is_found_by_its_environment_variable(layout, name, monkeypatch):
    root = layout(name, VALUES[name][0])
    variable = f"{name.split('-')[0].upper()}_DATASET"
    with pytest.raises(InputError, match=f"pass --data FOLDER or set {variable}=FOLDER"):
        open_dataset(Path(name), "val")
    monkeypatch.setenv(variable, str(root))
    assert len(open_dataset(Path(name), "val")) == 1
    with pytest.raises(InputError, match="no folder .*elsewhere"):
        open_dataset(Path(name), "val", root / "elsewhere")
    monkeypatch.setenv(variable, str(root / "gone"))
    with pytest.raises(InputError, match=f"no folder .*gone; correct {variable} or pass --data"):
        open_dataset(Path(name), "val")


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("cityscapes", "labels_cityscapes.json"),
        ("mapillary", "labels_mapillary_v1.2.json"),
        ("mapillary-v2", "labels_mapillary_v2.0.json"),
    ],
)
def test_class_tables(name, table):
    file = SHARED / "labels" / table
    if not file.is_file():
        pytest.skip(f"no table at {file}")
    entries = json.loads(file.read_text())["labels"]
    counted = [e for e in entries if e.get("evaluate", not e.get("ignoreInEval", False))]
    counted.sort(key=lambda e: e["trainId"])
    labels = read_classes(Path(name))
    assert list(labels.raw) == [e["id"] for e in counted]
    assert list(labels.names) == [e.get("readable", e["name"]) for e in counted]
    assert labels.palette == tuple(tuple(e["color"]) for e in counted)
    assert {*labels.raw, *labels.ignored} == {e["id"] for e in entries if e["id"] >= 0}


class TestCityscapes:
    @pytest.mark.parametrize(
        ("split", "names", "label"),
        [
            ("train", ["aachen/aachen_0_19", "stuttgart/stuttgart_0_20"], "gtFine_labelIds"),
            (
                "train_coarse",
                ["aachen/aachen_0_19", "stuttgart/stuttgart_0_20"],
                "gtCoarse_labelId",
            ),
            ("val_coarse", ["lindau/lindau_0_21"], "gtCoarse_labelIds"),
            ("train_extra", ["bayreuth/bayreuth_0_1"], "gtCoarse_labelIds"),
            ("train_auto", ["bayreuth/bayreuth_0_1"], "autolabelled"),
        ],
    )
    def test_splits(self, layout, split, names, label):
        pairs = open_dataset(layout("cityscapes", [7]), split).pairs
        assert [p.name for p in pairs] == names
        assert all(label in str(p.label) for p in pairs)

    @pytest.mark.parametrize("fold", range(4))
    def test_folds_are_those_of_the_official_code(self, tmp_path, fold):
        val = ["frankfurt", "lindau", "munster"]
        train = sorted([
            "aachen", "bochum", "bremen", "cologne", "darmstadt", "dusseldorf", "erfurt", "hamburg",
            "hanover", "jena", "krefeld", "monchengladbach", "strasbourg", "stuttgart", "tubingen",
            "ulm", "weimar", "zurich",
        ])  # fmt: skip
        for split, city in [("val", c) for c in val] + [("train", c) for c in train]:
            for kind, ending in (("leftImg8bit", "leftImg8bit"), ("gtFine", "gtFine_labelIds")):
                file = tmp_path / kind / split / city / f"{city}_000000_000019_{ending}.png"
                file.parent.mkdir(parents=True)
                Image.new("L", (2, 1)).save(file)
        cities = val + train
        judged = set(cities[fold * 21 // 3 : fold * 21 // 3 + 3]) or set(cities)
        learnt = set(cities) - judged or set(cities)

        def found(split):
            return {p.name.split("/")[0] for p in open_dataset(tmp_path, split).pairs}

        assert found(f"cv{fold}_val") == judged
        assert found(f"cv{fold}_train") == learnt

    def test_a_city_in_two_folders_is_refused(self, layout):
        root = layout("cityscapes", [7])
        for kind, ending in (("leftImg8bit", "leftImg8bit"), ("gtFine", "gtFine_labelIds")):
            file = root / kind / "train" / "lindau" / f"lindau_0_21_{ending}.png"
            file.parent.mkdir()
            Image.new("L", (6, 4)).save(file)
        with pytest.raises(InputError, match="have the same name"):
            open_dataset(root, "cv3_train")


@pytest.mark.parametrize("name", KNOWN)
def test_each_is_checked_learnt_and_evaluated(hmsa, layout, tmp_path, name):
    """The whole way: check, index (crops are class-uniform), a training step, evaluation."""
    recipe = tmp_path / "recipe.yaml"
    content = TINY_RECIPE | {
        "data": {"dataset": str(layout(name, VALUES[name][0], (64, 96))), "workers": 0},
        "joint": TINY_RECIPE["joint"] | {"steps": 1, "validate_every": 1},
        "attention": {"steps": 0},
        "sampling": {"class_uniform": 0.5},
    }
    dataset = content["data"]["dataset"]
    checked = ("data", "check", dataset, "--split", "train", "--split", "val", "--json")
    ran = hmsa(*checked, "--report", tmp_path / "check.html")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["errors"] == []
    recipe.write_text(yaml.safe_dump(content))
    ran = hmsa("train", recipe, "--out", tmp_path / "run")
    assert ran.code == 0, ran.err
    ran = hmsa("evaluate", tmp_path / "run", dataset, "--json", "--scales", "1")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["images"] == 1


def test_v1_2_labels_of_the_mapillary_v2_package(layout):
    root = layout("mapillary-v2", [64, 65])
    dataset = open_dataset(Path("mapillary"), "val_v2", root)
    assert set(np.unique(dataset.read(0)[1])) == {64, 255}


class TestLocate:
    def test_dataset_yaml_comes_first(self, layout):
        root = layout("cityscapes", [7])
        (root / "dataset.yaml").write_text("")
        assert locate(root) == (root / "dataset.yaml", None)

    def test_an_unknown_folder(self, tmp_path):
        for kind in ("images", "labels"):
            (tmp_path / "train" / kind).mkdir(parents=True)
        with pytest.raises(InputError, match="no dataset.yaml and is in no .* layout; hmsa"):
            open_dataset(tmp_path, "train")

    def test_a_folder_of_two_layouts_is_refused(self, layout):
        root = layout("mapillary-v2", [0])
        (root / "training" / "labels").mkdir()
        with pytest.raises(InputError, match="could be mapillary-v2 or mapillary; name one"):
            locate(root)

    def test_a_name_wins_over_a_strange_folder_of_that_name(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        Path("aerial").mkdir()
        assert locate(Path("aerial")) == (KNOWN["aerial"], None)

    def test_a_file_wins_over_a_name(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        Path("aerial").write_text("")
        assert locate(Path("aerial")) == (Path("aerial"), None)

    @pytest.mark.parametrize(
        ("name", "says"),
        [
            ("cityscape", "cityscape is no known dataset.*; did you mean cityscapes"),
            ("pascal", "known are ade20k, aerial"),
            ("cityscapes.yaml", "no file cityscapes.yaml"),
            ("missing/cityscapes", "no file missing/cityscapes"),
        ],
    )
    def test_what_is_not_there(self, name, says):
        with pytest.raises(InputError, match=says):
            open_dataset(Path(name), "train")

    def test_a_recipe_names_what_lies_beside_it_or_a_known_dataset(self, tmp_path):
        recipe = tmp_path / "recipe.yaml"
        assert beside(recipe.parent, "camvid") == Path("camvid")
        assert beside(recipe.parent, "mine.yaml") == tmp_path / "mine.yaml"
        assert beside(recipe.parent, "../mine") == tmp_path / "../mine"
        (tmp_path / "camvid").mkdir()
        assert beside(recipe.parent, "camvid") == tmp_path / "camvid"
