from __future__ import annotations

import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from hmsa import Predictor
from hmsa.inference.exported import Exported, Frozen, freeze, write
from hmsa.model import HMSA
from hmsa.model.heads import PlainHead
from hmsa.runs.errors import InputError


class Patches(nn.Module):
    """The least trunk: one convolution."""

    multiple, strides = 8, [8]

    def __init__(self):
        super().__init__()
        self.look = nn.Conv2d(3, 8, 8, 8)

    def forward(self, image):
        return [self.look(image)]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = HMSA(3, "mobilenetv3_small_050", width=8)
    model.trunk, model.head = Patches(), PlainHead([8], 3, 8)
    return model.eval()


@pytest.fixture(scope="module")
def program(model):
    return freeze(Frozen(model, (0.5, 1.0), False, None), None)


@pytest.mark.parametrize("kind", ["onnx", "torch"])
def test_any_size(model, program, tmp_path, kind):
    file = tmp_path / {"onnx": "net.onnx", "torch": "net.pt2"}[kind]
    write(file, kind, program, model.card.model_copy(update={"scales": [0.5, 1.0]}), None)
    frozen, eager = Exported.load(file), Predictor(model, (0.5, 1.0), "fp32", "cpu")
    rng = np.random.default_rng(0)
    for size in ((32, 32), (33, 200), (128, 64), (75, 131), (257, 99)):
        image = rng.integers(0, 256, (*size, 3), np.uint8)
        one, other = frozen(image), eager(image)
        assert one.label.shape == size
        assert (one.label == other.label).mean() > 0.999
        assert np.abs(one.confidence.astype(int) - other.confidence).max() <= 1
    with pytest.raises(InputError, match="from 32x32 up, this one is 31x40"):
        frozen(np.zeros((31, 40, 3), np.uint8))
    with pytest.raises(InputError, match="ask the checkpoint"):
        frozen(image, detail=True)


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_other_files(tmp_path, suffix):
    file = tmp_path / f"net{suffix}"
    with pytest.raises(InputError, match="no file"):
        Exported.load(file)
    file.write_bytes(b"nonsense")
    with pytest.raises(InputError, match=f"net{suffix} cannot be"):
        Exported.load(file)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a", "b")
    with pytest.raises(InputError, match=f"net{suffix} cannot be"):
        Exported.load(file)


def test_a_file_of_somebody_else(tmp_path):
    class Same(nn.Module):
        def forward(self, image):
            return image + 1

    program = torch.export.export(Same(), (torch.zeros(1, 3, 4, 4),))
    torch.export.save(program, tmp_path / "net.pt2")
    with pytest.raises(InputError, match="not written by hmsa export"):
        Exported.load(tmp_path / "net.pt2")


def test_a_network_that_the_exporter_refuses(model):
    class Asks(Patches):
        def forward(self, image):
            return super().forward(image) if image.sum() > 0 else []

    broken = HMSA(3, "mobilenetv3_small_050", width=8)
    broken.trunk, broken.head = Asks(), model.head
    with pytest.raises(InputError, match="torch cannot export this network for 64x96 size"):
        freeze(Frozen(broken, (1.0,), False, None), (64, 96))
