"""Networks of other libraries: weights however they were saved, and no code of strangers."""

from __future__ import annotations

import io
import json
import pickle
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import get_model

from hmsa import HMSA, InputError, ScaleAttention
from hmsa.checkpoint.networks import find
from hmsa.model.pretrained import Card, save, write_checkpoint

K, NAME = 5, "lraspp_mobilenet_v3_large"


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    network = get_model(NAME, weights=None, weights_backbone=None, num_classes=K)
    return dict(network.state_dict())


def prefixed(state, prefix: str) -> dict[str, torch.Tensor]:
    return OrderedDict((prefix + name, tensor) for name, tensor in state.items())


class TestStateDicts:
    @pytest.mark.parametrize(
        "wrap",
        [
            lambda state: prefixed(state, "module."),
            lambda state: {"model": state, "epoch": 3},
            lambda state: {"model": prefixed(state, "module."), "optimizer": {"state": {}}},
            lambda state: {
                "state_dict": prefixed(state, "model.") | {"loss.weight": torch.ones(K)}
            },
            lambda state: {"model_state_dict": prefixed(state, "_orig_mod.module.")},
        ],
        ids=["DDP", "model", "DDP in model", "Lightning", "compiled DDP"],
    )
    def test_prefixes_and_entries_of_wrappers(self, state, tmp_path, wrap):
        torch.save(wrap(state), tmp_path / "a.pth")
        found = find(f"torchvision:{NAME}@{tmp_path / 'a.pth'}").module.state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in state.items())

    def test_safetensors(self, state, tmp_path):
        save_file(state, tmp_path / "a.safetensors")
        assert find(f"torchvision:{NAME}@{tmp_path / 'a.safetensors'}").module.made["classes"] == K

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            (lambda s: s.pop("classifier.cbr.0.weight"),
             "weights match; 1 missing, such as classifier.cbr.0.weight"),
            (lambda s: s.update({"classifier.cbr.0.weight": torch.ones(2)}),
             "match; 1 of another shape, such as classifier.cbr.0.weight"),
            (lambda s: s.update({"backbone.99.weight": torch.ones(2)}),
             "319 of 319 weights match; 1 not in it, such as backbone.99.weight"),
            (lambda s: [s.pop(n) for n in list(s) if "classifier" in n], "11 missing"),
            (lambda s: s.clear() or s.update({"a": torch.ones(1)}), "0 of 319 weights match"),
        ],
    )  # fmt: skip
    def test_what_does_not_fit_is_counted(self, state, tmp_path, change, says):
        spoilt = dict(state)
        change(spoilt)
        torch.save({"state_dict": prefixed(spoilt, "module.")}, tmp_path / "a.pth")
        with pytest.raises(InputError, match=rf"a\.pth does not fit torchvision:{NAME}: .*{says}"):
            find(f"torchvision:{NAME}@{tmp_path / 'a.pth'}")

    def test_what_holds_no_weights(self, state, tmp_path):
        file = tmp_path / "a.pth"
        for content in ({}, {"model": {}}, [1], 3, {"state_dict": {"a": 1}}):
            torch.save(content, file)
            with pytest.raises(InputError, match=r"a\.pth has no state_dict; save"):
                find(f"torchvision:{NAME}@{file}")

    def test_weights_that_are_no_numbers(self, state, tmp_path):
        broken = {name: tensor.clone() for name, tensor in state.items()}
        broken["backbone.0.0.weight"][0] = float("inf")
        torch.save(broken, tmp_path / "a.pth")
        with pytest.raises(InputError, match="1 of .* weights hold NaN or infinite numbers"):
            find(f"torchvision:{NAME}@{tmp_path / 'a.pth'}")


CODE = """
from pathlib import Path
Path({place!r}).write_text("code ran")
"""


class Evil:
    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self):
        return Path.write_text, (self.place, "code ran")


class TestNoCodeOfStrangers:
    """Each place that a stranger's code could run from; it would write a file."""

    @pytest.fixture
    def place(self, tmp_path, monkeypatch):
        """The file. Whoever asks whether to run code is answered: yes."""
        monkeypatch.setattr("builtins.input", lambda *_: "y")
        monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
        yield tmp_path / "code-ran"
        assert not (tmp_path / "code-ran").exists()

    @pytest.fixture
    def folder(self, tmp_path, place):
        """A folder of `save_pretrained` that brings code along for each of its parts."""
        transformers = pytest.importorskip("transformers")
        config = transformers.SegformerConfig(
            num_labels=K, depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 24, 32], decoder_hidden_size=16
        )
        folder = tmp_path / "net"
        transformers.SegformerForSemanticSegmentation(config).save_pretrained(folder)
        (folder / "evil.py").write_text(CODE.format(place=str(place)))
        self.claim(folder / "config.json")
        processor = {"image_processor_type": "Evil", "image_mean": [0, 0, 0]}
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
        self.claim(folder / "preprocessor_config.json")
        return folder

    @staticmethod
    def claim(file: Path, **more: object) -> dict:
        kinds = ("Config", "Model", "ModelForSemanticSegmentation", "ImageProcessor")
        auto = {f"Auto{kind}": "evil.Evil" for kind in kinds}
        content = json.loads(file.read_text()) | {"auto_map": auto} | more
        file.write_text(json.dumps(content))
        return content

    def test_of_a_folder(self, folder):
        """Of a kind that transformers has, its own code is taken; of another, none."""
        assert find(f"transformers:{folder}").names is None
        assert find(folder).module.config.num_labels == K
        self.claim(folder / "config.json", model_type="evil")
        for source in (f"transformers:{folder}", folder):
            with pytest.raises(InputError, match="cannot be loaded"):
                find(source)

    def test_that_a_checkpoint_names(self, folder, tmp_path):
        save(tmp_path / "a.safetensors", ScaleAttention(find(folder)))
        config = self.claim(folder / "config.json", model_type="evil")
        outside = {"reference": f"transformers:{folder}", "sha256": "0"}
        inside = {"library": "transformers", "config": config}
        hub = {"library": "transformers", "config": config | {
            "auto_map": {k: f"{folder}--{v}" for k, v in config["auto_map"].items()}}}  # fmt: skip
        for made in (outside, inside, hub):
            for kind in ("segformer", "evil"):
                if "config" in made:
                    made["config"]["model_type"] = kind
                network = {"fusion": "attention", "network": made, "classes": K}
                card = Card(network, list("abcde"))
                write_checkpoint(tmp_path / "b.safetensors", {"a": torch.ones(1)}, card)
                with pytest.raises(ValueError, match=r"b\.safetensors"):
                    HMSA.from_pretrained(tmp_path / "b.safetensors")

    @pytest.mark.parametrize("zipped", [True, False])
    def test_of_weights(self, folder, place, tmp_path, zipped):
        file = tmp_path / "a.pth"
        torch.save({"state_dict": Evil(place)}, file, _use_new_zipfile_serialization=zipped)
        with pytest.raises(InputError, match=r"cannot be read safely \(more than weights"):
            find(f"torchvision:{NAME}@{file}")
        file.write_bytes(pickle.dumps(Evil(place)))
        with pytest.raises(InputError, match="cannot be read safely"):
            find(f"torchvision:{NAME}@{file}")
        (folder / "model.safetensors").unlink()
        torch.save({"a": Evil(place)}, folder / "pytorch_model.bin")
        with pytest.raises(InputError, match="cannot be loaded"):
            find(folder)

    @pytest.mark.parametrize(
        "made",
        [
            {"library": "own", "source": "evil:Evil"},
            {"library": "evil"},
            {"reference": "evil:Evil", "sha256": "0"},
            {"library": "smp", "class": "evil", "arguments": {}},
            {"library": "smp", "class": "from_pretrained", "arguments": {"x": 1}},
            {"library": "torchvision", "name": "deeplabv3", "classes": K},
        ],
    )
    def test_that_a_card_names(self, folder, tmp_path, monkeypatch, made):
        pytest.importorskip("segmentation_models_pytorch")
        monkeypatch.syspath_prepend(folder)
        card = Card({"fusion": "attention", "network": made, "classes": K}, list("abcde"))
        write_checkpoint(tmp_path / "b.safetensors", {"a": torch.ones(1)}, card)
        with pytest.raises(ValueError, match=r"b\.safetensors"):
            HMSA.from_pretrained(tmp_path / "b.safetensors")
        assert "evil" not in sys.modules
