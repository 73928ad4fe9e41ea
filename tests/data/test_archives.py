"""Archives of strangers: within limits, inside one folder, or refused in one line."""

from __future__ import annotations

import stat
import zipfile
from types import SimpleNamespace

import pytest

from hmsa.data import archives
from hmsa.data.archives import unpacked
from hmsa.runs import InputError


@pytest.fixture
def packed(tmp_path):
    """`packed({name: bytes}, mode)` -> a zip; mode: of each file, as Unix has it."""

    def make(files, mode=0o644 | stat.S_IFREG, **options):
        file = tmp_path / "in" / "x.zip"
        file.parent.mkdir(exist_ok=True)
        with zipfile.ZipFile(file, "w", **options) as archive:
            for name, content in files:
                about = zipfile.ZipInfo("x")
                about.filename, about.external_attr = name, mode << 16
                about.compress_type = archive.compression
                archive.writestr(about, content)
        return file

    return make


def unpack(file, tmp_path):
    (tmp_path / "out").mkdir()
    with unpacked(file, tmp_path / "out") as folder:
        return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.txt")}


def test_what_is_inside(packed, tmp_path):
    file = packed([("a.txt", b"1"), ("b\\c.txt", b"2"), ("__MACOSX/a.txt", b"3"), ("d/", b"")])
    assert unpack(file, tmp_path) == {"a.txt": b"1", "b/c.txt": b"2"}
    assert not [*(tmp_path / "out").iterdir()]


def test_a_folder_is_left_alone(tmp_path):
    with unpacked(tmp_path, tmp_path) as folder:
        assert folder == tmp_path


@pytest.mark.parametrize(
    "name", ["../evil.txt", "/evil.txt", "C:\\evil.txt", "a/..\\..\\evil.txt", "\\\\host\\evil"]
)
def test_nothing_leads_out(packed, tmp_path, name):
    with pytest.raises(InputError, match="evil.* leads out of the archive"):
        unpack(packed([("a.txt", b"1"), (name, b"x")]), tmp_path)
    assert not [*tmp_path.rglob("*evil*"), *(tmp_path / "out").iterdir()]


def test_a_link(packed, tmp_path):
    with pytest.raises(InputError, match="'a.txt' is a link; pack the file"):
        unpack(packed([("a.txt", b"/etc/passwd")], stat.S_IFLNK | 0o777), tmp_path)


def test_a_name_twice(packed, tmp_path):
    with pytest.warns(UserWarning, match="Duplicate"):
        file = packed([("p0.txt", b"1"), ("p0.txt", b"2")])
    with pytest.raises(InputError, match="holds 'p0.txt' twice"):
        unpack(file, tmp_path)


def test_bombs(packed, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "ALWAYS", 1 << 16)
    file = packed([("a.txt", bytes(1 << 22))], compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(InputError, match="would grow from .* to 4194304 bytes.* give the folder"):
        unpack(file, tmp_path)
    assert not [*(tmp_path / "out").iterdir()]


def test_a_bomb_that_lies_about_its_size(packed, tmp_path):
    file = packed([("a.txt", bytes(1 << 22))], compression=zipfile.ZIP_DEFLATED)
    size = (1 << 22).to_bytes(4, "little")
    file.write_bytes(file.read_bytes().replace(size, (10).to_bytes(4, "little")))
    with pytest.raises(InputError, match="x.zip cannot be unpacked"):
        unpack(file, tmp_path)


def test_too_many_files_and_too_little_disk(packed, tmp_path, monkeypatch):
    file = packed([("a.txt", b"1"), ("b.txt", b"2")])
    monkeypatch.setattr(archives, "MOST_FILES", 1)
    with pytest.raises(InputError, match="has 2 files, and at most 1 are taken"):
        unpack(file, tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda _: SimpleNamespace(free=1))
    (tmp_path / "out").rmdir()
    with pytest.raises(InputError, match="needs 2 bytes of disk, and 1 are free"):
        unpack(file, tmp_path)


def test_a_password(packed, tmp_path):
    file = packed([("a.txt", b"1")])
    content = bytearray(file.read_bytes())
    content[content.index(b"PK\1\2") + 8] |= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match="has a password; unpack it"):
        unpack(file, tmp_path)
