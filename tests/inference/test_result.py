"""A prediction in Python and in a notebook; a predictor takes what the command takes."""

from __future__ import annotations

import re
from base64 import b64decode
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from hmsa import Predictor
from hmsa.inference.result import Prediction
from hmsa.model.fusion import resize
from hmsa.runs import InputError

LABEL = np.array([[2, 2, 2, 0], [2, 2, 2, 0]], np.uint8)
SURE = np.array([[255, 255, 102, 51], [255, 255, 102, 51]], np.uint8)
PALETTE = [(10, 20, 30), (0, 0, 200), (99, 0, 99)]


@pytest.fixture
def made():
    return Prediction(LABEL, SURE, palette=PALETTE, names=["sky", "<road>", "car & van"])


@pytest.fixture
def images(tmp_path):
    random = np.random.default_rng(0)
    files = [tmp_path / "in" / name for name in ("a.png", "b/c.png")]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 255, (40, 50, 3), np.uint8)).save(file)
    (tmp_path / "in" / "list.txt").write_text("b/c.png\na.png\n")
    return tmp_path / "in"


def test_confidence_and_entropy_are_shares(made):
    assert made.confidence.dtype == np.float32
    assert (made.confidence > 0.9).sum() == 4
    assert made.entropy is None
    np.testing.assert_allclose(Prediction(LABEL, SURE, entropy8=SURE).entropy[0, 2:], (0.4, 0.2))


def test_areas(made):
    assert made.areas() == [
        {"class": "car & van", "pixels": 6, "share": 0.75, "confidence": pytest.approx(0.8)},
        {"class": "sky", "pixels": 2, "share": 0.25, "confidence": pytest.approx(0.2)},
    ]
    pandas = pytest.importorskip("pandas")
    assert pandas.DataFrame(made.areas()).set_index("class").share["sky"] == 0.25
    assert Prediction(LABEL, SURE).areas()[0]["class"] == "2", "without names"


def test_attention_is_what_the_network_says_and_makes_up_the_weights(tiny):
    image = torch.rand(3, 64, 96)
    made = Predictor(tiny, (0.5, 1, 2), "fp32", "cpu")(image, detail=True)
    with torch.inference_mode():
        found = tiny.eval()(image[None], [0.5, 1.0])
    own = resize(found.maps[0.5].attention, (64, 96))[0, 0]
    np.testing.assert_allclose(made.attention[0.5], own, atol=1e-5)
    assert [*made.attention] == [0.5, 1]
    middle = (1 - made.attention[0.5]) * made.attention[1]
    np.testing.assert_allclose(made.weights[1], middle, atol=1e-6)
    assert Prediction(LABEL, SURE).attention == {}


def test_text_is_short(made):
    assert repr(made) == "Prediction(4x2: car & van 75%, sky 25%)"


def test_masks(made):
    indices, masks = made.masks()
    assert (indices.tolist(), masks.dtype, masks.shape) == ([0, 2], bool, (2, 2, 4))
    assert (masks[1] == (LABEL == 2)).all()
    drawn = pytest.importorskip("torchvision").utils.draw_segmentation_masks(
        torch.zeros(3, 2, 4, dtype=torch.uint8), torch.from_numpy(masks), alpha=1,
        colors=[PALETTE[k] for k in indices],
    )  # fmt: skip
    assert drawn[:, 0, 3].tolist() == [10, 20, 30]


def test_segments(made):
    sky, car = made.segments()
    assert (sky["label"], car["label"], sky["score"]) == ("sky", "car & van", pytest.approx(0.2))
    assert (car["mask"].mode, car["mask"].size) == ("L", (4, 2))
    assert (np.asarray(car["mask"]) == 255 * (LABEL == 2)).all()
    assert Prediction(LABEL, SURE).segments()[1]["label"] == "2", "without names"


@pytest.mark.filterwarnings("ignore")
def test_supervision(made):
    supervision = pytest.importorskip("supervision")
    indices, masks = made.masks()
    one = supervision.Detections(supervision.mask_to_xyxy(masks), masks, class_id=indices)
    assert one.class_id.tolist() == [0, 2]
    assert one.xyxy.tolist() == [[3, 0, 3, 1], [0, 0, 2, 1]]
    classes = dict(enumerate(made.names))
    other = supervision.Detections.from_transformers(torch.from_numpy(made.label), classes)
    assert (other.mask == masks).all()
    assert other.data["class_name"].tolist() == ["sky", "car & van"]


def test_pillow(made):
    assert (np.asarray(made.to_pil()) == LABEL).all()
    assert made.to_pil().convert("RGB").getpixel((3, 0)) == PALETTE[0]


@pytest.mark.filterwarnings("ignore")
def test_labels_in_fiftyone(made, tmp_path):
    data = pytest.importorskip("fiftyone.utils.data")
    (tmp_path / "label").mkdir()
    made.save(tmp_path / "label" / "a.png")
    Image.new("RGB", (4, 2)).save(tmp_path / "a.jpg")
    places = {"data_path": str(tmp_path), "labels_path": str(tmp_path / "label")}
    with data.ImageSegmentationDirectoryImporter(**places) as importer:
        ((image, _, label),) = importer
    assert image == str(tmp_path / "a.jpg")
    assert (label.get_mask() == np.array(PALETTE)[LABEL]).all()


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")
def test_run_lengths(made):
    mask = pytest.importorskip("pycocotools.mask")
    for k, runs in made.rle().items():
        assert (mask.decode(runs) == (k == LABEL)).all()
    assert [*made.rle()] == [0, 2]


class TestNotebook:
    def test_label_where_the_image_is_not_known(self, made):
        with Image.open(BytesIO(made._repr_png_())) as image:
            assert (np.asarray(image.convert("RGB")) == np.array(PALETTE)[LABEL]).all()

    def test_legend(self, made):
        page = made._repr_html_()
        assert re.findall(r"<td style='text-align:left'>(.*?)</td><td>(.*?)</td>", page) == [
            ("car &amp; van", "75.0%"), ("sky", "25.0%")
        ]  # fmt: skip
        assert re.findall(r"background:rgb(\(.*?\))", page) == ["(99, 0, 99)", "(10, 20, 30)"]
        picture = re.search("base64,(.*?)'", page)[1]
        assert b64decode(picture) == made._repr_png_()
        assert "<td" in Prediction(LABEL, SURE)._repr_html_(), "without names and colours"
        assert "road" in Prediction(LABEL // 2, SURE, names=["sky", "road", *"abc"])._repr_html_()

    def test_overlay_of_the_image_that_was_predicted(self, tiny, images):
        made = Predictor(tiny, (1,), "fp32", "cpu")(images / "a.png")
        with Image.open(BytesIO(made._repr_png_())) as image:
            shown = np.asarray(image.convert("RGB"), int)
        assert np.abs(shown - np.asarray(made.overlay(images / "a.png"))).mean() < 12, "128 colours"


def test_a_predictor_takes_folders_globs_and_lists(tiny, images):
    tiny.card.names = ["sky", "road", "post", "car"]
    predictor = Predictor(tiny, (0.5, 1), "fp32", "cpu")
    first, second = (predictor(images / name) for name in ("a.png", "b/c.png"))
    for many in (images, str(images), f"{images}/**/*.png"):
        for one, other in zip(predictor(many), (first, second), strict=True):
            assert (one.label == other.label).all()
    assert (predictor(images / "list.txt")[1].label == first.label).all()
    assert first.areas()[0]["class"] in tiny.card.names
    with pytest.raises(InputError, match="no image matches"):
        predictor("nothing.png")


def test_a_tensor_is_not_kept(tiny):
    made = Predictor(tiny, (1,), "fp32", "cpu")(torch.zeros(3, 40, 50))
    with pytest.raises(InputError, match="overlay: give the image"):
        made.overlay()
    assert made.overlay(np.zeros((40, 50, 3), np.uint8)).size == (50, 40)
