"""`hmsa autolabel`: one line to labels and thresholds, back into training; killed on the way."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from pyarrow import parquet

from hmsa import HMSA, cli
from hmsa.data.datasets import open_dataset
from hmsa.data.scenes import NAMES
from hmsa.evaluation.calibration import Calibration, precise
from hmsa.inference.predictor import Predictor
from hmsa.labelling.labelling import locked


@pytest.fixture
def pictures(scenes) -> Path:
    return scenes.parent / "train" / "images"


def test_labels_thresholds_and_training(hmsa, trained, scenes, pictures, recipe, tmp_path):
    out = tmp_path / "auto"
    ran = hmsa("autolabel", trained, pictures, "-o", out, "--scales", "0.5,1", "--keep", "0.3",
               "--held-out", scenes, "--precision-target", "0.2")  # fmt: skip
    assert ran.code == 0, ran.err
    summary = json.loads(ran.out.splitlines()[-1])
    assert (summary["images"], summary["new"], summary["failed"]) == (6, 6, 0)
    found = json.loads((out / "thresholds.json").read_text())
    assert found == summary["thresholds"]
    assert set(found["fixed"].values()) == {0.5}

    predictor, val = Predictor.load(trained, (0.5, 1)), open_dataset(scenes, "val")
    calibration = Calibration(7)
    for i in range(len(val)):
        image, label = val.read(i)
        seen = predictor(image)
        calibration.add(*map(torch.from_numpy, (label, seen.label, seen.confidence)))
    for name, expected in zip(val.labels.names, precise(calibration.counts, 0.2), strict=True):
        assert found["precision"][name] == (1 if expected is None else expected)
        assert (name in summary["unreached"]) == (expected is None)

    auto = open_dataset(out, "auto")
    kept, surest = auto.frequencies(), auto.trusting(found["quantile"]).frequencies()
    assert (surest >= 0.3 * kept).all()
    assert surest.sum() < kept.sum()

    told = summary["kept"]["quantile"]
    assert told["all"] == pytest.approx(surest.sum() / kept.sum())
    shares = [told["class"][name] for name in val.labels.names]
    assert shares == [
        pytest.approx(s / k) if k else None for s, k in zip(surest, kept, strict=True)
    ]
    assert summary["seconds"] > 0

    content = yaml.safe_load(recipe.read_text())
    content["sampling"] = {
        "confidence": found["quantile"],
        "extra": [{"dataset": str(out / "dataset.yaml"), "split": "auto", "share": 0.5}],
    }
    recipe.write_text(yaml.safe_dump(content))
    assert hmsa("train", recipe, "--out", tmp_path / "student").code == 0


def test_going_on_in_the_same_words(hmsa, trained, pictures, tmp_path):
    words = ("autolabel", trained, pictures, "-o", tmp_path / "auto", "--scales", "1", "--json")
    assert json.loads(hmsa(*words).out)["new"] == 6
    assert json.loads(hmsa(*words).out)["new"] == 0
    ran = hmsa(*words, "--flip")
    assert (ran.code, len(ran.err.splitlines())) == (2, 1)
    assert "flip False, now True" in ran.err
    assert json.loads(hmsa(*words, "--flip", "--overwrite").out)["new"] == 6


def test_unreadable_pictures(hmsa, trained, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    Image.new("RGB", (40, 40)).save(folder / "good.png")
    (folder / "bad.png").write_bytes(b"nonsense")
    for new in (2, 0):
        ran = hmsa("autolabel", trained, folder, "-o", tmp_path / "auto", "--scales", "1")
        assert ran.code == 2
        assert "bad.png is not a picture" in ran.err
        assert json.loads(ran.out.splitlines()[-1])["new"] == new
    assert len(open_dataset(tmp_path / "auto", "auto")) == 1


def test_raw_values_of_a_dataset(hmsa, trained, scenes, pictures, tmp_path):
    content = yaml.safe_load(scenes.read_text())
    content["names"] = {7 * (k + 1): name for k, name in enumerate(NAMES)}
    (tmp_path / "raw.yaml").write_text(yaml.safe_dump(content))
    words = ("--scales", "1", "--raw", tmp_path / "raw.yaml")
    assert hmsa("autolabel", trained, pictures, "-o", tmp_path / "auto", *words).code == 0
    files = sorted((tmp_path / "auto" / "labels").glob("*.png"))
    assert {int(v) for f in files for v in np.unique(np.asarray(Image.open(f)))} <= {
        7 * (k + 1) for k in range(7)
    }
    assert open_dataset(tmp_path / "auto", "auto").frequencies().sum() == 6 * 64 * 96


def test_coarse_labels_fill_what_is_named(hmsa, trained, scenes, pictures, tmp_path):
    out, name = tmp_path / "auto", open_dataset(scenes, "train").labels.names[-1]
    ran = hmsa("autolabel", trained, pictures, "-o", out, "--scales", "1", "--coarse", scenes,
               "--fill", name)  # fmt: skip
    assert ran.code == 0, ran.err
    truth, auto = open_dataset(scenes, "train"), open_dataset(out, "auto")
    for i in range(6):
        people = truth.read_label(i) == 6
        assert (auto.read_label(i)[people] == 6).all()
        assert (np.asarray(Image.open(auto.pairs[i].confidence))[people] == 255).all()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--held-out", "{scenes}", "--split", "train"), "was trained on dataset.yaml"),
        (("--held-out", "{scenes}", "--split", "nowhere"), "no split"),
        (("--held-out", "camvid-else"), "camvid"),
        (("--coarse", "{scenes}"), "--override or --fill"),
        (("--override",), "--coarse DATA"),
        (("--grow", "8"), "--coarse DATA"),
        (("--grow", "-1"), "number of pixels"),
        (("--coarse", "{scenes}", "--fill", "raod"), "did you mean 'road'"),
        (("--raw", "camvid"), "same classes"),
        (("--keep", "2"), "share in 0..1"),
        (("--fill", "road", "--override"), "not allowed with"),
    ],
)
def test_refused(hmsa, trained, scenes, pictures, tmp_path, words, says):
    words = [word.format(scenes=scenes) for word in words]
    ran = hmsa("autolabel", trained, pictures, "-o", tmp_path / "auto", *words)
    assert ran.code == 2
    assert says in ran.err
    assert not (tmp_path / "auto").exists()


def test_a_set_that_was_mixed_in_was_learnt_too(hmsa, trained, scenes, pictures, tmp_path):
    teacher = HMSA.from_pretrained(trained)
    for extra in ({"dataset": None, "split": "val"}, {"dataset": "pictures", "split": "val"}):
        teacher.card.recipe["sampling"] = {"extra": [extra]}
        teacher.save_pretrained(tmp_path / "teacher")
        ran = hmsa("autolabel", tmp_path / "teacher", pictures, "-o", tmp_path / "auto",
                   "--held-out", scenes)  # fmt: skip
        assert ran.code == 2
        assert "split val, so it cannot be judged there" in ran.err


class TestKilled:
    """SIGKILL, which nothing can catch. Processes are forked from one that has imported torch."""

    @pytest.fixture
    def start(self):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["hmsa.labelling.autolabel", "hmsa.training.train"])

        def start(*words):
            process = context.Process(target=_hearing, args=([str(w) for w in words],))
            process.start()
            return process

        return start

    @pytest.fixture
    def words(self, trained, tmp_path):
        folder = tmp_path / "in"
        folder.mkdir()
        rng = np.random.default_rng(0)
        for i in range(24):
            noise = rng.integers(0, 255, (96 + i, 128, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / f"{i:02}.png")
        return ("autolabel", trained, folder, "--scales", "0.5,1", "--json", "-o")

    @pytest.mark.parametrize("seed", range(2))
    def test_at_random_moments(self, start, words, tmp_path, seed):
        whole, out = tmp_path / "whole", tmp_path / "killed"
        process = start(*words, whole)
        process.join(240)
        assert process.exitcode == 0
        chance = random.Random(seed)
        finished: dict[Path, tuple[int, int]] = {}
        kills, ending = 0, False
        for _ in range(40):
            before = len(list(out.glob("rows/*.json")))
            process, patience = start(*words, out), time.monotonic() + 240
            wanted = min(24, before + chance.randint(1, 6))
            while process.is_alive() and len(list(out.glob("rows/*.json"))) < wanted:
                assert time.monotonic() < patience
                time.sleep(0.001)
            # All rows there: killed once more while it finishes, then left alone
            late = before == 24
            process.join(240 if late and ending else chance.uniform(0, 1.5 if late else 0.03))
            ending |= late
            process.kill()
            process.join()
            assert process.exitcode in (0, -signal.SIGKILL)
            for row, stamp in finished.items():
                assert _stamp(row) == stamp, "done before, and done again"
            finished = {row: _stamp(row) for row in out.glob("rows/*.json")}
            for row in finished:
                told = json.loads(row.read_text())
                for kind in ("label", "confidence"):
                    with Image.open(out / told[kind]) as picture:
                        picture.load()
            if process.exitcode == 0:
                break
            kills += 1
            assert not (out / "manifest.parquet").exists() or len(finished) == 24
        assert kills >= 3
        assert process.exitcode == 0
        assert _contents(out) == _contents(whole)

    def test_the_kernel_gives_the_lock_back(self, start, hmsa, words, tmp_path):
        process, patience = start(*words, tmp_path / "out"), time.monotonic() + 240
        while not (tmp_path / "out" / "rows").exists():
            assert process.is_alive()
            assert time.monotonic() < patience
            time.sleep(0.001)
        os.kill(process.pid, signal.SIGSTOP)
        ran = hmsa(*words, tmp_path / "out")
        assert ran.code == 2
        assert "another run is writing" in ran.err
        process.kill()
        process.join()
        with locked(tmp_path / "out"):
            pass

    @pytest.fixture
    def crew(self, start, words, tmp_path):
        """The process that runs with two workers in the middle of it, and their process ids."""
        if not Path("/proc/self/fd").is_dir():
            pytest.skip("workers are found by the lock they hold, in /proc")
        out, patience = tmp_path / "out", time.monotonic() + 240
        for _ in range(9):
            process = start(*words, out, "--workers", 2)
            while len(list(out.glob("rows/*.json"))) < 6 or len(found := holders(out)) < 3:
                assert time.monotonic() < patience
                time.sleep(0.001)
                if not process.is_alive():
                    break
            # On a busy machine one worker may be nearly done with all when the other one comes
            if process.is_alive() and len(list(out.glob("rows/*.json"))) <= 12:
                break
            process.kill()
            process.join()
            while holders(out):
                time.sleep(0.01)
            shutil.rmtree(out)
        yield process, found - {process.pid}
        process.kill()
        process.join()

    @pytest.fixture
    def whole(self, hmsa, words, tmp_path):
        assert hmsa(*words, tmp_path / "whole").code == 0
        return _contents(tmp_path / "whole")

    def test_one_of_two_workers(self, whole, crew, tmp_path):
        process, workers = crew
        os.kill(min(workers), signal.SIGKILL)
        process.join(240)
        assert process.exitcode == 0
        assert not holders(tmp_path / "out")
        assert _contents(tmp_path / "out") == whole

    def test_workers_do_not_outlive_their_parent(self, whole, crew, hmsa, words, tmp_path):
        process, _ = crew
        out = tmp_path / "out"
        process.kill()
        process.join()
        patience = time.monotonic() + 10
        while holders(out):
            assert time.monotonic() < patience
            time.sleep(0.01)
        before = {row: _stamp(row) for row in out.glob("rows/*.json")}
        assert 6 <= len(before) < 24
        assert hmsa(*words, out).code == 0
        assert all(_stamp(row) == stamp for row, stamp in before.items())
        assert _contents(out) == whole

    def test_stopped_with_workers(self, crew, tmp_path):
        process, _ = crew
        os.kill(process.pid, signal.SIGINT)
        process.join(240)
        assert process.exitcode == 130
        assert not holders(tmp_path / "out")
        assert not list((tmp_path / "out").rglob(".*.*")), "half-written files"
        assert len(list((tmp_path / "out").glob("rows/*.json"))) < 24


def _hearing(words: list[str]) -> None:
    """The command line; a shell's background job, such as these tests may be, is deaf to Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    cli.main(words)


def holders(out: Path) -> set[int]:
    """Processes that have the lock of OUT open."""
    found = set()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if os.readlink(link) == str(out / ".lock"):
                found.add(int(link.parts[2]))
    return found


def _stamp(file: Path) -> tuple[int, int]:
    stat = file.stat()
    return stat.st_ino, stat.st_mtime_ns


def _contents(out: Path) -> dict[str, object]:
    """Every file, but for how long an image took."""
    files: dict[str, object] = {
        str(f.relative_to(out)): f.read_bytes() for f in out.rglob("*") if f.is_file()
    }
    for name in [name for name in files if name.startswith("rows/")]:
        files[name] = json.loads((out / name).read_text()) | {"seconds": 0}
    table = parquet.read_table(out / "manifest.parquet").drop_columns("seconds")
    return files | {"manifest.parquet": (table.to_pylist(), table.schema.metadata)}
