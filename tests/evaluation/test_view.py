"""The page to compare scales in: its data are the predictor's own; a real browser shows them."""

from __future__ import annotations

import base64
import html
import json
import re
import shutil
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hmsa import Predictor
from hmsa.data.datasets import open_dataset
from hmsa.inference.result import Prediction
from hmsa.inference.viewer import TOP, view_item
from reading import Reader, decoded

SCALES = (0.5, 1.0, 2.0)


def data_of(page: Path) -> dict:
    return json.loads(page.read_text("utf-8").split('type="application/json">')[1].split("<")[0])


def maps_of(item: dict, scales: int = len(SCALES)) -> dict[str, np.ndarray]:
    """As the page's own script reads them."""
    packed = zlib.decompress(base64.b64decode(item["maps"]))
    values = np.cumsum(np.frombuffer(packed, np.uint8), dtype=np.uint8)
    planes = {"labels": scales + 1, "confidence": 1, "truth": int(item["truth"])}
    sizes = [(name, item["fine"], count) for name, count in planes.items()]
    planes = {"weights": scales, "attention": scales - 1, "top": TOP, "chances": TOP}
    sizes += [(name, item["rough"], count) for name, count in planes.items()]
    maps, at = {}, 0
    for name, size, count in sizes:
        end = at + count * size[0] * size[1]
        maps[name] = values[at:end].reshape(count, *size)
        at = end
    assert at == len(values)
    return maps


@pytest.fixture(scope="module")
def page(trained, scenes, tmp_path_factory) -> Path:
    from hmsa import __main__ as cli

    file = tmp_path_factory.mktemp("view") / "page.html"
    words = ["view", trained, scenes, "--split", "val", "--scales", "0.5,1,2", "-o", file]
    assert cli.run([str(word) for word in words]) == 0
    return file


@pytest.fixture(scope="module")
def seen(trained, scenes) -> dict[str, tuple[np.ndarray, np.ndarray, Prediction]]:
    """Image, truth and prediction by name."""
    predictor, dataset = Predictor.load(trained, SCALES), open_dataset(scenes, "val")
    pairs = [dataset.read(index) for index in range(len(dataset))]
    return {
        pair.name: (image, truth, predictor(image, detail=True, probabilities=True))
        for pair, (image, truth) in zip(dataset.pairs, pairs, strict=True)
    }


def test_the_maps_are_the_predictors_own(page, seen):
    data = data_of(page)
    assert data["scales"] == ["0.5×", "1×", "2×"]
    assert {item["name"] for item in data["items"]} == seen.keys()
    for item in data["items"]:
        image, truth, made = seen[item["name"]]
        maps = maps_of(item)
        assert (maps["labels"] == [*made.single.values(), made.label]).all()
        assert (maps["confidence"] == made.confidence8).all()
        assert (maps["truth"] == truth).all()
        weights = np.stack([*made.weights.values()])
        assert np.abs(maps["weights"] / 255 - weights).max() <= 0.51 / 255
        attention = np.stack([*made.attention.values()])
        assert np.abs(maps["attention"] / 255 - attention).max() <= 0.51 / 255
        best = -np.sort(-made.probabilities.astype(np.float32), 0)[:TOP]
        assert np.abs(maps["chances"] / 255 - best).max() <= 0.51 / 255
        assert (maps["top"][0] == made.label).mean() > 0.99, "half floats may tie"
        assert np.abs(decoded(item["photo"]).astype(int) - image).mean() < 12
        present = [k for k in range(254) if (made.label == k).any() or (truth == k).any()]
        assert set(item["present"]) <= set(present)
        inside = ((made.label == truth) & (truth == present[0])).sum()
        either = ((made.label == present[0]) & (truth != 255)) | (truth == present[0])
        assert item["iou"][present[0]] == pytest.approx(inside / either.sum())


def test_large_maps_are_thinned_and_photos_are_not_larger_than_a_screen():
    random = np.random.default_rng(0)
    size, classes = (1300, 700), 5
    chances = random.random((classes, *size), np.float32)
    chances = (chances / chances.sum(0)).astype(np.float16)
    made = Prediction(
        chances.argmax(0).astype(np.uint8), random.integers(1, 256, size, np.uint8),
        {1.0: random.integers(0, classes, size, np.uint8)},
        weights={1.0: random.random(size, np.float32)}, probabilities=chances,
    )  # fmt: skip
    item = view_item("large", random.integers(0, 256, (*size, 3), np.uint8), made)
    maps = maps_of(item, 1)
    assert item["fine"] == (650, 350)
    assert (maps["labels"] == [made.single[1.0][::2, ::2], made.label[::2, ::2]]).all()
    assert (maps["confidence"] == made.confidence8[::2, ::2]).all()
    rough = made.weights[1.0][::2, ::2][::3, ::3]
    assert np.abs(maps["weights"] / 255 - rough).max() <= 0.51 / 255
    assert (maps["top"][0] == made.label[::2, ::2][::3, ::3]).all()
    assert max(decoded(item["photo"]).shape) == 1024


def test_nothing_is_loaded_from_outside(page):
    shown = Reader(page)
    assert not [load for load in shown.loads if not load.startswith("data:")]
    assert not re.search(r"https?://|@import|<link|fetch\(|XMLHttpRequest", shown.source)
    assert "default-src 'none'" in shown.source


def test_images_without_labels_and_one_that_is_broken(hmsa, trained, scenes, tmp_path, monkeypatch):
    images = shutil.copytree(scenes.parent / "val" / "images", tmp_path / "mine")
    (images / "broken.png").write_bytes(b"nothing")
    monkeypatch.chdir(tmp_path)
    ran = hmsa("view", trained, "mine", "--most", 2)
    assert ran.code == 3
    assert "broken.png" in ran.err
    assert "1 that are better were left out" in ran.err
    assert ran.out.strip() == str(trained / "view-mine.html")
    data, predictor = data_of(trained / "view-mine.html"), Predictor.load(trained)
    mean = {file.stem: predictor(file).confidence8.mean() / 255
            for file in images.iterdir() if file.stem != "broken"}  # fmt: skip
    kept = {item["name"]: item["confidence"] for item in data["items"]}
    assert kept == {name: pytest.approx(mean[name]) for name in sorted(mean, key=mean.get)[:2]}
    assert not any(item["truth"] for item in data["items"])


def test_mistakes(hmsa, trained, scenes, tmp_path, folder_dataset):
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"nothing")
    (tmp_path / "c.mp4").write_bytes(b"nothing")
    (tmp_path / "mine.html").write_text("mine")
    other = folder_dataset({"a": np.zeros((64, 64), np.uint8)})
    for words, says in (
        ([], "no images given"),
        ([tmp_path / "none"], "no image matches"),
        ([scenes, tmp_path / "a.png"], "follows it"),
        ([scenes, "--split", "vall"], "did you mean val"),
        ([other, "--split", "train"], "need the same classes"),
        ([tmp_path / "b.png"], "b.png is not an image that can be read"),
        ([tmp_path / "c.mp4"], "c.mp4 is not an image that can be read"),
        ([tmp_path / "a.png", "-o", tmp_path / "mine.html"], "is not a page of hmsa"),
    ):
        ran = hmsa("view", trained, *words)
        assert ran.code == 2, ran.err
        assert says in ran.err.splitlines()[-1]
        assert not ran.out
    assert (tmp_path / "mine.html").read_text() == "mine"


@pytest.mark.parametrize("width", [420, 1400])
def test_in_a_browser(page, seen, scenes, tmp_path, width):
    browser = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if browser is None:
        pytest.skip("no Chromium on this machine")
    driven, reader = tmp_path / "driven.html", Path(__file__).with_name("reader.js").read_text()
    driven.write_text(
        page.read_text("utf-8").replace("</body>", f"<script>{reader}</script></body>"), "utf-8"
    )
    done = subprocess.run([
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900",
        "--virtual-time-budget=60000", "--dump-dom", f"{driven.as_uri()}#x=30&y=20",
    ], capture_output=True, text=True, timeout=600)  # fmt: skip
    found = re.search(r'<pre id="said">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    said = json.loads(html.unescape(found[1]))
    labels = open_dataset(scenes, "val").labels
    items = sorted(data_of(page)["items"], key=lambda item: item["miou"])
    _, truth, made = seen[items[0]["name"]]
    voted = [labels.names[label[20, 30]] for label in (truth, *made.single.values(), made.label)]

    begin = said["begin"]
    assert begin["image"] == items[0]["name"], "the lowest IoU comes first"
    assert begin["where"] == "Pixel x 30, y 20: votes and weights"
    assert [row.split()[:2] for row in begin["rows"][:5]] == [
        [head, name]
        for head, name in zip(["truth", "0.5×", "1×", "2×", "fused"], voted, strict=True)
    ]
    weights = [f"{100 * round(255 * float(w[20, 30])) / 255:.1f}" for w in made.weights.values()]
    assert [row.split()[2] for row in begin["rows"][1:4]] == weights
    assert begin["rows"][5].split()[0] == labels.names[made.probabilities[:, 20, 30].argmax()]
    assert begin["pixel"] == [*labels.palette[made.label[20, 30]], 255]
    assert said["comma"]["key"] == "label of 2×"
    assert said["comma"]["pixel"] == [*labels.palette[made.single[2.0][20, 30]], 255]
    assert said["slider"]["key"] == "label of 0.5×"
    assert said["slider"]["pixel"] == [*labels.palette[made.single[0.5][20, 30]], 255]
    assert said["safe"]["pixel"] != said["slider"]["pixel"]
    assert said["moved"]["where"].startswith("Pixel x 40, y 20")
    assert said["moved"]["rows"][0].split()[1] == labels.names[truth[20, 40]]
    assert said["tapped"]["where"].startswith("Pixel x 50, y 10")
    assert said["tapped"]["rows"][0].split()[1] == labels.names[truth[10, 50]]
    assert said["confidence"]["pixel"] != said["slider"]["pixel"]
    wrong = truth[20, 30] not in (255, made.single[0.5][20, 30])
    assert said["error"]["pixel"] == ([208, 24, 36, 255] if wrong else [0, 0, 0, 0])
    assert said["next"]["image"] == items[1]["name"]
    last = len(labels.names) - 1
    assert said["filtered"]["images"] == sum(last in item["present"] for item in items)
    assert all(each["overflow"] <= 0 for each in said.values()), "nothing is cut at this width"
