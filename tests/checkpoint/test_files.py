"""A checkpoint alone rebuilds the network; a half-written one never exists."""

from __future__ import annotations

import dataclasses
import inspect
import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from safetensors.torch import save_file

from hmsa import HMSA
from hmsa.checkpoint.files import amend, begin_from, fingerprint, require_unseen, trained_on
from hmsa.checkpoint.networks import load
from hmsa.model import build, pretrained
from hmsa.model.pretrained import save
from hmsa.runs import InputError


def looks(model: HMSA) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.linspace(0, 1, 3 * 40 * 60).view(1, 3, 40, 60), (0.5, 1)).logits


@pytest.fixture
def model(tiny):
    before = tiny.card
    tiny.card = dataclasses.replace(
        before,
        names=["sky", "road", "post", "figure"],
        palette=[(i, i, i) for i in range(4)],
        scales=[0.5, 1.0, 2.0],
        flip=True,
        trained_on={"dataset": "scenes.yaml", "split": "train"},
        metrics={"step": 7, "val_miou": 0.5},
    )
    yield tiny
    tiny.card = before


def test_round_trip(tmp_path, model):
    save(tmp_path / "best.safetensors", model)
    for path in (tmp_path / "best.safetensors", tmp_path):
        read = HMSA.from_pretrained(path)
        assert read.card == model.card
        assert type(read) is HMSA
        assert not read.training
        assert torch.equal(looks(read), looks(model))


def test_run_folder_prefers_best(tmp_path, model):
    save(tmp_path / "last.safetensors", model)
    assert HMSA.from_pretrained(tmp_path).card.metrics["val_miou"] == 0.5
    model.card = dataclasses.replace(model.card, metrics={})
    save(tmp_path / "best.safetensors", model)
    assert HMSA.from_pretrained(tmp_path).card.metrics == {}


def test_fingerprint_is_of_what_counts(tmp_path, model):
    save(tmp_path / "run" / "best.safetensors", model)
    file = fingerprint(tmp_path / "run" / "best.safetensors")
    assert fingerprint(tmp_path / "run") == file
    (tmp_path / "run" / "config.json").write_text("of another program")
    assert fingerprint(tmp_path / "run") == file
    model.save_pretrained(tmp_path / "folder")
    folder = fingerprint(tmp_path / "folder")
    config = tmp_path / "folder" / "config.json"
    config.write_text(config.read_text().replace("sky", "air"))
    assert fingerprint(tmp_path / "folder") != folder
    with torch.no_grad():
        next(model.parameters()).add_(1)
        save(tmp_path / "run" / "best.safetensors", model)
        next(model.parameters()).sub_(1)
    assert fingerprint(tmp_path / "run") != file


class TestFolder:
    def test_round_trip(self, tmp_path, model):
        model.save_pretrained(tmp_path / "streets")
        read = HMSA.from_pretrained(tmp_path / "streets")
        assert torch.equal(looks(read), looks(model))
        assert read.card == model.card
        assert read.id2label == {0: "sky", 1: "road", 2: "post", 3: "figure"}

    def test_config_is_what_others_expect_and_what_counts(self, tmp_path, model):
        model.save_pretrained(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        assert config["id2label"] == {"0": "sky", "1": "road", "2": "post", "3": "figure"}
        config["scales"] = [1.0]
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert HMSA.from_pretrained(tmp_path).card.scales == [1.0]
        (tmp_path / "config.json").unlink()
        assert HMSA.from_pretrained(tmp_path).card.scales == [0.5, 1.0, 2.0]
        (tmp_path / "config.json").write_text("{")
        with pytest.raises(ValueError, match=r"config\.json: damaged card"):
            HMSA.from_pretrained(tmp_path)

    def test_model_card_is_filled(self, tmp_path, model):
        model.save_pretrained(tmp_path / "streets")
        page = (tmp_path / "streets" / "README.md").read_text()
        data = ModelCard(page).data
        assert (data.pipeline_tag, data.library_name) == ("image-segmentation", "hmsa")
        assert data.tags[-1] == "hrnet_w18_small"
        (result,) = data.eval_results
        assert (result.dataset_name, result.metric_type) == ("scenes.yaml", "mean_iou")
        assert (result.metric_name, result.metric_value) == ("val_miou", 0.5)
        for said in ("0 sky, 1 road", "0.5, 1, 2, with flip", "hrnet_w18_small", "val_miou: 0.5"):
            assert said in page
        assert "More Information Needed" not in page

    def test_untrained_network_can_be_shared_too(self, tmp_path):
        build(fusion="max", classes=2, trunk="hrnet_w18_small", width=8).save_pretrained(tmp_path)
        assert HMSA.from_pretrained(tmp_path).fusion == "max"

    def test_other_kinds_are_refused_where_one_is_asked_for(self, tmp_path, model):
        from hmsa.model.baselines import MaxPooling

        model.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="fusion 'hierarchical', which MaxPooling is not"):
            MaxPooling.from_pretrained(tmp_path)


class TestHub:
    """Without internet: what would be sent is read, what would come is there already."""

    def test_download(self, tmp_path, model, monkeypatch):
        model.save_pretrained(tmp_path)
        calls = []

        def snapshot(repo_id, **arguments):
            calls.append((repo_id, arguments["revision"], arguments["allow_patterns"]))
            return str(tmp_path)

        monkeypatch.setattr(pretrained, "snapshot_download", snapshot)
        read = HMSA.from_pretrained("owner/streets", revision="v1")
        assert torch.equal(looks(read), looks(model))
        assert calls == [("owner/streets", "v1", ["model.safetensors", "config.json"])]

    def test_upload(self, model, monkeypatch):
        sent = {}

        def upload(_, *, repo_id, folder_path):
            inspect.signature(original).bind(None, repo_id=repo_id, folder_path=folder_path)
            files = sorted(p.name for p in folder_path.iterdir())
            sent[repo_id] = HMSA.from_pretrained(folder_path).card, files
            return "https://huggingface.co/owner/streets/commit/1"

        original = HfApi.upload_folder
        monkeypatch.setattr(HfApi, "upload_folder", upload)
        monkeypatch.setattr(HfApi, "create_repo", lambda *a, **k: None)
        assert model.push_to_hub("owner/streets").endswith("commit/1")
        files = ["README.md", "config.json", "model.safetensors"]
        assert sent == {"owner/streets": (model.card, files)}

    def test_no_network(self):
        with pytest.raises(ValueError, match="no file or folder, nor on the hub"):
            HMSA.from_pretrained("nobody/nothing", local_files_only=True)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p: None, "no checkpoint"),
        (lambda p: p.mkdir(), "folder without model.safetensors, best.safetensors or last"),
        (lambda p: p.write_bytes(b"hello"), "is not a checkpoint"),
        (lambda p: save_file({"a": torch.ones(1)}, p), "no hmsa header"),
        (lambda p: save_file({"a": torch.ones(1)}, p, {"hmsa": "{}"}), "damaged card"),
    ],
)
def test_what_is_no_checkpoint(tmp_path, make, says):
    path = tmp_path / "x.safetensors"
    make(path)
    with pytest.raises(InputError, match=says):
        load(path)


def test_cut_off_file(tmp_path, model):
    path = tmp_path / "x.safetensors"
    save(path, model)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(ValueError, match="is not a checkpoint"):
        HMSA.from_pretrained(path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"classes": 5}, "do not fit"),
        ({"fusion": "none"}, "fusion 'none', which HMSA is not"),
        ({"wings": 2}, "no such network"),
    ],
)
def test_other_network(tmp_path, model, change, says):
    path = tmp_path / "x.safetensors"
    model.card = dataclasses.replace(model.card, network=model.card.network | change)
    save(path, model)
    with pytest.raises(InputError, match=says):
        load(path)


def test_amend_changes_the_card_alone(tmp_path, model):
    model.save_pretrained(tmp_path)
    before = fingerprint(tmp_path)
    amend(tmp_path, gate={"points": []})
    read = HMSA.from_pretrained(tmp_path)
    assert read.card == dataclasses.replace(model.card, gate={"points": []})
    assert json.loads((tmp_path / "config.json").read_text())["gate"] == {"points": []}
    assert torch.equal(looks(read), looks(model))
    assert fingerprint(tmp_path) == before
    assert [f for f in tmp_path.iterdir() if f.name.startswith(".")] == []


def test_what_a_network_was_trained_on(model):
    card = model.card
    card.recipe = {"sampling": {"extra": [{"dataset": "auto", "split": "auto"}, {"split": "more"}]}}
    assert trained_on(card, Path("scenes.yaml"), "train")
    assert trained_on(card, Path("elsewhere/scenes.yaml"), "more")
    assert trained_on(card, Path("auto/dataset.yaml"), "auto")
    assert not trained_on(card, Path("scenes.yaml"), "val")
    assert not trained_on(card, Path("other.yaml"), "train")
    with pytest.raises(InputError, match=r"--held-out: x was trained on scenes\.yaml, split train"):
        require_unseen(card, Path("scenes.yaml"), "train", "x", "--held-out")


class TestBeginFrom:
    """Weights of a network for other classes, as the paper's Cityscapes recipe begins."""

    @pytest.mark.parametrize("fusion", ["hierarchical", "average", "explicit"])
    def test_other_classes_and_other_fusion(self, tmp_path, fusion):
        torch.manual_seed(0)
        network = {"trunk": "hrnet_w18_small", "head": "ocr", "width": 8}
        donor = build(fusion=fusion, classes=7, **network)
        save(tmp_path / "a.safetensors", donor)
        model = build(classes=3, **network)
        own = {k: v.clone() for k, v in model.state_dict().items()}
        fresh = begin_from(model, tmp_path / "a.safetensors")
        counted = {"head.semantic.weight", "head.semantic.bias", "head.aux.1.weight"}
        assert counted < set(fresh)
        if fusion == "hierarchical":
            assert not any(name.startswith("attention") for name in fresh)
        given = donor.state_dict()
        for name, value in model.state_dict().items():
            assert torch.equal(value, own[name] if name in fresh else given[name]), name

    def test_another_trunk_is_refused(self, tmp_path):
        save(tmp_path / "a.safetensors", HMSA(3, "resnet18", width=8))
        with pytest.raises(InputError, match=r"start: .* has .* for trunk"):
            begin_from(HMSA(3, "hrnet_w18_small", width=8), tmp_path / "a.safetensors")
