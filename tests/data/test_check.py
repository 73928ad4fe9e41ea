"""Each fault that a dataset can have is found, named, and hides no other."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from hmsa.data import scan as looking
from hmsa.data.check import judge, plan
from hmsa.data.leaks import find_leaks
from hmsa.data.scan import File, Memory, look, scan
from hmsa.data.scenes import write_scenes
from hmsa.errors import InputError

LABEL = np.array([[0, 1, 2, 255], [2, 2, 1, 0]], np.uint8)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def checked(path, *splits):
    found = plan(path, splits)
    seen = {file.path: look(file) for file in found.files()}
    find_leaks(judge(found, seen), seen)
    json.dumps(found.summary())
    return found


def kinds(found, level="error"):
    return [problem.kind for problem in found.of(level)]


def train(path) -> Path:
    return path.parent / "pictures" / "train"


def save_image(path, name, pixels, **options):
    Image.fromarray(pixels).save(train(path) / "images" / name, **options)


def test_nothing_wrong(folder_dataset):
    found = checked(folder_dataset({"a": LABEL, "b": LABEL}))
    assert [p.kind for p in found.problems] == ["void"]
    assert found.verdict() == "Nothing wrong in 2 pairs of train."
    summary = found.summary()
    assert summary["frequencies"]["train"]["road"] == {"pixels": 6, "share": 0.375, "pictures": 2}
    assert summary["void"]["train"] == {"pixels": 2, "share": 0.125}
    assert summary["values"]["train"] == {"0": 4, "1": 4, "2": 6, "255": 2}
    assert summary["sizes"]["train"] == {"4x2": 2}
    assert summary["mean"]["train"] == pytest.approx(np.array([90, 120, 150]) / 255, abs=0.01)
    assert summary["std"]["train"] == pytest.approx([0, 0, 0], abs=0.01)


def test_mean_and_deviation_are_those_of_numpy(folder_dataset):
    path = folder_dataset({"a": LABEL})
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 3), np.uint8)
    save_image(path, "a.png", pixels)
    (train(path) / "images" / "a.jpg").unlink()
    part = checked(path).parts["train"]
    assert part.mean == pytest.approx(pixels.mean((0, 1)) / 255, abs=1e-5)
    assert part.std == pytest.approx(pixels.std((0, 1)) / 255, abs=1e-5)


def spoil(path, how):
    images, labels = train(path) / "images", train(path) / "labels"
    if how == "image without label":
        (labels / "a.png").unlink()
    elif how == "label without image":
        (images / "a.jpg").unlink()
    elif how == "sizes differ":
        Image.new("RGB", (5, 2)).save(images / "a.jpg")
    elif how == "two files of one name":
        Image.new("RGB", (4, 2)).save(images / "a.png")
    elif how == "empty split":
        for file in [*images.iterdir(), *labels.iterdir()]:
            file.unlink()
    elif how == "no folder":
        for file in labels.iterdir():
            file.unlink()
        labels.rmdir()


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("image without label", r"train: 1 image\(s\) without label, such as .*images/a.jpg; add"),
        ("label without image", r"train: 1 label\(s\) without image, such as .*labels/a.png; add"),
        ("sizes differ", r"1 pair\(s\).*a.jpg is 5x2 but .*a.png is 4x2"),
        ("two files of one name", "a.jpg and .*a.png share one name"),
        ("empty split", "no pictures in .*images"),
        ("no folder", "no folder .*labels"),
    ],
)
def test_pairs(folder_dataset, how, says):
    path = folder_dataset({"a": LABEL, "b": LABEL})
    spoil(path, how)
    (error,) = checked(path).of("error")
    assert error.kind == how
    assert re.search(says, error.message), error.message


def noise(seed=0, side=96, blocks=12):
    """A picture that is like no other: random blocks, as large as things are in a photograph."""
    coarse = np.random.default_rng(seed).integers(0, 256, (blocks, blocks, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))


def test_one_truncated_file_stops_nothing(folder_dataset):
    path = folder_dataset({name: np.zeros((96, 96), np.uint8) for name in "abc"})
    save_image(path, "b.jpg", noise())
    file = train(path) / "images" / "b.jpg"
    file.write_bytes(file.read_bytes()[:1500])
    (train(path) / "labels" / "c.png").write_bytes(b"no picture")
    found = checked(path)
    (error,) = found.of("error")
    assert [f.name for f in error.files] == ["b.jpg", "c.png"]
    assert "b.jpg cannot be decoded (image file is truncated" in error.message
    assert found.parts["train"].sizes == {(96, 96): 2}
    assert found.parts["train"].pictures.tolist() == [2, 0, 0]


def test_a_decoder_that_fails_in_its_own_way_stops_nothing(folder_dataset, monkeypatch):
    path = folder_dataset({"a": LABEL})
    monkeypatch.setattr(Image, "open", lambda *_: 1 / 0)
    (error,) = checked(path).of("error")
    assert "division by zero" in error.message


@pytest.mark.parametrize(
    ("labels", "changes", "kind", "says"),
    [
        (
            {"a": [[7, 26, 33]], "b": [[0, 18, 255]]},
            {"names": [str(i) for i in range(19)], "palette": None},
            "unknown values",
            "a.png: 2 value.*Cityscapes raw ids",
        ),
        ({"a": [[0, 255]], "b": [[0, 0]]}, {"ignore": []}, "unknown values", "0/255 mask"),
        ({"a": [[0, 255]], "b": [[0, 0]]}, {}, "0/255 masks", "255 is ignored.*0/255 mask"),
        ({"a": [[1, 2]], "b": [[3, 0]]}, {}, "unknown values", "b.png.*numbered from 1"),
        ({"a": [[0, 1, 2, 77]]}, {}, "unknown values", r"77 \(1 pixels\).*list them under names"),
    ],
)
def test_values(folder_dataset, labels, changes, kind, says):
    arrays = {name: np.array(values, np.uint8) for name, values in labels.items()}
    (error,) = checked(folder_dataset(arrays, **changes)).of("error")
    assert error.kind == kind
    assert re.search(says, error.message), error.message


def test_unknown_values_have_pixels_and_file_names(folder_dataset):
    path = folder_dataset({"a": np.array([[0, 9, 9, 8]], np.uint8), "b": np.array([[9]], np.uint8)})
    nine, eight = checked(path).summary()["unknown_values"]
    assert (nine["split"], nine["value"], nine["pixels"], nine["files"]) == ("train", "9", 3, 2)
    assert [Path(file).name for file in eight["such_as"]] == ["a.png"]
    assert nine["diagnosis"] == "list them under names (value: name) or under ignore"


def test_rgb_masks_where_indices_were_promised(folder_dataset):
    colors = np.array([[[10, 20, 30], [10, 20, 30], [0, 0, 200]]], np.uint8)
    found = checked(folder_dataset({"a": colors, "b": LABEL}))
    assert kinds(found) == ["another encoding"]
    assert "set encoding: rgb" in found.of("error")[0].message
    assert [(u.value, u.pixels) for u in found.unknown] == [("10,20,30", 2), ("0,0,200", 1)]
    assert found.parts["train"].pixels.tolist() == [2, 2, 3]


def test_colours_outside_the_palette(folder_dataset):
    path = folder_dataset({"a": np.array([[[1, 2, 3]]], np.uint8)}, encoding="rgb", ignore=[])
    assert [u.value for u in checked(path).unknown] == ["1,2,3"]


def test_jpeg_labels(folder_dataset):
    path = folder_dataset({"a": np.zeros((8, 8), np.uint8)})
    (train(path) / "labels" / "a.png").unlink()
    Image.new("L", (8, 8), 0).save(train(path) / "labels" / "a.jpg")
    assert "lossy labels" in kinds(checked(path), "warning")


def test_void_and_classes_never_seen(folder_dataset):
    void, half = np.full((2, 2), 255, np.uint8), np.array([[0, 1], [255, 255]], np.uint8)
    found = checked(folder_dataset({"a": LABEL[:, :2], "b": void, "c": half}))
    assert kinds(found, "warning") == ["wholly void"]
    assert [p.name for p in found.of("warning")[0].files] == ["b.png"]
    (note,) = (p for p in found.of("note") if p.kind == "void")
    assert "50.00% of the pixels" in note.message
    assert "c.png (50%); 1 picture(s) at least half" in note.message


def test_a_class_never_seen_is_named(folder_dataset):
    found = checked(folder_dataset({"a": LABEL[:, :1]}))
    assert found.of("warning")[0].message == "train: 1 class(es) never seen: water"


def test_nothing_labelled(folder_dataset):
    assert kinds(checked(folder_dataset({"a": np.full((2, 2), 255, np.uint8)}))) == [
        "nothing labelled"
    ]


def test_modes_and_mixed_sizes_are_noted(folder_dataset):
    path = folder_dataset({"a": LABEL, "b": LABEL[:1], "c": LABEL, "d": LABEL})
    for name, mode in (("a", "L"), ("c", "CMYK"), ("d", "I;16")):
        (train(path) / "images" / f"{name}.jpg").unlink()
        Image.new(mode, (4, 2)).save(train(path) / "images" / f"{name}.tif")
    notes = " ".join(p.message for p in checked(path).of("note"))
    assert "2 sizes in 4 images, from 4x1 to 4x2" in notes
    assert "1 image(s) are gray" in notes
    assert "1 image(s) are CMYK" in notes
    assert "1 image(s) are of 16 bits or more" in notes


def test_absent_splits_are_warnings(folder_dataset):
    path = folder_dataset({"a": LABEL}, splits={"train": "train", "val": "val", "test": "test"})
    assert kinds(checked(path), "warning") == ["no folder", "no folder"]
    with pytest.raises(InputError, match="nothing to check; val: no folder"):
        plan(path, ["val"])


class TestLeaks:
    @pytest.fixture
    def splits(self, tmp_path):
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

    def test_different_pictures_are_no_copies(self, splits):
        found = checked(splits(train={"a": noise(1), "b": noise(2)}, val={"c": noise(3)}))
        assert not found.near
        assert not found.problems

    @pytest.mark.parametrize("how", ["same", "brighter", "smaller", "jpeg", "gray"])
    def test_copies_are_found_whatever_was_done_to_them(self, splits, tmp_path, how):
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
        found = checked(path)
        (near,) = found.near
        assert near.kind == "copy"
        assert near.splits == ("train", "val")
        assert [image.stem for image in near.images] == ["a", "c"]
        assert kinds(found, "warning") == ["near-copies"]

    def test_copies_within_a_split_are_told_apart(self, splits):
        found = checked(splits(train={"a": noise(1), "b": noise(1)}))
        assert not found.near
        assert kinds(found, "note") == ["near-copies within"]
        assert found.summary()["near_duplicates_within"] == {"train": 2}

    def test_black_frames_are_copies_of_nothing(self, splits):
        black = np.zeros((40, 40, 3), np.uint8)
        assert not checked(splits(train={"a": black}, val={"b": black})).near

    def test_files_in_two_splits(self, splits):
        path = splits(train={"a": noise(1), "b": noise(2)})
        content = yaml.safe_load(path.read_text())
        both = {"images": "train/images", "labels": "train/labels"}
        content["splits"]["val"] = both | {"include": ["a"]}
        path.write_text(yaml.safe_dump(content))
        found = checked(path)
        assert kinds(found, "warning") == ["shared files"]
        assert not found.near

    def test_generated_scenes_are_no_leaks(self, tmp_path):
        found = checked(write_scenes(tmp_path / "s", {"train": 30, "val": 10}, (64, 128)))
        assert not found.near

    @staticmethod
    def drive(frames):
        """Frames of a window, 128 pixels wide, that moves over a picture by 5 pixels each."""
        wide = noise(5, side=640, blocks=10)[:96]
        return {f"drive_{n:04}": wide[:, 5 * n : 5 * n + 128] for n in frames}

    def test_a_clip_cut_out_of_a_recording(self, splits):
        cut = range(20, 30)
        rest = [n for n in range(50) if n not in range(15, 35)]
        found = checked(splits(train=self.drive(rest), val=self.drive(cut)))
        (near,) = (n for n in found.near if n.kind == "clip")
        assert (near.recording, near.pictures, near.apart) == ("drive_", 10, 6)
        assert [image.stem for image in near.images] in (
            ["drive_0014", "drive_0020"], ["drive_0035", "drive_0029"],
        )  # fmt: skip

    def test_numbers_that_mean_nothing_are_no_recording(self, splits):
        photos = {f"img_{n:04}": noise(n, blocks=4) for n in range(60)}
        val = {name: photos.pop(name) for name in list(photos)[::6]}
        assert not checked(splits(train=photos, val=val)).near

    def test_camvid(self, camvid):
        path = Path(__file__).parents[2] / "datasets" / "camvid.yaml"
        found = plan(path, ["train", "val"], camvid)
        with Memory(camvid) as memory:
            seen = {file.path: s for file, s in scan(found.files(), memory)}
        find_leaks(judge(found, seen), seen)
        (near,) = found.near
        assert (near.kind, near.recording, near.pictures, near.apart) == (
            "clip",
            "0016E5_",
            101,
            31,
        )
        assert {path.stem for path in near.images} == {"0016E5_08190", "0016E5_08159"}
        assert not found.of("error")
        void = {name: round(100 * p.void / p.total, 2) for name, p in found.parts.items()}
        assert void == {"train": 3.95, "val": 1.70}
        assert found.parts["train"].mean == pytest.approx([0.4117, 0.425, 0.4324], abs=1e-4)
        assert found.parts["train"].std == pytest.approx([0.3068, 0.3115, 0.3069], abs=1e-4)


class TestMemory:
    @pytest.fixture
    def looked(self, monkeypatch):
        """Names of the files that were really read."""
        names = []

        def counted(file: File):
            time.sleep(0.001)  # as a real picture would take
            names.append(file.path.name)
            return look(file)

        monkeypatch.setattr(looking, "look", counted)
        return names

    def run(self, path, stop=None):
        found = plan(path)
        with Memory(found.root) as memory:
            run = scan(found.files(), memory)
            seen = [next(run) for _ in range(stop)] if stop else list(run)
            run.close()
        return {file.path: each for file, each in seen}

    def test_a_second_run_reads_nothing_and_says_the_same(self, folder_dataset, looked):
        path = folder_dataset({"a": LABEL, "b": LABEL})
        first = self.run(path)
        assert sorted(looked) == ["a.jpg", "a.png", "b.jpg", "b.png"]
        assert self.run(path) == first
        assert len(looked) == 4

    def test_a_changed_file_is_read_again(self, folder_dataset, looked):
        path = folder_dataset({"a": LABEL, "b": LABEL})
        self.run(path)
        looked.clear()
        Image.fromarray(LABEL[:, :3]).save(train(path) / "labels" / "a.png")
        seen = self.run(path)
        assert looked == ["a.png"]
        assert seen[train(path) / "labels" / "a.png"].size == (2, 3)

    def test_another_encoding_is_another_look(self, folder_dataset, looked):
        self.run(folder_dataset({"a": LABEL}))
        looked.clear()
        self.run(folder_dataset({"a": LABEL}, encoding="rgb", ignore=[]))
        assert "a.png" in looked

    def test_a_stopped_run_goes_on(self, folder_dataset, looked):
        path = folder_dataset({f"{i:03}": LABEL for i in range(200)})
        self.run(path, stop=100)
        begun = len(looked)
        assert 100 <= begun < 400  # those that had not been begun were called off
        looked.clear()
        assert len(self.run(path)) == 400
        assert len(looked) == 300

    def test_a_home_that_cannot_be_written_costs_the_memory_only(
        self, folder_dataset, looked, tmp_path, monkeypatch
    ):
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        path = folder_dataset({"a": LABEL})
        assert self.run(path) == self.run(path)
        assert len(looked) == 4
