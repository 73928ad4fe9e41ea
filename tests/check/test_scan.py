"""A file is looked at once; what was seen stands until it changes."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from hmsa.check import scan as looking
from hmsa.check.check import plan
from hmsa.check.scan import File, Memory, look, scan

LABEL = np.array([[0, 1, 2, 255], [2, 2, 1, 0]], np.uint8)


def train(path) -> Path:
    return path.parent / "pictures" / "train"


@given(arrays(np.int64, (3, 7), elements=st.integers(-3, 2**24)))
def test_values_are_counted(raw):
    values, counts = np.unique(raw, return_counts=True)
    expected = dict(zip(values.tolist(), counts.tolist(), strict=True))
    found = looking._count(raw)
    assert found == expected
    assert list(found.values()) == sorted(found.values(), reverse=True)


@pytest.fixture
def looked(monkeypatch):
    """Names of the files that were really read."""
    names = []

    def counted(file: File):
        time.sleep(0.001)  # as a real picture would take
        names.append(file.path.name)
        return look(file)

    monkeypatch.setattr(looking, "look", counted)
    return names


def run(path, stop=None):
    found = plan(path)
    with Memory(found.root) as memory:
        run = scan(found.files(), memory)
        seen = [next(run) for _ in range(stop)] if stop else list(run)
        run.close()
    return {file.path: each for file, each in seen}


def test_a_second_run_reads_nothing_and_says_the_same(folder_dataset, looked):
    path = folder_dataset({"a": LABEL, "b": LABEL})
    first = run(path)
    assert sorted(looked) == ["a.jpg", "a.png", "b.jpg", "b.png"]
    assert run(path) == first
    assert len(looked) == 4


def test_a_changed_file_is_read_again(folder_dataset, looked):
    path = folder_dataset({"a": LABEL, "b": LABEL})
    run(path)
    looked.clear()
    Image.fromarray(LABEL[:, :3]).save(train(path) / "labels" / "a.png")
    seen = run(path)
    assert looked == ["a.png"]
    assert seen[train(path) / "labels" / "a.png"].size == (2, 3)


def test_another_encoding_is_another_look(folder_dataset, looked):
    run(folder_dataset({"a": LABEL}))
    looked.clear()
    run(folder_dataset({"a": LABEL}, encoding="rgb", ignore=[]))
    assert "a.png" in looked


def test_a_stopped_run_goes_on(folder_dataset, looked):
    path = folder_dataset({f"{i:03}": LABEL for i in range(200)})
    run(path, stop=100)
    begun = len(looked)
    assert 100 <= begun < 400  # those that had not been begun were called off
    looked.clear()
    assert len(run(path)) == 400
    assert len(looked) == 300


def test_a_home_that_cannot_be_written_costs_the_memory_only(
    folder_dataset, looked, tmp_path, monkeypatch
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    path = folder_dataset({"a": LABEL})
    assert run(path) == run(path)
    assert len(looked) == 4


def test_a_file_that_goes_away_meanwhile_stops_nothing(folder_dataset):
    path = folder_dataset({"a": LABEL})
    found = plan(path)
    (train(path) / "images" / "a.jpg").unlink()
    with Memory(found.root) as memory:
        seen = {file.path.name: each for file, each in scan(found.files(), memory)}
    assert "a.jpg cannot be decoded" in seen["a.jpg"].broken
    assert seen["a.png"].size == (2, 4)
