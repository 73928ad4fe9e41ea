"""Auto-labels by Ray on a real cluster of this machine, some of whose processes are killed."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import fsspec
import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from hmsa.data.coarse import Coarse
from hmsa.data.datasets import Pair, open_dataset
from hmsa.data.stretch import Stretch
from hmsa.inference.predictor import Predictor
from hmsa.labelling import autolabel as module
from hmsa.labelling.engine import Labeller
from hmsa.labelling.folder import total
from hmsa.labelling.shards import Shards
from hmsa.runs import InputError
from hmsa.runs.folder import read_records

ray = pytest.importorskip("ray", reason="needs the extra cluster")

# Ray sets options of its own that it calls deprecated
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*")

COUNT = 24
PATIENCE = 600  # seconds for what should take a few, on a loaded machine, too


@pytest.fixture(scope="module")
def cluster():
    """The address of a cluster of two processors."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")  # else a token is written to the home folder
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # as it will be; else it warns
        patch.setenv("OMP_NUM_THREADS", "1")
        stop = signal.getsignal(signal.SIGTERM)
        ray.init(
            address="local", num_cpus=2, object_store_memory=100 << 20, include_dashboard=False,
            log_to_driver=False, logging_level="ERROR",
        )  # fmt: skip
        signal.signal(signal.SIGTERM, stop)  # that of Ray would stay for the tests that follow
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        session = ray._private.worker._global_node.get_session_dir_path()
        yield ray.get_runtime_context().gcs_address
        ray.shutdown()
        until(lambda: not any(session in line for line in commands()))


def until(event):
    """Wait for it."""
    patience = time.monotonic() + PATIENCE
    while not event():
        assert time.monotonic() < patience
        time.sleep(0.01)


def commands():
    """The command line of every process."""
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield file.read_bytes().decode(errors="replace")
        except OSError:
            continue


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(COUNT):
        noise = rng.integers(0, 255, (20 + i, 33, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / ("deep" if i % 2 else "") / f"{i:02}.png")
    return folder


@pytest.fixture
def teacher(tiny, tmp_path):
    tiny.card.names = ["sky", "road", "post", "car"]
    tiny.save_pretrained(tmp_path / "teacher")
    return tmp_path / "teacher"


@pytest.fixture
def words(teacher, images):
    """The command but for its -o."""
    words = ["autolabel", teacher, images, "--scales", "1", "--precision", "fp32", "--json"]
    return [str(word) for word in words]


@pytest.fixture
def alone(hmsa, words, tmp_path):
    """What one process makes of the images."""
    assert hmsa(*words, "-o", tmp_path / "alone").code == 0
    return tmp_path / "alone"


def rows_of(out):
    return {name: row | {"seconds": 0} for name, row in read_records(out, "autolabel").items()}


def check_equal(out, alone):
    """Rows and files are the same, wherever they were made."""
    assert rows_of(out) == rows_of(alone)
    for kind in ("labels", "confidence"):
        for file in (alone / kind).rglob("*.png"):
            assert (out / file.relative_to(alone)).read_bytes() == file.read_bytes()
    assert (out / "dataset.yaml").read_bytes() == (alone / "dataset.yaml").read_bytes()
    assert not list(out.rglob(".hmsa-*"))


def slow(teacher, weights, inference, options, alive=None, poison=None, deaths=99, others=0):
    """Its teacher notes its process in the folder `alive` and waits for `others`; the first
    `deaths` of all that meet an image of the height `poison` are killed."""

    class Slow(Predictor):
        def __call__(self, image, detail=False):
            time.sleep(0.1)
            with (alive / str(os.getpid())).open("a") as file:
                file.write(f"{len(image)} ")
            met = [file.read_text().split().count(str(poison)) for file in alive.iterdir()]
            if len(image) == poison and sum(met) <= deaths:
                os.kill(os.getpid(), signal.SIGKILL)
            until(lambda: len(list(alive.iterdir())) > others)
            return super().__call__(image, detail=detail)

    return Labeller(Slow.load(teacher, (1,), "fp32", device="cpu"), **options)


@pytest.fixture
def alive(tmp_path, monkeypatch):
    """The folder in which workers note their process, and what they labelled."""
    folder = tmp_path / "alive"
    folder.mkdir()
    monkeypatch.setattr(module, "_load", lambda *args, f=folder: slow(*args, alive=f))
    return folder


def test_a_worker_is_killed_in_the_middle(
    cluster, hmsa, alive, words, alone, images, tmp_path, monkeypatch
):
    (images / "bad.jpg").write_bytes(b"nonsense")
    assert hmsa(*words, "-o", alone).code == 3
    out, dying = tmp_path / "out", {"alive": alive, "poison": 20 + 9, "deaths": 1}
    monkeypatch.setattr(module, "_load", lambda *args, d=dying: slow(*args, **d))
    ran = hmsa(*words, "-o", out, "--workers", 2)
    met = [file for file in alive.iterdir() if "29" in file.read_text().split()]
    assert len(met) == 2, "another process got what the killed one had"
    assert (ran.code, json.loads(ran.out.splitlines()[-1])["new"]) == (3, COUNT + 1)
    assert "bad.jpg is not an image" in ran.err
    check_equal(out, alone)

    before = (out / "autolabel.jsonl").read_bytes()
    (images / "bad.jpg").unlink()
    changed = Image.new("RGB", (9, 8))
    changed.save(images / "02.png")
    ran = hmsa(*words, "-o", out, "--cluster", cluster)
    assert (ran.code, json.loads(ran.out.splitlines()[-1])["new"]) == (0, 1)
    assert (out / "autolabel.jsonl").read_bytes().startswith(before)
    assert open_dataset(out, "auto").read_label(1).shape == (8, 9)
    assert hmsa(*words, "-o", out, "--workers", 2, "--flip").code == 2


def test_an_image_that_kills_every_worker_is_left_alone(
    cluster, hmsa, alive, words, tmp_path, monkeypatch
):
    monkeypatch.setattr(module, "_load", lambda *args, f=alive: slow(*args, alive=f, poison=20 + 5))
    ran = hmsa(*words, "-o", tmp_path / "out", "--workers", 2)
    assert ran.code == 1
    assert "the same command goes on" in ran.err
    assert sorted({f"{i:02}" for i in range(COUNT)} - {
        name[-2:] for name in rows_of(tmp_path / "out")}) == ["05"]  # fmt: skip
    assert sum("25 " in file.read_text() for file in alive.iterdir()) == 4


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGINT])
def test_the_command_is_stopped_and_continued(cluster, hmsa, words, alone, tmp_path, kind):
    """It starts Ray by itself, whose processes end with it."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "hmsa", *words, "-o", out, "--workers", "2"]
    with subprocess.Popen(command, start_new_session=True, preexec_fn=hears_ctrl_c) as process:
        until(lambda: process.poll() is not None or read_records(out, "autolabel"))
        assert has_processes(process.pid)
        process.send_signal(kind)
        process.wait(PATIENCE)
    assert process.returncode == (130 if kind == signal.SIGINT else -signal.SIGKILL)
    until(lambda: not has_processes(process.pid))
    assert not (out / "thresholds.json").exists()
    before = (out / "autolabel.jsonl").read_bytes()
    workers = ["--workers", 2] if kind == signal.SIGKILL else []
    ran = hmsa(*words, "-o", out, *workers)
    assert ran.code == 0, ran.err
    assert (out / "autolabel.jsonl").read_bytes().startswith(before)
    assert json.loads(ran.out.splitlines()[-1])["new"] == COUNT - before.count(b"\n")
    check_equal(out, alone)


def has_processes(starter):
    """Whether there are processes of the Ray that this process has started."""
    session = f"_{starter}/"  # the end of its folder's name
    return any("session_" in line and session in line for line in commands())


def hears_ctrl_c():
    """In a shell's background job, as these tests may be, it is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_parquet_to_a_uri(cluster, hmsa, alive, words, alone, images, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_load", lambda *args, f=alive: slow(*args, alive=f, others=1))
    files = {name: (images / f"{name}.png").read_bytes() for name in rows_of(alone)}
    names = [*files, "bad"]
    table = pyarrow.table({"name": names, "image": [*files.values(), b"nonsense"], "no": names})
    parquet.write_table(table, tmp_path / "all.parquet", row_group_size=5)
    words = [f"file://{tmp_path}/all.parquet" if w == str(images) else w for w in words]
    out = f"file://{tmp_path}/out"
    ran = hmsa(*words, "-o", out, "--workers", 2)
    assert ran.code == 3
    assert "bad is not an image" in ran.err
    summary = json.loads(ran.out.splitlines()[-1])
    assert (summary["images"], summary["new"], summary["failed"]) == (COUNT + 1, COUNT + 1, 1)
    assert len(list(alive.iterdir())) == 2, "row groups went to both workers"
    assert summary["thresholds"] == json.loads((alone / "thresholds.json").read_text())
    rows = parquet.read_table(tmp_path / "out" / "shards").to_pylist()
    assert sorted(row["name"] for row in rows) == sorted(names)
    expected = rows_of(alone)
    for row in rows:
        if row["status"] == "done":
            for kind in ("label", "confidence"):
                file = alone / expected[row["name"]][kind]
                assert row[f"{kind}_png"] == file.read_bytes()
            for key in ("sha256", "height", "width", "pixels", "kept", "counts", "teacher"):
                assert row[key] == expected[row["name"]].get(key, summary.get(key))
    again = json.loads(hmsa(*words, "-o", out, "--workers", 2).out)
    assert (again["images"], again["new"]) == (COUNT + 1, 1), "what failed is tried again"
    ran = hmsa(*words, "-o", out, "--flip")
    assert ran.code == 2
    assert "flip False -> True" in ran.err


def test_shards_on_a_file_system_without_folders():
    settings = {"teacher": "t", "scales": [1.0], "flip": False, "classes": {"sky": 0}}
    shards = Shards("memory://out", settings)
    try:
        failed = {"name": "a", "image": "a", "status": "failed", "reason": "no"}
        shards.write([failed])
        assert (shards.known(), [row["name"] for row in shards.rows()]) == (set(), ["a"])
        shards.write([failed | {"status": "done", "label_png": b"1"}, failed | {"name": "b"}])
        shards = Shards("memory://out", settings)
        assert shards.known() == {"a"}
        assert [(row["name"], row["status"]) for row in shards.rows()] == [
            ("a", "done"), ("b", "failed")
        ]  # fmt: skip
        with pytest.raises(InputError, match="teacher t -> other"):
            Shards("memory://out", settings | {"teacher": "other"})
        other = Shards("memory://out", settings | {"teacher": "other"}, overwrite=True)
        assert not list(other.rows())
        assert not list(fsspec.filesystem("memory").find("/out/shards"))
        other.finish("{}")
        other.write([failed | {"status": "done"}])
        fsspec.filesystem("memory").pipe("/out/shards/torn.parquet", b"PAR1")
        assert other.known() == {"a"}
        assert fsspec.filesystem("memory").cat("/out/thresholds.json") == b"{}"
        other.write([failed | {"status": "done", "name": "b\udcff"}])  # a name that is not UTF-8
        assert other.known() == {"a", "b\\udcff"}
        labeller = Labeller(None, None, other.known())  # which must not ask the network
        assert list(labeller.label([{"name": "b\udcff", "image": "nowhere"}], None)) == [None]
    finally:
        fsspec.filesystem("memory").rm("/", recursive=True)
    fsspec.filesystem("memory").pipe("/out/shards/x.parquet", b"")
    with pytest.raises(InputError, match="something else"):
        Shards("memory://out", settings)
    fsspec.filesystem("memory").rm("/", recursive=True)


def test_tar_shards_and_lists(hmsa, words, alone, images, tmp_path):
    """One shard ends in the middle of an image."""
    names = sorted(rows_of(alone))
    for shard in range(2):
        with tarfile.open(tmp_path / f"s{shard}.tar", "w") as tar:
            for name in names:
                for suffix, content in (
                    ("json", b"{}"), ("png", (images / f"{name}.png").read_bytes()),
                ):  # fmt: skip
                    info = tarfile.TarInfo(f"{name}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    whole = (tmp_path / "s1.tar").read_bytes()
    (tmp_path / "s1.tar").write_bytes(whole[: 5 * 512 + 100])

    def label(source, out):
        ran = hmsa(*(str(source) if w == str(images) else w for w in words), "-o", tmp_path / out)
        return ran, rows_of(tmp_path / out)

    ran, rows = label(f"{tmp_path}/s*.tar", "tars")
    assert ran.code == 3
    assert "s1.tar cannot be read" in ran.err
    assert rows.pop("s1")["status"] == "failed"
    assert sorted(rows) == [f"s0/{name}" for name in names]
    expected = rows_of(alone)
    assert all(rows[f"s0/{name}"]["counts"] == expected[name]["counts"] for name in names)
    assert json.loads(label(f"{tmp_path}/s*.tar", "tars")[0].out)["new"] == 1

    listed = tmp_path / "some.txt"
    listed.write_text(f"in/{names[0]}.png\n# no\nfile://{images}/{names[1]}.png\nin/none.png")
    ran, rows = label(listed, "listed")
    assert "none.png cannot be read" in ran.err
    assert len([row for row in rows.values() if row["status"] == "done"]) == 2
    assert rows[f"in/{names[0]}"]["counts"] == expected[names[0]]["counts"]
    assert rows[f"in/{names[0]}"]["image"] == f"../in/{names[0]}.png"


def test_coarse_labels_and_agreement_are_sent_to_workers(
    cluster, label, tiny, images, tmp_path, monkeypatch
):
    (tmp_path / "drawn").mkdir()
    for name in ("00", "02", "04"):
        height = 20 + int(name) + (name == "04")  # one of another size than its image
        drawn = np.full((height, 33), 255, np.uint8)
        drawn[5:9, 5:20] = int(name) // 2 + 1
        Image.fromarray(drawn).save(tmp_path / "drawn" / f"{name}.png")
    lines = "".join(f"in/{n}.png,drawn/{n}.png\n" for n in ("00", "02"))
    (tmp_path / "people.csv").write_text("image,label\n" + lines)
    (tmp_path / "people.yaml").write_text(
        "path: .\nsplits: {drawn: people.csv}\nnames: [sky, road, post, car]\n"
    )
    people = open_dataset(tmp_path / "people.yaml", "drawn")
    third = Pair("04", images / "04.png", tmp_path / "drawn" / "04.png")
    options = {
        "coarse": Coarse(replace(people, pairs=(*people.pairs, third)), grow=2),
        "agreement": True,
    }
    tiny.card.names = ["sky", "road", "post", "car"]
    predictor = Predictor(tiny, (0.5, 1), "fp32", "cpu")
    label(predictor, images, tmp_path / "alone", **options)
    monkeypatch.setattr(module, "_load", lambda *args: Labeller(predictor, **args[3]))
    outcome = label(predictor, images, tmp_path / "out", workers=2, **options)
    assert len(outcome.problems) == 1
    assert "33x25, but" in outcome.problems[0]
    check_equal(tmp_path / "out", tmp_path / "alone")
    rows = rows_of(tmp_path / "out")
    drawn = sum(row.get("coarse_pixels", 0) for row in rows.values())
    assert drawn == 2 * (4 * 15 + 2 * 2 * (4 + 15) + 4)
    assert total(rows.values(), 4).sum() > 0
    for file in (tmp_path / "alone" / "agreement").rglob("*.png"):
        other = tmp_path / "out" / file.relative_to(tmp_path / "alone")
        assert other.read_bytes() == file.read_bytes()


def test_another_file_of_the_teacher_is_refused(teacher, tiny, tmp_path):
    inference = module.Inference(scales=(1,), device="cpu")
    options = {"labels": None, "known": ()}
    made = module._load(str(teacher), module.fingerprint(teacher), inference, options)
    assert made.predictor.scales == [1]
    with pytest.raises(InputError, match="copy the same to all machines"):
        module._load(str(teacher), "other", inference, options)


def test_no_worker_can_load_the_teacher(cluster, hmsa, words, tmp_path, monkeypatch):
    def fail(*_):
        raise InputError("teacher is another file on node7")

    monkeypatch.setattr(module, "_load", fail)
    ran = hmsa(*words, "-o", tmp_path / "out", "--workers", 2)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.splitlines()[-1] == "hmsa: teacher is another file on node7"


def test_a_decoder_may_raise_anything(monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("no")

    monkeypatch.setattr("hmsa.labelling.engine.read", lambda image: b"1")
    monkeypatch.setattr("hmsa.labelling.engine.read_image", broken)
    rows = []
    labeller = Labeller(SimpleNamespace(stretch=Stretch()), None, ())
    for _ in labeller.label([{"name": "a", "image": "a"}], rows.append):
        pass
    assert "a cannot be decoded (no)" in rows[0]["reason"]
