from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from hmsa import Predictor
from hmsa.errors import InputError
from hmsa.model import HMSA


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 255, (41, 67, 3), dtype=np.uint8)


def test_equals_the_plain_formula(tiny, image):
    seen = Predictor(tiny, (0.5, 1, 2), precision="fp32", device="cpu")(image)
    with torch.no_grad():
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
        probability = tiny(pixels, (0.5, 1, 2)).logits.softmax(1)[0]
    assert seen.label.dtype == seen.confidence.dtype == np.uint8
    assert (seen.label == probability.argmax(0).numpy()).all()
    expected = (probability.max(0).values * 255).floor().numpy()
    assert np.abs(seen.confidence - expected).max() <= 1
    assert not seen.weights


def test_detail(tiny, image):
    predictor = Predictor(tiny, (2, 0.5), precision="fp32", device="cpu")
    seen, plain = predictor(image, detail=True), predictor(image)
    assert (seen.label == plain.label).mean() > 0.999, "in bands and whole, but for rounding"
    assert list(seen.single) == list(seen.weights) == [0.5, 2.0]
    assert {name: label.shape for name, label in seen.pooled.items()} == dict.fromkeys(
        ("average", "max"), (41, 67)
    )
    np.testing.assert_allclose(sum(seen.weights.values()), 1, atol=1e-5)
    alone = Predictor(tiny, (0.5,), precision="fp32", device="cpu")(image)
    assert (alone.label == seen.single[0.5]).all()


def test_flip_is_the_mean_of_both_passes(tiny, image):
    """A picture that is its own mirror image gives one, too."""
    both = np.concatenate([image, image[:, ::-1]], 1)
    seen = Predictor(tiny, (0.5, 1), precision="fp32", device="cpu", flip=True)(both, detail=True)
    assert (seen.label == seen.label[:, ::-1]).mean() > 0.999
    assert (seen.pooled["max"] == seen.pooled["max"][:, ::-1]).mean() > 0.999
    for weight in seen.weights.values():
        np.testing.assert_allclose(weight, weight[:, ::-1], atol=1e-4)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
    with torch.no_grad():
        plain = tiny(pixels, (1,)).logits
        mirrored = tiny(pixels.flip(-1), (1,)).logits.flip(-1)
    flipped = Predictor(tiny, (1,), precision="fp32", device="cpu", flip=True)(image)
    assert (flipped.label == ((plain + mirrored) / 2).argmax(1)[0].numpy()).all()


def test_long_edge_is_a_change_of_scale_alone(tiny, image):
    """41x67 pixels at a long edge of 134 and scale 1 are those same pixels at scale 2."""
    big = Predictor(tiny, (1,), precision="fp32", device="cpu", long_edge=134)(image)
    twice = Predictor(tiny, (2,), precision="fp32", device="cpu")(image)
    assert big.label.shape == (41, 67)
    assert (big.label == twice.label).mean() > 0.99


def test_files_pillow_images_and_arrays_mean_the_same(tiny, image, tmp_path):
    Image.fromarray(image).save(tmp_path / "a.png")
    predictor = Predictor(tiny, (1,), device="cpu")
    seen = [predictor(x).label for x in (image, Image.fromarray(image), tmp_path / "a.png")]
    assert (seen[0] == seen[1]).all()
    assert (seen[0] == seen[2]).all()


def test_confidence_never_claims_more_than_the_model_did():
    """A network that is sure to exactly 1/2 says 127, not 128."""
    model = HMSA(2, "hrnet_w18_small", width=8)
    torch.nn.init.zeros_(model.head.semantic[-1].weight)
    torch.nn.init.zeros_(model.head.semantic[-1].bias)
    seen = Predictor(model, (1,), precision="fp32", device="cpu")(np.zeros((8, 8, 3), np.uint8))
    assert set(seen.confidence.ravel()) == {127}


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


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_agrees_with_cpu(tiny, image):
    import copy

    cpu = Predictor(copy.deepcopy(tiny), (0.5, 1), precision="fp32", device="cpu")(image)
    gpu = Predictor(copy.deepcopy(tiny), (0.5, 1), precision="fp32", device="cuda")(image)
    assert (cpu.label == gpu.label).mean() > 0.99
