"""Scale attention around networks of other libraries: their numbers, and nothing else's."""

from __future__ import annotations

import dataclasses
import sys
import types
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hmsa import HMSA, InputError, Predictor, ScaleAttention
from hmsa.checkpoint.files import hashed
from hmsa.checkpoint.networks import allow, find
from hmsa.inference.tiles import Gate
from hmsa.model import PairScaleAttention, adapter
from hmsa.model.adapter import confidence_of, logits_of
from hmsa.model.fusion import resize
from hmsa.model.pretrained import save

K = 5


def segformer() -> nn.Module:
    pytest.importorskip("transformers")
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    config = SegformerConfig(
        num_labels=K, depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 24, 32], decoder_hidden_size=16
    )
    return SegformerForSemanticSegmentation(config)


def unet() -> nn.Module:
    smp = pytest.importorskip("segmentation_models_pytorch")
    return smp.Unet("mobilenet_v2", encoder_weights=None, classes=K)


def deeplab() -> nn.Module:
    smp = pytest.importorskip("segmentation_models_pytorch")
    return smp.DeepLabV3Plus("mobilenet_v2", encoder_weights=None, classes=K)


def lraspp(name: str = "lraspp_mobilenet_v3_large") -> nn.Module:
    from torchvision.models import get_model

    return get_model(name, weights=None, weights_backbone=None, num_classes=K)


class Own(nn.Module):
    """Somebody's own: logits at stride 2, with what there is to say of it."""

    multiple, mean, std = 4, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    names = tuple("abcde")

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU())
        self.last = nn.Conv2d(6, K, 1)

    def forward(self, image):
        return self.last(self.stem(image))


def ours() -> nn.Module:
    return HMSA(K, "mobilenetv3_small_050", width=8)


ALL = [segformer, unet, deeplab, lraspp, Own, ours]


def warm(make) -> nn.Module:
    """Norms that have seen something: random networks say nearly the same everywhere."""
    torch.manual_seed(0)
    network = make()
    with torch.no_grad(), warnings.catch_warnings(action="ignore"):
        network.train()(torch.rand(2, 3, 64, 64))
    return network.eval()


def picture(height=75, width=98) -> torch.Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(1))


def sure(model: HMSA, towards: float) -> None:
    """Attention that is 0 or 1 everywhere, to the last bit."""
    last = model.attention[-1][-1]
    nn.init.zeros_(last.weight)
    nn.init.constant_(last.bias, 1e4 if towards else -1e4)


@pytest.mark.parametrize("kind", [ScaleAttention, PairScaleAttention])
@pytest.mark.parametrize("per_class", [False, True])
@pytest.mark.parametrize("make", ALL)
def test_attention_of_1_and_0_is_the_single_scale(make, per_class, kind):
    model = kind(warm(make), K, per_class=per_class).eval()
    image = picture()
    with torch.no_grad():
        single = {scale: model(image, (scale,)).logits for scale in (0.5, 1, 2)}
        for towards, scale in ((1, 0.5), (0, 2)):
            sure(model, towards)
            output = model(image, (0.5, 1, 2))
            if scale == 2:  # brought down to the grid of 1x, as the chain has it
                fine = output.maps[2.0].logits
                expected = resize(resize(fine, image.shape[-2:]), image.shape[-2:])
            else:
                expected = single[scale]
            assert torch.equal(output.logits, expected)
            weights = output.weights()
            assert (weights[float(scale)] == 1).all()


@pytest.mark.parametrize("make", ALL)
def test_a_single_scale_is_what_the_network_says(make):
    network, image = warm(make), picture(64, 96)
    model = ScaleAttention(network).eval()
    with torch.no_grad():
        normalised = (image - model.mean) / model.std
        own = network(image).logits if make is ours else logits_of(network(normalised))
        alone = model(image, (1,)).logits
    torch.testing.assert_close(alone, resize(own, (64, 96)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", [ScaleAttention, PairScaleAttention])
@pytest.mark.parametrize("make", ALL)
def test_comes_back_from_its_file_alone(make, kind, tmp_path):
    model = kind(warm(make), per_class=kind is PairScaleAttention).eval()
    save(tmp_path / "a.safetensors", model)
    if make in (Own, lraspp):  # torchvision's networks do not know how they were made
        with pytest.raises(ValueError, match="needs its owner's code; use HMSA.from_pretrained"):
            HMSA.from_pretrained(tmp_path / "a.safetensors")
        back = HMSA.from_pretrained(tmp_path / "a.safetensors", network=make().eval())
    else:
        back = HMSA.from_pretrained(tmp_path / "a.safetensors")
    assert type(back) is kind
    assert back.card == model.card
    with torch.no_grad():
        torch.testing.assert_close(
            back(picture(), (0.5, 1)).logits, model(picture(), (0.5, 1)).logits
        )


@pytest.mark.parametrize("make", [segformer, Own])
@pytest.mark.parametrize("per_class", [False, True])
def test_the_predictor_sees_what_forward_does(make, per_class):
    model = ScaleAttention(warm(make), per_class=per_class).double().eval()
    image = (picture(60, 80)[0].permute(1, 2, 0) * 255).byte().numpy()
    seen = Predictor(model, (0.5, 1, 2), "fp32")(image, detail=True)
    with torch.no_grad():
        output = model(torch.from_numpy(image).permute(2, 0, 1)[None], (0.5, 1, 2))
    assert (seen.label == output.logits.argmax(1)[0].numpy()).all()
    for scale, weight in output.weights().items():
        np.testing.assert_allclose(seen.weights[scale], weight[0, 0].numpy(), atol=1e-6)


def test_tiles_and_gate_work():
    model = ScaleAttention(warm(Own), features="stem", per_class=True).double().eval()
    image = (picture(128, 160)[0].permute(1, 2, 0) * 255).byte().numpy()
    whole = Predictor(model, (0.5, 1, 2), "fp32", tile=None)(image)
    tiled = Predictor(model, (0.5, 1, 2), "fp32", tile=128, halo=32)(image)
    assert (whole.label == tiled.label).mean() > 0.999
    gated = Predictor(model, (0.5, 1, 2), "fp32", gate=Gate(0.2, 32, 8))(image, detail=True)
    assert 0 < gated.computed[2.0] < 1
    assert sum(gated.weights.values()).max() <= 1 + 1e-6
    everything = Predictor(model, (0.5, 1, 2), "fp32", gate=Gate(1.0))(image)
    assert (everything.label == whole.label).all()


def test_confidence():
    certain = confidence_of(torch.tensor([[1e4, 0.0, 0.0]]).view(1, 3, 1, 1)).flatten()
    torch.testing.assert_close(certain, torch.tensor([0.0, 1.0, 1.0]))
    clueless = confidence_of(torch.zeros(1, 4, 1, 1)).flatten()
    torch.testing.assert_close(clueless, torch.tensor([1.0, 0.25, 0.0]))


def test_features():
    network = warm(Own)
    model = ScaleAttention(network)
    assert (model.trunk.feature_source, model.head.features) == ("last:input", 6 + 3)
    assert ScaleAttention(network, features="stem.0").head.features == 6 + 3
    assert ScaleAttention(network, features=None).head.features == 3
    model = ScaleAttention(network, features="stem").double()
    with torch.no_grad():
        image = picture(32, 32).double()
        features = model.see(image).features[:, :6]
        expected = F.avg_pool2d(network.stem(image), 2)
    torch.testing.assert_close(features, expected, atol=1e-12, rtol=0)


def test_around_an_attended_network_is_around_the_one_inside(tmp_path):
    model = ScaleAttention(warm(segformer))
    save(tmp_path / "a.safetensors", model)
    for network in (model, find(tmp_path / "a.safetensors")):
        again = PairScaleAttention(network)
        assert again.card.network["network"] == model.card.network["network"]
        assert hashed(again.trunk.state_dict()) == hashed(model.trunk.state_dict())


def test_the_network_stays_as_it_is():
    network = warm(Own)
    before = hashed(network.state_dict())
    model = ScaleAttention(network)
    model.train()
    assert not network.training
    model(picture(), (0.5, 1)).logits.sum().backward()
    assert hashed(network.state_dict()) == before
    learning = {n for n, p in model.named_parameters() if p.requires_grad}
    assert learning
    assert all(name.startswith("attention.") for name in learning)
    assert all(p.grad is not None for n, p in model.named_parameters() if n in learning)


class Odd(Own):
    """Returns anything."""

    returned: object = None

    def forward(self, image):
        return type(self).returned


@pytest.mark.parametrize(
    ("returned", "says"),
    [
        (None, "returns nothing"),
        ((torch.zeros(1),), "returns tuple"),
        ({"masks": 1, "boxes": 2}, r"returns dict \['masks', 'boxes'\]"),
        (torch.zeros(1, 5), r"returns Tensor \[1, 5\]"),
        (torch.zeros(1, 5, 7, 3), "smaller by one whole number"),
    ],
)
def test_refuses_output_of_unknown_form(returned, says, monkeypatch):
    monkeypatch.setattr(Odd, "returned", returned)
    with pytest.raises(ValueError, match=says):
        ScaleAttention(Odd().eval())


def test_refuses_what_it_cannot_wrap():
    network = warm(Own)
    with pytest.raises(ValueError, match="in training mode.*network.eval()"):
        ScaleAttention(Own())
    with pytest.raises(ValueError, match="returns 5 classes, 7 are wanted"):
        ScaleAttention(network, 7)
    with pytest.raises(ValueError, match="stemm of the network gave nothing.*stem, last"):
        ScaleAttention(network, features="stemm")
    with pytest.raises(ValueError, match="is its multiple 32"):
        ScaleAttention(nn.Sequential(nn.Flatten(), nn.Linear(3, 2)).eval())

    class Idle(Own):
        def __init__(self) -> None:
            super().__init__()
            self.unused, self.pooled = nn.Conv2d(3, 3, 1), nn.AdaptiveAvgPool2d(1)
            self.flat = nn.Flatten()

        def forward(self, image):
            self.flat(self.pooled(image))
            return super().forward(image)

    idle = warm(Idle)
    with pytest.raises(ValueError, match="unused of the network gave nothing"):
        ScaleAttention(idle, features="unused")
    with pytest.raises(ValueError, match=r"flat of the network gave Tensor \[1, 3\]"):
        ScaleAttention(idle, features="flat")


def test_an_activation_is_no_logit():
    smp = pytest.importorskip("segmentation_models_pytorch")
    network = smp.Unet("mobilenet_v2", encoder_weights=None, classes=K, activation="softmax2d")
    with pytest.raises(InputError, match="ends in softmax2d, not logits"):
        ScaleAttention(network.eval())


def test_finds_networks_where_they_were_saved(tmp_path, monkeypatch):
    kept = {
        "segformer": warm(segformer), "unet": warm(unet)
    }  # fmt: skip
    for name, network in kept.items():
        network.save_pretrained(tmp_path / name)
    torch.save(warm(lraspp).state_dict(), tmp_path / "lraspp.pth")
    save(tmp_path / "ours.safetensors", warm(ours))
    module = types.ModuleType("somebodys")
    module.make, module.nothing = lambda: warm(Own), lambda: 3
    monkeypatch.setitem(sys.modules, "somebodys", module)
    monkeypatch.setenv("HMSA_NETWORK", "nothing yet")
    for source, made in [
        (tmp_path / "segformer", segformer), (f"transformers:{tmp_path / 'segformer'}", segformer),
        (tmp_path / "unet", unet), (f"smp:{tmp_path / 'unet'}", unet),
        (f"torchvision:lraspp_mobilenet_v3_large@{tmp_path / 'lraspp.pth'}", lraspp),
        (tmp_path / "ours.safetensors", ours), ("somebodys:make", Own),
    ]:  # fmt: skip
        allow(str(source))
        model, other = ScaleAttention(find(source)), ScaleAttention(warm(made))
        with torch.no_grad():
            mine, theirs = (m.eval()(picture(64, 96), (1,)).logits for m in (model, other))
        torch.testing.assert_close(mine, theirs)
    for source, says in [
        (tmp_path / "nothing", "no network .*nothing; hmsa attend"),
        ("transformers:/not/there", "transformers:/not/there cannot be loaded"),
        ("torchvision:resnet18", "resnet18 is not one of deeplabv3_mobilenet_v3_large, "),
        ("torchvision:lraspp_mobilenet_v3_large@nowhere.pth", "cannot be read .*No such file"),
        (tmp_path, "is a folder without model.safetensors"),
        ("somebodys:other", "somebodys:other: .* has no attribute"),
        ("nobodys:make", "nobodys:make: No module"),
        ("somebodys:nothing", r"somebodys:nothing\(\) returned int"),
    ]:
        allow(str(source))
        with pytest.raises(InputError, match=says):
            find(source)


def test_own_code_runs_only_where_it_is_allowed(tmp_path, monkeypatch):
    module = types.ModuleType("somebodys")
    module.make = lambda: warm(Own)
    monkeypatch.setitem(sys.modules, "somebodys", module)
    monkeypatch.setenv("HMSA_NETWORK", "somebodys:make")
    network = find("somebodys:make")
    made = {"reference": "somebodys:make", "sha256": hashed(network.module.state_dict())}
    for name, model in (
        ("inside", ScaleAttention(network)),
        ("outside", ScaleAttention(dataclasses.replace(network, made=made))),
    ):
        save(tmp_path / name, model)
        monkeypatch.setenv("HMSA_NETWORK", "somebodys:other")
        with pytest.raises(ValueError, match="set HMSA_NETWORK=somebodys:make"):
            HMSA.from_pretrained(tmp_path / name)
        monkeypatch.setenv("HMSA_NETWORK", "somebodys:make")
        assert HMSA.from_pretrained(tmp_path / name).card == model.card


def test_model_room_alone_needs_the_network(tmp_path, monkeypatch):
    """Without `hmsa.checkpoint.networks`, as where somebody took the model's folder alone."""
    monkeypatch.setattr(ScaleAttention, "describe", staticmethod(adapter.describe))
    model = ScaleAttention(warm(segformer))
    save(tmp_path / "a.safetensors", model)
    with pytest.raises(ValueError, match="give it as network="):
        HMSA.from_pretrained(tmp_path / "a.safetensors")
    back = HMSA.from_pretrained(tmp_path / "a.safetensors", network=segformer().eval())
    assert back.card == model.card
