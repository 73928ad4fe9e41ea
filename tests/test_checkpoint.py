"""A checkpoint alone rebuilds the network; a half-written one never exists."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from hmsa import checkpoint
from hmsa.checkpoint import Card
from hmsa.errors import InputError
from hmsa.files import replace

NETWORK = {"classes": 4, "trunk": "hrnet_w18_small", "width": 8}


@pytest.fixture
def card():
    return Card(
        network=NETWORK,
        names=["a", "b", "c", "d"],
        palette=[(i, i, i) for i in range(4)],
        scales=[0.5, 1.0],
        metrics={"val_miou": 0.5},
    )


def test_round_trip(tmp_path, tiny, card):
    checkpoint.save(tmp_path / "best.safetensors", tiny, card)
    for path in (tmp_path / "best.safetensors", tmp_path):
        model, read = checkpoint.load(path)
        assert read == card
        assert not model.training
        image = torch.rand(1, 3, 40, 60)
        with torch.no_grad():
            assert torch.equal(model(image, (0.5, 1)).logits, tiny(image, (0.5, 1)).logits)


def test_run_folder_prefers_best(tmp_path, tiny, card):
    checkpoint.save(tmp_path / "last.safetensors", tiny, card)
    assert checkpoint.load(tmp_path)[1].metrics["val_miou"] == 0.5
    checkpoint.save(tmp_path / "best.safetensors", tiny, card.model_copy(update={"metrics": {}}))
    assert checkpoint.load(tmp_path)[1].metrics == {}


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p: None, "no checkpoint"),
        (lambda p: p.mkdir(), "folder without best.safetensors"),
        (lambda p: p.write_bytes(b"hello"), "is not a checkpoint"),
        (lambda p: save_file({"a": torch.ones(1)}, p), "no hmsa header"),
        (lambda p: save_file({"a": torch.ones(1)}, p, {"hmsa": "{}"}), "header is damaged"),
    ],
)
def test_what_is_no_checkpoint(tmp_path, make, says):
    path = tmp_path / "x.safetensors"
    make(path)
    with pytest.raises(InputError, match=says):
        checkpoint.load(path)


def test_cut_off_file(tmp_path, tiny, card):
    path = tmp_path / "x.safetensors"
    checkpoint.save(path, tiny, card)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(InputError, match="is not a checkpoint"):
        checkpoint.load(path)


def test_other_network(tmp_path, tiny, card):
    path = tmp_path / "x.safetensors"
    checkpoint.save(path, tiny, card.model_copy(update={"network": NETWORK | {"classes": 5}}))
    with pytest.raises(InputError, match="do not fit"):
        checkpoint.load(path)


def test_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fail(temporary):
        temporary.write_text("half")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        replace(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
