"""Auto-labels by Ray on a real cluster of this machine, some of whose processes are killed."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from hmsa.data.coarse import Coarse
from hmsa.data.datasets import Pair, open_dataset
from hmsa.data.labels import LabelSet, spread
from hmsa.inference.predictor import Predictor
from hmsa.labelling.cluster import Cluster
from hmsa.labelling.labelling import Labelling, locked
from hmsa.labelling.out import settings_of
from hmsa.labelling.rows import total
from hmsa.labelling.stages import Teacher, digest, store
from hmsa.runs.errors import InputError

ray = pytest.importorskip("ray", reason="needs the extra cluster")

# Ray sets options of its own that it calls deprecated
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*")

LABELS = LabelSet(("sky", "road", "post", "car"), tuple(spread(4)), (0, 1, 2, 3))
COUNT = 24


@pytest.fixture(scope="module")
def machines():
    """The address of a cluster of two processors."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")  # else a token is written to the home folder
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # as it will be; else it warns
        patch.setenv("OMP_NUM_THREADS", "1")
        ray.init(
            address="local", num_cpus=2, object_store_memory=100 << 20, include_dashboard=False,
            log_to_driver=False, logging_level="ERROR",
        )  # fmt: skip
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        session = Path(ray._private.worker._global_node.get_session_dir_path())
        yield ray.get_runtime_context().gcs_address
        ray.shutdown()
        patience = time.monotonic() + 20
        while any(str(session) in line for line in commands()):
            assert time.monotonic() < patience, "processes of Ray are left behind"
            time.sleep(0.1)


def commands():
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield file.read_bytes().decode(errors="replace")
        except OSError:
            continue


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(COUNT):
        noise = rng.integers(0, 255, (20 + i, 33, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / ("deep" if i % 2 else "") / f"{i:02}.png")
    (folder / "bad.jpg").write_bytes(b"nonsense")
    return folder


@pytest.fixture
def teacher(tiny, tmp_path):
    tiny.card.names = list(LABELS.names)
    tiny.save_pretrained(tmp_path / "teacher")
    return tmp_path / "teacher"


@pytest.fixture
def single(tiny, pictures, tmp_path):
    """What one process makes of the pictures."""
    made = Labelling(
        Predictor(tiny, (1,), "fp32", "cpu"), "t", pictures, tmp_path / "single", LABELS, "fp32"
    )
    with locked(made.out):
        made.run()
        made.finish()
    return made


@pytest.fixture
def cluster(machines, tiny, teacher, tmp_path):
    """`cluster(source, out, pause=, workers=)`; its teachers leave their process ids in `alive`."""

    def make(source, out, pause=0.0, workers=2):
        (tmp_path / "alive").mkdir(exist_ok=True)
        load = partial(slow, str(teacher), tmp_path / "alive", pause)
        look = settings_of(Predictor(tiny, (1,), "fp32", "cpu"), "t", "fp32", LABELS)
        return Cluster(machines, load, look, str(source), str(out), LABELS, workers)

    return make


def slow(source: str, alive: Path, pause: float):
    class Slow(Predictor):
        def __call__(self, image, detail=False):
            time.sleep(pause)
            with (alive / str(os.getpid())).open("a") as file:
                file.write(".")
            return super().__call__(image, detail)

    return Slow.load(source, (1,), "fp32", device="cpu")


def label(made, overwrite=False):
    with made.hold():
        new = made.run(overwrite)
        made.finish("{}")
    return new


def same(one, other):
    """Whether two rows tell the same of one image, wherever it was labelled."""
    keys = ("sha256", "height", "width", "pixels", "mean_confidence", "kept", "counts", "status")
    return all(one.get(key) == other.get(key) for key in keys)


def test_a_teacher_is_killed_in_the_middle(cluster, pictures, single, tmp_path):
    out = tmp_path / "out"
    made = cluster(pictures, out, pause=0.1)

    def kill():
        while not list(out.glob("shards/*.parquet")):
            time.sleep(0.01)
        killed.append(next(alive.iterdir()).name)
        os.kill(int(killed[0]), signal.SIGKILL)

    alive, killed = tmp_path / "alive", list[str]()
    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    assert label(made) == COUNT + 1
    thread.join(5)
    assert killed
    assert len(list(alive.iterdir())) >= 2, "one died, others did what it had"

    rows = list(made.rows())
    assert sorted(row["name"] for row in rows) == sorted(single.files)
    assert all(same(row, single._row(row["name"])) for row in rows)
    (bad,) = (row for row in rows if row["status"] == "failed")
    assert (bad["image"], "not an image" in bad["reason"]) == ("../in/bad.jpg", True)
    for kind in ("labels", "confidence"):
        for file in (single.out / kind).rglob("*.png"):
            other = out / kind / file.relative_to(single.out / kind)
            assert other.read_bytes() == file.read_bytes()
    for threshold in (0, 0.3):
        there, here = (open_dataset(o, "auto").trusting(threshold) for o in (out, single.out))
        assert there.frequencies().tolist() == here.frequencies().tolist()
    assert not list(out.rglob(".*.*"))

    before = {f: f.stat().st_mtime_ns for f in out.glob("shards/*")}
    (pictures / "bad.jpg").unlink()
    made = cluster(pictures, out)
    assert label(made) == 0
    assert {f: f.stat().st_mtime_ns for f in before} == before
    assert total(made.rows(), 4).sum() == total(single.rows(), 4).sum()
    assert len(list(made.rows())) == COUNT
    other = cluster(pictures, out)
    other.look["teacher"] = "other"
    with pytest.raises(InputError, match="teacher t, now other"):
        label(other)


def test_the_command_is_killed_and_goes_on(machines, hmsa, teacher, pictures, single, tmp_path):
    (pictures / "bad.jpg").unlink()
    out = tmp_path / "out"
    words = ["autolabel", teacher, pictures, "-o", out, "--scales", "1", "--precision", "fp32",
             "--workers", "1", "--cluster", machines, "--json"]  # fmt: skip
    with subprocess.Popen([sys.executable, "-m", "hmsa", *map(str, words)]) as process:
        patience = time.monotonic() + 150
        while not list(out.glob("shards/*.parquet")) and time.monotonic() < patience:
            assert process.poll() is None
            time.sleep(0.005)
        process.kill()
    assert not (out / "thresholds.json").exists()
    done = {f: f.read_bytes() for f in out.glob("shards/*.parquet")}
    ran = hmsa(*words)
    assert ran.code == 0, ran.err
    told = json.loads(ran.out)
    assert (told["images"], told["failed"]) == (COUNT, 0)
    assert all(file.read_bytes() == content for file, content in done.items())
    rows = parquet.read_table(out / "shards").to_pylist()
    assert sorted(row["name"] for row in rows) == sorted(set(single.files) - {"bad"})
    assert all(same(row, single._row(row["name"])) for row in rows)
    assert open_dataset(out, "auto").frequencies().sum() == total(single.rows(), 4).sum()


def test_parquet_to_an_address(cluster, pictures, single, tmp_path):
    """Ray reads; what its processes do then is done here, for they take seconds to start."""
    files = {name: file.read_bytes() for name, file in single.files.items()}
    table = pyarrow.table({"name": list(files), "image": list(files.values()), "no": [0] * 25})
    parquet.write_table(table, tmp_path / "all.parquet")
    made = cluster(f"file://{tmp_path}/all.parquet", f"file://{tmp_path}/out")
    made._begin(overwrite=False)
    parts = ray.get(made._content(ray, made._done(), {}, 4).to_arrow_refs())
    assert len(parts) > 1, "one file, many hands"
    teacher = Teacher(made._job(threads=1))
    for part in parts:
        store(teacher(part), made.out, teacher.job.schema)
    assert made.finish("{}") == COUNT + 1
    assert len(made._done()) == COUNT
    rows = {row["name"]: row for row in made.rows()}
    assert sorted(rows) == sorted(files)
    assert all(same(row, single._row(name)) for name, row in rows.items())
    for row in parquet.read_table(tmp_path / "out" / "shards").to_pylist():
        if row["status"] == "done":
            for kind, folder in (("label", "labels"), ("confidence", "confidence")):
                file = single.out / folder / f"{row['name']}.png"
                assert row[f"{kind}_png"] == file.read_bytes()
    assert not (tmp_path / "out" / "dataset.yaml").exists()


def test_coarse_labels_and_agreement(cluster, pictures, tiny, tmp_path):
    (tmp_path / "drawn").mkdir()
    for name in ("00", "02", "04"):
        height = 20 + int(name) + (name == "04")  # one of another size than its picture
        drawn = np.full((height, 33), 255, np.uint8)
        drawn[5:9, 5:20] = int(name) // 2 + 1
        Image.fromarray(drawn).save(tmp_path / "drawn" / f"{name}.png")
    (tmp_path / "people.csv").write_text(
        "image,label\n" + "".join(f"in/{n}.png,drawn/{n}.png\n" for n in ("00", "02"))
    )
    (tmp_path / "people.yaml").write_text(
        "path: .\nsplits: {drawn: people.csv}\nnames: [sky, road, post, car]\n"
    )
    people = open_dataset(tmp_path / "people.yaml", "drawn")
    people = replace(people, pairs=(*people.pairs, Pair(
        "04", pictures / "04.png", tmp_path / "drawn" / "04.png"
    )))  # fmt: skip
    further = {"coarse": Coarse(people, grow=2), "agreement": True}
    alone = Labelling(
        Predictor(tiny, (0.5, 1), "fp32", "cpu"), "t", pictures, tmp_path / "alone", LABELS,
        "fp32", **further,
    )  # fmt: skip
    with locked(alone.out):
        alone.run()
        alone.finish()
    made = replace(cluster(pictures, tmp_path / "out"), **further)
    made.check()
    look = settings_of(alone.predictor, "t", "fp32", LABELS, **further)
    assert look == {key: value for key, value in alone.settings.items() if key != "images"}
    parts = ray.get(made._content(ray, made._done(), made.found.pictures, 16).to_arrow_refs())
    teacher = Teacher(made._job(threads=1))
    teacher.predictor = alone.predictor
    spoken = 0
    for row in (row for part in parts for row in teacher(part).to_pylist()):
        expected = alone._row(row["name"])
        assert same(row, expected)
        for key in ("coarse_pixels", "coarse_sha256", "mean_agreement"):
            assert row[key] == expected.get(key)
        spoken += row["coarse_pixels"] or 0
        if row["status"] == "done":
            for folder in ("labels", "confidence", "agreement"):
                file = f"{folder}/{row['name']}.png"
                assert (tmp_path / "out" / file).read_bytes() == (alone.out / file).read_bytes()
        elif row["name"] == "04":
            assert "33x25, but" in row["reason"]
    assert spoken == 2 * (4 * 15 + 2 * 2 * (4 + 15) + 4)
    other = replace(made, coarse=Coarse(replace(people, pairs=people.pairs[:0])))
    with pytest.raises(InputError, match="name the split that has them"):
        other.check()


def test_tar_shards_lists_and_what_is_done(cluster, pictures, tmp_path):
    """Content as it comes to a teacher; one shard ends in the middle of a picture."""
    names = sorted(file.stem for file in pictures.glob("*.png"))
    for shard in range(2):
        with tarfile.open(tmp_path / f"s{shard}.tar", "w") as tar:
            for name in names:
                for suffix, content in (("json", b"{}"), ("png", file_of(pictures, name))):
                    info = tarfile.TarInfo(f"{name}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    whole = (tmp_path / "s1.tar").read_bytes()
    (tmp_path / "s1.tar").write_bytes(whole[: 5 * 512 + 100])
    done = np.sort(np.array([digest(f"s0/{names[3]}")], np.uint64))
    made = cluster(f"file://{tmp_path}/s*.tar", tmp_path / "out")
    rows = {row["name"]: row for row in made._content(ray, done, {}, 4).take_all()}
    assert "s1.tar is broken" in rows.pop("s1")["reason"]
    assert sorted(rows) == sorted(f"s0/{name}" for name in names if name != names[3])
    assert all(rows[f"s0/{n}"]["content"] == file_of(pictures, n) for n in names if n != names[3])

    listed = tmp_path / "some.txt"
    listed.write_text(f"in/{names[0]}.png\n# no\nfile://{pictures}/{names[1]}.png\nin/none.png")
    made = cluster(listed, tmp_path / "out")
    rows = made._content(ray, done, made.found.pictures, 4).take_all()
    first, second, third = sorted(rows, key=lambda row: row["image"].endswith("none.png"))
    assert {first["content"], second["content"]} == {file_of(pictures, n) for n in names[:2]}
    assert (third["content"], "none.png cannot be read" in third["reason"]) == (None, True)


def file_of(pictures, name):
    return (pictures / f"{name}.png").read_bytes()
