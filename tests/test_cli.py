"""The command line: exit codes, one line a mistake, results on stdout."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from cyclopts import CycloptsError

import hmsa as package
from hmsa import __main__ as cli


def test_version(hmsa):
    ran = hmsa("--version")
    assert ran.code == 0
    assert ran.out.strip() == f"hmsa {package.__version__}"


ROOT = Path(__file__).parent.parent
VERBS = [*cli.VERBS, *(f"data {name}" for name in cli.DATA_VERBS)]


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_two_examples_that_parse(hmsa, verb):
    ran = hmsa(*verb.split(), "--help")
    assert ran.code == 0
    examples = re.findall("^example: hmsa (.+)", ran.out, re.MULTILINE)
    assert len(examples) == 2
    for example in examples:
        words = shlex.split(example.removesuffix(" --json"))  # which every verb has
        cli._APP.parse_args(words, exit_on_error=False, print_error=False)
        assert words[: len(verb.split())] == verb.split()
        assert all((ROOT / word).is_file() for word in words if word.startswith("configs/"))
    assert max(map(len, ran.out.split("Parameters:")[-1].splitlines())) <= 80


def test_a_stale_example_does_not_parse():
    with pytest.raises(CycloptsError):
        cli._APP.parse_args(
            ["predict", "a.jpg", "--sav", "x"], exit_on_error=False, print_error=False
        )


@pytest.mark.parametrize("group", ["", "data"])
def test_the_overview_has_a_summary_of_each_verb(hmsa, group):
    ran = hmsa(*group.split(), "--help")
    assert ran.code == 0
    for verb in cli.DATA_VERBS if group else cli.VERBS:
        assert re.search(rf"^  {verb}: [A-Z].*\.$", ran.out, re.MULTILINE)  # of one line


def test_doctor_knows_each_extra(hmsa):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ran = hmsa("doctor", "--json")
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    assert {*found["missing"]} == {*extras["optional-dependencies"]} - {"dev", "docs"}
    assert f"torch {torch.__version__.split('+')[0]}" in found["versions"]


def test_doctor_says_what_an_extra_lacks(hmsa, monkeypatch):
    needs = ['none-such>=1; extra == "video"', 'numpy<1; extra == "geo"', "none-at-all"]
    needs.append('hmsa[video]; extra == "export"')
    monkeypatch.setattr("hmsa.check.installation.metadata.requires", lambda _: needs)
    missing = json.loads(hmsa("doctor", "--json").out)["missing"]
    assert missing["video"] == missing["export"] == ["none-such"]
    assert missing["geo"][0].startswith("numpy<1, not ")
    assert missing["app"] == []
    assert "no: none-such" in hmsa("doctor").out


LIGHT = """
import contextlib, io, sys
from hmsa.__main__ import run
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    code = run(sys.argv[1:])
heavy = {"torch", "torchvision", "timm", "pyarrow", "numpy", "PIL", "lightning_fabric"}
print(*sorted(heavy & sys.modules.keys()))
"""


@pytest.mark.parametrize(
    "arguments", ["--help", "--version", "train --help", "data --help", "trian", "predict --sav x"]
)
def test_no_heavy_import_before_there_is_work(arguments):
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, *arguments.split()],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == []


MISTAKES = {
    "unknown verb": (["trian"], 'Unknown command "trian". Did you mean "train"?'),
    "unknown verb of data": (["data", "checks"], 'Did you mean "check"?'),
    "unknown option": (["predict", "x", "y", "-o", "z", "--sav", "npz"], "Did you mean --save?"),
    "missing option": (["export", "x"], "--out"),
    "out of range": (["predict", "x", "y", "-o", "z", "--budget", "3"], "--budget"),
    "missing config": (["train", "nowhere.yaml"], "no file nowhere.yaml"),
    "unknown key": (["train", "RECIPE", "--set", "joint.stepz=1"], "did you mean 'steps'"),
    "wrong type": (["train", "RECIPE", "--set", "joint.batch=many"], "joint.batch"),
    "unknown trunk": (["train", "RECIPE", "--set", "model.trunk=hrnet"], "not a timm model"),
    "no such device": (
        ["train", "RECIPE", "--set", "accelerator=mps"],
        "device mps: this machine has 0 of mps",
    ),
    "empty crop": (["train", "RECIPE", "--set", "joint.crop=[0, 64]"], "joint.crop.0"),
    "missing split": (["train", "RECIPE", "--set", "data.val=vall"], "did you mean val"),
    "missing folder": (["train", "RECIPE", "--data", "/nowhere"], "no folder /nowhere"),
    "no checkpoint": (["evaluate", "nothing.safetensors", "RECIPE"], "no checkpoint"),
    "not a checkpoint": (["evaluate", "RECIPE", "RECIPE"], "is not a checkpoint"),
    "no dataset": (["evaluate", "TRAINED", "nodata.yaml"], "no file nodata.yaml"),
    "unknown dataset": (["evaluate", "TRAINED", "cityscape"], "did you mean cityscapes?"),
    "no place": (["evaluate", "TRAINED", "cityscapes"], "pass --data FOLDER"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_line_and_exit_2(hmsa, recipe, trained, tmp_path, mistake):
    arguments, says = MISTAKES[mistake]
    places = {"RECIPE": recipe, "TRAINED": trained}
    out = ["--out", tmp_path / "run"] if "train" in arguments else []
    ran = hmsa(*(places.get(a, a) for a in arguments), *out)
    assert ran.code == 2
    assert says in ran.err
    assert "Traceback" not in ran.err
    assert ran.out == ""
    assert len(ran.err.splitlines()) == 1, ran.err


def test_labels_outside_the_table_stop_training_before_it_starts(hmsa, folder_dataset, tmp_path):
    import numpy as np
    import yaml

    path = folder_dataset({"a": np.full((64, 64), 77, np.uint8)}, splits={"train": "train"})
    recipe = tmp_path / "r.yaml"
    recipe.write_text(yaml.safe_dump({"data": {"dataset": str(path), "val": "train"}}))
    ran = hmsa("train", recipe, "--out", tmp_path / "run")
    assert ran.code == 2
    assert "77 (4096 pixels)" in ran.err
    assert not (tmp_path / "run" / "resume.pt").exists()


@pytest.mark.parametrize("verb", ["train", "evaluate"])
def test_a_truncated_picture_is_named(hmsa, trained, tmp_path, verb):
    from scenes import write_scenes

    path = write_scenes(tmp_path / "s", {"train": 1, "val": 1}, (64, 96))
    for split in ("train", "val"):
        file = tmp_path / "s" / split / "images" / "00000.png"
        file.write_bytes(file.read_bytes()[:3000])
    if verb == "train":
        recipe = tmp_path / "r.yaml"
        recipe.write_text(f"data: {{dataset: {path}}}")
        ran = hmsa("train", recipe, "--out", tmp_path / "run")
    else:
        ran = hmsa("evaluate", trained, path)
    assert ran.code == 2
    assert "00000.png cannot be decoded" in ran.err
    assert "Traceback" not in ran.err


def test_failures_are_one_line_and_exit_1(hmsa, recipe, tmp_path, monkeypatch):
    from hmsa.training import train as module

    def break_down(*_):
        raise RuntimeError("the disk is on fire")

    monkeypatch.setattr(module, "open_dataset", break_down)
    ran = hmsa("train", recipe, "--out", tmp_path / "run")
    assert ran.code == 1
    assert "the disk is on fire" in ran.err
    assert "Traceback" not in ran.err


def test_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "hmsa", "predict"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "no images given" in done.stderr


LOADING = ["-X", "importtime", "-m", "hmsa", "predict", "nowhere", "x.png", "-o", "out"]


@pytest.mark.skipif(sys.platform == "win32", reason="other signals")
@pytest.mark.parametrize("module", ["cyclopts", "numpy", "torch._utils", "torch.nn", "timm"])
def test_ctrl_c_while_libraries_load(module):
    """Inside C++ an exception aborts the process; elsewhere its traceback has many lines."""
    with subprocess.Popen(
        [sys.executable, *LOADING], stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:  # fmt: skip
        said = []
        for line in process.stderr:
            if not line.startswith("import time:"):
                said.append(line)
            elif line.split("|")[-1].strip() == module:
                process.send_signal(signal.SIGINT)
    assert (process.returncode, said) == (130, ["hmsa: stopped\n"])


QUIET = """
import contextlib, io, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
import hmsa.__main__
with contextlib.redirect_stderr(io.StringIO()):
    import stops
"""


def test_ctrl_c_where_stderr_is_redirected(tmp_path):
    """As while a network is exported, whose libraries say much."""
    (tmp_path / "stops.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)")
    words = [sys.executable, "-c", QUIET]
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(words, capture_output=True, env=os.environ | {"PYTHONPATH": path})
    assert (done.returncode, done.stderr) == (130, b"hmsa: stopped\n")


def test_a_folder_that_may_not_be_written_to(hmsa, trained, scenes):
    """Of a file system that refuses even root."""
    if not Path("/sys/kernel").is_dir():
        pytest.skip("no such file system here")
    for words in (
        ("predict", trained, scenes.parent / "val" / "images", "-o", "/sys/kernel/out"),
        ("convert", trained, "-o", "/sys/kernel/out"),
    ):
        ran = hmsa(*words)
        assert (ran.code, len(ran.err.splitlines())) == (2, 1), ran.err
        assert "/sys/kernel/out" in ran.err


@pytest.mark.parametrize("verb", ["predict", "autolabel", "train"])
def test_what_a_kill_left_is_swept_at_the_next_start(hmsa, trained, scenes, tmp_path, verb):
    out, images = tmp_path / "out", scenes.parent / "val" / "images"
    words = {
        "predict": (trained, images, "-o", out, "--save", "label", "--scales", "1"),
        "autolabel": (trained, images, "-o", out, "--scales", "1"),
        "train": (trained.parent / "recipe.yaml", "--out", out, "--resume"),
    }[verb]
    if verb == "train":
        shutil.copytree(trained, out)
    left = out / ("deep" if verb == "predict" else "") / ".hmsa-999999999-abc.part"
    left.parent.mkdir(parents=True, exist_ok=True)
    left.write_bytes(b"half")
    ran = hmsa(verb, *words)
    assert ran.code == 0, ran.err
    assert not list(out.rglob(".hmsa-*"))
