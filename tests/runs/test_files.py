"""Files that are there whole or not at all, and where they are kept."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest
import torch
from torch.nn.functional import pad

from hmsa.runs import CannotWrite
from hmsa.runs.files import UNFINISHED, cache_folder, replace, sweep


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


@pytest.mark.parametrize(
    ("content", "stored"),
    [(b"\xff", b"\xff"), ("ü\n", "ü\n".encode()), ("a\udcff", b"a\\udcff")],
)
def test_bytes_and_text(tmp_path, content, stored):
    replace(tmp_path / "deep" / "file", content)
    assert (tmp_path / "deep" / "file").read_bytes() == stored


def test_long_names(tmp_path):
    """As long as file systems allow, so that no temporary name can be longer."""
    replace(tmp_path / ("ü" * 127), b"1")
    assert [len(os.fsencode(path.name)) for path in tmp_path.iterdir()] == [254]


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "hmsa"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "hmsa"


WRITE = """
import sys
from pathlib import Path
from hmsa.runs import replace
def write(file):
    file.write_text("half")
    print("writing", flush=True)
    sys.stdin.read()
replace(Path(sys.argv[1]), write)
"""


def test_what_killed_processes_left_is_swept(tmp_path):
    """And not what others are writing now, nor what only looks like it."""
    path = tmp_path / "deep" / "file"
    command = [sys.executable, "-c", WRITE, path]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as writer:
        assert writer.stdout.readline() == b"writing\n"
        (left,) = path.parent.iterdir()
        (tmp_path / ".hidden").touch()
        sweep(tmp_path)
        assert left.exists()
        writer.kill()
        writer.wait()
        sweep(tmp_path)
    assert {each.name for each in tmp_path.rglob("*")} == {"deep", ".hidden"}


def test_an_earlier_process_had_the_same_number(tmp_path):
    left = tmp_path / f"{UNFINISHED}{os.getpid()}-abc"
    left.touch()
    sweep(tmp_path)
    assert left.exists()
    os.utime(left, (1e9, 1e9))
    sweep(tmp_path)
    assert not left.exists()


class TestFullDisk:
    """The kernel refuses to make a file larger than a limit, as it does where a disk is full."""

    @pytest.fixture(autouse=True)
    def limit(self):
        resource = pytest.importorskip("resource", reason="no limits on files here")
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
        yield
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    @pytest.mark.parametrize(
        "content",
        [
            bytes(2 << 20),
            lambda file: torch.save(pad(torch.rand(9), (0, 1 << 20)), file),  # no OSError
        ],
    )
    def test_it_is_said_and_what_was_there_stays(self, tmp_path, content):
        replace(tmp_path / "file", b"old")
        with pytest.raises(CannotWrite, match=r"into .* \(File too large, file needs more than"):
            replace(tmp_path / "file", content)
        assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def test_room_that_is_left_and_needed(tmp_path):
    (tmp_path / "file").write_bytes(bytes(3_000_000))

    def fail(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(CannotWrite, match=r"MB are left, file needs more than 3.0 MB\); mend that"):
        replace(tmp_path / "file", fail)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(CannotWrite, match=r"cannot write into .*out \(File exists\)"):
        replace(tmp_path / "out" / "file", b"1")
    with pytest.raises(CannotWrite, match=r"cannot write into .*deep \(Not a directory\)"):
        replace(tmp_path / "out" / "deep" / "file", b"1")
