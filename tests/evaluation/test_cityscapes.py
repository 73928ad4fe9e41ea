"""The official Cityscapes scripts, on generated files in their layout, print what we print."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official
from cityscapesscripts.helpers.labels import labels
from PIL import Image

from hmsa.evaluation.confusion import Confusion, InstanceConfusion

CLASSES = sorted((row for row in labels if 0 <= row.trainId < 255), key=lambda row: row.trainId)
NAMES = [row.name for row in CLASSES]
RAW = np.array([row.id for row in CLASSES])
CATEGORIES = list(dict.fromkeys(row.category for row in CLASSES))
GROUPS = [[row.trainId for row in CLASSES if row.category == name] for name in CATEGORIES]
SIZES = [official.args.avgClassSize.get(name, math.nan) for name in NAMES]
TRAIN_IDS = np.full(256, 255, np.uint8)
TRAIN_IDS[RAW] = np.arange(19)


def street(random, present):
    """raw ids and instance ids `[64,96]` as the official tools draw them: instances numbered within
    their class, groups (and all that has no instances) by their class alone."""
    raw, instance = np.zeros((2, 64, 96), np.int32)
    numbers = dict.fromkeys(range(34), 0)
    for _ in range(70):
        kind = labels[random.choice(present)]
        y, x, height, width = random.integers((0, 0, 2, 2), (60, 90, 24, 40))
        box = np.s_[y : y + height, x : x + width]
        raw[box] = instance[box] = kind.id
        if kind.hasInstances and random.random() < 0.8:
            instance[box] = kind.id * 1000 + numbers[kind.id]
            numbers[kind.id] += 1
    return raw, instance


def predict(random, raw, guessed):
    """raw ids of evaluated classes: the truth, moved, with patches of something else."""
    moved = np.roll(raw, random.integers(-3, 4, 2), (0, 1))
    guess = np.where(TRAIN_IDS[moved] == 255, RAW[random.choice(guessed)], moved)
    for _ in range(12):
        y, x = random.integers((0, 0), (60, 90))
        guess[y : y + 9, x : x + 14] = RAW[random.choice(guessed)]
    return guess


@pytest.fixture
def evaluate(monkeypatch):
    # Their release 2.3.0 calls a name that NumPy 2.4 no longer has
    monkeypatch.setattr(np, "in1d", np.isin, raising=False)
    args = copy.copy(official.args)
    args.quiet, args.JSONOutput, args.evalInstLevelScore = True, False, True
    return lambda predicted, truth: official.evaluateImgLists(predicted, truth, args)


@pytest.mark.parametrize(
    ("present", "guessed"),
    [
        (range(34), range(19)),  # everything, also what is ignored
        ([7, 11, 23, 24, 26, 29], [0, 2, 11, 13, 15]),  # absent ones; a bus where there is none
        ([7, 8, 11, 21, 22], [0, 1, 2]),  # no instance at all
    ],
    ids=["all", "some", "stuff"],
)
def test_equal_to_the_official_scripts(present, guessed, tmp_path, evaluate):
    random = np.random.default_rng(len(present))
    confusion, instances, files = Confusion(19), InstanceConfusion(SIZES), ([], [])
    city = tmp_path / "gtFine" / "val" / "lindau"
    (tmp_path / "results").mkdir()
    city.mkdir(parents=True)
    for index in range(3):
        raw, instance = street(random, list(present))
        predicted = predict(random, raw, list(guessed))
        name = f"lindau_{index:06d}_000019"
        truth_file = city / f"{name}_gtFine_labelIds.png"
        Image.fromarray(raw.astype(np.uint8)).save(truth_file)
        Image.fromarray(instance.astype(np.uint16)).save(city / f"{name}_gtFine_instanceIds.png")
        Image.fromarray(predicted.astype(np.uint8)).save(tmp_path / "results" / f"{name}.png")
        files[0].append(str(tmp_path / "results" / f"{name}.png"))
        files[1].append(str(truth_file))

        label, guess = (torch.from_numpy(TRAIN_IDS[ids]) for ids in (raw, predicted))
        confusion.add(label, guess)
        instances.add(label, guess, torch.from_numpy(instance * (instance > 1000)))

    theirs = evaluate(*files)
    for ours, scores, names in [
        (confusion.iou(), "classScores", NAMES),
        (instances.iou(), "classInstScores", NAMES),
        (confusion.grouped(GROUPS).iou(), "categoryScores", CATEGORIES),
        (confusion.miou(), "averageScoreClasses", None),
        (instances.iou().nanmean(), "averageScoreInstClasses", None),
        (confusion.grouped(GROUPS).miou(), "averageScoreCategories", None),
    ]:
        expected = [theirs[scores][n] for n in names] if names else theirs[scores]
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-9, err_msg=scores)
    assert set(theirs["categoryScores"]) - set(CATEGORIES) == {"void"}
    if len(present) == 34:
        assert 0.1 < confusion.miou() < 0.9, "neither perfect nor all wrong"
        assert not confusion.iou().isnan().any()
