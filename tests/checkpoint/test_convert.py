"""A checkpoint in the official layout, of the rule's weights, converts whole or not at all."""

from __future__ import annotations

import json
import os
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from golden.rule import image, weight
from hmsa import HMSA, Predictor
from hmsa.checkpoint import official

GOLDEN = Path(__file__).parents[1] / "golden"
CLASSES = "cityscapes"


@pytest.fixture(scope="module")
def state():
    keys = json.loads((GOLDEN / "mscale_DeepV3R50_keys.json").read_text())["keys"]
    return OrderedDict(
        ("module." + k["key"], torch.from_numpy(np.asarray(weight(k["key"], tuple(k["shape"])))))
        for k in keys
    )


def write(path: Path, state: OrderedDict, **changes) -> Path:
    """As the official code saves: old serialisation, numpy scalar, optimizer, parallel names."""
    first = next(iter(state.values()))
    content = {
        "epoch": 174,
        "arch": "mscale.DeepV3R50",
        "num_classes": 19,
        "state_dict": state,
        "optimizer": {
            "state": {0: {"momentum_buffer": torch.zeros_like(first)}},
            "param_groups": [{"lr": 0.005, "momentum": 0.9, "params": [0]}],
        },
        "mean_iu": np.float64(0.8475),
        "command": "train.py --arch mscale.DeepV3R50",
    } | changes
    torch.save(content, path, _use_new_zipfile_serialization=False)
    return path


def test_same_logits_as_the_official_code(hmsa, state, tmp_path):
    out = tmp_path / "ours"
    ran = hmsa("convert", write(tmp_path / "best.pth", state), CLASSES, "-o", out)
    assert ran.code == 0, ran.err
    assert ran.out.strip() == str(out)
    assert "matched" in ran.err
    model = HMSA.from_pretrained(out)
    card = model.card
    assert card.names[:2] == ["road", "sidewalk"]
    assert card.scales == [0.5, 1.0, 2.0]
    assert model.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    golden = np.load(GOLDEN / "mscale_DeepV3R50_A.npz")
    noise = torch.from_numpy(image((1, 3, 64, 128), 0))
    with torch.no_grad():  # the golden image is not normalised: undo what the model will do
        logits = model(noise * model.std + model.mean, (0.5, 1.0)).logits
    np.testing.assert_allclose(logits.numpy(), golden["two|pred|s1"], atol=5e-3, rtol=0)
    Image.new("RGB", (60, 40), (90, 120, 150)).save(tmp_path / "photo.jpg")
    ran = hmsa("predict", out, tmp_path / "photo.jpg", "-o", tmp_path / "out", "--scales", "1")
    assert ran.code == 0, ran.err
    written = np.array(Image.open(tmp_path / "out" / "label" / "photo.png"))
    seen = Predictor.load(out, (1.0,))(tmp_path / "photo.jpg")
    assert (written == seen.label).all()


def test_a_run_becomes_a_folder_to_share(hmsa, trained, tmp_path):
    ran = hmsa("convert", trained, "-o", tmp_path / "shared")
    assert ran.code == 0, ran.err
    names = sorted(p.name for p in (tmp_path / "shared").iterdir())
    assert names == ["README.md", "config.json", "model.safetensors"]
    assert HMSA.from_pretrained(tmp_path / "shared").card == HMSA.from_pretrained(trained).card


@pytest.mark.parametrize("entry", ["model", "state_dict"])
@pytest.mark.parametrize("prefix", ["", "model.", "model.module."])
def test_prefixes_and_entries_of_wrappers(state, tmp_path, entry, prefix):
    weights = {prefix + name.removeprefix("module."): t for name, t in state.items()}
    torch.save({"arch": "mscale.DeepV3R50", entry: weights}, tmp_path / "a.pth")
    arch, found = official.read(tmp_path / "a.pth")
    assert arch == "mscale.DeepV3R50"
    assert found.keys() == {official.our_name(name, arch) for name in state}


def test_a_pth_needs_its_classes_named(hmsa, state, tmp_path):
    ran = hmsa("convert", write(tmp_path / "best.pth", state), "-o", tmp_path / "out")
    assert ran.code == 2
    assert "does not name its classes" in ran.err


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (
            lambda s: s.popitem(),
            "weights match; 1 missing, such as attention.2.weight",
        ),
        (
            lambda s: s.update({"module.bot_fine.bias": torch.ones(48)}),
            "weights match; 1 not in it, such as head.reduce_fine.bias",
        ),
        (
            lambda s: s.update({"module.final.6.weight": torch.ones(65, 256, 1, 1)}),
            "with 19 classes: ",
        ),
        (lambda s: s.update({"module.foo": torch.ones(1)}), "'foo' is not a weight"),
        (lambda s: next(iter(s.values())).view(-1)[:1].fill_(torch.nan), "hold NaN"),
    ],
)
def test_nothing_is_loaded_in_part(hmsa, state, tmp_path, spoil, says):
    state = OrderedDict((name, tensor.clone()) for name, tensor in state.items())
    spoil(state)
    out = tmp_path / "ours.safetensors"
    ran = hmsa("convert", write(tmp_path / "best.pth", state), CLASSES, "-o", out)
    assert ran.code == 2
    assert says in ran.err.splitlines()[-1]
    assert not out.exists()


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil-was-here",)


def test_no_code_of_a_checkpoint_runs(hmsa, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"state_dict": Evil()}, protocol=2))
    torch.save({"state_dict": Evil()}, tmp_path / "evil-zip.pth")
    for name in ("evil.pth", "evil-zip.pth"):
        ran = hmsa("convert", name, CLASSES, "-o", "out.safetensors")
        assert ran.code == 2
        assert "cannot be read safely" in ran.err
    assert not (tmp_path / "evil-was-here").exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"arch": "x"}, "no state_dict"),
        ({"arch": "x", "state_dict": {}}, "no state_dict"),
        ({"arch": "x", "state_dict": {"a": torch.ones(1)}}, "arch 'x'; supported are"),
    ],
)
def test_other_files(hmsa, tmp_path, content, says):
    torch.save(content, tmp_path / "a.pth")
    ran = hmsa("convert", tmp_path / "a.pth", CLASSES, "-o", tmp_path / "out.safetensors")
    assert ran.code == 2
    assert says in ran.err
