"""A file is decoded once; its facts stand until it changes."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from hmsa.check import scan as module
from hmsa.check.check import check
from hmsa.data.labels import LabelSet

LABEL = np.array([[0, 1, 2, 255], [2, 2, 1, 0]], np.uint8)


def train(path) -> Path:
    return path.parent / "pictures" / "train"


@given(arrays(np.int64, (3, 7), elements=st.integers(0, 65535)))
def test_values_are_counted(tmp_path_factory, raw):
    file = tmp_path_factory.mktemp("label") / "a.png"
    Image.fromarray(raw.astype(np.uint16)).save(file)
    values, counts = np.unique(raw, return_counts=True)
    found = module.scan_file(file, LabelSet(("one",), ((0, 0, 0),), (1,))).values
    assert found == dict(zip(values.tolist(), counts.tolist(), strict=True))
    assert list(found.values()) == sorted(found.values(), reverse=True)


@pytest.fixture
def decoded(monkeypatch):
    """Names of the files that were really read."""
    names, scan_file = [], module.scan_file

    def counted(path, labels=None):
        names.append(path.name)
        return scan_file(path, labels)

    monkeypatch.setattr(module, "scan_file", counted)
    return names


def run(path):
    return check(path).scans


def test_a_second_run_reads_nothing_and_says_the_same(folder_dataset, decoded):
    path = folder_dataset({"a": LABEL, "b": LABEL})
    first = run(path)
    assert sorted(decoded) == ["a.jpg", "a.png", "b.jpg", "b.png"]
    assert run(path) == first
    assert len(decoded) == 4


def test_a_changed_file_is_read_again(folder_dataset, decoded):
    path = folder_dataset({"a": LABEL, "b": LABEL})
    run(path)
    decoded.clear()
    Image.fromarray(LABEL[:, :3]).save(train(path) / "labels" / "a.png")
    scans = run(path)
    assert decoded == ["a.png"]
    assert scans[train(path) / "labels" / "a.png"].size == "3x2"


def test_another_encoding_is_another_scan(folder_dataset, decoded):
    run(folder_dataset({"a": LABEL}))
    decoded.clear()
    run(folder_dataset({"a": LABEL}, encoding="rgb", ignore=[]))
    assert "a.png" in decoded


def test_what_nodata_means_is_not_remembered(folder_dataset, checked):
    """0 is the file's nodata, and ignored, until the description makes it a class."""
    rasterio = pytest.importorskip("rasterio")
    path = folder_dataset({"a": LABEL})
    file = train(path) / "labels" / "a.tif"
    about = {
        "transform": rasterio.Affine(1, 0, 9, 0, -1, 9),
        "width": 4,
        "height": 2,
        "count": 1,
        "dtype": "uint8",
        "nodata": 0,
    }
    with rasterio.open(file, "w", driver="GTiff", **about) as raster:
        raster.write(LABEL, 1)
    file.with_suffix(".png").unlink()
    for names, pixels in (({1: "water", 2: "road"}, 3), ({0: "land", 1: "water", 2: "road"}, 1)):
        path.write_text(yaml.safe_dump({"path": "pictures", "splits": {"train": "train"},
                                        "names": names}))  # fmt: skip
        assert checked(path).summary()["void"]["train"]["pixels"] == pixels


def test_a_stopped_run_goes_on(folder_dataset, decoded, monkeypatch):
    path = folder_dataset({f"{i:03}": LABEL for i in range(100)})
    counted, go_on = module.scan_file, threading.Event()
    ends = itertools.count(1)

    def scan_file(path, labels):
        if int(path.stem) >= 60:  # none of the first 51 results, whichever thread runs when
            assert go_on.wait(60)
        return counted(path, labels)

    def stop(progress):
        if next(ends) == 51:
            go_on.set()
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, "scan_file", scan_file)
        patched.setattr(module.Progress, "advance", stop)
        with pytest.raises(KeyboardInterrupt):
            run(path)
    begun = len(decoded)
    assert 50 < begun < 200  # files that had not been begun were called off
    decoded.clear()
    assert len(run(path)) == 200
    assert len(decoded) == 200 - begun


def test_a_killed_run_goes_on(folder_dataset, decoded, cache):
    path = folder_dataset({"a": LABEL, "b": LABEL})
    first = run(path)
    (done,) = cache.rglob("scan.jsonl")
    done.write_bytes(done.read_bytes()[:-9])  # killed in the middle of writing a line
    decoded.clear()
    assert run(path) == first
    assert len(decoded) == 1


def test_a_cache_that_cannot_be_used_costs_the_memory_only(
    folder_dataset, decoded, tmp_path, monkeypatch
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    path = folder_dataset({"a": LABEL})
    assert run(path) == run(path)
    assert len(decoded) == 4


def test_a_file_that_goes_away_meanwhile_stops_nothing(folder_dataset):
    path = folder_dataset({"a": LABEL})
    image, label = train(path) / "images" / "a.jpg", train(path) / "labels" / "a.png"
    image.unlink()
    scans = module.scan(path.parent, {image: None, label: LabelSet(("one",), ((0, 0, 0),), (1,))})
    assert "a.jpg cannot be decoded" in scans[image].broken
    assert scans[label].size == "4x2"
