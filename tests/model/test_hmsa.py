"""The network: any size and scales, one formula, and what lifting the folder out leaves."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import hmsa.model
from hmsa.model import HMSA, fuse
from hmsa.model.fusion import resize


@pytest.mark.parametrize("size", [(64, 64), (50, 70), (33, 1), (1, 1), (31, 97)])
@pytest.mark.parametrize("scales", [(1.0,), (0.5, 1.0), (2, 0.25, 1.5), (0.5,), (0.3, 0.7)])
def test_any_size_any_scales(tiny, size, scales):
    with torch.no_grad():
        output = tiny(torch.rand(1, 3, *size), scales)
    logits, maps = output.logits, output.maps
    assert logits.shape == (1, 4, *size)
    assert logits.isfinite().all()
    assert list(maps) == sorted(float(s) for s in scales)
    assert maps[max(maps)].attention is None, "nothing is finer than the finest"
    for scale in list(maps)[:-1]:
        attention = maps[scale].attention
        assert attention.shape[-2:] == maps[scale].logits.shape[-2:]
        assert 0 < attention.min() <= attention.max() < 1


def test_one_scale_is_the_plain_network(tiny):
    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        plain = tiny.head(tiny.trunk(tiny.normalise(image))).logits
        chained = tiny(image, (1.0,)).logits
    torch.testing.assert_close(chained, resize(plain, (64, 96)), atol=0, rtol=0)


def test_two_scale_equals_chain_of_the_same_two(tiny):
    image = torch.rand(1, 3, 50, 70)
    with torch.no_grad():
        output = tiny(image, (0.5, 1.0))
        logits, maps = output.logits, output.maps
        by_hand = fuse(maps[0.5].logits, maps[0.5].attention, maps[1.0].logits, (50, 70))
    torch.testing.assert_close(logits, by_hand, atol=0, rtol=0)


def test_order_and_repetition_of_scales_do_not_matter(tiny):
    image = torch.rand(1, 3, 40, 40)
    with torch.no_grad():
        first, second = tiny(image, (0.5, 1, 2)).logits, tiny(image, (2, 0.5, 1, 2)).logits
    assert torch.equal(first, second)


def test_bytes_and_floats_mean_the_same(tiny):
    image = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(tiny(image).logits, tiny(image.float() / 255).logits)


def test_normalisation_travels_with_the_weights():
    model = HMSA(2, "hrnet_w18_small", width=8, mean=(0.1, 0.2, 0.3), std=(1, 2, 4))
    other = HMSA(2, "hrnet_w18_small", width=8)
    other.load_state_dict(model.state_dict())
    pixel = torch.tensor([0.6, 1.2, 0.3]).view(1, 3, 1, 1)
    torch.testing.assert_close(other.normalise(pixel).flatten(), torch.tensor([0.5, 0.5, 0.0]))


def test_finest_attention_is_not_computed(tiny):
    calls = []
    hook = tiny.attention.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        tiny(torch.rand(1, 3, 32, 32), (0.5, 1.0, 2.0))
    hook.remove()
    assert len(calls) == 2


def test_learns_attention_from_the_pair(tiny):
    tiny.zero_grad()
    tiny(torch.rand(1, 3, 64, 64), (0.5, 1.0)).logits.square().mean().backward()
    gradients = [p.grad for p in tiny.parameters()]
    assert all(g is not None and g.isfinite().all() for g in gradients)
    assert any(p.grad.abs().sum() > 0 for p in tiny.attention.parameters())
    tiny.zero_grad()


def test_fusion_stays_float32_under_autocast(tiny):
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        output = tiny(torch.rand(1, 3, 32, 32), (0.5, 1.0))
        logits, maps = output.logits, output.maps
    assert logits.dtype == torch.float32
    assert maps[0.5].attention.dtype == torch.float32


@pytest.mark.parametrize("scales", [(), (0,), (-1,), (float("nan"),), (float("inf"),), ("1",)])
def test_refuses_what_is_no_scale(tiny, scales):
    with pytest.raises(ValueError, match="scales"):
        tiny(torch.rand(1, 3, 32, 32), scales)


def test_the_folder_works_without_the_rest(tmp_path):
    """torch and timm are all that it needs."""
    shutil.copytree(Path(hmsa.model.__file__).parent, tmp_path / "lifted")
    code = (
        "import sys, torch; from lifted import HMSA\n"
        "output = HMSA(3, 'hrnet_w18_small', width=8)(torch.rand(1, 3, 50, 70), (0.5, 1, 2))\n"
        "assert output.logits.shape == (1, 3, 50, 70)\n"
        "assert 'hmsa' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
