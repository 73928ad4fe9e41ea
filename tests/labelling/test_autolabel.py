"""`hmsa autolabel`: one command to labels and thresholds, back into training; killed on the way."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from pyarrow import parquet
from scenes import NAMES

from hmsa import HMSA
from hmsa import __main__ as cli
from hmsa.data.datasets import open_dataset
from hmsa.evaluation.calibration import Calibration, precise
from hmsa.inference.predictor import Predictor
from hmsa.runs.folder import read_records

PATIENCE = 600  # seconds for what should take a few, on a loaded machine, too


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
        prediction = predictor(image)
        arrays = label, prediction.label, prediction.confidence8
        calibration.add(*map(torch.from_numpy, arrays))
    for name, expected in zip(val.labels.names, precise(calibration.counts, 0.2), strict=True):
        assert found["precision"][name] == (1 if expected is None else expected)
        assert (name in summary["unreached"]) == (expected is None)

    auto = open_dataset(out, "auto")
    kept, surest = auto.frequencies(), auto.trusting(found["quantile"]).frequencies()
    assert (surest >= 0.3 * kept).all()
    assert surest.sum() < kept.sum()

    shares = summary["kept"]["quantile"]
    assert shares["all"] == pytest.approx(surest.sum() / kept.sum())
    shares = [shares["class"][name] for name in val.labels.names]
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


def test_the_same_command_again(hmsa, trained, pictures, tmp_path):
    words = ("autolabel", trained, pictures, "-o", tmp_path / "auto", "--scales", "1", "--json")
    assert json.loads(hmsa(*words).out)["new"] == 6
    assert json.loads(hmsa(*words).out)["new"] == 0
    ran = hmsa(*words, "--flip")
    assert (ran.code, len(ran.err.splitlines())) == (2, 1)
    assert "flip False -> True" in ran.err
    assert json.loads(hmsa(*words, "--flip", "--overwrite").out)["new"] == 6


def test_unreadable_images(hmsa, trained, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    Image.new("RGB", (40, 40)).save(folder / "good.png")
    (folder / "bad.png").write_bytes(b"nonsense")
    for new in (2, 0):
        ran = hmsa("autolabel", trained, folder, "-o", tmp_path / "auto", "--scales", "1")
        assert ran.code == 3
        assert "bad.png is not an image" in ran.err
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
        (("--grow", "-1"), ">= 0"),
        (("--coarse", "{scenes}", "--fill", "raod"), "did you mean 'road'"),
        (("--raw", "camvid"), "need the same classes"),
        (("--keep", "2"), "<= 1"),
        (("--fill", "road", "--override"), "exclude each other"),
    ],
)
def test_refused(hmsa, trained, scenes, pictures, tmp_path, words, says):
    words = [word.format(scenes=scenes) for word in words]
    ran = hmsa("autolabel", trained, pictures, "-o", tmp_path / "auto", *words)
    assert ran.code == 2
    assert says in ran.err
    assert not (tmp_path / "auto").exists()


def test_held_out_images_without_labels(hmsa, trained, scenes, pictures, tmp_path):
    folder = shutil.copytree(scenes.parent, tmp_path / "unlabelled")
    for file in (folder / "val" / "labels").iterdir():
        Image.new("L", (96, 64), 255).save(file)
    out = tmp_path / "auto"
    ran = hmsa("autolabel", trained, pictures, "-o", out, "--held-out", folder / "dataset.yaml")
    assert ran.code == 2
    assert "nothing is labelled in split val" in ran.err
    assert not out.exists()


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
        return (
            "autolabel",
            trained,
            folder,
            "--scales",
            "0.5,1",
            "--backend",
            "torch",
            "--json",
            "-o",
        )

    @pytest.mark.parametrize("seed", range(2))
    def test_at_random_moments(self, start, words, tmp_path, seed):
        whole, out = tmp_path / "whole", tmp_path / "killed"
        process = start(*words, whole)
        process.join(PATIENCE)
        assert process.exitcode == 0
        chance = random.Random(seed)
        kills, ending = 0, False
        for _ in range(40):
            before = len(lines(out))
            process, wanted = start(*words, out), min(24, before + chance.randint(1, 6))
            wait_for_lines(process, out, wanted)
            # All rows there: killed once more while it finishes, then left alone
            late = before == 24
            process.join(PATIENCE if late and ending else chance.uniform(0, 1.5 if late else 0.03))
            ending |= late
            process.kill()
            process.join()
            assert process.exitcode in (0, -signal.SIGKILL)
            records = read_records(out, "autolabel")
            assert len(lines(out)) - len(records) <= kills + 1, "a torn line for each kill, at most"
            for row in records.values():
                for kind in ("label", "confidence"):
                    with Image.open(out / row[kind]) as stored:
                        stored.load()
            if process.exitcode == 0:
                break
            kills += 1
            assert not (out / "manifest.parquet").exists() or len(records) == 24
        assert kills >= 3
        assert process.exitcode == 0
        names = [line.split(b'"')[1] for line in lines(out) if line.endswith(b"]")]
        assert len(names) == len(set(names)) == 24, "nothing is done twice"
        assert contents(out) == contents(whole)

    def test_the_lock_ends_with_its_process(self, start, hmsa, words, tmp_path):
        out = tmp_path / "out"
        process = start(*words, out)
        wait_for_lines(process, out, 1)
        os.kill(process.pid, signal.SIGSTOP)
        ran = hmsa(*words, out)
        assert ran.code == 2
        assert "another process is writing" in ran.err
        process.kill()
        process.join()
        assert hmsa(*words, out).code == 0

    def test_stopped(self, start, words, tmp_path):
        out = tmp_path / "out"
        process = start(*words, out)
        wait_for_lines(process, out, 1)
        os.kill(process.pid, signal.SIGINT)
        process.join(PATIENCE)
        assert process.exitcode == 130
        assert not list(out.rglob(".hmsa-*")), "half-written files"
        for kind in ("labels", "confidence"):
            assert len(list((out / kind).iterdir())) == len(lines(out)) < 24


def wait_for_lines(process, out: Path, wanted: int) -> None:
    """Or for the end of the process."""
    patience = time.monotonic() + PATIENCE
    while process.is_alive() and len(lines(out)) < wanted:
        assert time.monotonic() < patience
        time.sleep(0.001)


def _hearing(words: list[str]) -> None:
    """The command line; Ctrl-C is ignored in a shell's background job, as these tests may be."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(cli.run(words))


def lines(out: Path) -> list[bytes]:
    """Lines of the list of what is done."""
    file = out / "autolabel.jsonl"
    return file.read_bytes().splitlines() if file.is_file() else []


def contents(out: Path) -> dict[str, object]:
    """Every file, but for how long an image took and the order of rows."""
    files: dict[str, object] = {
        str(f.relative_to(out)): f.read_bytes() for f in out.rglob("*") if f.suffix != ".lock"
        and f.is_file()
    }  # fmt: skip
    records = read_records(out, "autolabel")
    files["autolabel.jsonl"] = {name: row | {"seconds": 0} for name, row in records.items()}
    table = parquet.read_table(out / "manifest.parquet").drop_columns("seconds")
    return files | {"manifest.parquet": (table.to_pylist(), table.schema.metadata)}


def test_deep_images_in_an_archive_need_a_range(hmsa, trained, tmp_path):
    """Each by its own values would be another exposure each."""
    values = np.random.default_rng(0).integers(0, 4000, (48, 64), np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        tar.add(tmp_path / "deep.png", "deep.png")
    command = (
        "autolabel",
        trained,
        tmp_path / "shard.tar",
        "-o",
        tmp_path / "auto",
        "--scales",
        "1",
    )
    ran = hmsa(*command)
    assert ran.code == 3
    assert "more than 8 bits, and no range is known for all images; add --stretch" in ran.err
    ran = hmsa(*command, "--stretch", "0,4000", "--overwrite")
    assert ran.code == 0, ran.err
