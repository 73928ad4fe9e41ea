"""Quicker than torchvision, and equal to it in every value."""

from __future__ import annotations

import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from hmsa.data.colors import ColorJitter, adjust_hue


def colors():
    """Every grey, every mixture of a few levels, and many at random; `[3,H,W]`."""
    grey = torch.arange(256).expand(3, 256)
    level = torch.tensor([0, 1, 2, 84, 85, 127, 128, 170, 253, 254, 255])
    random = torch.randint(256, (3, 200_000), generator=torch.Generator().manual_seed(0))
    flat = torch.cat([grey, torch.cartesian_prod(level, level, level).T, random], 1)
    return flat[:, : flat.shape[1] // 64 * 64].reshape(3, 64, -1).to(torch.uint8)


@pytest.mark.parametrize("shift", [0.0, 1e-9, -1e-9, 0.05, -0.0333, 0.25, -0.25, 0.5, -0.5])
def test_hue_is_torchvisions(shift):
    image = colors()
    assert torch.equal(adjust_hue(image, shift), F.adjust_hue(image, shift))


@pytest.mark.parametrize("layout", ["planes", "interleaved"])
@pytest.mark.parametrize("given", [(0.4, 0.4, 0.4, 0.08), (0, 0.3, 0, 0), (0, 0, 0, 0.5)])
def test_jitter_is_torchvisions(given, layout):
    image = colors() if layout == "planes" else colors().permute(1, 2, 0).contiguous()
    image = tv_tensors.Image(image if layout == "planes" else image.permute(2, 0, 1))
    label = tv_tensors.Mask(torch.zeros(image.shape[1:], dtype=torch.uint8))
    for seed in range(5):
        torch.manual_seed(seed)
        ours, same = ColorJitter(*given)(image, label)
        torch.manual_seed(seed)
        theirs, _ = v2.ColorJitter(*given)(image, label)
        assert torch.equal(ours, theirs)
        assert isinstance(ours, tv_tensors.Image)
        assert same is label


def test_what_comes_in_is_left_alone():
    image = tv_tensors.Image(colors())
    before = image.clone()
    ColorJitter(0.5, 0.5, 0.5, 0.5)(image)
    assert torch.equal(image, before)
