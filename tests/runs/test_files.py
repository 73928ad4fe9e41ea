"""Files that are there whole or not at all, and where they are kept."""

from __future__ import annotations

import pytest

from hmsa.runs.files import cache_folder, replace, sweep


def test_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fail(temporary):
        temporary.write_text("half")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        replace(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "hmsa"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "hmsa"


def test_only_what_was_left_of_the_paths_named_is_swept(tmp_path):
    for name in (".a.b.png.x1_y2z34", ".c.png.12345678", ".a.b.png", "a.b.png"):
        (tmp_path / name).touch()
    sweep([tmp_path / "a.b.png", tmp_path / "none" / "c.png"])
    assert {p.name for p in tmp_path.iterdir()} == {".c.png.12345678", ".a.b.png", "a.b.png"}
