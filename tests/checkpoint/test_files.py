"""A checkpoint alone rebuilds the network; a half-written one never exists."""

from __future__ import annotations

import dataclasses
import inspect
import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from PIL import Image
from safetensors.torch import save_file

from hmsa import HMSA
from hmsa.checkpoint.files import (
    GateCurve,
    amend,
    begin_from,
    fingerprint,
    require_unseen,
    trained_on,
)
from hmsa.checkpoint.networks import load
from hmsa.model import build, pretrained
from hmsa.model.pretrained import Card, save
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
        from hmsa.model.variants import MaxPooling

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
        ({"classes": 5}, "damaged card: needed is network: 4 classes"),
        ({"width": 12}, "cannot be rebuilt .*size mismatch"),
        ({"fusion": "none"}, "fusion 'none', which HMSA is not"),
        ({"wings": 2}, "cannot be rebuilt .*wings"),
    ],
)
def test_other_network(tmp_path, model, change, says):
    path = tmp_path / "x.safetensors"
    model.card = dataclasses.replace(model.card, network=model.card.network | change)
    save(path, model)
    with pytest.raises(InputError, match=says):
        load(path)


BILLION = 10**9


class TestHostileCards:
    """Of a stranger: refused in one line, before anything large is built."""

    def refused(self, path, card) -> str:
        text = card if isinstance(card, str) else json.dumps(card)
        save_file({"a": torch.ones(1)}, path, {"hmsa": text})
        with pytest.raises(InputError) as error:
            load(path)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 700
        return str(error.value)

    @pytest.fixture
    def card(self, model):
        return json.loads(model.card.to_json())

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            ({"scales": [1e6]}, "above 0 and up to 16"),
            ({"scales": [0.5] * 1000}, "1 to 16 numbers"),
            ({"scales": [float("nan")]}, "scales"),
            ({"scales": []}, "scales"),
            ({"scales": "12"}, "scales"),
            ({"long_edge": BILLION}, "1 to 16384 pixels"),
            ({"long_edge": 0.5}, "1 to 16384 pixels"),
            ({"names": ["a"] * 100_000}, "1 to 255 texts"),
            ({"names": "abcd"}, "1 to 255 texts"),
            ({"names": [1, 2, 3, 4]}, "1 to 255 texts"),
            ({"palette": [[0, 0, 256]] * 4}, "palette"),
            ({"palette": [[0, 0, 0]]}, "palette"),
            ({"flip": "yes"}, "flip"),
            ({"gate": [1]}, "gate"),
            ({"recipe": [1]}, "recipe"),
            ({"recipe": json.loads("[" * 60 + "]" * 60)}, "nested"),
            ({"trained_on": {"dataset": "x" * (1 << 20)}}, "more than 1048576 characters"),
        ],
    )  # fmt: skip
    def test_fields(self, tmp_path, card, change, says):
        assert says in self.refused(tmp_path / "x.safetensors", card | change)

    @pytest.mark.parametrize(
        "network",
        [
            {"width": BILLION}, {"classes": BILLION}, {"width": 65536}, {"width": -1},
            {"width": [8]}, {"stride": 10**6}, {"trunk": 7}, {"head": {}}, {"fusion": [1]},
            {"mean": [1] * 9}, {"trunk": "vit_giant_patch14_dinov2"},
            {"fusion": "explicit", "scales": [1.0] + [i / 7 for i in range(1, 9000)]},
            {"fusion": "attention", "network": {"library": "own", "source": "os:getcwd"}},
            {"fusion": "attention", "network": {"library": "smp", "class": "from_pretrained",
                                                "arguments": {}}},
            {"fusion": "attention", "network": {"library": "torchvision", "name": "_utils"}},
            {"fusion": "attention", "network": {"library": "transformers", "config": {
                "model_type": "segformer", "hidden_sizes": [65536] * 4}}},
            {"fusion": "attention", "network": {"library": "transformers", "config": {
                "model_type": "segformer", "depths": [60000] * 4}}},
            {"fusion": "attention", "network": {"library": "hmsa", "network": {
                "classes": 4, "trunk": "resnet18", "width": 60000}}},
        ],
    )  # fmt: skip
    def test_networks_larger_than_their_weights(self, tmp_path, card, network, grown):
        pytest.importorskip("transformers")
        card["network"] |= network
        if network.get("fusion") == "attention":
            card["network"] = {"classes": 4, **network}
        with grown() as more:
            self.refused(tmp_path / "x.safetensors", card)
        assert more() < 3000, "MiB"

    @pytest.mark.parametrize("value", [None, "x", [[1, 2, 3]] * 4])
    def test_mutations_of_every_field(self, hmsa, tmp_path, value):
        """Whatever stands in a field: a result, or one line."""
        model = HMSA(4, "mobilenetv3_small_050", width=8)
        card, file = json.loads(model.card.to_json()), tmp_path / "x.safetensors"
        points = [{"share": s, "cost": s, "miou": 0.5, "agreement": 1.0} for s in (0.0, 1.0)]
        card["gate"] = {"dataset": "a", "split": "b", "scales": [1.0, 2.0], "points": points}
        changed = [card | {key: value} for key in card]
        for part in ("network", "gate"):
            changed += [card | {part: card[part] | {key: value}} for key in card[part]]
        Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
        options = ["-o", tmp_path / "out", "--overwrite", "--budget", "0.5", "--scales", "1,2"]
        for each in changed:
            save_file(model.state_dict(), file, {"hmsa": json.dumps(each)})
            ran = hmsa("predict", file, tmp_path / "a.png", *options)
            assert ran.code in (0, 2), (each, ran.err)
            assert sum(line.startswith("hmsa: ") for line in ran.err.splitlines()) == ran.code // 2

    def test_what_is_no_card(self, tmp_path):
        for text in ("[" * 100_000 + "]" * 100_000, "[]", "null", "1" * 9999, '{"names": 1}', ""):
            assert "damaged card" in self.refused(tmp_path / "x.safetensors", text)
        weights = tmp_path / "model.safetensors"
        save_file({"a": torch.ones(1)}, weights, {"hmsa": "{}"})
        for content in (b"\xff\xfe\xff", b"{" * 100_000, b" " * (1 << 21)):
            (tmp_path / "config.json").write_bytes(content)
            with pytest.raises(InputError, match=r"config\.json: damaged card"):
                load(tmp_path)

    def test_no_other_file_of_weights_is_read(self, tmp_path, model):
        (tmp_path / "other.pth").write_bytes(b"not even weights")
        model.card.network["pretrained"] = str(tmp_path / "other.pth")
        save(tmp_path / "x.safetensors", model)
        assert torch.equal(looks(load(tmp_path / "x.safetensors")), looks(model))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(hmsa, tmp_path, model, value):
    with torch.no_grad():
        next(model.parameters())[0, 0, 0, 0] = value
    save(tmp_path / "x.safetensors", model)
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    ran = hmsa("predict", tmp_path / "x.safetensors", tmp_path, "-o", tmp_path / "out")
    assert ran.code == 2
    assert "1 of " in ran.err
    assert "weights hold NaN or infinite numbers, such as trunk." in ran.err


@pytest.mark.parametrize(
    "name", ["net.pt", "net.pth", "resume.pt", "net.ckpt", "pytorch_model.bin"]
)
def test_a_pickle_is_told_from_a_checkpoint(hmsa, tmp_path, name):
    torch.save({"model": {}}, tmp_path / name)
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    for arguments in (["predict", tmp_path / name, tmp_path], ["evaluate", tmp_path / name, "x"]):
        ran = hmsa(*arguments)
        assert ran.code == 2
        assert (
            f"{name} is not a checkpoint of hmsa but a pickle, which can run code; give" in ran.err
        )


def test_a_damaged_curve_or_recipe_is_one_line():
    with pytest.raises(InputError, match="gate curve is damaged; run hmsa gate again"):
        GateCurve.of(Card({}, ["a"], gate={"points": [1]}))
    with pytest.raises(InputError, match="recipe is damaged"):
        trained_on(Card({}, ["a"], recipe={"sampling": {"extra": [1]}}), Path("a.yaml"), "train")


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
