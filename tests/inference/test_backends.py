"""Every path of prediction gives the same labels on each backend as in torch."""

from __future__ import annotations

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from hmsa import Predictor, ScaleAttention
from hmsa.inference import backends, runtimes
from hmsa.inference.backends import RUNTIMES, _candidates
from hmsa.inference.tiles import Gate
from hmsa.model import HMSA, PairScaleAttention, build
from hmsa.runs.errors import InputError
from hmsa.runs.machine import fast_bf16

for library in ("onnx", *RUNTIMES):
    pytest.importorskip(library)
ON = pytest.mark.parametrize("backend", RUNTIMES)


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(0, 255, (141, 167, 3), dtype=np.uint8)


@pytest.fixture
def auto(monkeypatch):
    """`auto` as it is for users."""
    monkeypatch.setattr(backends, "_candidates", _candidates)
    monkeypatch.setattr("hmsa.runs.progress._SAID", set())


class Own(nn.Module):
    """Somebody's own network, logits at stride 2."""

    multiple = 4

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU())
        self.last = nn.Conv2d(6, 5, 1)

    def forward(self, image):
        return self.last(self.stem(image))


class OneSize(Own):
    def forward(self, image):
        height, width = (int(side) // 2 for side in image.shape[2:])
        return super().forward(image) + torch.zeros(1, 5, height, width)


def predictor(model, backend, scales=(0.5, 1, 2), **options):
    return Predictor(model, scales, "fp32", "cpu", backend=backend, **options)


def same(one, other):
    assert (one == other).mean() >= 0.9999, "but for ties"


def seen(model):
    """The model, eval mode, with norms that have seen noise."""
    with torch.no_grad():
        model.train()(torch.rand(2, 3, 64, 64), getattr(model, "scales", (0.5, 1.0)))
    return model.eval()


def network(kind):
    torch.manual_seed(0)
    if kind in ("ocr", "deeplab", "stacked"):
        return seen(HMSA(4, "resnet18", head=kind, width=8))
    if kind == "large logits":
        model = network("ocr")
        model.head.semantic.weight.data.mul_(1e3)
        return model
    if kind == "same padding":
        return seen(HMSA(4, "tf_mobilenetv3_small_minimal_100", width=8))
    if kind == "official":
        return seen(HMSA(4, "resnet18", head="ocr", width=8, official=True))
    if kind in ("attention", "attention of pairs"):
        made = {"attention": ScaleAttention, "attention of pairs": PairScaleAttention}[kind]
        model = made(Own().eval(), per_class=True, width=8)
        nn.init.normal_(model.attention[-1][-1].weight)
        return model.eval()
    return seen(build(kind, classes=4, trunk="resnet18", width=8))


@ON
def test_every_map_of_a_prediction(tiny, image, backend):
    wanted = {"detail": True, "probabilities": True, "entropy": True}
    torch_, other = (predictor(tiny, b, flip=True)(image, **wanted) for b in ("torch", backend))
    same(torch_.label, other.label)
    assert np.abs(torch_.confidence8.astype(int) - other.confidence8).max() <= 1
    assert np.abs(torch_.entropy8.astype(int) - other.entropy8).max() <= 1
    np.testing.assert_allclose(torch_.probabilities, other.probabilities, atol=2e-3)
    for name in ("single", "pooled", "flips"):
        for key, label in getattr(torch_, name).items():
            same(label, getattr(other, name)[key])
    for scale, weight in torch_.weights.items():
        np.testing.assert_allclose(weight, other.weights[scale], atol=1e-3)


@ON
@pytest.mark.parametrize("options", [
    {"tile": 128, "halo": 32}, {"gate": Gate(0.2, 64, 32)}, {"long_edge": 100},
    {"tile": 160, "halo": 32, "gate": Gate(0.2, 64, 32), "flip": True},
])  # fmt: skip
def test_tiles_gate_and_resizing(tiny, image, backend, options):
    torch_, other = (predictor(tiny, b, **options)(image) for b in ("torch", backend))
    same(torch_.label, other.label)
    assert torch_.cost == other.cost
    assert torch_.computed == other.computed
    assert bool(torch_.computed) == ("gate" in options)


@ON
@pytest.mark.parametrize("kind", [
    "ocr", "deeplab", "stacked", "large logits", "same padding", "official", "average", "max",
    "pair", "explicit", "attention", "attention of pairs",
])  # fmt: skip
def test_every_network(image, backend, kind):
    model = network(kind)
    other = predictor(model, backend)
    assert other.backend_in_use == backend
    same(predictor(model, "torch")(image).label, other(image).label)
    assert (other(image[:33]).label == predictor(model, "torch")(image[:33]).label).mean() > 0.999
    if model.tiles:  # whose context is that of the whole image
        pair = (predictor(model, b, tile=192, halo=32)(image).label for b in ("torch", backend))
        same(*pair)


@ON
def test_verbs_write_the_same_labels(hmsa, trained, scenes, tmp_path, backend):
    written = {}
    for name in ("torch", backend):
        options = ["--backend", name, "--precision", "fp32", "--device", "cpu"]
        assert hmsa("predict", trained, scenes.parent, "-o", tmp_path / name, *options).code == 0
        auto = tmp_path / f"auto-{name}"
        assert hmsa("autolabel", trained, scenes.parent, "-o", auto, *options).code == 0
        page = ["--report", tmp_path / f"{name}.html", "--json"]
        told = hmsa("evaluate", trained, scenes, *options, *page)
        assert told.code == 0, told.err
        files = [*sorted((tmp_path / name / "label").rglob("*.png")), *sorted(auto.rglob("*.png"))]
        written[name] = [np.array(Image.open(file)) for file in files], told.out
    assert len(written["torch"][0]) > 9
    for one, other in zip(*(maps for maps, _ in written.values()), strict=True):
        assert (np.abs(one.astype(int) - other) <= 1).mean() > 0.999


@pytest.mark.skipif(not fast_bf16(torch.device("cpu")), reason="bf16 is emulated")
def test_bf16_is_as_near_as_in_torch(tiny, image):
    full = predictor(tiny, "torch")(image).label
    labels = [
        Predictor(tiny, (0.5, 1, 2), "bf16", "cpu", backend=name)(image).label
        for name in ("torch", "openvino")
    ]
    torch_, other = ((label == full).mean() for label in labels)
    assert other > torch_ - 0.02


class TestAuto:
    def test_takes_the_fastest_and_says_so(self, tiny, image, auto, capsys):
        made = predictor(tiny, "auto")
        same(made(image).label, predictor(tiny, "torch")(image).label)
        assert made.backend_in_use == next(iter(RUNTIMES))
        assert capsys.readouterr().err == "the network runs in openvino\n"

    def test_falls_back_with_one_line(self, image, auto, capsys):
        model = ScaleAttention(OneSize().eval())
        same(predictor(model, "auto")(image).label, predictor(model, "torch")(image).label)
        told = capsys.readouterr().err.splitlines()
        assert [line.partition(":")[0] for line in told] == [
            f"the network does not run in {name}" for name in RUNTIMES
        ]
        with pytest.raises(InputError, match="backend openvino: .*; use torch"):
            predictor(model, "openvino").settings  # noqa: B018

    def test_is_torch_where_nothing_is_installed(self, tiny, auto, monkeypatch):
        monkeypatch.setattr(backends, "find_spec", lambda name: None)
        assert predictor(tiny, "auto").backend_in_use == "torch"
        with pytest.raises(InputError, match=r'not installed: pip install "hmsa\[openvino\]"'):
            predictor(tiny, "openvino")

    def test_new_weights_give_a_new_graph(self, tiny, image, auto):
        made = predictor(tiny, "auto")
        before = made(image).label
        with torch.no_grad():
            tiny.head.semantic[-1].bias += torch.tensor([0, 9.0, 0, 0])
        same(made(image).label, predictor(tiny, "torch")(image).label)
        assert (made(image).label != before).any()


FREED = """
import faulthandler, signal, threading
from onnx import TensorProto as Type, helper
from hmsa.inference.runtimes import RUNTIMES

faulthandler.enable()
signal.signal(signal.SIGTERM, lambda *_: print("went on"))
ends = [helper.make_tensor_value_info(name, Type.FLOAT, [1]) for name in "xy"]
graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", ends[:1], ends[1:])
opset = helper.make_opsetid("", 18)
content = helper.make_model(graph, opset_imports=[opset], ir_version=10).SerializeToString()
sessions = [RUNTIMES[{backend!r}].open(lambda: content, "fp32")]
freeing = threading.Thread(target=sessions.clear)
freeing.start()
freeing.join()
signal.raise_signal(signal.SIGTERM)
"""


@ON
def test_a_signal_after_a_network_was_freed_in_another_thread(backend):
    words = [sys.executable, "-c", FREED.format(backend=backend)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "went on\n"), done.stderr


def sizes(made):
    """Shapes of the graphs that OpenVINO has for the network with attention; None: any."""
    (graph,) = (g for k, g in made._network()._graphs.items() if k == (True, False))
    return [shapes and shapes[0][2:] for shapes in graph._session._graphs]


def test_openvino_keeps_a_graph_for_the_largest_size(tiny, monkeypatch):
    made, eager = (predictor(tiny, b, (1, 2)) for b in ("openvino", "torch"))
    assert sizes(made) == [None]
    monkeypatch.setattr(runtimes, "_SMALL", 96 * 96)
    images = np.random.default_rng(0).integers(0, 255, (128, 128, 3), dtype=np.uint8)
    for height, width, kept in (
        (64, 64, [None]), (96, 96, [(96, 96)]), (96, 96, [(96, 96)]), (64, 64, [(96, 96), None]),
        (64, 128, [(96, 96), None]), (128, 96, [(128, 96)]), (96, 128, [(128, 96), None]),
    ):  # fmt: skip
        image = images[:height, :width]
        same(made(image).label, eager(image).label)
        assert sizes(made) == kept


def test_a_cache_that_is_emptied_while_openvino_works(tiny, monkeypatch, cache):
    made = predictor(tiny, "openvino", (1,))
    made(np.zeros((64, 64, 3), np.uint8))
    monkeypatch.setattr(runtimes, "_SMALL", 0)
    shutil.rmtree(cache)
    with pytest.raises(InputError, match=r"onnx, which was there .* run the command again"):
        made(np.zeros((96, 96, 3), np.uint8))


def test_threads_share_a_predictor_in_openvino(tiny, monkeypatch):
    monkeypatch.setattr(runtimes, "_SMALL", 96 * 96)
    made = predictor(tiny, "openvino", (1, 2))
    images = np.random.default_rng(0).integers(0, 255, (12, 160, 160, 3), dtype=np.uint8)
    images = [image[: 64 + 8 * index] for index, image in enumerate(images)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(made, images * 3))
    for image, found in zip(images * 3, together, strict=True):
        same(found.label, made(image).label)


@ON
def test_a_graph_is_made_once_and_kept(tiny, image, backend, monkeypatch, cache):
    label = predictor(tiny, backend)(image).label
    made = []
    export = runtimes._exported
    monkeypatch.setattr(runtimes, "_exported", lambda *a: made.append(0) or export(*a))
    same(predictor(tiny, backend)(image).label, label)
    assert not made
    for file in cache.rglob("*.onnx"):
        file.write_bytes(file.read_bytes()[:999])
    same(predictor(tiny, backend)(image).label, label)
    assert len(made) == 3, "two of the network, one of attention: damaged files are made again"


def test_refuses_what_a_backend_cannot(tiny):
    with pytest.raises(InputError, match="onnxruntime computes in fp32 alone, not in bf16"):
        Predictor(tiny, (1,), "bf16", "cpu", backend="onnxruntime")
    assert Predictor(tiny, (1,), "auto", "cpu", backend="onnxruntime").precision in ("auto", "fp32")
