"""Export: one file with the whole chain in it, that sees what the network sees, or no file."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from hmsa import __main__ as cli
from hmsa.checkpoint.files import save
from hmsa.data.scenes import scene
from hmsa.inference import exported
from hmsa.model import HMSA

NAMES, PALETTE = ["sky", "road", "post"], [(70, 130, 180), (128, 64, 128), (220, 220, 0)]


def network(folder, name, head, **card):
    torch.manual_seed(0)
    model = HMSA(3, "mobilenetv3_small_050", width=8, head=head)
    with torch.no_grad():
        model.train()(torch.rand(2, 3, 64, 64), (0.5, 1.0))
        # Every class shall be seen somewhere, or equal labels would tell nothing
        street, last = scene(0, (96, 128))[0], model.head.semantic
        last = last if head == "ocr" else last[-1]
        logits = model.eval()(torch.from_numpy(street).permute(2, 0, 1)[None], (1.0,)).logits
        deviation, mean = torch.std_mean(logits, (0, 2, 3))
        last.weight.div_(deviation[:, None, None, None])
        last.bias.sub_(mean).div_(deviation)
    model.card = model.card.model_copy(update={"names": NAMES, "palette": PALETTE, **card})
    save(folder / f"{name}.safetensors", model)
    return folder / f"{name}.safetensors"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Two small networks: one with two scales, one that mirrors, and enlarges pictures first."""
    folder = tmp_path_factory.mktemp("networks")
    return {
        "chain": network(folder, "chain", "plain", scales=[0.5, 1.0]),
        "large": network(folder, "large", "ocr", scales=[1.0], flip=True, long_edge=120),
    }


@pytest.fixture(scope="module")
def files(checkpoints, tmp_path_factory):
    """What `hmsa export` made of them for 75x101 pixels, which is no multiple of any stride."""
    folder = tmp_path_factory.mktemp("files")
    made = {"chain": folder / "chain.onnx", "large": folder / "large.pt2"}
    for name, file in made.items():
        arguments = ["export", checkpoints[name], "-o", file, "--size", "75x101"]
        assert cli.run([str(a) for a in arguments]) == 0
        assert [f for f in folder.iterdir() if f.name.startswith(".")] == []
    return made


@pytest.fixture
def picture(tmp_path):
    file = tmp_path / "street.png"
    Image.fromarray(scene(5, (75, 101))[0]).save(file)
    return file


@pytest.mark.parametrize("name", ["chain", "large"])
def test_predict_from_the_file_equals_predict_from_the_checkpoint(
    hmsa, checkpoints, files, picture, tmp_path, name
):
    seen = {}
    for source in (checkpoints[name], files[name]):
        out = tmp_path / source.suffix[1:]
        precision = ["--precision", "fp32"] if source.suffix == ".safetensors" else []
        ran = hmsa("predict", source, picture, "-o", out, *precision)
        assert ran.code == 0, ran.err
        label = Image.open(out / "labels" / "street.png")
        assert label.getpalette()[:9] == [value for colour in PALETTE for value in colour]
        confidence = Image.open(out / "confidence" / "street.png")
        seen[source.suffix] = np.asarray(label), np.asarray(confidence).astype(int)
    (label, confidence), (other, sure) = seen.values()
    assert len(np.unique(label)) == 3
    assert (label == other).mean() > 0.999
    assert abs(confidence - sure).max() <= 1


def test_the_file_tells_what_it_is(files):
    onnxruntime = pytest.importorskip("onnxruntime")
    for name, scales, flip in (("chain", [0.5, 1.0], False), ("large", [1.0], True)):
        made = exported.Exported.load(files[name])
        assert (made.card.names, made.scales, made.flip) == (NAMES, scales, flip)
        assert made.size == (75, 101)
    session = onnxruntime.InferenceSession(files["chain"])
    told = [(each.name, each.shape, each.type) for each in session.get_inputs()]
    assert told == [("image", [1, 3, 75, 101], "tensor(uint8)")]
    assert [(each.name, each.shape, each.type) for each in session.get_outputs()] == [
        ("label", [1, 75, 101], "tensor(uint8)"),
        ("confidence", [1, 75, 101], "tensor(uint8)"),
    ]


def test_what_does_not_agree_is_not_written(hmsa, checkpoints, tmp_path, monkeypatch):
    good = exported.Frozen.forward

    def spoilt(self, image):
        label, confidence = good(self, image)
        return label.flip(-1), confidence

    monkeypatch.setattr(exported.Frozen, "forward", spoilt)
    old = tmp_path / "net.pt2"
    old.write_text("an older file")
    ran = hmsa("export", checkpoints["chain"], "-o", old, "--scales", "1", "--size", "64x96")
    assert ran.code == 1
    assert "too much" in ran.err
    assert "net.pt2 was not written" in ran.err
    assert ran.out == ""
    assert old.read_text() == "an older file"
    assert list(tmp_path.iterdir()) == [old]


def test_only_the_table_is_said(hmsa, checkpoints, tmp_path):
    out = tmp_path / "net.pt2"
    ran = hmsa("export", checkpoints["chain"], "-o", out, "--scales", "1", "--size", "64x96")
    assert ran.code == 0
    assert ran.out == f"{out}\n"
    assert ran.err.startswith("net.pt2, 64x96")
    assert "100.000%" in ran.err
    assert len(ran.err.splitlines()) == 7  # title, frame and two pictures


def test_another_size_is_refused_and_named(hmsa, files, picture, tmp_path):
    small = tmp_path / "small.png"
    Image.new("RGB", (40, 30)).save(small)
    ran = hmsa("predict", files["chain"], picture, small, "-o", tmp_path / "out")
    assert ran.code == 2
    assert f"{small}: " in ran.err
    assert "takes pictures of 75x101 (height x width), this one is 30x40" in ran.err
    assert "--size dynamic" in ran.err
    assert (tmp_path / "out" / "labels" / "street.png").is_file(), "the rest is done"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--scales", "1,2"], "exported with scales [0.5, 1.0], not [1.0, 2.0]"),
        (["--flip"], "exported with flip False, not True"),
        (["--precision", "bf16"], "exported with precision fp32, not bf16"),
        (["--panel"], "give the checkpoint"),
        (["--save", "label,probabilities"], "give the checkpoint"),
        (["--save", "entropy"], "give the checkpoint"),
    ],
)
def test_what_is_not_in_the_graph(hmsa, files, picture, tmp_path, arguments, told):
    ran = hmsa("predict", files["chain"], picture, "-o", tmp_path / "out", *arguments)
    assert ran.code == 2
    assert told in ran.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "arguments", "told"),
    [
        ("chain", ["-o", "net.bin"], "has to end in .onnx or .pt2"),
        ("chain", ["-o", "net.onnx", "--to", "torch"], "has to end in .pt2"),
        ("chain", ["-o", "net.onnx", "--scales", "0.7,1"], "scale 0.7 is not exact"),
        ("large", ["-o", "net.pt2", "--size", "dynamic"], "long edge of 120"),
    ],
)
def test_what_cannot_be_exported(hmsa, checkpoints, tmp_path, monkeypatch, name, arguments, told):
    monkeypatch.chdir(tmp_path)
    ran = hmsa("export", checkpoints[name], *arguments)
    assert ran.code == 2
    assert told in ran.err
    assert list(tmp_path.iterdir()) == []


def test_without_the_extra(hmsa, checkpoints, files, picture, tmp_path, monkeypatch):
    for name in ("onnxruntime", "onnxscript"):
        monkeypatch.setitem(sys.modules, name, None)
    out = tmp_path / "net.onnx"
    for ran in (
        hmsa("export", checkpoints["chain"], "-o", out, "--size", "64x96"),
        hmsa("predict", files["chain"], picture, "-o", tmp_path / "out"),
    ):
        assert ran.code == 2
        assert 'pip install "hmsa[export]"' in ran.err
    assert not out.exists()
