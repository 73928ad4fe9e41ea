"""Export: one file with the whole chain in it that predicts as the network does, or no file."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import sys
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from scenes import scene
from torch import nn

from hmsa import InputError, Predictor
from hmsa import __main__ as cli
from hmsa.inference import export
from hmsa.inference.export import OPEN, Exported, freeze, write
from hmsa.model import HMSA
from hmsa.model.heads import PlainHead
from hmsa.model.pretrained import save

NAMES, PALETTE = ["sky", "road", "post"], [(70, 130, 180), (128, 64, 128), (220, 220, 0)]


def network(folder, name, head, **card):
    torch.manual_seed(0)
    model = HMSA(3, "mobilenetv3_small_050", width=8, head=head)
    with torch.no_grad():
        model.train()(torch.rand(2, 3, 64, 64), (0.5, 1.0))
        # Every class is predicted somewhere, or equal labels would prove nothing
        street, last = scene(0, (96, 128))[0], model.head.semantic
        last = last if head == "ocr" else last[-1]
        logits = model.eval()(torch.from_numpy(street).permute(2, 0, 1)[None], (1.0,)).logits
        deviation, mean = torch.std_mean(logits, (0, 2, 3))
        last.weight.div_(deviation[:, None, None, None])
        last.bias.sub_(mean).div_(deviation)
    model.card = dataclasses.replace(model.card, names=NAMES, palette=PALETTE, **card)
    save(folder / f"{name}.safetensors", model)
    return folder / f"{name}.safetensors"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """One with two scales; one that mirrors, enlarges, and runs in bands but in a graph."""
    folder = tmp_path_factory.mktemp("networks")
    return {
        "chain": network(folder, "chain", "plain", scales=[0.5, 1.0]),
        "large": network(folder, "large", "ocr", scales=[1.0], flip=True, long_edge=200),
    }


@pytest.fixture(scope="module")
def files(checkpoints, tmp_path_factory):
    """What `hmsa export` made of them for 75x101 pixels, which is no multiple of any stride."""
    folder = tmp_path_factory.mktemp("files")
    made = {"chain": folder / "chain.onnx", "large": folder / "large.onnx"}
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
    found = {}
    for source in (checkpoints[name], files[name]):
        out = tmp_path / source.suffix[1:]
        precision = ["--precision", "fp32"] if source.suffix == ".safetensors" else []
        ran = hmsa("predict", source, picture, "-o", out, *precision)
        assert ran.code == 0, ran.err
        label = Image.open(out / "label" / "street.png")
        assert label.getpalette()[:9] == [value for colour in PALETTE for value in colour]
        confidence = Image.open(out / "confidence" / "street.png")
        found[source.suffix] = np.asarray(label), np.asarray(confidence).astype(int)
    (label, confidence), (other, others) = found.values()
    assert len(np.unique(label)) == 3
    assert (label == other).mean() > 0.999
    assert abs(confidence - others).max() <= 1


def test_the_file_tells_what_it_is(files):
    onnxruntime = pytest.importorskip("onnxruntime")
    for name, scales, flip in (("chain", [0.5, 1.0], False), ("large", [1.0], True)):
        made = Exported(files[name])
        assert (made.card.names, made.card.scales, made.card.flip) == (NAMES, scales, flip)
        assert made.size == (75, 101)
    session = onnxruntime.InferenceSession(files["chain"])
    inputs = [(each.name, each.shape, each.type) for each in session.get_inputs()]
    assert inputs == [("image", [1, 3, 75, 101], "tensor(uint8)")]
    assert [(each.name, each.shape, each.type) for each in session.get_outputs()] == [
        ("label", [1, 75, 101], "tensor(uint8)"),
        ("confidence", [1, 75, 101], "tensor(uint8)"),
    ]


def test_what_does_not_agree_is_not_written(hmsa, checkpoints, tmp_path, monkeypatch):
    good = export.Frozen.forward

    def spoilt(self, image):
        label, confidence = good(self, image)
        return label.flip(-1), confidence

    monkeypatch.setattr(export.Frozen, "forward", spoilt)
    old = tmp_path / "net.pt2"
    old.write_text("an older file")
    ran = hmsa("export", checkpoints["chain"], "-o", old, "--scales", "1", "--size", "64x96")
    assert ran.code == 1
    assert "net.pt2 was not written: it differs from" in ran.err
    assert ran.out == ""
    assert old.read_text() == "an older file"
    assert list(tmp_path.iterdir()) == [old]


def test_how_equal_it_is_is_said(hmsa, checkpoints, tmp_path):
    out = tmp_path / "net.pt2"
    ran = hmsa("export", checkpoints["chain"], "-o", out, "--scales", "1", "--size", "64x96")
    assert ran.code == 0
    assert ran.out == f"{out}\n"
    assert ran.err.startswith("net.pt2, 64x96: 100.000% of the labels are equal")
    assert len(ran.err.splitlines()) == 1


def test_another_size_is_refused_and_named(hmsa, files, picture, tmp_path):
    small = tmp_path / "small.png"
    Image.new("RGB", (40, 30)).save(small)
    ran = hmsa("predict", files["chain"], picture, small, "-o", tmp_path / "out")
    assert ran.code == 3
    assert f"{small}: " in ran.err
    assert "takes images of 75x101 (height x width), this one is 30x40" in ran.err
    assert "without --size" in ran.err
    assert (tmp_path / "out" / "label" / "street.png").is_file(), "the rest is done"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--scales", "1,2"], "exported with scales [0.5, 1.0], not [1.0, 2.0]"),
        (["--flip"], "exported with flip False, not True"),
        (["--precision", "bf16"], "exported with precision fp32, not bf16"),
        (["--save", "panel"], "give the checkpoint"),
        (["--save", "label,probabilities"], "give the checkpoint"),
        (["--save", "entropy"], "give the checkpoint"),
    ],
)
def test_what_is_not_in_the_graph(hmsa, files, picture, tmp_path, arguments, says):
    ran = hmsa("predict", files["chain"], picture, "-o", tmp_path / "out", *arguments)
    assert ran.code == 2
    assert says in ran.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("chain", ["-o", "net.bin"], "has to end in .onnx or .pt2"),
        ("chain", ["-o", "net.onnx", "--scales", "0.7,1"], "scale 0.7 is not exact"),
        ("large", ["-o", "net.pt2"], "long edge of 200"),
    ],
)
def test_what_cannot_be_exported(hmsa, checkpoints, tmp_path, monkeypatch, name, arguments, says):
    monkeypatch.chdir(tmp_path)
    ran = hmsa("export", checkpoints[name], *arguments)
    assert ran.code == 2
    assert says in ran.err
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


class Patches(nn.Module):
    """The smallest trunk: one convolution."""

    multiple, strides = 8, [8]

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 8, 8)

    def forward(self, image):
        return [self.conv(image)]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = HMSA(3, "mobilenetv3_small_050", width=8)
    model.trunk, model.head = Patches(), PlainHead([8], 3, 8)
    model.prior.copy_(torch.tensor([-1.0, 0.5]))
    return model.eval()


@pytest.fixture(scope="module")
def program(model):
    return freeze(Predictor(model, (0.5, 1.0), "fp32", "cpu"), None)


@pytest.fixture(scope="module")
def onnx(model, program, tmp_path_factory):
    file = tmp_path_factory.mktemp("any") / "net.onnx"
    write(file, program, dataclasses.replace(model.card, scales=[0.5, 1.0]), None)
    return Exported(file)


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_any_size(model, program, tmp_path, suffix):
    file = tmp_path / f"net{suffix}"
    write(file, program, dataclasses.replace(model.card, scales=[0.5, 1.0]), None)
    (run, header), eager = OPEN[suffix](file), Predictor(model, (0.5, 1.0), "fp32", "cpu")
    assert json.loads(header["hmsa"])["scales"] == [0.5, 1.0]
    rng = np.random.default_rng(0)
    for size in ((32, 32), (33, 200), (128, 64), (75, 131), (257, 99)):
        image = rng.integers(0, 256, (*size, 3), np.uint8)
        (label, confidence), other = run(image), eager(image)
        assert label.shape == size
        assert (label == other.label).mean() > 0.999
        assert np.abs(confidence.astype(int) - other.confidence8).max() <= 1


@pytest.mark.parametrize("size", [(1, 1), (20, 90), (31, 31)])
def test_images_smaller_than_a_graph_takes_are_padded(model, onnx, size):
    """As the network pads them: labels differ at the padded border at most."""
    image = scene(3, (64, 128))[0][: size[0], : size[1]]
    found, expected = onnx(image), Predictor(model, (0.5, 1.0), "fp32", "cpu")(image)
    assert found.label.shape == found.confidence8.shape == size
    inside = np.s_[: max(1, size[0] - 8), : max(1, size[1] - 8)]
    assert (found.label[inside] == expected.label[inside]).mean() > 0.98
    assert np.abs(found.confidence8[inside].astype(int) - expected.confidence8[inside]).max() < 8


def test_only_label_and_confidence(onnx):
    with pytest.raises(InputError, match="use the checkpoint"):
        onnx(np.zeros((40, 40, 3), np.uint8), detail=True)


@pytest.mark.parametrize("content", [None, b"", b"nonsense", b"PK\x03\x04"])
def test_other_files(tmp_path, content):
    file = tmp_path / "net.onnx"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match=r"net\.onnx cannot be loaded \(") as refused:
        Exported(file)
    assert "\n" not in str(refused.value)


class Marker:
    """Unpickling it makes a folder."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return os.mkdir, (str(self.place),)


def test_no_pickle_in_a_torch_file_runs(hmsa, model, program, picture, tmp_path):
    good, bad, place = tmp_path / "good.pt2", tmp_path / "net.pt2", tmp_path / "code-ran"
    write(good, program, model.card, None)
    evil = io.BytesIO()
    torch.save((Marker(place),), evil)
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(bad, "w") as new:
        for name in old.namelist():
            inputs = "sample_inputs" in name
            new.writestr(name, evil.getvalue() if inputs else old.read(name))
    for file in (good, bad):
        ran = hmsa("predict", file, picture, "-o", tmp_path / "out")
        assert ran.code == 2
        assert (
            ran.err
            == f"hmsa: {file}: a .pt2 file can run code of whoever made it; export to .onnx\n"
        )
    assert not place.exists()


def test_a_file_of_somebody_else(tmp_path):
    class Same(nn.Module):
        def forward(self, image):
            return image + 1

    made = torch.onnx.export(Same().eval(), (torch.zeros(1, 3, 4, 4),), verbose=False)
    made.save(tmp_path / "net.onnx")
    with pytest.raises(InputError, match="not written by hmsa export"):
        Exported(tmp_path / "net.onnx")


@pytest.mark.parametrize(
    ("header", "makes", "says"),
    [
        ({"size": "4 by 4"}, lambda image: (image[:, 0], image[:, 0]), "is not HEIGHTxWIDTH"),
        ({"hmsa": "[[["}, lambda image: (image[:, 0], image[:, 0]), "damaged card"),
        ({}, lambda image: (image[:, 0] * 0 + 3, image[:, 0]), "labels of its classes"),
        ({}, lambda image: (image[:, 0].float(), image[:, 0]), "labels of its classes"),
        ({}, lambda image: (image[0, 0, 0], image[:, 0]), "fails on this image|labels of its"),
    ],
)
def test_a_graph_that_only_claims_to_be_ours(model, tmp_path, header, makes, says):
    class Graph(nn.Module):
        def forward(self, image):
            return makes(image)

    image = torch.zeros(1, 3, 40, 40, dtype=torch.uint8)
    names = {"input_names": ["image"], "output_names": ["label", "confidence"]}
    made = torch.onnx.export(Graph().eval(), (image,), verbose=False, **names)
    made.model.metadata_props.update({"hmsa": model.card.to_json(), "size": "40x40"} | header)
    made.save(tmp_path / "net.onnx")
    with pytest.raises(InputError, match=says):
        Exported(tmp_path / "net.onnx")(np.zeros((40, 40, 3), np.uint8))


def test_a_network_that_the_exporter_refuses(model):
    class Branches(Patches):
        def forward(self, image):
            return super().forward(image) if image.sum() > 0 else []

    broken = HMSA(3, "mobilenetv3_small_050", width=8)
    broken.trunk, broken.head = Branches(), model.head
    with pytest.raises(InputError, match="torch cannot export this network for 64x96 size"):
        freeze(Predictor(broken, (1.0,), "fp32", "cpu"), (64, 96))
