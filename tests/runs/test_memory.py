from __future__ import annotations

import torch
from torch import nn

from hmsa.model import HMSA
from hmsa.runs.memory import free_memory, peak_of


class Chain(nn.Module):
    """Two maps of 4 bytes x 8 channels are alive at once, and the input is not the module's."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)
        self.third = nn.Conv2d(8, 2, 1)

    def forward(self, image):
        return self.third(self.second(self.first(image)))


def test_the_peak_is_what_is_alive_at_once():
    def call(model):
        return model(torch.empty(1, 3, 50, 40, device="meta"))

    image = 3 * 50 * 40 * 4
    assert peak_of(Chain(), call) == image + 2 * 8 * 50 * 40 * 4


def test_nothing_is_computed_and_the_network_stays(tiny):
    before = {name: t.clone() for name, t in tiny.state_dict().items()}

    def side(pixels):
        return peak_of(
            tiny, lambda model: model.see(torch.empty(1, 3, pixels, pixels, device="meta"))
        )

    assert 3 < side(512) / side(256) < 4.2
    assert all(torch.equal(t, before[name]) for name, t in tiny.state_dict().items())
    assert next(tiny.parameters()).device.type == "cpu"


def test_a_large_network_is_counted_in_no_memory():
    """HRNet-W48 with OCR at 4096x4096 would take gigabytes."""
    model = HMSA(19, "hrnet_w48", head="ocr", width=256)
    peak = peak_of(model, lambda m: m.see(torch.empty(1, 3, 4096, 4096, device="meta")))
    assert peak > 4 << 30


def test_free_memory():
    free = free_memory(torch.device("cpu"))
    assert 1 << 20 < free < 1 << 50
