"""`hmsa selftrain`: rounds and their numbers; killed for real on the way; what is refused."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from scenes import write_scenes

from hmsa import HMSA
from hmsa import __main__ as cli
from hmsa.data.datasets import open_dataset

RECIPE = {
    "data": {"dataset": "scenes/dataset.yaml", "workers": 0},
    "model": {"trunk": "hrnet_w18_small", "pretrained": False, "width": 8},
    "joint": {"steps": 2, "batch": 2, "crop": [32, 32], "validate_every": 1, "warmup": 1},
    "attention": {"steps": 1, "batch": 1, "crop": [32, 32], "pictures": 2},
    "inference": {"scales": [0.5, 1]},
    "precision": "fp32",
    "selftrain": {"images": "scenes/more/images", "rule": "quantile", "level": 0.7},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with recipe.yaml and scenes; those of the split `more` are the ones to label."""
    folder = tmp_path_factory.mktemp("selftrain")
    write_scenes(folder / "scenes", {"train": 3, "val": 2, "more": 4}, (48, 64))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    return folder


@pytest.fixture(scope="module")
def start():
    """Processes forked from one that has imported torch."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hmsa.labelling.selftrain"])

    def start(*words):
        process = context.Process(target=cli.run, args=([str(w) for w in words],))
        process.start()
        return process

    return start


@pytest.fixture(scope="module")
def whole(place, start) -> Path:
    """Two rounds that nothing came between."""
    process = start("selftrain", place / "recipe.yaml", "--rounds", 2, "--out", place / "whole")
    process.join()
    assert process.exitcode == 0
    return place / "whole"


@pytest.fixture
def words(place, tmp_path):
    """`words(*changes)` -> a command line that writes to tmp_path / "run"."""

    def words(*changes, out=tmp_path / "run"):
        settings = [word for change in changes for word in ("--set", change)]
        return ("selftrain", place / "recipe.yaml", "--out", out, *settings)

    return words


def told(run: Path) -> list[dict]:
    return json.loads((run / "rounds.json").read_text())["rounds"]


def without_time(rounds: list[dict]) -> list[dict]:
    return [{k: v for k, v in one.items() if k != "seconds"} for one in rounds]


def test_numbers_of_every_round(whole, place, hmsa):
    rounds, scenes = told(whole), place / "scenes" / "dataset.yaml"
    assert [one["round"] for one in rounds] == [0, 1, 2]
    assert rounds[0]["labels"] is None
    assert all(one["seconds"]["train"] > 0 for one in rounds)
    raw = {}
    for one in rounds[1:]:
        labels = one["labels"]
        auto = open_dataset(whole / f"round-{one['round']}" / "labels", "auto")
        raw[one["round"]] = np.stack([auto.read_label(i) for i in range(4)])
        kept = auto.trusting(labels["thresholds"]).frequencies()
        assert labels["coverage"] == pytest.approx(kept.sum() / raw[one["round"]].size)
        assert 0.7 <= labels["coverage"] <= 1
        assert labels["pictures"] == 4
        assert one["seconds"]["label"] > 0
    assert rounds[1]["labels"]["changed"] is None
    assert rounds[2]["labels"]["changed"] == pytest.approx((raw[1] != raw[2]).mean())
    scores = [one["miou"]["hierarchical"] for one in rounds]
    best = whole / f"round-{scores.index(max(scores))}" / "best.safetensors"
    assert (whole / "best.safetensors").read_bytes() == best.read_bytes()
    ran = hmsa("evaluate", whole, scenes, "--json")
    assert json.loads(ran.out)["miou"]["hierarchical"] == pytest.approx(max(scores), abs=1e-6)


def test_a_student_learns_from_both(whole):
    cards = [HMSA.from_pretrained(whole / f"round-{r}").card for r in range(3)]
    assert all("selftrain" not in card.recipe for card in cards)
    assert cards[0].recipe["sampling"]["extra"] == []
    for number in (1, 2):
        (extra,) = cards[number].recipe["sampling"]["extra"]
        assert extra["dataset"] == f"whole/round-{number}/labels/dataset.yaml"
        assert (extra["split"], extra["share"]) == ("auto", 0.5)
        assert extra["confidence"] == told(whole)[number]["labels"]["thresholds"]
        assert cards[number].recipe["start"] is None
    assert cards[1].trained_on == cards[0].trained_on


def test_page(whole):
    page = (whole / "rounds.html").read_text()
    assert "than the teacher" in page or "against the teacher" in page
    assert 'src="http' not in page
    for number in range(3):
        assert f'href="round-{number}/report-val.html"' in page
        assert (whole / f"round-{number}" / "report-val.html").is_file()
    assert page.count("data:image/") == 9, "three images, and labels of two rounds"


def test_killed_and_gone_on_with(place, start, whole, words, tmp_path):
    """SIGKILL while the teacher learns, while it labels, while a student learns; then more rounds.
    What is left in the end is what an uninterrupted run leaves."""
    run = tmp_path / "run"

    def until(*argv, reached):
        process, patience = start(*argv), time.monotonic() + 600
        while not reached():
            assert process.is_alive(), "it ended by itself"
            assert time.monotonic() < patience
            time.sleep(0.001)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL

    def lines(file):
        return len(file.read_text().splitlines()) if file.exists() else 0

    def rows(number):
        file = run / f"round-{number}" / "metrics.csv"
        return len(file.read_text().splitlines()) - 1 if file.exists() else 0

    until(*words(), "--rounds", 1, reached=lambda: rows(0) >= 1)
    again = (*words(), "--resume")
    until(*again, reached=lambda: lines(run / "round-1/labels/autolabel.jsonl") >= 2)
    first = told(run)
    until(*again, reached=lambda: rows(1) >= 1)
    assert told(run) == first, "a round that is done stays as it was"
    process = start(*again)
    process.join()
    assert process.exitcode == 0
    assert told(run)[:1] == first
    assert without_time(told(run)) == without_time(told(whole))[:2]
    process = start(*again, "--rounds", 2)
    process.join()
    assert process.exitcode == 0
    assert without_time(told(run)) == without_time(told(whole))
    mine, others = (HMSA.from_pretrained(r / "round-2").state_dict() for r in (run, whole))
    assert all((mine[name] == others[name]).all() for name in mine)
    left = [f.name for f in run.rglob(".*") if f.is_file() and f.suffix != ".lock"]
    assert not left, "nothing torn is left"


def test_every_part_of_the_section(place, whole, words, hmsa, tmp_path):
    """On a teacher that is there already: what students learn may change until one begins to.
    A picture that cannot be read is named and left out."""
    run, more = tmp_path / "run", tmp_path / "more"
    shutil.copytree(whole / "round-0", run / "round-0")
    shutil.copytree(place / "scenes/more/images", more)
    (more / "bad.png").write_bytes(b"nonsense")
    ran = hmsa(*words("selftrain.rule=fixed", "selftrain.level=1"), "--resume")
    assert ran.code == 2
    assert "no pixel of its labels reaches the confidence that selftrain needs (fixed 1)" in ran.err
    changes = [
        f"images={more}", "coarse={split: more, fill: [road]}", "rule=precision",
        "level=0.1", "scales=[1]", "flip=true", "start=teacher", "share=0.25", "until=0.8",
        "border=[1, 2, 3, 4]",
    ]  # fmt: skip
    ran = hmsa(*words(*(f"selftrain.{change}" for change in changes)), "--resume", "--json")
    assert ran.code == 3
    assert "bad.png is not an image" in ran.err
    rounds = json.loads(ran.out)["rounds"]
    assert [one["round"] for one in rounds] == [0, 1]
    assert rounds[1]["labels"]["pictures"] == 4
    assert f"starts from {run / 'round-0' / 'best.safetensors'}" in ran.err
    (extra,) = HMSA.from_pretrained(run / "round-1").card.recipe["sampling"]["extra"]
    assert (extra["share"], extra["until"], extra["border"]) == (0.25, 0.8, [1, 2, 3, 4])
    made = json.loads((run / "round-1" / "labels" / "autolabel.json").read_text())
    assert (made["scales"], made["flip"], made["coarse"]["fill"]) == ([1.0], True, [3])
    truth = open_dataset(place / "scenes", "more")
    auto = open_dataset(run / "round-1" / "labels", "auto")
    for i in range(4):
        road = truth.read_label(i) == 3
        assert (auto.trusting(1.0).read_label(i)[road] == 3).all()
    ran = hmsa(*words(), "--resume")
    assert ran.code == 2
    assert "begun with other settings, selftrain." in ran.err


def test_two_processes_learn_as_one(words):
    """Fabric's own launcher: the second process learns in both rounds, and says nothing."""
    small = ("joint.steps=1", "attention.steps=0", "devices=2", "accelerator=cpu")
    run = [sys.executable, "-m", "hmsa", *map(str, words(*small))]
    done = subprocess.run(run, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [one["round"] for one in json.loads(done.stdout.splitlines()[-1])["rounds"]] == [0, 1]
    assert done.stdout.count('"rounds"') == 1
    assert done.stderr.count("; 2 x ") == 2
    assert done.stderr.count("autolabel 4/4") == 1


def test_stopped_by_hand(words, hmsa, monkeypatch):
    from hmsa.training import trainer

    def impatient(*_):
        os.kill(os.getpid(), signal.SIGINT)
        return 1e-3

    monkeypatch.setattr(trainer, "set_learning_rate", impatient)
    ran = hmsa(*words())
    assert ran.code == 130
    assert "go on with: hmsa selftrain" in ran.err
    assert ran.err.strip().endswith("--resume")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["selftrain=null"], "no section selftrain"),
        (["selftrain={rule: fixed}"], "key 'selftrain.images' is missing"),
        (["selftrain.images=nowhere"], "no images below"),
        (["selftrain.images=empty"], "no images below"),
        (["selftrain.images=scenes/val/images"], "is an image of split val, which scores"),
        (["selftrain.images=copies"], "is an image of split val"),
        (["data.val=train"], "data.val: the recipe's teacher was trained on dataset.yaml"),
        (["sampling.extra=[{split: val}]"], "data.val: the recipe's teacher was trained on"),
        (["start={learnt}"], "data.val: {learnt} was trained on dataset.yaml, split val"),
        (["selftrain.rule=precision", "selftrain.held_out=train"], "selftrain.held_out: the"),
        (["selftrain.rule=precision", "selftrain.held_out=more"], "is an image of split more"),
        (["selftrain.rule=best"], "selftrain.rule"),
        (["selftrain.level=2"], "selftrain.level: .*not 2"),
        (["selftrain.share=0.7", "sampling.extra=[{split: more, share: 0.4}]"], "more than 1"),
        (["selftrain.boost=[post]"], "set class_uniform"),
        (["selftrain.boost=[pots]", "sampling.class_uniform=0.5"], "did you mean 'post'"),
        (["selftrain.coarse={split: more, fill: [raod]}"], "did you mean 'road'"),
        (["selftrain.coarse={split: elsewhere}"], "no split 'elsewhere'"),
        (["selftrain.coarse={split: more, dataset: other.yaml}"], "the classes of .*other.yaml"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)  # fmt: skip
def test_refused_before_the_first_step(place, words, hmsa, tmp_path, trained, changes, says):
    (place / "empty").mkdir(exist_ok=True)
    (place / "copies").mkdir(exist_ok=True)
    shutil.copy(place / "scenes/val/images/00001.png", place / "copies" / "another-name.png")
    content = yaml.safe_load((place / "scenes" / "dataset.yaml").read_text())
    content |= {"path": "scenes", "names": content["names"][::-1]}
    (place / "other.yaml").write_text(yaml.safe_dump(content))
    learnt = HMSA.from_pretrained(trained)
    learnt.card.trained_on["split"] = "val"
    learnt.save_pretrained(tmp_path / "learnt")
    changes = [c.replace("{learnt}", str(tmp_path / "learnt")) for c in changes]
    ran = hmsa(*words(*changes))
    assert ran.code == 2
    assert re.search(says.replace("{learnt}", str(tmp_path / "learnt")), ran.err), ran.err
    assert len(ran.err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_other_folders_are_left_alone(whole, place, words, hmsa):
    before = {f: f.stat().st_mtime_ns for f in whole.rglob("*")}
    ran = hmsa(*words(out=whole))
    assert ran.code == 2
    assert "add --resume" in ran.err
    ran = hmsa(*words("seed=3", out=whole), "--resume")
    assert ran.code == 2
    assert "begun with other settings, seed 0 -> 3" in ran.err
    ran = hmsa(*words(out=whole / "round-0"))
    assert ran.code == 2
    assert "holds results of hmsa train" in ran.err
    ran = hmsa(*words(out=place / "scenes/more/images/run"))
    assert ran.code == 2
    assert "is inside" in ran.err
    assert {f: f.stat().st_mtime_ns for f in whole.rglob("*")} == before
