"""The tile index: exact, complete, and never stale."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from hmsa.data import fingerprint
from hmsa.data import sampling as tiles
from hmsa.data.datasets import open_dataset
from hmsa.data.sampling import centres, tile_index

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


def test_rows_by_class(path):
    index = tile_index(open_dataset(path, "train"), 32)
    image, class_, _, _, pixels = index.T
    assert image[class_ == 0].tolist() == [0] * 6 + [1]
    assert set(image[class_ == 2]) == {0}
    assert set(class_) == {0, 2}
    assert pixels.sum() == (LABEL != 255).sum() + (LABEL[:20, :20] != 255).sum()


def test_second_time_it_is_read(path, cache, built):
    dataset = open_dataset(path, "train")
    first = tile_index(dataset, 32)
    assert np.array_equal(first, tile_index(dataset, 32))
    assert len(built) == 1
    assert len(files(cache)) == 1


def files(cache):
    return [file for file in cache.rglob("*") if file.is_file()]


def draw(path, label):
    """Another label in as many bytes as before, and at the same time."""
    file = path.parent / "pictures" / "train" / "labels" / "a.png"
    about = file.stat()
    Image.fromarray(label).save(file)
    os.truncate(file, max(about.st_size, file.stat().st_size))
    os.utime(file, ns=(1, about.st_mtime_ns))
    fingerprint._hash.cache_clear()  # as in the next process


@pytest.mark.parametrize("change", ["nothing", "label", "table", "tile", "trust"])
def test_a_change_makes_it_anew(path, built, change):
    dataset = open_dataset(path, "train").trusting(0)
    tile_index(dataset, 32)
    if change in ("nothing", "label"):
        draw(path, LABEL if change == "nothing" else LABEL[:, ::-1])
    elif change == "table":
        path.write_text(path.read_text() + "ignore: [255, 77]\n")
    dataset = open_dataset(path, "train").trusting(0.5 if change == "trust" else 0)
    tile_index(dataset, 16 if change == "tile" else 32)
    assert len(built) == 2 - (change == "nothing")


@pytest.mark.parametrize("damage", ["half", "nothing", "text", "other"])
def test_a_damaged_file_is_made_anew(path, cache, built, damage):
    dataset = open_dataset(path, "train")
    whole = tile_index(dataset, 32)
    (file,) = files(cache)
    content = file.read_bytes()
    if damage == "half":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "nothing":
        file.write_bytes(b"")
    elif damage == "text":
        file.write_text("not a table")
    else:
        np.savez(file, image=[1])
    for _ in range(2):
        assert np.array_equal(tile_index(dataset, 32), whole)
        assert len(built) == 2, "and mended"


def test_flipped_bits_are_never_believed(path, cache):
    dataset = open_dataset(path, "train")
    whole = tile_index(dataset, 32)
    (file,) = files(cache)
    content = file.read_bytes()
    for place in range(0, len(content), 7):
        spoiled = bytearray(content)
        spoiled[place] ^= 16
        file.write_bytes(spoiled)
        assert np.array_equal(tile_index(dataset, 32), whole)


def test_a_build_that_is_killed_leaves_nothing(path, cache, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(tiles.np, "savez", killed)
    with pytest.raises(KeyboardInterrupt):
        tile_index(open_dataset(path, "train"), 32)
    assert not files(cache)


def test_a_cache_that_cannot_be_written_is_said(path, cache):
    cache.write_text("")
    with pytest.warns(UserWarning, match="anew every time"):
        assert len(tile_index(open_dataset(path, "train"), 32))


def test_progress_is_shown_only_for_work(path, capsys):
    for _ in range(2):
        tile_index(open_dataset(path, "train"), 32)
    assert capsys.readouterr().err.count("tiles of train 2/2") == 1
