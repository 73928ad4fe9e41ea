"""`hmsa data preview`: what the network will see, before anything is trained."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from hmsa.data.datasets import open_dataset
from hmsa.report import pictures


@pytest.fixture
def drawn(monkeypatch):
    """The captions and cells of the sheet."""
    sheets = []
    panel = pictures.panel
    monkeypatch.setattr(pictures, "panel", lambda rows: (sheets.append(rows), panel(rows))[1])
    return sheets


def test_sheet_shows_the_first_samples_of_the_recipe(scenes, recipe, hmsa, tmp_path, drawn):
    sheet = tmp_path / "made" / "sheet.png"
    ran = hmsa("data", "preview", scenes, "--recipe", recipe, "--count", 5, "-o", sheet)
    assert ran == (0, f"{sheet}\n", "")
    with Image.open(sheet) as image:
        assert image.format == "PNG"
    (rows,) = drawn
    assert [len(row) for row in rows] == [4, 4, 2]
    cells = [cell for row in rows for cell in row]
    assert {crop.shape for _, crop in cells} == {(64, 64, 3)}, "the recipe's crop"
    assert len({name for name, _ in cells[::2]}) == 5, "each another image"
    assert all(text == "plain" for text, _ in cells[1::2])
    assert any((crop != tinted).any() for (_, crop), (_, tinted) in
               zip(cells[::2], cells[1::2], strict=True))  # fmt: skip


def test_sheet_says_what_a_crop_is_for(scenes, hmsa, tmp_path, drawn, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    changes = ("sampling.class_uniform=0.5", "sampling.extra=[{split: val, share: 1.0}]")
    changes = [part for change in changes for part in ("--set", change)]
    ran = hmsa("data", "preview", scenes, *changes, "--count", 14, "-o", tmp_path / "s.png")
    assert ran.code == 0, ran.err
    names = [text for row in drawn[0] for text, _ in row]
    assert {text for text in names[1::2] if text.startswith("around ")} == {
        f"around {name}" for name in open_dataset(scenes, "train").labels.names
    }
    assert names[1::2].count("plain") == 7
    assert all(("(val)" in name) == (why == "plain") for name, why in
               zip(names[::2], names[1::2], strict=True))  # fmt: skip


def test_ignored_pixels_stay_as_they_are(folder_dataset, hmsa, tmp_path, drawn):
    path = folder_dataset({"a": np.full((40, 60), 255, np.uint8)})
    ran = hmsa("data", "preview", path, "--count", 1, "-o", tmp_path / "s.png",
               "--set", "joint.crop=[32, 32]")  # fmt: skip
    assert ran.code == 0, ran.err
    ((_, crop), (_, tinted)) = drawn[0][0]
    assert np.array_equal(crop, tinted)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--set", "data.train=trian"), "did you mean train"),
        (("--set", "sampling.class_unifrm=1"), "did you mean 'class_uniform'"),
        (("--set", "sampling.extra=[{split: val, boost: [post]}]"), "set class_uniform"),
        (("--count", "0"), "Must be >= 1"),
    ],
)
def test_mistakes(scenes, hmsa, tmp_path, options, says):
    ran = hmsa("data", "preview", scenes, *options, "-o", tmp_path / "s.png")
    assert ran.code == 2
    assert says in ran.err
    assert not (tmp_path / "s.png").exists()
