"""Shared pieces: tiny pictures, tiny networks, a command line in this process."""

from __future__ import annotations

import copy
import json
import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import yaml
from hypothesis import settings
from PIL import Image
from scenes import write_scenes

from hmsa import __main__ as cli
from hmsa.check.check import check
from hmsa.model import HMSA
from samples import LAYOUTS, SHARED, TINY_RECIPE

# A busy machine is slow, not wrong: no example fails for its time
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


class Ran(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def hmsa(capsys):
    """`hmsa("evaluate", path)` -> exit code, stdout, stderr."""

    def run(*arguments: object) -> Ran:
        try:
            code = cli.run([str(a) for a in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
        return Ran(code, *capsys.readouterr())

    return run


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """No test reads or writes the cache folder of whoever runs it."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture(scope="session", autouse=True)
def backends():
    """`auto` takes torch, but where a test asks for another backend by name: exports take time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hmsa.inference.backends._candidates", _named)
        yield


def _named(wanted, *_):
    return [] if wanted in ("auto", "torch") else [wanted]


@pytest.fixture
def grown():
    """`with grown() as more: ..`, then `more()`: MiB by which the peak of memory grew inside."""
    if sys.platform != "linux":
        pytest.skip("peaks of memory are asked of the kernel of Linux")

    def peak() -> int:
        told = Path("/proc/self/status").read_text().split()
        return int(told[told.index("VmHWM:") + 1]) >> 10

    @contextmanager
    def measured():
        Path("/proc/self/clear_refs").write_text("5")  # the peak is what there is now
        before = peak()
        after: list[int] = []
        yield lambda: after[0] - before
        after.append(peak())

    return measured


@pytest.fixture(scope="session", autouse=True)
def freed_memory():
    """Verbs that train have glibc keep freed memory, which would add up over all tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hmsa.runs.machine.keep_memory", lambda: None)
        yield


@pytest.fixture(scope="session")
def camvid() -> Path:
    folder = SHARED / "camvid"
    if not folder.is_dir():
        pytest.skip(f"CamVid is not at {folder}; it may not be committed")
    return folder


@pytest.fixture(scope="session")
def scenes(tmp_path_factory) -> Path:
    """dataset.yaml of a few small generated scenes."""
    folder = tmp_path_factory.mktemp("scenes")
    return write_scenes(folder, {"train": 6, "val": 3}, (64, 96))


@pytest.fixture
def folder_dataset(tmp_path):
    """Make a dataset on disk from arrays: `(labels, **changes to its YAML) -> dataset.yaml`."""

    def make(labels: dict[str, Image.Image | np.ndarray], **changes: object) -> Path:
        root = tmp_path / "pictures"
        for kind in ("images", "labels"):
            (root / "train" / kind).mkdir(parents=True, exist_ok=True)
        for name, label in labels.items():
            picture = Image.fromarray(label) if isinstance(label, np.ndarray) else label
            picture.save(root / "train" / "labels" / f"{name}.png")
            Image.new("RGB", picture.size, (90, 120, 150)).save(
                root / "train" / "images" / f"{name}.jpg"
            )
        content = {
            "path": "pictures",
            "splits": {"train": "train"},
            "names": ["land", "water", "road"],
            "palette": [[10, 20, 30], [0, 0, 200], [99, 99, 99]],
        } | changes
        file = tmp_path / "dataset.yaml"
        file.write_text(yaml.safe_dump(content))
        return file

    return make


@pytest.fixture
def layout(tmp_path):
    """Make a small release: `(name, label values, size) -> its folder`; values repeat."""

    def make(name: str, values: list[int], size: tuple[int, int] = (4, 6)) -> Path:
        root = tmp_path / {"ade20k": "ADEChallengeData2016", "camvid": "CamVid"}.get(name, name)
        rng = np.random.default_rng(0)
        for places, image, labels, others in LAYOUTS[name]:
            for place in places.split():
                files = [
                    [root / file.format(place) for file in kind.split()]
                    for kind in (image, labels, others)
                ]
                for file in (file for kind in files for file in kind):
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_text("neither image nor label")
                    if file.stem.endswith("_instanceIds"):
                        ids = np.resize(np.array(values, np.uint16), size) * 1000 + 1
                        Image.fromarray(ids).save(file)
                Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(files[0][0])
                for file in files[1]:
                    picture = Image.fromarray(np.resize(np.array(values, np.uint8), size))
                    if "mapillary" in name:
                        picture.putpalette(bytes(range(256)) * 3)
                    picture.save(file)
        return root

    return make


@pytest.fixture
def tiny(_tiny) -> HMSA:
    """An untrained network whose batch norms have seen something; nobody else's."""
    return copy.deepcopy(_tiny)


@pytest.fixture(scope="session")
def _tiny() -> HMSA:
    torch.manual_seed(0)
    model = HMSA(4, "hrnet_w18_small", width=8)
    model.train()
    with torch.no_grad():
        model(torch.rand(2, 3, 64, 64), (0.5, 1.0))
    return model.eval()


@pytest.fixture
def recipe(tmp_path, scenes) -> Path:
    """A recipe that trains a tiny network on tiny scenes in seconds."""
    file = tmp_path / "recipe.yaml"
    content = TINY_RECIPE | {"data": {"dataset": os.fspath(scenes)}}
    file.write_text(yaml.safe_dump(content))
    return file


@pytest.fixture(scope="session")
def trained(tmp_path_factory, scenes) -> Path:
    """A run folder that `hmsa train` made."""
    folder = tmp_path_factory.mktemp("trained")
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(TINY_RECIPE | {"data": {"dataset": os.fspath(scenes)}}))
    assert cli.run(["train", str(file), "--out", str(folder / "run")]) == 0
    return folder / "run"


@pytest.fixture
def checked():
    """`checked(dataset.yaml, *splits)` -> all findings; their summary is JSON."""

    def run(path, *splits):
        found = check(path, splits)
        json.dumps(found.summary(), allow_nan=False)
        return found

    return run
