"""The tile index: exact, complete, and never stale."""

from __future__ import annotations

import os
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hmsa.data import tiles
from hmsa.data.datasets import open_dataset
from hmsa.data.tiles import centres, tile_index

LABEL = np.zeros((50, 70), np.uint8)
LABEL[40:, 60:] = 2  # in the remainder tiles at the bottom only, for tiles of 32
LABEL[:10, :10] = 255


def plainly(label, tile):
    """What the index must hold, with one mask for each class of each tile."""
    found = []
    for top in range(0, label.shape[0], tile):
        for left in range(0, label.shape[1], tile):
            part = label[top : top + tile, left : left + tile]
            for class_ in set(part.ravel().tolist()) - {255}:
                y, x = np.nonzero(part == class_)
                found.append((class_, left + x.sum() // len(x), top + y.sum() // len(y), len(x)))
    return sorted(found)


@given(
    arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40)),
           elements=st.sampled_from([0, 1, 7, 253, 255])),
    st.integers(1, 50),
)  # fmt: skip
def test_centres_are_exact(label, tile):
    assert sorted(map(tuple, centres(label, tile).tolist())) == plainly(label, tile)


def test_no_pixel_is_lost_to_a_remainder():
    assert centres(LABEL, 32)[:, 3].sum() == (LABEL != 255).sum()
    assert [2, 66, 44, 60] in centres(LABEL, 32).tolist()


def test_a_tile_of_4096_pixels_does_not_overflow():
    assert centres(np.zeros((4096, 4096), np.uint8), 4096).tolist() == [[0, 2047, 2047, 4096**2]]


@pytest.fixture
def path(folder_dataset):
    return folder_dataset({"a": LABEL, "b": LABEL[:20, :20]})  # b is smaller than a tile


@pytest.fixture
def built(monkeypatch):
    """How often an index was made."""
    count = []
    build = tiles._build
    monkeypatch.setattr(tiles, "_build", lambda *a: (count.append(1), build(*a))[1])
    return count


def same(first, second):
    pairs = zip(vars(first).values(), vars(second).values(), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


def test_rows_by_class(path):
    index = tile_index(open_dataset(path, "train"), 32, None)
    assert len(index.of(1)) == 0, "a class that is nowhere has no rows"
    assert index.image[index.of(0)].tolist() == [0] * 6 + [1]
    assert index.image[index.of(2)].tolist() == [0] * len(index.of(2))
    assert index.pixels.sum() == (LABEL != 255).sum() + (LABEL[:20, :20] != 255).sum()
    assert same(index.only({2}), index.only([2, 1]))
    assert set(index.only({2}).class_) == {2}


def test_second_time_it_is_read(path, tmp_path, built):
    dataset = open_dataset(path, "train")
    first = tile_index(dataset, 32, tmp_path / "cache")
    assert same(first, tile_index(dataset, 32, tmp_path / "cache"))
    assert len(built) == 1
    assert len(list((tmp_path / "cache").iterdir())) == 1


def touch(path):
    file = path.parent / "pictures" / "train" / "labels" / "a.png"
    os.utime(file, ns=(1, file.stat().st_mtime_ns + 1))


@pytest.mark.parametrize("change", ["touch", "table", "tile", "trust"])
def test_a_change_makes_it_anew(path, tmp_path, built, change):
    dataset = open_dataset(path, "train")
    tile_index(dataset, 32, tmp_path / "cache")
    if change == "touch":
        touch(path)
    elif change == "table":
        path.write_text(path.read_text() + "ignore: [255, 77]\n")
    dataset = open_dataset(path, "train").trusting(0.5 if change == "trust" else 0)
    tile_index(dataset, 16 if change == "tile" else 32, tmp_path / "cache")
    assert len(built) == 1 + (change != "trust" or dataset.lowest != ())


@pytest.mark.parametrize("damage", ["half", "nothing", "text", "other"])
def test_a_damaged_file_is_made_anew(path, tmp_path, built, damage):
    dataset, cache = open_dataset(path, "train"), tmp_path / "cache"
    whole = tile_index(dataset, 32, cache)
    (file,) = cache.iterdir()
    content = file.read_bytes()
    if damage == "half":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "nothing":
        file.write_bytes(b"")
    elif damage == "text":
        file.write_text("not a table")
    else:
        tiles.pq.write_table(tiles.pa.table({"image": [1]}), file)
    assert same(tile_index(dataset, 32, cache), whole)
    assert len(built) == 2
    assert same(tile_index(dataset, 32, cache), whole)
    assert len(built) == 2, "and mended"


def test_flipped_bits_are_never_believed(path, tmp_path):
    dataset, cache = open_dataset(path, "train"), tmp_path / "cache"
    whole = tile_index(dataset, 32, cache)
    (file,) = cache.iterdir()
    content = file.read_bytes()
    for place in range(0, len(content), 29):
        spoiled = bytearray(content)
        spoiled[place] ^= 16
        file.write_bytes(spoiled)
        assert same(tile_index(dataset, 32, cache), whole)


def test_a_build_that_is_killed_leaves_nothing(path, tmp_path, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(tiles.pq, "write_table", killed)
    with pytest.raises(KeyboardInterrupt):
        tile_index(open_dataset(path, "train"), 32, tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_a_cache_that_cannot_be_written_is_said(path, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="anew every time"):
        index = tile_index(open_dataset(path, "train"), 32, tmp_path / "file" / "cache")
    assert len(index.image)


def test_progress_is_shown_only_for_work(path, tmp_path):
    seen = []

    class Meter:
        def advance(self):
            seen.append("+")

    @contextmanager
    def progress(what, total):
        seen.append((what, total))
        yield Meter()

    for _ in range(2):
        tile_index(open_dataset(path, "train"), 32, tmp_path, progress)
    assert seen == [("tiles of train", 2), "+", "+"]
