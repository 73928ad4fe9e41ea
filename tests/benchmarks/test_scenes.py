"""The generated streets hold the paper's conflict: this measures that they do."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from scenes import FIGURE, MARGIN, NAMES, POST, SMALL, SURFACES, scene, write_scenes

from hmsa.data.datasets import open_dataset

SIZE = (256, 512)


@pytest.fixture(scope="module")
def streets():
    return [scene(seed, SIZE) for seed in range(24)]


def test_pure_function_of_its_seed():
    (image, label), (again, _), (other, _) = scene(3, SIZE), scene(3, SIZE), scene(4, SIZE)
    assert image.shape == (*SIZE, 3)
    assert image.dtype == label.dtype == np.uint8
    assert np.array_equal(image, again)
    assert not np.array_equal(image, other)


@pytest.mark.parametrize("size", [(64, 64), (96, 301), (512, 512)])
def test_any_size(size):
    image, label = scene(0, size)
    assert image.shape == (*size, 3)
    assert label.max() < len(NAMES)


def test_every_class_occurs(streets):
    pixels = np.bincount(np.concatenate([label.ravel() for _, label in streets]), minlength=7)
    assert (pixels > 0).all()
    small = pixels[list(SMALL)].sum() / pixels.sum()
    assert 0.001 < small < 0.03, "thin things are few, large regions are most"


def iou_after_shrinking(streets, factor):
    """IoU of each class when perfect labels are stored at 1/factor (majority of each block)."""
    hit, union = np.zeros(len(NAMES)), np.zeros(len(NAMES))
    for _, label in streets:
        h, w = label.shape[0] // factor, label.shape[1] // factor
        blocks = label.reshape(h, factor, w, factor).transpose(0, 2, 1, 3).reshape(h, w, -1)
        counts = (blocks[..., None] == np.arange(len(NAMES))).sum(2)
        back = counts.argmax(-1).repeat(factor, 0).repeat(factor, 1)
        for k in range(len(NAMES)):
            hit[k] += ((back == k) & (label == k)).sum()
            union[k] += ((back == k) | (label == k)).sum()
    return hit / union


def test_thin_things_vanish_when_the_picture_shrinks_and_wide_ones_do_not(streets):
    at_8 = iou_after_shrinking(streets, 8)  # the grid of stride 4 at scale 0.5
    at_2 = iou_after_shrinking(streets, 2)  # and at scale 2
    assert at_8[POST] < 0.1
    assert at_2[POST] > 0.4
    assert at_2[FIGURE] > at_8[FIGURE] + 0.15
    assert min(at_8[list(SURFACES)]) > 0.85


def nearest_class_accuracy(train, test):
    """1-nearest-neighbour: assumes nothing about the shape of the classes."""
    (x, y), (u, v) = train, test
    mean, std = x.mean(0), x.std(0) + 1e-6
    x, u = (x - mean) / std, (u - mean) / std
    distance = (u**2).sum(1)[:, None] - 2 * u @ x.T + (x**2).sum(1)
    return float((y[distance.argmin(1)] == v).mean())


def test_surfaces_are_alike_close_up_and_apart_from_afar(streets):
    """Statistics of a 16 pixel patch say little of the class; a picture of the street says it."""
    rng = np.random.default_rng(0)
    close, afar, classes = [], [], []
    for image, label in streets:
        grey = image.mean(-1)
        thumbnail = np.asarray(
            Image.fromarray(image).convert("L").resize((32, 16), Image.Resampling.BOX), np.float64
        )
        for k in SURFACES:
            spots = [
                (y, x)
                for y, x in rng.permutation(np.argwhere(label == k))[:60]
                if 8 <= y < 248 and 8 <= x < 504
                and (label[y - 8 : y + 8, x - 8 : x + 8] == k).all()
            ][:8]  # fmt: skip
            for y, x in spots:
                patch = grey[y - 8 : y + 8, x - 8 : x + 8]
                across, down = np.abs(np.diff(patch, axis=1)), np.abs(np.diff(patch, axis=0))
                close.append([patch.std(), across.mean(), down.mean(), patch.max() - patch.min()])
                # where it lies in the street: its place against the corners that the edges make
                afar.append([y / 256, (x - vanishing_column(thumbnail)) / 512])
                classes.append(k)
    close, afar, classes = np.array(close), np.array(afar), np.array(classes)
    half = len(classes) // 2
    accuracy = {
        name: nearest_class_accuracy((f[:half], classes[:half]), (f[half:], classes[half:]))
        for name, f in (("close", close), ("afar", afar))
    }
    chance = np.bincount(classes).max() / len(classes)
    assert accuracy["close"] < chance + 0.08, accuracy
    assert accuracy["afar"] > accuracy["close"] + 0.15, accuracy


def vanishing_column(thumbnail):
    """Where the sky reaches lowest, found in a 32x16 picture of the whole street."""
    sky = thumbnail > 150
    depth = np.where(sky.any(0), sky.shape[0] - sky[::-1].argmax(0), 0)
    return float(np.flatnonzero(depth == depth.max()).mean() + 0.5) * 16


def test_written_scenes_are_a_dataset(tmp_path):
    path = write_scenes(tmp_path / "s", {"train": 2, "night": 1}, (64, 96), seed=5)
    train, night = open_dataset(path, "train"), open_dataset(path, "night")
    assert (len(train), len(night)) == (2, 1)
    assert train.labels.names == NAMES
    image, label = scene((5, 1, 0), (64, 96))
    assert np.array_equal(night.read(0)[0], image)
    assert np.array_equal(night.read(0)[1], label)


def test_coarse_labels_are_true_and_stay_away_from_borders(tmp_path):
    path = write_scenes(tmp_path / "s", {"rest": 2}, (128, 192), coarse=True)
    fine, coarse = open_dataset(path, "rest"), open_dataset(path, "rest-coarse")
    assert [p.image for p in fine.pairs] == [p.image for p in coarse.pairs]
    for index in range(2):
        label, drawn = fine.read_label(index), coarse.read_label(index)
        spoken = drawn != 255
        assert 0.3 < spoken.mean() < 0.95
        assert (drawn[spoken] == label[spoken]).all()
        for y, x in np.argwhere(spoken)[::97]:
            near = label[max(0, y - MARGIN) : y + MARGIN + 1, max(0, x - MARGIN) : x + MARGIN + 1]
            assert (near == label[y, x]).all()
