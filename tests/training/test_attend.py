"""`hmsa attend`: the network frozen, a head trained, the result good for every other verb."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from scenes import NAMES, write_scenes

from hmsa import HMSA
from hmsa.checkpoint.files import hashed
from hmsa.model import PairScaleAttention, ScaleAttention
from hmsa.model.pretrained import save

K = len(NAMES)


CODE = f"""
import torch
from torch import nn

class Own(nn.Module):
    multiple = 4

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.last = nn.Conv2d(8, {K}, 1)

    def forward(self, image):
        return {{"out": self.last(self.stem(image))}}

class Blind(nn.Module):
    '''Sees walls everywhere in a large image, sky in a small one.'''
    multiple = 4

    def forward(self, image):
        logits = torch.zeros_like(image[:, :1]).repeat(1, {K}, 1, 1)
        logits[:, 0] = 1 + 0.1 * image.mean(1)
        logits[:, 1] = 3 * (image.shape[-1] > 100)
        return logits

def make():
    torch.manual_seed(0)
    return Own().eval()

def blind():
    return Blind().eval()
"""


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    """A folder with somebodys.py, whose make() gives a network."""
    folder = tmp_path_factory.mktemp("code")
    (folder / "somebodys.py").write_text(CODE)
    return folder


@pytest.fixture
def somebodys(module, monkeypatch):
    monkeypatch.syspath_prepend(str(module))
    monkeypatch.setenv("HMSA_NETWORK", "")  # what becomes of it is undone, too
    return "somebodys:make"


@pytest.fixture
def segformer(tmp_path):
    pytest.importorskip("transformers")
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    torch.manual_seed(0)
    names = dict(enumerate(n.replace(" ", "_").upper() for n in NAMES))
    config = SegformerConfig(
        id2label=names, label2id={n: k for k, n in names.items()}, depths=[1, 1, 1, 1],
        hidden_sizes=[8, 16, 24, 32], decoder_hidden_size=16,
    )  # fmt: skip
    network = SegformerForSemanticSegmentation(config)
    network.save_pretrained(tmp_path / "segformer")
    return tmp_path / "segformer"


def test_from_a_folder_to_every_other_verb(hmsa, segformer, scenes, tmp_path):
    done = hmsa("attend", segformer, scenes, "-o", tmp_path / "run", "--steps", 3)
    assert done.code == 0, done.err
    assert "attention sees decode_head.classifier:input and confidence, 19" in done.err
    found = json.loads(done.out.splitlines()[-1])
    assert set(found["miou"]) == {"single", "average", "max", "attention"}
    assert set(found["miou"]["single"]) == {"0.5", "1", "2"}
    assert found["split"] == "val"
    assert found["images"] == 3
    assert found["network"]["network"] == str(segformer)
    for word in ("average", "max", "attention", NAMES[0]):
        assert word in done.out
    assert (tmp_path / "run" / "report-val.html").is_file()
    assert not (tmp_path / "run" / "passes").exists(), "what could be made again is gone"
    model = HMSA.from_pretrained(tmp_path / "run")
    assert isinstance(model, ScaleAttention)
    assert hashed(model.trunk.module.state_dict()) == found["network"]["sha256"]
    assert model.card.names == list(NAMES)
    assert model.card.gate is not None
    assert model.card.gate["split"] == "val, 3 held out"

    pictures = scenes.parent / "val" / "images"
    made = hmsa("predict", tmp_path / "run", pictures, "-o", tmp_path / "out", "--budget", "0.3")
    assert made.code == 0, made.err
    assert "budget 0.3: " in made.err
    made = hmsa("autolabel", tmp_path / "run", pictures, "-o", tmp_path / "labels")
    assert made.code == 0, made.err
    assert len(list((tmp_path / "labels" / "labels").glob("*.png"))) == 3
    made = hmsa("gate", tmp_path / "run", scenes, "--split", "val")
    assert made.code == 0, made.err
    made = hmsa("convert", tmp_path / "run", "-o", tmp_path / "shared")
    assert made.code == 0, made.err
    assert "- network: transformers\n" in (tmp_path / "shared" / "README.md").read_text()
    assert (
        HMSA.from_pretrained(tmp_path / "shared").card
        == HMSA.from_pretrained(tmp_path / "run").card
    )
    made = hmsa("export", tmp_path / "run", "-o", tmp_path / "a.pt2", "--size", "64x96")
    assert made.code == 0, made.err


def test_ones_own_network_without_features_and_by_pairs(hmsa, somebodys, scenes, tmp_path):
    done = hmsa("attend", somebodys, scenes, "-o", tmp_path / "run", "--steps", 2, "--pairs",
                "--per-class", "--features", "none", "--scales", "0.5,1", "--json")  # fmt: skip
    assert done.code == 0, done.err
    assert os.environ["HMSA_NETWORK"] == somebodys, "what was typed may be run"
    model = HMSA.from_pretrained(tmp_path / "run")
    assert isinstance(model, PairScaleAttention)
    assert (model.maps, model.head.features, model.card.gate) == (K, 3, None)
    assert json.loads(done.out)["scales"] == [0.5, 1.0]


def test_a_reference_leaves_the_weights_where_they_are(hmsa, segformer, scenes, tmp_path):
    runs = [tmp_path / name for name in ("inside", "by-reference")]
    for run, more in zip(runs, ([], ["--reference"]), strict=True):
        done = hmsa("attend", segformer, scenes, "-o", run, "--steps", 2, *more)
        assert done.code == 0, done.err
    sizes = [(run / "best.safetensors").stat().st_size for run in runs]
    assert sizes[1] < 0.8 * sizes[0]
    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        inside, outside = (HMSA.from_pretrained(run)(image, (0.5, 1)).logits for run in runs)
    assert torch.equal(inside, outside)

    from transformers import SegformerForSemanticSegmentation

    other = SegformerForSemanticSegmentation.from_pretrained(segformer)
    with torch.no_grad():
        other.decode_head.classifier.bias += 1
    other.save_pretrained(segformer)
    done = hmsa("predict", runs[1], scenes.parent / "val", "-o", tmp_path / "out")
    assert done.code == 2
    assert "has changed since this attention was trained for it" in done.err
    assert hmsa("predict", runs[0], scenes.parent / "val", "-o", tmp_path / "out").code == 0


def test_attention_learns_what_a_network_is_good_at(hmsa, somebodys, scenes, tmp_path):
    done = hmsa("attend", "somebodys:blind", scenes, "-o", tmp_path / "run", "--scales", "1,2",
                "--steps", 60, "--features", "none")  # fmt: skip
    assert done.code == 0, done.err
    found = json.loads(done.out.splitlines()[-1])["miou"]
    assert found["attention"] >= max(found["single"].values()) - 1e-6
    assert found["attention"] != found["average"]


def test_what_teaches_wrongly_is_not_kept(hmsa, somebodys, folder_dataset, tmp_path):
    """The fine scale is right in train and wrong in val: the constant that is best on val stays."""
    wall, sky = (np.full((64, 96), k, np.uint8) for k in (1, 0))
    wall[:2] = 0
    names = {"names": list(NAMES), "palette": None}
    folder_dataset({"a": sky, "b": sky}, **names)
    (tmp_path / "pictures" / "train").rename(tmp_path / "pictures" / "val")
    splits = {"train": "train", "val": "val"}
    file = folder_dataset({"c": wall, "d": wall}, splits=splits, **names)
    done = hmsa("attend", "somebodys:blind", file, "-o", tmp_path / "run", "--scales", "1,2",
                "--steps", 40, "--features", "none")  # fmt: skip
    assert done.code == 0, done.err
    found = json.loads(done.out.splitlines()[-1])
    assert (found["steps"], found["held_out_miou"]) == (0, 1.0)
    assert found["miou"]["attention"] == 1.0
    assert found["miou"]["average"] == 0.0
    model = HMSA.from_pretrained(tmp_path / "run")
    assert not any(parameter.any() for parameter in [*model.attention.modules()][-1].parameters())
    assert model.prior[0] > 0, "the coarse scale counts more"


def test_resumes_after_a_kill(module, scenes, tmp_path):
    """SIGKILL while the network runs: nothing is torn, and the result is the same."""

    def command(out):
        return [sys.executable, "-m", "hmsa", "attend", "somebodys:make", str(scenes), "-o",
                str(tmp_path / out), "--steps", "2", "--json"]  # fmt: skip

    paths = os.pathsep.join([str(module), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths}
    passes = tmp_path / "run" / "passes"
    child = subprocess.Popen(command("run"), env=environment, stderr=subprocess.PIPE)
    while child.poll() is None and len(list(passes.glob("*.pt"))) < 2:
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    assert not (tmp_path / "run" / "best.safetensors").exists()
    found = []
    for out in ("run", "other"):
        done = subprocess.run(command(out), env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout))
    assert found[0]["miou"] == found[1]["miou"]
    assert found[0]["held_out_miou"] == found[1]["held_out_miou"]


def test_resume_equals_never_stopping(hmsa, somebodys, scenes, tmp_path, monkeypatch):
    from hmsa.training.trainer import set_learning_rate

    def attend(out, *more):
        done = hmsa("attend", somebodys, scenes, "-o", tmp_path / out, "--steps", 4, *more)
        return done.code, done.err

    def impatient(optimizer, stage, step):
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return set_learning_rate(optimizer, stage, step)

    assert attend("whole")[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr("hmsa.training.trainer.set_learning_rate", impatient)
        code, error = attend("parts")
    assert code == 130
    assert "the same command goes on" in error
    code, error = attend("parts", "--penalty", "0.5")
    assert code == 2
    assert "begun with other settings, penalty 0.0 -> 0.5" in error
    assert attend("parts")[0] == 0
    whole, parts = (HMSA.from_pretrained(tmp_path / o).state_dict() for o in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)

    before = (tmp_path / "parts" / "best.safetensors").stat().st_mtime_ns
    assert attend("parts")[0] == 0
    assert (tmp_path / "parts" / "best.safetensors").stat().st_mtime_ns == before, "only scored"
    assert attend("parts", "--penalty", "0.5", "--overwrite")[0] == 0
    assert (tmp_path / "parts" / "best.safetensors").stat().st_mtime_ns > before


def test_changed_labels_are_refused(hmsa, somebodys, tmp_path, monkeypatch):
    """Passes hold labels, so a head would learn from the old ones."""
    scenes = write_scenes(tmp_path / "scenes", {"train": 5}, (64, 96))
    words = ("attend", somebodys, scenes, "-o", tmp_path / "run", "--steps", 2)

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("hmsa.training.attend.Trainer.run", stop)
        assert hmsa(*words).code == 130
    file = sorted((tmp_path / "scenes" / "train" / "labels").iterdir())[0]
    Image.fromarray(np.zeros((64, 96), np.uint8)).save(file)
    done = hmsa(*words)
    assert done.code == 2
    assert f"label {file.stem} changed; restore it, or start again with --overwrite" in done.err
    assert hmsa(*words, "--overwrite").code == 0


def test_the_gate_is_measured_where_there_are_labels(hmsa, somebodys, tmp_path, monkeypatch):
    """The first image that is held out has none: no score of it gets into the card."""
    scenes = write_scenes(tmp_path / "scenes", {"train": 10}, (64, 96))
    file = sorted((tmp_path / "scenes" / "train" / "labels").iterdir())[8]
    Image.fromarray(np.full((64, 96), 255, np.uint8)).save(file)
    monkeypatch.setattr("hmsa.training.attend.CURVE", 1)
    done = hmsa("attend", somebodys, scenes, "-o", tmp_path / "run", "--steps", 2)
    assert done.code == 0, done.err
    points = HMSA.from_pretrained(tmp_path / "run").card.gate["points"]
    assert all(0 <= point["miou"] <= 1 for point in points)


def test_passes_are_computed_once_and_equal_the_network(somebodys, scenes, tmp_path):
    from lightning_fabric import Fabric

    from hmsa.checkpoint.networks import allow, find
    from hmsa.data.datasets import open_dataset
    from hmsa.training.passes import Passes

    learn = open_dataset(scenes, "train")
    allow(somebodys)
    model = ScaleAttention(find(somebodys)).eval()

    def load(number):
        image, label = learn.read(number)
        return torch.from_numpy(image.copy()).permute(2, 0, 1), torch.from_numpy(label)

    passes = Passes(tmp_path / "passes", Fabric(accelerator="cpu"), model, [0.5, 1.0], load)
    list(passes.compute([4, 2]))
    times = {n: passes.file(n).stat().st_mtime_ns for n in (2, 4)}
    list(passes.compute([2, 3, 4]))
    assert times == {n: passes.file(n).stat().st_mtime_ns for n in (2, 4)}

    encoded, label = passes.read([2, 4])
    images, labels = zip(*(load(n) for n in (2, 4)), strict=True)
    assert torch.equal(label, torch.stack(labels).long())
    with torch.no_grad():
        live = model(torch.stack(images), [0.5, 1.0])
        kept = model.attend(encoded, label.shape[-2:])
    for scale in (0.5, 1.0):
        assert (kept.maps[scale].logits - live.maps[scale].logits).abs().mean() < 0.1
    torch.testing.assert_close(
        kept.maps[0.5].attention, live.maps[0.5].attention, atol=2e-3, rtol=0
    )


def test_the_cache_bounds_the_images(hmsa, somebodys, scenes, tmp_path):
    done = hmsa("attend", somebodys, scenes, "-o", tmp_path / "a", "--steps", 1,
                "--cache", 150e3 / 2**30)  # fmt: skip
    assert done.code == 0, done.err
    used = HMSA.from_pretrained(tmp_path / "a").card.trained_on["pictures"]
    assert 1 <= used < 6


def test_images_are_split_evenly():
    from hmsa.training.attend import split_evenly

    assert split_evenly(6, 200) == ([0, 1, 2, 3, 4], [5])
    assert split_evenly(100, 10) == ([0, 10, 20, 30, 40, 50, 60, 70], [80, 90])
    assert split_evenly(2, 2) == ([0], [1])
    assert split_evenly(6, 10, val=4) == ([0, 1, 2, 3, 4, 5], [6, 8])


def test_refuses(hmsa, somebodys, segformer, scenes, folder_dataset, tmp_path):
    def refused(*arguments):
        done = hmsa("attend", *arguments, "-o", tmp_path / "run")
        assert done.code == 2, (done.out, done.err)
        assert not (tmp_path / "run" / "best.safetensors").exists()
        return done.err

    other = folder_dataset({"a": np.zeros((32, 48), np.uint8), "b": np.zeros((32, 48), np.uint8)})
    assert f"has {K} classes" in refused(somebodys, other)
    assert "both need the same ones in the same order" in refused(segformer, other)
    ignored = np.full((32, 48), 255, np.uint8)
    names = {"names": list(NAMES), "palette": None}
    some = folder_dataset({"a": np.zeros((32, 48), np.uint8), "b": ignored}, **names)
    assert "no labelled pixel in the images to train on, or in the last ones" in refused(
        somebodys, some
    )
    none = folder_dataset({"a": ignored, "b": ignored}, **names)
    assert "no labelled pixel in the images to train on" in refused(somebodys, none)
    shutil.copytree(tmp_path / "pictures" / "train", tmp_path / "pictures" / "val")
    zeros = {name: np.zeros((32, 48), np.uint8) for name in "ab"}
    blank = folder_dataset(zeros, splits={"train": "train", "val": "val"}, **names)
    assert "nothing is labelled in split val" in refused(somebodys, blank)
    one = folder_dataset({"a": np.zeros((32, 48), np.uint8)})
    (tmp_path / "pictures" / "train" / "labels" / "b.png").unlink()
    (tmp_path / "pictures" / "train" / "images" / "b.jpg").unlink()
    assert "no labelled pixel in the images to train on" in refused(somebodys, one)
    assert "needs two or more" in refused(somebodys, scenes, "--scales", "1")
    assert "no split 'other'" in refused(somebodys, scenes, "--val", "other")
    assert "are too little for two images" in refused(somebodys, scenes, "--cache", "0.000001")
    assert "no network nothing" in refused("nothing", scenes)
    assert "stems of the network gave nothing" in refused(somebodys, scenes, "--features", "stems")
    save(tmp_path / "a.safetensors", HMSA(3, "hrnet_w18_small", width=8))
    assert "has 3 classes" in refused(tmp_path / "a.safetensors", scenes)
