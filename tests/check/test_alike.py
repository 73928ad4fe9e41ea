"""Pictures that splits share are found, pictures that only resemble each other are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from scenes import write_scenes

from hmsa.check import alike
from hmsa.check.check import check


def kinds(found, level="error"):
    return [problem.kind for problem in found.of(level)]


def noise(seed=0, side=96, blocks=12):
    """A picture that is like no other: random blocks, as large as things are in a photograph."""
    coarse = np.random.default_rng(seed).integers(0, 256, (blocks, blocks, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))


@pytest.fixture
def splits(tmp_path):
    """`splits(train={name: pixels}, val=..)` -> dataset.yaml"""

    def make(**parts):
        for split, images in parts.items():
            for kind in ("images", "labels"):
                (tmp_path / split / kind).mkdir(parents=True)
            for name, pixels in images.items():
                Image.fromarray(pixels).save(tmp_path / split / "images" / f"{name}.png")
                Image.new("L", pixels.shape[1::-1]).save(
                    tmp_path / split / "labels" / f"{name}.png"
                )
        file = tmp_path / "dataset.yaml"
        content = {"splits": {name: name for name in parts}, "names": ["all"]}
        file.write_text(yaml.safe_dump(content))
        return file

    return make


def test_different_pictures_are_no_copies(splits, checked):
    found = checked(splits(train={"a": noise(1), "b": noise(2)}, val={"c": noise(3)}))
    assert not found.problems


@pytest.mark.parametrize("how", ["same", "brighter", "smaller", "jpeg", "gray"])
def test_copies_are_found_whatever_was_done_to_them(splits, tmp_path, how, checked):
    original = noise(1)
    picture = Image.fromarray(original)
    if how == "brighter":
        picture = picture.point(lambda v: min(255, v * 0.8 + 40))
    elif how == "smaller":
        picture = picture.resize((60, 50))
    elif how == "jpeg":
        picture.save(tmp_path / "x.jpg", quality=30)
        picture = Image.open(tmp_path / "x.jpg")
    elif how == "gray":
        picture = picture.convert("L")
    path = splits(
        train={"a": original, "b": noise(2)}, val={"c": np.asarray(picture.convert("RGB"))}
    )
    (near,) = checked(path).of("warning")
    assert (near.kind, near.split) == ("near-copies", "train, val")
    assert [[image.stem for image in case] for case in near.cases] == [["a", "c"]]


def test_copies_within_a_split_are_told_apart(splits, checked):
    found = checked(splits(train={"a": noise(1), "b": noise(1)}))
    assert kinds(found, "warning") == []
    (note,) = found.summary()["notes"]
    assert (note["kind"], note["files"]) == ("near-copies within", 2)


def test_black_frames_are_copies_of_nothing(splits, checked):
    black = np.zeros((40, 40, 3), np.uint8)
    assert not checked(splits(train={"a": black}, val={"b": black})).problems


def test_files_in_two_splits(splits, checked):
    path = splits(train={"a": noise(1), "b": noise(2)})
    content = yaml.safe_load(path.read_text())
    both = {"images": "train/images", "labels": "train/labels"}
    content["splits"]["val"] = both | {"include": ["a"]}
    path.write_text(yaml.safe_dump(content))
    found = checked(path)
    assert kinds(found, "warning") == ["shared files"]


def test_generated_scenes_are_no_leaks(tmp_path, checked):
    found = checked(write_scenes(tmp_path / "s", {"train": 30, "val": 10}, (64, 128)))
    assert not {"near-copies", "clip of a recording"} & {*kinds(found, "warning")}


def drive(frames):
    """Frames of a window, 128 pixels wide, that moves over a picture by 5 pixels each."""
    wide = noise(5, side=640, blocks=10)[:96]
    return {f"drive_{n:04}": wide[:, 5 * n : 5 * n + 128] for n in frames}


def test_a_clip_cut_out_of_a_recording(splits, checked):
    cut = range(20, 30)
    rest = [n for n in range(50) if n not in range(15, 35)]
    found = checked(splits(train=drive(rest), val=drive(cut)))
    (clip,) = (p for p in found.problems if p.kind == "clip of a recording")
    assert "(drive_*), the nearest 6 numbers apart" in clip.message
    assert len(clip.files) == 10
    assert [image.stem for image in clip.cases[0]] in (
        ["drive_0014", "drive_0020"], ["drive_0035", "drive_0029"],
    )  # fmt: skip


def test_numbers_that_mean_nothing_are_no_recording(splits, checked):
    photos = {f"img_{n:04}": noise(n, blocks=4) for n in range(60)}
    val = {name: photos.pop(name) for name in list(photos)[::6]}
    assert not checked(splits(train=photos, val=val)).of("warning")


def test_camvid(camvid):
    found = check(Path("camvid"), ["train", "val"], camvid)
    (clip,) = (p for p in found.problems if p.kind == "clip of a recording")
    assert "(0016E5_*), the nearest 31 numbers apart" in clip.message
    assert len(clip.files) == 101
    assert {path.stem for path in clip.cases[0]} == {"0016E5_08190", "0016E5_08159"}
    assert not found.of("error")
    summary = found.summary()
    void = {split: round(100 * void["share"], 2) for split, void in summary["void"].items()}
    assert void == {"train": 3.95, "val": 1.70}


def test_many_images_are_compared_a_few_rows_at_a_time(monkeypatch):
    rng = np.random.default_rng(0)
    hashes = [rng.bytes(64).hex() for _ in range(6)] * 2
    images = [alike.Hashed("", Path(str(n)), text) for n, text in enumerate(hashes)]
    whole = alike.near_copies(images, images)
    assert {(int(one.name), int(other.name)) for one, other in whole} == {
        (n, (n + 6) % 12) for n in range(12)
    }
    monkeypatch.setattr(alike, "_ROWS", 5)
    assert alike.near_copies(images, images) == whole
