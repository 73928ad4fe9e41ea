"""Which files of a folder are images; what is passed over is said."""

from __future__ import annotations

import os

import pytest
from PIL import Image

from hmsa.data.images import read_image
from hmsa.data.walk import SUFFIXES, find_images, images_below, say_passed_over
from hmsa.labelling.sources import find
from hmsa.runs import progress


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    monkeypatch.setattr(progress, "_SAID", set())


@pytest.fixture
def folder(tmp_path):
    for name in ("b/z.JPG", "a.png", "b/notes.txt", ".hidden.png", "c.heic", "b/d.HEIC", "e.psd"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    return tmp_path / "in"


WALKS = {
    "dataset": lambda path: [p.relative_to(path).as_posix() for p in images_below(path)],
    "predict": lambda path: [p.relative_to(path).as_posix() for p in
                             find_images([str(path)]).values()],
    "autolabel": lambda path: [os.path.relpath(p, path) for p in find(str(path)).images.values()],
}  # fmt: skip


@pytest.mark.parametrize("walk", WALKS)
def test_what_is_passed_over_is_counted_by_suffix(folder, walk, capsys):
    for _ in range(2):
        assert WALKS[walk](folder) == ["a.png", "b/z.JPG"]
    said = capsys.readouterr().err
    assert said.count("\n") == 1, "once, however often it is walked"
    assert "passed over: 2 files with suffix .heic, 1 file with suffix .psd" in said


@pytest.mark.parametrize("walk", WALKS)
def test_linked_folders_are_followed_but_not_in_circles(folder, tmp_path, walk):
    (tmp_path / "far" / "deep").mkdir(parents=True)
    (tmp_path / "far" / "deep" / "f.png").touch()
    (folder / "link").symlink_to(tmp_path / "far")
    (tmp_path / "far" / "round").symlink_to(folder)
    (tmp_path / "far" / "deep" / "self").symlink_to(tmp_path / "far" / "deep")
    (folder / "broken").symlink_to(tmp_path / "nowhere")
    assert WALKS[walk](folder) == ["a.png", "b/z.JPG", "link/deep/f.png"]


def test_a_folder_that_is_not_there_is_empty(tmp_path):
    assert images_below(tmp_path / "none") == []


@pytest.mark.parametrize("walk", WALKS)
def test_the_picture_beside_a_description_is_no_image(folder, walk):
    (folder / "dataset.png").touch()
    assert WALKS[walk](folder) == ["a.png", "b/z.JPG"]
    assert [*find_images([f"{folder}/*"])] == ["a"]


def test_a_glob_says_it_too(folder, capsys):
    assert [*find_images([f"{folder}/*"])] == ["a"]
    assert (
        "passed over: 1 file with suffix .heic, 1 file with suffix .psd" in capsys.readouterr().err
    )


def test_without_the_codec_it_is_passed_over(tmp_path, capsys):
    say_passed_over("in", [tmp_path / f"{i}.avif" for i in range(3)], SUFFIXES - {".avif"})
    assert "in: passed over: 3 files with suffix .avif;" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".avif", ".jp2", ".j2k", ".jfif", ".tga"])
def test_what_pillow_reads_is_read(tmp_path, suffix):
    if suffix not in SUFFIXES:
        pytest.skip("this Pillow lacks it")
    file = tmp_path / f"a{suffix}"
    Image.new("RGB", (64, 48), (200, 30, 40)).save(file)
    assert images_below(tmp_path) == [file]
    image = read_image(file)
    assert image.shape == (48, 64, 3)
    assert abs(image.mean((0, 1)) - (200, 30, 40)).max() < 6
