"""Out to an annotation tool and back: the same labels, whole or not at all, and for good."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import time
import unicodedata
import zipfile
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from PIL import Image
from pyarrow import parquet

from hmsa import __main__ as cli
from hmsa.data.brush import pack_mask
from hmsa.data.coarse import Coarse
from hmsa.data.datasets import open_dataset
from hmsa.data.imports import import_masks
from hmsa.data.labels import LabelSet, spread
from hmsa.labelling import folder
from hmsa.labelling.folder import figures, tally
from hmsa.runs import InputError, Run
from hmsa.runs.folder import read_records
from labelling.review.conftest import LABELS, NAMES, seen

TOOLS = {"cvat": "task.zip", "labelstudio": "tasks.json"}


def labels_of(out):
    auto = open_dataset(out, "auto")
    return {pair.name: auto.read_label(i) for i, pair in enumerate(auto.pairs)}


def row(out, name):
    return read_records(out, "autolabel")[name]


def level(out, name, kind="confidence"):
    return np.asarray(Image.open(out / kind / f"{name}.png"))


def as_annotated(file):
    """A Label Studio export of the tasks `file`: every prediction submitted as it is."""
    tasks = json.loads(file.read_text())
    for number, task in enumerate(tasks, 1):
        given = {"id": number, "was_cancelled": False, "updated_at": "2026-01-02T00:00:00Z"}
        given["result"] = task["predictions"][0]["result"]
        task |= {"id": number, "annotations": [given]}
    file.write_text(json.dumps(tasks))
    return file


@pytest.fixture
def export(hmsa, tmp_path):
    """`export(out, tool, *more)` -> the file that a person hands back untouched."""

    def run(out, tool, *more):
        file = tmp_path / TOOLS[tool]
        for before in tmp_path.glob("task*"):
            before.unlink()
        ran = hmsa("review", out, "--export", tool, "-o", file, *more)
        assert ran.code == 0, ran.err
        return as_annotated(file) if tool == "labelstudio" else file

    return run


class TestRoundTrip:
    @pytest.mark.parametrize("tool", TOOLS)
    @pytest.mark.parametrize(
        "labels",
        [
            LABELS,
            LabelSet(("background", *NAMES[1:]), tuple(spread(4)), (0, 1, 2, 3)),
            LabelSet(NAMES, ((0, 0, 0), (9, 9, 9), (9, 9, 9), (1, 2, 3)), (7, 11, 33, 250)),
            LabelSet(("a & b", '<"c">', "d'", "é"), tuple(spread(4)), (0, 1, 2, 3)),
        ],
        ids=["plain", "background", "raw", "names"],
    )
    def test_untouched_labels_come_back_as_they_were(self, autolabel, export, hmsa, tool, labels):
        out, _ = autolabel(labels=labels)
        before = labels_of(out)
        ran = hmsa("review", out, "--take", export(out, tool))
        assert ran.code == 0, ran.err
        assert json.loads(ran.out) == {"taken": 4, "same": 0, "empty": 0, "people": 4}
        after = labels_of(out)
        assert after.keys() == before.keys()
        for name, label in before.items():
            assert (after[name] == label).all()
            assert (level(out, name) == 255).all()
            assert (level(out, name, "agreement") == 255).all()
            assert row(out, name)["source"] == "person"
            with Image.open(out / "labels" / f"{name}.png") as picture:
                assert picture.mode == "P"

    def test_of_a_cvat_export_a_dataset_can_be_made(self, autolabel, export, tmp_path):
        """By the reader of CVAT's own exports, so the zip has their form."""
        out, _ = autolabel()
        made = import_masks(export(out, "cvat"), tmp_path / "made", ignore=["background"])
        assert made.notes == ["labelled images: 4 in train; 0 have no label yet"]
        mine, auto = open_dataset(made.path, "train"), labels_of(out)
        assert mine.labels.names == NAMES
        for i, pair in enumerate(mine.pairs):
            image, label = mine.read(i)
            assert (label == auto[pair.name.removeprefix("images/")]).all()
            assert (seen(pair.image)[0] == label).all(), "the picture is the one that was labelled"
            assert image.shape[:2] == label.shape

    def test_what_the_cvat_zip_holds(self, autolabel, export, pictures, tmp_path):
        out, _ = autolabel()
        with zipfile.ZipFile(export(out, "cvat", "--worst", "2")) as archive:
            members = archive.namelist()
            listed = archive.read("ImageSets/Segmentation/default.txt").decode().splitlines()
            lines = archive.read("labelmap.txt").decode().splitlines()
            assert len(listed) == 2
            for name in listed:
                assert (
                    archive.read(f"JPEGImages/{name}.png")
                    == (pictures / f"{name}.png").read_bytes()
                )
                with archive.open(f"SegmentationClass/{name}.png") as file:
                    classes = np.asarray(Image.open(file))
                with archive.open(f"SegmentationObject/{name}.png") as file:
                    objects = np.asarray(Image.open(file))
                label = labels_of(out)[name]
                assert (classes == np.array(LABELS.palette, np.uint8)[label]).all()
                voc = [(128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128)]
                assert (objects == np.array(voc, np.uint8)[label]).all()
        assert lines[:2] == ["# label:color_rgb:parts:actions", "background:0,0,0::"]
        assert [line.split(":")[0] for line in lines[2:]] == list(NAMES)
        assert len(members) == 2 + 3 * 2
        raw = json.loads((tmp_path / "task-labels.json").read_text())
        assert [each["name"] for each in raw] == list(NAMES)
        assert raw[0]["color"] == "#{:02x}{:02x}{:02x}".format(*LABELS.palette[0])

    def test_what_the_label_studio_files_hold(self, autolabel, export, pictures, tmp_path):
        out, _ = autolabel()
        file = export(out, "labelstudio", "--url", "https://host/p/")
        by_name = {task["data"]["name"]: task for task in json.loads(file.read_text())}
        assert by_name["deep [x]/c d"]["data"]["image"] == "https://host/p/deep%20%5Bx%5D/c%20d.png"
        (prediction,) = by_name["a"]["predictions"]
        label, confidence = seen(pictures / "a.png")
        assert prediction["score"] == pytest.approx(confidence.mean() / 255)
        assert len(prediction["result"]) == len(np.unique(label))
        for region in prediction["result"]:
            (name,) = region["value"]["brushlabels"]
            assert region["value"]["rle"] == pack_mask(label == NAMES.index(name))
            assert (region["original_height"], region["original_width"]) == label.shape
        view = ElementTree.parse(tmp_path / "tasks-labels.xml").getroot()
        brush = view.find("BrushLabels")
        assert [each.get("value") for each in brush] == list(NAMES)
        assert {region["from_name"] for region in prediction["result"]} == {brush.get("name")}
        assert brush.get("toName") == view.find("Image").get("name") == "image"
        export(out, "labelstudio")
        image = json.loads(file.read_text())[0]["data"]["image"]
        assert image.startswith("/data/local-files/?d=")

    def test_the_most_doubtful_go_first_and_what_people_saw_no_more(self, autolabel, export, hmsa):
        out, _ = autolabel()
        order = [each["image"] for each in json.loads(hmsa("review", out, "--json").out)["queue"]]
        file = export(out, "labelstudio", "--worst", "1")
        assert [task["data"]["name"] for task in json.loads(file.read_text())] == order[:1]
        assert hmsa("review", out, "--take", file).code == 0
        left = json.loads(hmsa("review", out, "--json").out)
        assert [each["image"] for each in left["queue"]] == order[1:]
        assert left["people"] == 1
        assert hmsa("review", out, "--take", export(out, "cvat")).code == 0
        ran = hmsa("review", out, "--export", "cvat", "-o", file.with_suffix(".zip"))
        assert (ran.code, len(ran.err.splitlines())) == (2, 1)
        assert "people have corrected all" in ran.err


def test_an_export_replaces_no_file(autolabel, hmsa, tmp_path):
    """One name for both tools, and the name of what a person has corrected."""
    out, _ = autolabel()
    for tool, suffix in (("cvat", "zip"), ("labelstudio", "json")):
        ran = hmsa("review", out, "--export", tool, "-o", tmp_path / f"worst.{suffix}")
        assert ran.code == 0, ran.err
    made = {f: f.read_bytes() for f in tmp_path.glob("worst*")}
    assert sorted(f.name for f in made) == [
        "worst-labels.json", "worst-labels.xml", "worst.json", "worst.zip"
    ]  # fmt: skip
    for file in (tmp_path / "worst.json", out / "autolabel.json"):
        ran = hmsa("review", out, "--export", "labelstudio", "-o", file)
        assert (ran.code, f"{file} is there already" in ran.err) == (2, True)
    assert made == {f: f.read_bytes() for f in tmp_path.glob("worst*")}
    ran = hmsa("review", out, "--report", out / "dataset.yaml")
    assert (ran.code, "dataset.yaml is not a page of hmsa" in ran.err) == (2, True)


def correct(file, out, name="a"):
    """A person paints `name` anew: car on the left, nothing on the right; the label they meant."""
    meant = np.full_like(labels_of(out)[name], 255)
    meant[:, :9] = 3
    if file.suffix == ".zip":
        painted = np.zeros((*meant.shape, 3), np.uint8)
        painted[:, :9] = LABELS.palette[3]
        with zipfile.ZipFile(file) as archive:
            content = {n: archive.read(n) for n in archive.namelist() if "Object" not in n}
        Image.fromarray(painted).save(file.with_suffix(".png"))
        content[f"SegmentationClass/{name}.png"] = file.with_suffix(".png").read_bytes()
        content = {n: c for n, c in content.items() if "JPEGImages" not in n}  # CVAT may leave out
        with zipfile.ZipFile(file, "w") as archive:
            for member, data in content.items():
                archive.writestr(member, data)
        return meant
    tasks = json.loads(file.read_text())
    task = next(task for task in tasks if task["data"]["name"] == name)
    region = task["predictions"][0]["result"][0]
    value = region["value"] | {"rle": pack_mask(meant == 3), "brushlabels": ["car"]}
    late = {"updated_at": "2026-01-03T00:00:00Z", "result": [
        {"type": "choices", "value": {"choices": ["hard"]}}, region | {"value": value}
    ]}  # fmt: skip
    task["annotations"] += [late, {"was_cancelled": True, "updated_at": "2027", "result": []}]
    file.write_text(json.dumps(tasks))
    return meant


def test_a_zip_may_have_names_in_another_form_of_unicode(autolabel, export, pictures, hmsa):
    name = unicodedata.normalize("NFD", "ä")
    (pictures / "a.png").rename(pictures / f"{name}.png")
    out, _ = autolabel()
    file = export(out, "cvat")
    with zipfile.ZipFile(file) as archive:
        content = {unicodedata.normalize("NFC", n): archive.read(n) for n in archive.namelist()}
    with zipfile.ZipFile(file, "w") as archive:
        for member, data in content.items():
            archive.writestr(member, data)
    ran = hmsa("review", out, "--take", file)
    assert ran.code == 0, ran.err
    assert row(out, name)["source"] == "person"


class TestTaken:
    @pytest.fixture(params=TOOLS)
    def taken(self, request, autolabel, export, hmsa):
        """OUT, the file that was taken, and what a person meant in it."""
        out, _ = autolabel()
        file = export(out, request.param)
        meant = correct(file, out)
        ran = hmsa("review", out, "--take", file)
        assert ran.code == 0, ran.err
        return out, file, meant

    def test_people_count_where_they_spoke(self, taken):
        out, _, meant = taken
        assert (labels_of(out)["a"] == meant).all()
        assert (level(out, "a") == np.where(meant == 255, 0, 255)).all()
        told = row(out, "a")
        assert told["status"] == "done"
        expected = figures(tally(meant, level(out, "a"), 4))
        assert {key: told[key] for key in expected} == expected
        assert told["pixels"] == [0, 0, 0, int((meant == 3).sum())]

    def test_the_manifest_says_so(self, taken):
        out, _, meant = taken
        table = parquet.read_table(out / "manifest.parquet").to_pylist()
        assert [each["source"] for each in table] == ["person"] * 4
        assert table[0]["pixels"][3] == (meant == 3).sum()
        assert [each["image"].split("/")[-1] for each in table] == [
            "a.png", "b.png", "c d.png", "lying.png"
        ]  # fmt: skip

    def test_training_trusts_them_fully(self, taken):
        out, _, meant = taken
        auto = open_dataset(out, "auto").trusting(1.0)
        assert (auto.read_label(0) == meant).all()
        assert auto.frequencies()[3] >= (meant == 3).sum() > 0

    def test_autolabel_leaves_them_alone(self, taken, autolabel):
        out, _, meant = taken
        content = (out / "manifest.parquet").read_bytes()
        assert autolabel()[1] == 0
        assert (out / "manifest.parquet").read_bytes() == content
        assert autolabel(turn=1, overwrite=True)[1] == 0
        assert (labels_of(out)["a"] == meant).all()
        assert row(out, "a")["source"] == "person"

    def test_another_round_takes_them_over(self, taken, autolabel):
        """What people said is a dataset, to be laid over what the next teacher sees."""
        out, _, meant = taken
        people = open_dataset(out / "people.yaml", "people")
        assert len(people) == 4
        again, new = autolabel("again", turn=1, coarse=Coarse(people))
        assert new == 4
        spoken = meant != 255
        assert (labels_of(again)["a"][spoken] == meant[spoken]).all()
        assert (level(again, "a")[spoken] == 255).all()

    def test_twice_is_once(self, taken, hmsa):
        out, file, _ = taken
        files = {f: f.stat().st_mtime_ns for f in out.rglob("*") if f.is_file()}
        ran = hmsa("review", out, "--take", file)
        assert json.loads(ran.out) == {"taken": 0, "same": 4, "empty": 0, "people": 4}
        assert files == {f: f.stat().st_mtime_ns for f in out.rglob("*") if f.is_file()}

    def test_another_picture_under_the_name_is_no_excuse(self, taken, autolabel, pictures):
        Image.new("RGB", (9, 8)).save(pictures / "a.png")
        with pytest.raises(InputError, match="another image than the one that a person"):
            autolabel()
        (taken[0] / "labels" / "a.png").unlink()
        assert autolabel()[1] == 1

    def test_pictures_that_moved_take_their_people_along(self, taken, autolabel, pictures):
        out, _, meant = taken
        pictures.rename(pictures.with_name("moved"))
        assert autolabel(images=pictures.with_name("moved"), overwrite=True)[1] == 0
        assert (labels_of(out)["a"] == meant).all()


def test_pictures_of_which_people_say_nothing_keep_their_label(autolabel, export, hmsa):
    out, _ = autolabel()
    before = labels_of(out)
    file = export(out, "labelstudio")
    tasks = json.loads(file.read_text())
    tasks[0]["annotations"][0]["result"] = []  # submitted empty
    tasks[1]["annotations"][0]["was_cancelled"] = True
    tasks[2]["annotations"] = []
    file.write_text(json.dumps(tasks))
    ran = hmsa("review", out, "--take", file)
    assert json.loads(ran.out) == {"taken": 1, "same": 0, "empty": 1, "people": 1}
    assert all((label == before[name]).all() for name, label in labels_of(out).items())


class TestCutShort:
    """However far it came, rows speak of what lies beside them, and the same again ends well."""

    @pytest.fixture
    def meant(self, autolabel, export):
        out, _ = autolabel()
        file = export(out, "cvat")
        return out, file, correct(file, out)

    def check(self, out):
        """Every row is that of the files beside it."""
        for name, told in read_records(out, "autolabel").items():
            if told["status"] == "done":
                label = LABELS.read(out / "labels" / f"{name}.png")
                assert told["counts"] == figures(tally(label, level(out, name), 4))["counts"]

    def test_at_every_write(self, meant, hmsa, monkeypatch):
        out, file, label = meant
        replace, left = folder.replace, 0

        def dying(path, write):
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            replace(path, write)

        for written in range(1, 20, 2):
            with monkeypatch.context() as patch:
                patch.setattr(folder, "replace", dying)
                left = written
                code = hmsa("review", out, "--take", file).code
            self.check(out)
            assert not (out / "manifest.parquet").exists() or code == 0
            if code == 0:
                break
        assert written > 8
        assert (labels_of(out)["a"] == label).all()
        assert len(parquet.read_table(out / "manifest.parquet")) == 4

    def test_autolabel_mends_what_was_cut_short(self, meant, hmsa, autolabel, monkeypatch):
        out, file, label = meant
        before = labels_of(out)

        def dying(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(folder, "replace", dying)
        assert hmsa("review", out, "--take", file).code == 130
        assert "interrupted" in row(out, "a")["reason"]
        monkeypatch.undo()
        assert autolabel()[1] == 1
        assert (labels_of(out)["a"] == before["a"]).all()
        assert hmsa("review", out, "--take", file).code == 0
        assert (labels_of(out)["a"] == label).all()

    def test_killed(self, meant):
        """SIGKILL as soon as rows change, so always in the midst of writing."""
        out, file, label = meant
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["hmsa.labelling.review"])

        def start():
            words = ["review", str(out), "--take", str(file)]
            process = context.Process(target=cli.run, args=(words,))
            process.start()
            return process

        def size():
            return (out / "autolabel.jsonl").stat().st_size

        killed = 0
        for after in (0, 0.003):
            before, process = size(), start()
            patience = time.monotonic() + 60
            while process.is_alive() and size() == before:
                assert time.monotonic() < patience
            time.sleep(after)
            process.kill()
            process.join()
            killed += process.exitcode == -signal.SIGKILL
            self.check(out)
        assert killed
        process = start()
        process.join(60)
        assert process.exitcode == 0
        assert (labels_of(out)["a"] == label).all()
        assert len(parquet.read_table(out / "manifest.parquet")) == 4


def paint(file, **changes):
    """Change the first brush mask of the first task."""
    tasks = json.loads(file.read_text())
    region = tasks[0]["annotations"][0]["result"][0]
    for key, value in changes.items():
        (region["value"] if key in region["value"] else region)[key] = value
    file.write_text(json.dumps(tasks))


class TestRefused:
    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"brushlabels": ["raod"]}, "no class 'raod'; did you mean 'road'"),
            ({"brushlabels": ["sky", "road"]}, "has the classes .'sky', 'road'."),
            ({"image_rotation": 90}, "is rotated"),
            ({"original_width": 7}, "a mask is 7x"),
            ({"original_width": None}, "original_width: Input should be a valid integer"),
            ({"rle": [1, 2, 3]}, "damaged, its rle ends too early"),
            ({"type": "polygonlabels"}, "has polygonlabels; only brush"),
        ],
    )
    def test_masks_of_label_studio(self, autolabel, export, hmsa, changes, says):
        out, _ = autolabel()
        file = export(out, "labelstudio")
        paint(file, **changes)
        self.refused(hmsa, out, file, says)

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("{", "Invalid JSON: EOF"),
            ("[" * 5000, "Invalid JSON: recursion"),
            ('[{"annotations": [3]}]', "0.annotations.0: Input should be"),
            ('[{"image": "x", "label": []}]', "export as JSON, not as JSON-MIN"),
            ('[{"annotations": [{}], "id": 3, "data": {}}]', "task 3 has no data.name"),
            ('[{"annotations": [{}], "data": {"name": "zz"}}]', "1 image.s. that .* as 'zz'"),
            ('[{"annotations": [{}], "data": {"name": "a"}},'
             '{"annotations": [{}], "data": {"name": "a"}}]', "two tasks have the image 'a'"),
        ],
    )  # fmt: skip
    def test_files_of_label_studio(self, autolabel, hmsa, tmp_path, text, says):
        out, _ = autolabel()
        (tmp_path / "x.json").write_text(text)
        self.refused(hmsa, out, tmp_path / "x.json", says)

    @pytest.mark.parametrize(
        ("kind", "says"),
        [
            ("class", "no class 'tram'; "),
            ("name", "has 1 image.s. that .* such as 'other'"),
            ("size", "a: the label is 3x2, the image 35x24; nothing was taken"),
            ("colour", "a.png: 1 value.*not listed in the export"),
            ("no labelmap", "not one CVAT export"),
            ("no zip", "task.zip cannot be unpacked"),
        ],
    )
    def test_zips(self, autolabel, export, hmsa, kind, says):
        out, _ = autolabel()
        file = export(out, "cvat")
        with zipfile.ZipFile(file) as archive:
            content = {name: archive.read(name) for name in archive.namelist()}
        if kind == "class":
            content["labelmap.txt"] += b"tram:1,2,3::\n"
        if kind == "name":
            content["SegmentationClass/other.png"] = content["SegmentationClass/a.png"]
        if kind in ("size", "colour"):
            size, colour = ((3, 2), (0, 0, 0)) if kind == "size" else ((35, 24), (5, 6, 7))
            Image.new("RGB", size, colour).save(file.with_suffix(".png"))
            content["SegmentationClass/a.png"] = file.with_suffix(".png").read_bytes()
        if kind == "no labelmap":
            del content["labelmap.txt"]
        with zipfile.ZipFile(file, "w") as archive:
            for member, data in content.items():
                archive.writestr(member, data)
        if kind == "no zip":
            file.write_bytes(b"PK nonsense")
        self.refused(hmsa, out, file, says)

    def test_no_value_left_for_no_label(self, autolabel, export, hmsa):
        out, _ = autolabel(labels=LabelSet(NAMES, LABELS.palette, (0, 1, 2, 255)))
        file = export(out, "labelstudio")
        correct(file, out)
        self.refused(hmsa, out, file, "have no label, which files store as 255, but that is car")

    def refused(self, hmsa, out, file, says):
        before = {f: f.read_bytes() for f in out.rglob("*") if f.is_file()}
        ran = hmsa("review", out, "--take", file)
        (line,) = [line for line in ran.err.splitlines() if line.startswith("hmsa:")]
        assert ran.code == 2
        assert re.search(says, line), line
        assert before == {f: f.read_bytes() for f in out.rglob("*") if f.is_file()}

    @pytest.mark.parametrize(
        ("words", "says"),
        [
            (("--export", "cvat"), "-o FILE and --export go together"),
            (("--export", "cvat", "-o", "x.json"), "a .zip file"),
            (("--export", "labelstudio", "-o", "x.zip"), "a .json file"),
            (("--export", "cvat", "-o", "x.zip", "--url", "h"), "--url is for Label Studio"),
            (("--export", "coco", "-o", "x"), "Choose from"),
            (("-o", "x.zip"), "-o FILE and --export go together"),
            (("--take", "nowhere.zip"), "no file or folder nowhere.zip"),
            (("--take", "{out}/dataset.yaml"), "neither a CVAT zip nor"),
            (("--take", "x.zip", "--export", "cvat"), "exclude each other"),
        ],
    )
    def test_words(self, autolabel, hmsa, words, says):
        out, _ = autolabel()
        ran = hmsa("review", out, *(word.format(out=out) for word in words))
        assert ran.code == 2
        assert says in ran.err

    @pytest.mark.parametrize("tool", TOOLS)
    def test_a_picture_that_could_not_be_read(self, autolabel, export, hmsa, pictures, tool):
        out, _ = autolabel()
        file = export(out, tool)
        (pictures / "b.png").write_bytes(b"nonsense")
        autolabel()
        self.refused(hmsa, out, file, "b.png is not an image .*; it cannot take a label")

    def test_while_a_run_writes(self, autolabel, export, hmsa):
        out, _ = autolabel()
        file = export(out, "cvat")
        with Run(out, "autolabel", json.loads((out / "autolabel.json").read_text())):
            ran = hmsa("review", out, "--take", file)
        assert (ran.code, "another process is writing" in ran.err) == (2, True)

    def test_pictures_that_no_browser_shows(self, autolabel, hmsa, pictures, tmp_path):
        Image.open(pictures / "a.png").save(pictures / "t.tif")
        out, _ = autolabel()
        ran = hmsa("review", out, "--export", "labelstudio", "-o", tmp_path / "x.json")
        assert (ran.code, "cannot show" in ran.err) == (2, True)
        assert not (tmp_path / "x.json").exists()
        assert hmsa("review", out, "--export", "cvat", "-o", tmp_path / "x.zip").code == 0
        with zipfile.ZipFile(tmp_path / "x.zip") as archive:
            assert "JPEGImages/t.png" in archive.namelist()


def test_a_round_is_corrected_and_learnt_from(hmsa, trained, scenes, recipe, tmp_path):
    """With a real network: label, hand out, take back, train on it with full confidence."""
    out, images = tmp_path / "auto", scenes.parent / "val" / "images"
    assert hmsa("autolabel", trained, images, "-o", out, "--scales", "1", "--agreement").code == 0
    file = tmp_path / "task.zip"
    words = ("--export", "cvat", "-o", file, "--worst", "2")
    assert hmsa("review", out, *words).code == 0
    assert hmsa("review", out, "--take", file).code == 0
    again = hmsa("autolabel", trained, images, "-o", out, "--scales", "1", "--agreement")
    assert json.loads(again.out.splitlines()[-1])["new"] == 0
    content = yaml.safe_load(recipe.read_text())
    content["sampling"] = {
        "extra": [{"dataset": os.fspath(out / "dataset.yaml"), "split": "auto", "share": 0.5}],
        "confidence": 1.0,
    }
    recipe.write_text(yaml.safe_dump(content))
    trusted = open_dataset(out, "auto").trusting(1.0).frequencies().sum()
    assert trusted >= 2 * 64 * 96
    assert hmsa("train", recipe, "--out", tmp_path / "student").code == 0
