"""The Trunk contract, for every family: name it and it is tested."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision

from hmsa.model import HMSA
from hmsa.model.trunk import Trunk

TRUNKS = [
    ("hrnet_w18_small", 4),
    ("hrnet_w18_small_v2", 4),
    ("resnet18", 4),
    ("resnet18", 8),
    ("mobilenetv3_small_050", 4),
    ("tf_efficientnet_lite0", 4),
    ("convnext_atto", 4),
    ("swin_tiny_patch4_window7_224", 4),
    ("vit_tiny_patch16_224", 4),
]


@pytest.mark.parametrize(("name", "stride"), TRUNKS)
def test_contract(name, stride):
    trunk = Trunk(name, stride=stride).eval()
    h, w = trunk.multiple * 2, trunk.multiple * 3
    with torch.no_grad():
        levels = trunk(torch.rand(1, 3, h, w))
    assert len(levels) == len(trunk.channels) == len(trunk.strides)
    assert trunk.strides == sorted(trunk.strides), "finest first"
    assert min(trunk.strides) >= stride
    for level, channels, s in zip(levels, trunk.channels, trunk.strides, strict=True):
        assert level.shape == (1, channels, h // s, w // s)


def test_stride_8_is_dilated():
    assert Trunk("resnet18", stride=8).strides == [8, 8, 8]


@pytest.mark.parametrize("head", ["plain", "ocr", "deeplab"])
@pytest.mark.parametrize(
    ("name", "stride"),
    [
        ("hrnet_w18", 4),
        ("resnet50", 4),
        ("resnet50", 8),
        ("convnext_tiny", 4),
        ("mobilenetv3_small_050", 4),
        ("swin_tiny_patch4_window7_224", 4),
        ("vit_tiny_patch16_224", 4),
    ],
)
def test_either_head_takes_odd_sizes_and_learns(name, stride, head):
    model = HMSA(3, name, stride=stride, head=head, width=8)
    logits = model(torch.rand(2, 3, 37, 61), (0.5, 1.0)).logits
    assert logits.shape == (2, 3, 37, 61)
    logits.square().mean().backward()
    assert all(p.grad is not None for p in model.head.parameters())


def test_local_weight_file(tmp_path):
    """timm's own loading, on a file: what it holds is what the trunk starts from."""
    donor = timm.create_model("resnet18", num_classes=7)
    with torch.no_grad():
        donor.conv1.weight.fill_(0.125)
    torch.save(donor.state_dict(), tmp_path / "weights.pth")
    trunk = Trunk("resnet18", pretrained=str(tmp_path / "weights.pth"))
    assert trunk.extractor.conv1.weight.unique().tolist() == [0.125]


@pytest.mark.parametrize("name", ["hrnet_w18_small", "resnet50"])
def test_imagenet_files_of_the_official_code(tmp_path, name):
    """A flat dict of the classification network: HRNet's without timm's classifier, torchvision's
    ResNet with its own."""
    donor = timm.create_model(name) if name.startswith("hrnet") else torchvision.models.resnet50()
    flat = {k: v for k, v in donor.state_dict().items() if not k.startswith(("incre", "downsamp"))}
    torch.save(flat, tmp_path / "imagenet.pth")
    trunk = Trunk(name, pretrained=str(tmp_path / "imagenet.pth"))
    held = trunk.extractor.state_dict()
    assert len(held) > 200
    assert all(torch.equal(value, flat[key]) for key, value in held.items())


@pytest.mark.parametrize("spoil", ["a weight is missing", "no weights at all"])
def test_a_file_of_another_network_is_refused(tmp_path, spoil):
    flat = timm.create_model("resnet18").state_dict()
    flat = {} if "all" in spoil else {k: v for k, v in flat.items() if k != "layer1.0.conv1.weight"}
    torch.save(flat, tmp_path / "imagenet.pth")
    with pytest.raises(ValueError, match="imagenet.pth"):
        Trunk("resnet18", pretrained=str(tmp_path / "imagenet.pth"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"name": "hrnet_w19"}, "hrnet_w18"),
        ({"name": "no_such_net"}, "not a timm model"),
        ({"name": "resnet_18"}, "did you mean resnet18"),
        ({"name": "resnet18", "pretrained": "nowhere.pth"}, "nowhere.pth"),
        ({"name": "hrnet_w18_small", "stride": 8}, "stride 8"),
    ],
)
def test_refusals_name_the_way_out(arguments, says):
    with pytest.raises(ValueError, match=says):
        Trunk(**arguments)
