"""Evaluation: fixed keys, numbers equal to a naive count, a page that opens from disk."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from hmsa import HMSA
from hmsa.commands.evaluate import best, measure, worst_first
from hmsa.data.datasets import open_dataset
from hmsa.metrics import Confusion
from hmsa.model import average
from hmsa.predictor import Predictor


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
    np.testing.assert_allclose(found.weights.sum(1), 1, atol=1e-5)
    assert [w.index for w in best(found.windows)] == [
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
    """Real pictures, an untrained network: the verbs hold on data that was not made by us."""
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
                "model": {"trunk": "hrnet_w18_small", "width": 8},
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
    import yaml

    from hmsa.data.layouts import KNOWN

    return yaml.safe_load(KNOWN["camvid"].read_text())
