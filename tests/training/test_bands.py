"""Images with more than 8 bits or more than three bands: training and prediction see the same."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from hmsa import HMSA, Predictor
from hmsa.data.images import read_image
from hmsa.data.rasters import rasterio
from hmsa.data.stretch import stretch_of
from hmsa.model.trunk import Trunk
from samples import TINY_RECIPE

pytest.importorskip("rasterio")


@pytest.fixture
def satellite(tmp_path):
    """`(**changes to its YAML) -> dataset.yaml`; one class is bright in one of five bands."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for kind in ("images", "labels"):
            (tmp_path / split / kind).mkdir(parents=True)
        for i in range(count):
            label = np.kron(rng.integers(0, 2, (4, 4)), np.ones((16, 16), int)).astype(np.uint8)
            bands = rng.integers(200, 900, (5, 64, 64)) + i * 50
            bands[3][label > 0] += 2000
            with rasterio().open(
                tmp_path / split / "images" / f"{i}.tif", "w", driver="GTiff", count=5, height=64,
                width=64, dtype="uint16",
            ) as target:  # fmt: skip
                target.write(bands.astype(np.uint16))
            Image.fromarray(label).save(tmp_path / split / "labels" / f"{i}.png")

    def describe(**changes):
        content = {"splits": {"train": "train", "val": "val"}, "names": ["soil", "plants"]}
        (tmp_path / "dataset.yaml").write_text(yaml.safe_dump(content | changes))
        recipe = TINY_RECIPE | {"data": {"dataset": str(tmp_path / "dataset.yaml"), "workers": 0}}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        return tmp_path / "dataset.yaml"

    return describe


def test_more_bands_from_description_to_label(satellite, tmp_path, hmsa):
    dataset, run = satellite(bands=[4, 3, 2, 1]), tmp_path / "run"
    trained = hmsa("train", tmp_path / "recipe.yaml", "--out", run)
    assert trained.code == 0, trained.err
    assert trained.err.count("becomes 0..255, by 4 of 4 files") == 1
    model = HMSA.from_pretrained(run)
    assert model.card.bands == [4, 3, 2, 1]
    assert model.card.network["in_channels"] == model.channels == 4
    assert len(model.card.stretch) == 4
    assert model.card.stretch[0][1] > 2 * model.card.stretch[1][1], "each band has its own"

    ran = hmsa("predict", run, tmp_path / "val" / "images", "-o", tmp_path / "out",
               "--save", "label,overlay,panel,geotiff")  # fmt: skip
    assert ran.code == 0, ran.err
    assert "more than 8 bits" not in ran.err, "the card says it"
    file = tmp_path / "val" / "images" / "0.tif"
    image = read_image(file, stretch=stretch_of(model.card))
    assert image.shape == (64, 64, 4)
    label = np.asarray(Image.open(tmp_path / "out" / "label" / "0.png"))
    predictor = Predictor.load(run)
    assert (predictor(image).label == label).all()
    assert (predictor(file).label == label).all()
    assert read_image(tmp_path / "out" / "overlay" / "0.jpg").shape == (64, 64, 3)

    scored = hmsa("evaluate", run, dataset, "--json")
    assert scored.code == 0, scored.err
    assert json.loads(scored.out)["images"] == 2
    assert hmsa("data", "preview", dataset, "-o", tmp_path / "sheet.png").code == 0
    Image.new("RGB", (64, 64)).save(tmp_path / "rgb.png")
    refused = hmsa("predict", run, tmp_path / "rgb.png", "-o", tmp_path / "other")
    assert refused.code != 0
    assert "rgb.png has 3 band(s), and band 4 is needed" in refused.err


def test_a_dark_image_stays_dark(satellite, tmp_path, hmsa):
    """Its own values would stretch it, those of the training set do not."""
    satellite()
    assert hmsa("train", tmp_path / "recipe.yaml", "--out", tmp_path / "run").code == 0
    card = HMSA.from_pretrained(tmp_path / "run").card
    assert card.bands is None
    ((low, high),) = card.stretch
    assert 190 < low < 260
    assert 950 < high < 1060
    dark = tmp_path / "dark.tif"
    with rasterio().open(dark, "w", driver="GTiff", count=5, height=64, width=64,
                         dtype="uint16") as target:  # fmt: skip
        target.write(np.random.default_rng(1).integers(200, 300, (5, 64, 64)).astype(np.uint16))
    predictor = Predictor.load(tmp_path / "run")
    assert read_image(dark, stretch=predictor.stretch).max() < 40
    other = Predictor.load(tmp_path / "run", stretch=((200, 300),))
    assert read_image(dark, stretch=other.stretch).max() > 245
    assert other.settings["stretch"] == [[200, 300]]


def test_the_description_can_say_the_range(satellite, tmp_path, hmsa):
    satellite(stretch=[0, 3000])
    ran = hmsa("train", tmp_path / "recipe.yaml", "--out", tmp_path / "run")
    assert ran.code == 0, ran.err
    assert "more than 8 bits" not in ran.err
    assert HMSA.from_pretrained(tmp_path / "run").card.stretch == [[0, 3000]]
    satellite(stretch=[3000, 0])
    ran = hmsa("train", tmp_path / "recipe.yaml", "--out", tmp_path / "other")
    assert (ran.code, ran.out) == (2, "")
    assert "the smaller one" in ran.err


def test_prediction_by_a_network_of_8_bits(tiny, satellite, tmp_path, hmsa):
    """One range for the folder, also when the same command goes on with further images."""
    satellite()
    tiny.save_pretrained(tmp_path / "network")
    images, out = tmp_path / "train" / "images", tmp_path / "out"
    command = ("predict", tmp_path / "network", images, "-o", out, "--save", "label")
    first = hmsa(*command)
    assert first.code == 0, first.err
    assert first.err.count("images have more than 8 bits: ") == 1
    bright = rasterio().open(images / "0.tif").read() * 9
    with rasterio().open(images / "new.tif", "w", driver="GTiff", count=5, height=64, width=64,
                         dtype="uint16") as target:  # fmt: skip
        target.write(bright)
    again = hmsa(*command)
    assert again.code == 0, again.err
    assert "5 image(s) labelled" in again.err
    assert "(4 of them before)" in again.err
    other = hmsa(*command, "--stretch", "0,3000")
    assert other.code == 2
    assert hmsa(*command, "--stretch", "0,3000", "--overwrite").code == 0
    assert hmsa(*command, "--stretch", "0").code == 2


def test_pretrained_weights_are_widened(tmp_path):
    """As timm does: those of RGB repeated, so that all channels alike give what gray gave."""
    torch.manual_seed(0)
    plain = Trunk("resnet18").eval()
    torch.save(plain.extractor.state_dict(), tmp_path / "weights.pth")
    wide = Trunk("resnet18", str(tmp_path / "weights.pth"), in_channels=6).eval()
    gray = torch.rand(1, 1, 64, 64)
    for one, other in zip(
        plain(gray.repeat(1, 3, 1, 1)), wide(gray.repeat(1, 6, 1, 1)), strict=True
    ):
        torch.testing.assert_close(one, other)
    assert list(wide.mean) == [*plain.mean] * 2


def test_labels_for_many_images(tiny, satellite, tmp_path, hmsa):
    satellite()
    tiny.save_pretrained(tmp_path / "network")
    command = ("autolabel", tmp_path / "network", tmp_path / "train" / "images", "-o")
    first = hmsa(*command, tmp_path / "out")
    assert first.code == 0, first.err
    assert first.err.count("images have more than 8 bits: ") == 1
    ((low, high),) = json.loads((tmp_path / "out" / "autolabel.json").read_text())["stretch"]
    assert 190 < low < 260
    assert 950 < high < 1060
    (tmp_path / "val" / "images" / "0.tif").rename(tmp_path / "train" / "images" / "new.tif")
    again = hmsa(*command, tmp_path / "out")
    assert again.code == 0, again.err
    assert "more than 8 bits" not in again.err, "the range is that of the first run"
    given = hmsa(*command, tmp_path / "other", "--stretch", "0,3000")
    assert given.code == 0, given.err
    stored = json.loads((tmp_path / "other" / "autolabel.json").read_text())
    assert stored["stretch"] == [[0, 3000]]
