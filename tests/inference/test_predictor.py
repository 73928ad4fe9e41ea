from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from PIL import Image

from hmsa import Predictor
from hmsa.data.images import OpenImage
from hmsa.model import HMSA
from hmsa.runs.errors import InputError


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 255, (41, 67, 3), dtype=np.uint8)


def test_equals_the_plain_formula(tiny, image):
    prediction = Predictor(tiny, (0.5, 1, 2), precision="fp32", device="cpu")(image)
    with torch.no_grad():
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
        probability = tiny(pixels, (0.5, 1, 2)).logits.softmax(1)[0]
    assert prediction.label.dtype == prediction.confidence8.dtype == np.uint8
    assert (prediction.label == probability.argmax(0).numpy()).all()
    expected = (probability.max(0).values * 255).floor().numpy()
    assert np.abs(prediction.confidence8 - expected).max() <= 1
    assert not prediction.weights


def test_detail(tiny, image):
    predictor = Predictor(tiny, (2, 0.5), precision="fp32", device="cpu")
    prediction, plain = predictor(image, detail=True), predictor(image)
    assert (prediction.label == plain.label).mean() > 0.999, "in bands and whole, but for rounding"
    assert list(prediction.single) == list(prediction.weights) == [0.5, 2.0]
    assert {name: label.shape for name, label in prediction.pooled.items()} == dict.fromkeys(
        ("average", "max"), (41, 67)
    )
    np.testing.assert_allclose(sum(prediction.weights.values()), 1, atol=1e-5)
    alone = Predictor(tiny, (0.5,), precision="fp32", device="cpu")(image)
    assert (alone.label == prediction.single[0.5]).all()


def test_flip_is_the_mean_of_both_passes(tiny, image):
    """A picture that is its own mirror image gives one, too."""
    both = np.concatenate([image, image[:, ::-1]], 1)
    prediction = Predictor(tiny, (0.5, 1), precision="fp32", device="cpu", flip=True)(
        both, detail=True
    )
    assert (prediction.label == prediction.label[:, ::-1]).mean() > 0.999
    assert (prediction.pooled["max"] == prediction.pooled["max"][:, ::-1]).mean() > 0.999
    for weight in prediction.weights.values():
        np.testing.assert_allclose(weight, weight[:, ::-1], atol=1e-4)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
    with torch.no_grad():
        plain = tiny(pixels, (1,)).logits
        mirrored = tiny(pixels.flip(-1), (1,)).logits.flip(-1)
    predictor = Predictor(tiny, (1,), precision="fp32", device="cpu", flip=True)
    flipped = predictor(image, detail=True)
    assert (flipped.label == ((plain + mirrored) / 2).argmax(1)[0].numpy()).all()
    assert (flipped.flips["plain"] == plain.argmax(1)[0].numpy()).all()
    assert (flipped.flips["mirrored"] == mirrored.argmax(1)[0].numpy()).all()
    assert not Predictor(tiny, (1,), "fp32", "cpu")(image, detail=True).flips


def test_long_edge_is_a_change_of_scale_alone(tiny, image):
    """41x67 pixels at a long edge of 134 and scale 1 are those same pixels at scale 2."""
    big = Predictor(tiny, (1,), precision="fp32", device="cpu", long_edge=134)(image)
    twice = Predictor(tiny, (2,), precision="fp32", device="cpu")(image)
    assert big.label.shape == (41, 67)
    assert (big.label == twice.label).mean() > 0.99


def test_files_pillow_images_and_arrays_mean_the_same(tiny, image, tmp_path):
    Image.fromarray(image).save(tmp_path / "a.png")
    predictor = Predictor(tiny, (1,), device="cpu")
    labels = [predictor(x).label for x in (image, Image.fromarray(image), tmp_path / "a.png")]
    assert (labels[0] == labels[1]).all()
    assert (labels[0] == labels[2]).all()


def test_confidence_never_claims_more_than_the_model_did():
    """A network that is sure to exactly 1/2 says 127, not 128."""
    model = HMSA(2, "hrnet_w18_small", width=8)
    torch.nn.init.zeros_(model.head.semantic[-1].weight)
    torch.nn.init.zeros_(model.head.semantic[-1].bias)
    prediction = Predictor(model, (1,), precision="fp32", device="cpu")(
        np.zeros((8, 8, 3), np.uint8)
    )
    assert set(prediction.confidence8.ravel()) == {127}


def test_bf16_agrees(tiny, image):
    full = Predictor(tiny, (0.5, 1), precision="fp32", device="cpu")(image)
    half = Predictor(tiny, (0.5, 1), precision="bf16", device="cpu")(image)
    assert (full.label == half.label).mean() > 0.9


def test_load_takes_the_scales_it_was_trained_for(trained, image):
    assert Predictor.load(trained).scales == [0.5, 1.0, 2.0]
    assert Predictor.load(trained / "last.safetensors", (1, 0.25)).scales == [0.25, 1.0]


def test_refuses_bad_scales(tiny):
    with pytest.raises(InputError):
        Predictor(tiny, (0,))


def test_refuses_more_classes_than_labels_have_values(tiny):
    tiny.classes = 256
    with pytest.raises(InputError, match="labels have 8 bits: 256 classes, at most 255 fit"):
        Predictor(tiny, (1,))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_agrees_with_cpu(tiny, image):
    cpu = Predictor(tiny, (0.5, 1), precision="fp32", device="cpu")(image)
    gpu = Predictor(tiny, (0.5, 1), precision="fp32", device="cuda")(image)
    assert (cpu.label == gpu.label).mean() > 0.99


@pytest.fixture
def predictor(tiny):
    return Predictor(tiny, (0.5, 1, 2), precision="fp32", device="cpu")


class TestWhatItTakes:
    def test_tensors_and_batches(self, predictor, image):
        expected = predictor(image).label
        tensor = torch.from_numpy(image).permute(2, 0, 1)
        assert (predictor(tensor).label == expected).all()
        assert (predictor(tensor.float() / 255).label == expected).mean() > 0.999
        mirrored = np.ascontiguousarray(image[:, ::-1])
        both = predictor([image, mirrored])
        for one, alone in zip(both, (image, mirrored), strict=True):
            assert (one.label == predictor(alone).label).mean() > 0.999
        stacked = predictor(torch.stack([tensor, tensor.flip(-1)]), detail=True)
        assert (stacked[1].label == both[1].label).all()
        assert stacked[1].weights[2.0].shape == image.shape[:2]
        different = predictor([image, image[:20]])
        assert [one.label.shape for one in different] == [(41, 67), (20, 67)]

    def test_a_very_large_image_is_read_and_predicted_block_by_block(self, predictor, monkeypatch):
        """Where not even its results would fit into memory."""
        image = np.random.default_rng(0).integers(0, 255, (36, 24, 3), np.uint8)
        image = image.repeat(16, 0).repeat(16, 1)  # 576x384
        whole = predictor(image, detail=True, probabilities=True)
        for limit in ("_LEAST", "_BLOCK"):
            monkeypatch.setattr(f"hmsa.inference.predictor.{limit}", 256)
        reads = []

        class Large(OpenImage):
            def read(self, rows, cols):
                reads.append((rows, cols))
                window = image[rows, cols].view()
                window.flags.writeable = False
                return window

        found = predictor(Large(image), detail=True, probabilities=True)
        assert len(reads) == 6
        assert reads[0] == (slice(0, 512), slice(0, 384))
        assert (found.label == whole.label).mean() > 0.97
        assert (found.single[2.0] == whole.single[2.0]).mean() > 0.97
        assert np.abs(found.weights[2.0] - whole.weights[2.0]).mean() < 0.01
        assert np.abs(found.probabilities - whole.probabilities).mean() < 0.01

    def test_blocks_share_the_context_of_the_whole_image(self, monkeypatch):
        for limit in ("_LEAST", "_BLOCK"):
            monkeypatch.setattr(f"hmsa.inference.predictor.{limit}", 256)
        model = HMSA(3, "mobilenetv3_small_050", head="ocr", width=8)
        predictor, passes, see = Predictor(model, (0.5, 1), "fp32", "cpu"), [], model.see
        assert predictor._need > 0, "before every call is recorded"

        def spy(image, attended, context):
            passes.append((context, see(image, attended, context)))
            return passes[-1][1]

        monkeypatch.setattr(model, "see", spy)
        image = torch.randint(0, 256, (3, 300, 400), dtype=torch.uint8)
        assert predictor(image).label.shape == (300, 400)
        (_, whole), *parts = passes
        assert len(parts) == 2 * 4, "scales, blocks"
        assert all(context is whole.context for context, _ in parts)

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            (np.zeros((4, 4), np.uint8), "[4, 4] of uint8; give an array [H,W,3] of uint8 RGB"),
            (np.zeros((4, 4, 3), np.float32), "of float32"),
            (torch.zeros(4, 4, 3), "[4, 4, 3] of float32; give"),
            (torch.zeros(3, 0, 4), "not empty"),
            (torch.zeros(3, 4, 4, dtype=torch.int64), "of int64; give"),
        ],
    )
    def test_refuses(self, predictor, wrong, message):
        with pytest.raises(InputError, match=re.escape(message)):
            predictor(wrong)

    def test_a_device_that_is_not_there(self, tiny):
        if torch.cuda.device_count() < 8:
            with pytest.raises(InputError, match="cuda:7: this machine has"):
                Predictor(tiny, (1,), device="cuda:7")
        with pytest.raises(InputError, match="unknown device 'gpu'"):
            Predictor(tiny, (1,), device="gpu")
        with pytest.raises(InputError, match="fp16 is for GPUs"):
            Predictor(tiny, (1,), "fp16", "cpu")(np.zeros((9, 9, 3), np.uint8))


class TestWhatItGives:
    def test_probabilities_and_entropy(self, predictor, image):
        prediction = predictor(image, probabilities=True, entropy=True)
        assert prediction.probabilities.dtype == np.float16
        assert (prediction.probabilities.argmax(0) == prediction.label).mean() > 0.99
        np.testing.assert_allclose(prediction.probabilities.astype(float).sum(0), 1, atol=2e-3)
        share = prediction.probabilities.astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            entropy = -np.nansum(share * np.log(share), 0) / np.log(len(share))
        np.testing.assert_allclose(prediction.entropy, entropy, atol=1.5 / 255)

    def test_save_and_overlay(self, predictor, image, tmp_path):
        prediction = predictor(image, detail=True, entropy=True)
        prediction.save(tmp_path / "label.png")
        with Image.open(tmp_path / "label.png") as written:
            assert written.mode == "P"
            assert (np.array(written) == prediction.label).all()
        prediction.save(tmp_path / "all.npz")
        with np.load(tmp_path / "all.npz") as held:
            assert (held["entropy"] == prediction.entropy8).all()
            assert held["weights"].shape == (3, 41, 67)
        Image.fromarray(image).save(tmp_path / "a.png")
        drawn = prediction.overlay(tmp_path / "a.png")
        assert (np.array(drawn) == np.array(prediction.overlay(image))).all()
        colours = np.array(prediction.palette)[prediction.label]
        expected = (image / 2 + colours / 2).round()
        assert np.abs(np.array(drawn) - expected).max() <= 1
        with pytest.raises(InputError, match="give the image that was predicted"):
            prediction.overlay(image[:20])
        with pytest.raises(InputError, match=r"ends in .png \(label\) or .npz"):
            prediction.save(tmp_path / "label.jpg")

    def test_a_giant_result_lies_in_a_file(self, predictor, image, monkeypatch):
        monkeypatch.setattr("hmsa.inference.predictor._IN_MEMORY", 1000)
        prediction = predictor(image)
        assert isinstance(prediction.label, np.memmap)
        monkeypatch.undo()
        assert (prediction.label == predictor(image).label).all()


class TestTiles:
    """What tiles are worth: test_tiles.py. Here: when an image is cut."""

    def test_only_what_does_not_fit(self, predictor, monkeypatch):
        assert predictor._tile_of(400 * 600) is None
        monkeypatch.setattr("hmsa.inference.predictor.free_memory", lambda device: 300 << 20)
        side = predictor._tile_of(4000 * 6000)
        assert side % 32 == 0
        assert side**2 * predictor._need <= 150 << 20
        predictor.tile = None
        assert predictor._tile_of(4000 * 6000) is None
        predictor.tile = 512
        assert predictor._tile_of(400 * 600) == 512

    def test_a_tiled_picture_is_labelled_like_the_whole(self, predictor):
        picture = np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8)
        picture = picture.repeat(16, 0).repeat(16, 1)  # 480x640
        whole = predictor(picture, detail=True)
        predictor.tile, predictor.halo = 384, 96
        tiled = predictor(picture, detail=True)
        assert (tiled.label == whole.label).mean() > 0.98
        for scale in (0.5, 1.0, 2.0):
            assert (tiled.single[scale] == whole.single[scale]).mean() > 0.98
            assert np.abs(tiled.weights[scale] - whole.weights[scale]).mean() < 0.01
        predictor.flip = True
        assert (predictor(picture).label == tiled.label).mean() > 0.8

    def test_out_of_memory_halves_the_tile_and_goes_on(self, predictor, capsys, monkeypatch):
        picture = np.random.default_rng(0).integers(0, 255, (500, 700, 3), np.uint8)
        expected = predictor(picture).label
        see, sides = predictor.model.see, []

        def poor(pixels, *others):
            sides.append(max(pixels.shape[-2:]))
            if pixels.device.type == "cpu" and max(pixels.shape[-2:]) > 800:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return see(pixels, *others)

        monkeypatch.setattr(predictor.model, "see", poor)
        found = predictor(picture).label
        assert capsys.readouterr().err == "memory ran out; going on in tiles of 640 pixels\n"
        assert (found == expected).mean() > 0.95
        sides.clear()
        assert (predictor(picture[:64, :96]).label.shape) == (64, 96)
        assert sides == [64, 96, 192], "the tile of one picture is not that of the next"
        assert capsys.readouterr().err == ""

    def test_no_memory_at_all_is_an_error(self, predictor, monkeypatch):
        def poor(pixels, *others):
            raise torch.OutOfMemoryError("CUDA out of memory")

        assert predictor._need > 0
        monkeypatch.setattr(predictor.model, "see", poor)
        with pytest.raises(InputError, match="not enough memory on cpu for an image of 300 pixels"):
            predictor(np.zeros((300, 300, 3), np.uint8))

    def test_other_errors_are_not_taken_for_that(self, predictor, monkeypatch):
        def wrong(*others):
            raise RuntimeError("shapes do not fit")

        monkeypatch.setattr(predictor.model, "see", wrong)
        with pytest.raises(RuntimeError, match="shapes"):
            predictor(np.zeros((30, 30, 3), np.uint8))
