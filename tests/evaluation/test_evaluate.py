"""Evaluation: fixed keys, numbers equal to a naive count, a page that opens from disk."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hmsa import HMSA
from hmsa.data import fingerprint
from hmsa.data.datasets import open_dataset
from hmsa.data.descriptions import read_classes
from hmsa.evaluation.confusion import Confusion
from hmsa.evaluation.measure import measure
from hmsa.evaluation.page import best_windows, worst_first
from hmsa.inference.predictor import Predictor
from hmsa.model import average


def test_json_has_the_fixed_keys(hmsa, trained, scenes):
    ran = hmsa("evaluate", trained, scenes, "--split", "val", "--scales", "2,0.5,1")
    assert ran.code == 0
    result = json.loads(ran.out.splitlines()[-1])
    assert list(result["miou"]["single"]) == ["0.5", "1", "2"]
    assert {"average", "max", "hierarchical"} < set(result["miou"])
    assert len(result["iou"]["hierarchical"]) == 7
    assert result["images"] == 3
    assert result["split"] == "val"
    assert result["checkpoint"] == str(trained)
    assert result["data"] == fingerprint.of(open_dataset(scenes, "val"))["digest"][:16]
    assert "road" in ran.out.splitlines()[-5] + ran.out
    page = trained / "report-val.html"
    assert page.is_file()
    assert "Hierarchical" in page.read_text()
    assert str(page) in ran.err


def test_json_alone(hmsa, trained, scenes):
    ran = hmsa("evaluate", trained, scenes, "--json", "--scales", "1")
    assert len(ran.out.splitlines()) == 1
    miou = json.loads(ran.out)["miou"]
    assert miou["single"]["1"] == miou["average"] == miou["hierarchical"]


def test_numbers_equal_a_naive_count(trained, scenes):
    model = HMSA.from_pretrained(trained)
    dataset = open_dataset(scenes, "val")
    found = measure(Predictor(model, (0.5, 1), "fp32", "cpu"), dataset)
    naive = {name: Confusion(7) for name in ("0.5", "1", "average", "hierarchical")}
    for i in range(3):
        image, label = dataset.read(i)
        with torch.no_grad():
            output = model(torch.from_numpy(image).permute(2, 0, 1)[None], (0.5, 1))
            alone = model(torch.from_numpy(image).permute(2, 0, 1)[None], (0.5,))
        logits = {
            "hierarchical": output.logits,
            "average": average(output.maps, label.shape),
            "1": output.maps[1.0].logits,
            "0.5": alone.logits,
        }
        for name, predicted in logits.items():
            naive[name].add(torch.from_numpy(label), predicted.argmax(1)[0])
    for name, confusion in naive.items():
        assert torch.equal(confusion.matrix, found.confusion[name].matrix), name
    np.testing.assert_allclose(found.mean_weights().sum(1), 1, atol=1e-5)
    assert [w.index for w in best_windows(found)] == [
        w.index for s in (0.5, 1.0)
        for w in sorted((w for w in found.windows if w.scale == s and w.gained > 0),
                        key=lambda w: -w.gained)[:2]
    ]  # fmt: skip


def test_worst_come_first():
    mious = [0.9, 0.1, math.nan, 0.5, 0.3]
    assert worst_first(mious) == [1, 4, 3, 0]
    many = worst_first([i / 100 for i in range(100)])
    assert many[:4] == [0, 1, 2, 3]
    assert many[-1] == 99
    assert many == sorted(many)


def test_classes_must_agree(hmsa, trained, folder_dataset):
    path = folder_dataset({"a": np.zeros((64, 64), np.uint8)})
    ran = hmsa("evaluate", trained, path, "--split", "train")
    assert ran.code == 2
    assert "same classes" in ran.err


@pytest.mark.parametrize("scales", ["0", "-1,1", "a", "1,,2", "nan", "inf", ""])
def test_bad_scales(hmsa, trained, scenes, scales):
    ran = hmsa("evaluate", trained, scenes, f"--scales={scales}")
    assert ran.code == 2
    assert "0.5,1,2" in ran.err


def test_camvid_reads_through_every_fusion(hmsa, tmp_path, camvid):
    """Real images, an untrained network: the verbs hold on data that was not made by us."""
    import yaml

    dataset = tmp_path / "camvid.yaml"
    shipped = open_camvid_description()
    shipped["splits"] = {
        "few": {"images": "val/images", "labels": "val/labels", "include": ["*_0795*"]}
    }
    dataset.write_text(yaml.safe_dump(shipped))
    recipe = tmp_path / "recipe.yaml"
    stage = {"steps": 1, "batch": 2, "crop": [96, 96], "validate_every": 1}
    recipe.write_text(
        yaml.safe_dump(
            {
                "data": {"dataset": str(dataset), "train": "few", "val": "few"},
                "model": {"trunk": "hrnet_w18_small", "pretrained": False, "width": 8},
                "joint": stage | {"warmup": 0},
                "attention": stage,
            }
        )
    )
    run = tmp_path / "run"
    assert hmsa("train", recipe, "--out", run, "--data", camvid).code == 0
    ran = hmsa("evaluate", run, dataset, "--split", "few", "--data", camvid, "--scales", "0.5,1")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out.splitlines()[-1])["images"] >= 1


def open_camvid_description():
    from hmsa.data.descriptions import KNOWN

    return yaml.safe_load(KNOWN["camvid"].read_text())


@pytest.fixture
def streets(tmp_path, layout):
    """Cityscapes in its layout: scenes of blocks with instances, and a network for 19 classes."""
    root = layout("cityscapes", [7, 8, 26, 24, 0], (64, 96))
    rng = np.random.default_rng(0)
    for file in root.glob("gtFine/val/*/*_labelIds.png"):
        raw = rng.choice([7, 11, 17, 21, 23, 24, 26, 33, 4], (8, 12)).repeat(8, 0).repeat(8, 1)
        number = np.arange(96).reshape(8, 12).repeat(8, 0).repeat(8, 1)
        ids = np.where(np.isin(raw, [24, 26, 33]), raw * 1000 + number, raw)
        Image.fromarray(raw.astype(np.uint8)).save(file)
        instances = file.with_name(file.name.replace("labelIds", "instanceIds"))
        Image.fromarray(ids.astype(np.uint16)).save(instances)
    torch.manual_seed(1)
    model = HMSA(19, "mobilenetv3_small_050", width=8)
    model.card.names = list(read_classes(Path("cityscapes")).names)
    model.save_pretrained(tmp_path / "network")
    return root, tmp_path / "network"


def test_cityscapes_scores_are_those_of_its_own_scripts(hmsa, streets, tmp_path, monkeypatch):
    """What is submitted, scored by cityscapesscripts, is what is printed: to 1e-9."""
    root, network = streets
    out = tmp_path / "submission"
    ran = hmsa("evaluate", network, root, "--submission", out, "--json", "--scales", "0.5,1")
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    written = sorted(out.rglob("*.png"))
    assert [p.name for p in written] == ["lindau_0_21.png"]
    raw = np.array(Image.open(written[0]))
    assert raw.dtype == np.uint8
    assert set(np.unique(raw)) <= set(read_classes(Path("cityscapes")).raw)

    if not hasattr(np, "in1d"):  # gone in NumPy 2.4
        monkeypatch.setattr(np, "in1d", np.isin, raising=False)
    scripts = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    monkeypatch.setattr(scripts.args, "quiet", True)
    monkeypatch.setattr(scripts.args, "JSONOutput", False)
    truth = sorted(str(p) for p in root.glob("gtFine/val/*/*_labelIds.png"))
    theirs = scripts.evaluateImgLists([str(p) for p in written], truth, scripts.args)
    close = {"rel": 0, "abs": 1e-9}
    assert found["miou"]["hierarchical"] == pytest.approx(theirs["averageScoreClasses"], **close)
    categories = found["category_iou"]["hierarchical"]
    score = found["category_miou"]["hierarchical"]
    assert score == pytest.approx(theirs["averageScoreCategories"], **close)
    assert list(categories) == [
        "flat", "construction", "object", "nature", "sky", "human", "vehicle"
    ]  # fmt: skip
    for name, value in categories.items():
        assert value == pytest.approx(theirs["categoryScores"][name], **close), name
    each = found["instance_iou"]["hierarchical"]
    assert each["mean"] == pytest.approx(theirs["averageScoreInstClasses"], **close)
    assert each["class"]["car"] == pytest.approx(theirs["classInstScores"]["car"], **close)
    assert each["class"]["road"] is None


def test_scores_beside_iou(trained, scenes):
    found = measure(Predictor.load(trained, (1,), "fp32"), open_dataset(scenes, "val"))
    summary = found.summary()
    own = found.confusion["hierarchical"]
    assert summary["weighted_iou"]["hierarchical"] == own.weighted_iou()
    assert summary["mean_accuracy"]["hierarchical"] == float(own.recall().nanmean())
    assert 0 <= summary["boundary"]["hierarchical"]["iou"] <= 1
    assert 0 <= summary["calibration"]["hierarchical"]["ece"] <= 1
    labelled = int(own.matrix.sum())
    assert int(found.calibration.counts.sum()) == labelled
    assert int(found.calibration.counts[..., 1].sum()) == int(own.matrix.diagonal().sum())
    assert "category_iou" not in summary
    assert "instance_iou" not in summary


def test_no_submission(hmsa, trained, scenes, tmp_path):
    content = yaml.safe_load(scenes.read_text()) | {"encoding": "rgb", "ignore": [[0, 0, 0]]}
    content["path"] = str(scenes.parent)
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(content))
    arguments = ("--submission", tmp_path / "out", "--split", "val")
    ran = hmsa("evaluate", trained, tmp_path / "other.yaml", *arguments)
    assert ran.code == 2
    assert "its labels are colours" in ran.err


def spoiled(run, folder, change):
    """A copy of a run whose first weight was changed."""
    copy = shutil.copytree(run, folder / "spoiled")
    weights = load_file(file := copy / "best.safetensors")
    with safe_open(file, "pt") as opened:
        card = opened.metadata()
    name = next(n for n, weight in weights.items() if weight.ndim == 4)
    weights[name] = change(weights[name])
    save_file(weights, file, card)
    return copy


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda weight: weight * math.nan, "NaN|is not a number"),
        (lambda weight: weight.sign() * 3e38, "the network's output is not a number there"),
    ],
)
def test_a_network_that_diverged_is_not_scored(hmsa, trained, scenes, tmp_path, change, says):
    ran = hmsa("evaluate", spoiled(trained, tmp_path, change), scenes, "--scales", "0.5,1")
    assert (ran.code, ran.out) == (2, "")
    assert re.search(says, ran.err), ran.err


@pytest.fixture
def unlabelled(scenes, tmp_path):
    """The scenes, with nothing but ignored pixels in val."""
    folder = shutil.copytree(scenes.parent, tmp_path / "unlabelled")
    for file in (folder / "val" / "labels").iterdir():
        Image.new("L", (96, 64), 255).save(file)
    return folder


@pytest.mark.parametrize(("verb", "scales"), [("evaluate", "1"), ("gate", "1,2")])
def test_nothing_to_score_is_said_before_the_work(hmsa, trained, unlabelled, verb, scales):
    ran = hmsa(verb, trained, unlabelled, "--scales", scales)
    assert (ran.code, ran.out) == (2, "")
    (line,) = ran.err.splitlines()
    assert "nothing is labelled in split val" in line


def test_a_submission_needs_no_labels(hmsa, trained, unlabelled, tmp_path):
    out = tmp_path / "out"
    arguments = ("--submission", out, "--scales", "1", "--report", tmp_path / "page.html")
    ran = hmsa("evaluate", trained, unlabelled, *arguments, "--json")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["miou"]["average"] is None
    assert len(list(out.iterdir())) == 3


def test_names_that_are_not_utf_8(hmsa, trained, scenes, tmp_path):
    folder = shutil.copytree(scenes.parent, tmp_path / "data")
    for kind in ("images", "labels"):
        file = next((folder / "val" / kind).glob("*0.*"))
        os.rename(file, os.fsencode(file.parent) + b"/\xe9t\xe9" + os.fsencode(file.suffix))
    page = tmp_path / "page.html"
    ran = hmsa("evaluate", trained, folder, "--scales", "1", "--report", page)
    assert ran.code == 0, ran.err
    assert "\\udce9t\\udce9" in page.read_text(encoding="utf-8")
    ran = hmsa("data", "check", folder, "--report", page)
    assert ran.code == 0, ran.err
