"""A run folder: what counts as done, which settings are refused, who may write; real kills."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

import pytest

from hmsa.runs import InputError, Run, stamp
from hmsa.runs.folder import difference, read_records

SETTINGS = {"checkpoint": "abc", "scales": [0.5, 1.0], "flip": False, "gate": {"share": 0.2}}


@pytest.fixture
def folder(tmp_path):
    """A folder in which the work `predict` has done `a`."""
    with Run(tmp_path / "out", "predict", SETTINGS) as run:
        assert run.records == {}
        run.add("a", [1, "x"])
    return tmp_path / "out"


def records(folder, **more):
    with Run(folder, "predict", SETTINGS, **more) as run:
        return dict(run.records)


def test_what_is_done_stays_done(folder):
    assert records(folder) == {"a": [1, "x"]} == read_records(folder, "predict")
    assert read_records(folder, "train") == {}
    assert json.loads((folder / "predict.json").read_text()) == SETTINGS


def test_the_last_record_of_a_key_counts(folder):
    with Run(folder, "predict", SETTINGS) as run:
        run.add("a", {"scale": 2})
        run.add("\udcff ü\n", None)  # a file name that is no UTF-8
        assert run.records["a"] == {"scale": 2}
    assert records(folder) == {"a": {"scale": 2}, "\udcff ü\n": None}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"scales": [1.0]}, "scales 0.5,1.0 -> 1.0"),
        ({"flip": True}, "flip False -> True"),
        ({"checkpoint": "d" * 64}, "checkpoint abc -> dddddddd;"),
        ({"gate": {"share": 0.4}}, "gate.share 0.2 -> 0.4"),
        ({"tile": 512}, "tile None -> 512"),
    ],
)
def test_other_settings_are_refused(folder, change, says):
    with pytest.raises(InputError, match=r"predict.json: begun with other.*--overwrite") as error:
        Run(folder, "predict", SETTINGS | change)
    assert says in str(error.value)
    with pytest.raises(InputError, match="; give another -o"):
        Run(folder, "predict", SETTINGS | change, mend="give another -o")
    assert records(folder), "and nothing is changed, nor is the folder still locked"


def test_missing_and_none_are_the_same_setting():
    assert difference({"a": None}, {"b": None}) is None
    assert difference({"a": {"b": 1}}, {"a": {"b": 1, "c": (2, 3)}}) == "a.c None -> 2,3"


def test_overwrite_begins_again(folder):
    assert records(folder, overwrite=True) == {}
    assert records(folder) == {}, "for the run after that, too"


@pytest.mark.parametrize("text", ["", "[]", "3", '{"settings":', "\0\0\0"])
def test_damaged_settings_are_refused(folder, text):
    (folder / "predict.json").write_text(text)
    with pytest.raises(InputError, match=r"predict.json is damaged; .*--overwrite"):
        Run(folder, "predict", SETTINGS)
    assert records(folder, overwrite=True) == {}


def test_a_list_without_settings_is_not_trusted(folder):
    (folder / "predict.json").unlink()
    assert records(folder) == {}


@pytest.mark.parametrize("torn", ['["b", "/somewh', '["b"]', "\0\0", "5", '[["b"], 1]'])
def test_a_torn_line_loses_only_itself(folder, torn):
    with (folder / "predict.jsonl").open("a") as lines:
        lines.write(torn)
    with Run(folder, "predict", SETTINGS) as run:
        assert run.records == {"a": [1, "x"]}
        run.add("c")
    assert records(folder) == {"a": [1, "x"], "c": None}


def test_from_many_threads(folder):
    def work(run, number):
        for i in range(50):
            run.add(f"{number}-{i}", "x" * 500 * number)

    with Run(folder, "predict", SETTINGS) as run:
        threads = [threading.Thread(target=work, args=(run, n)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(run.records) == 401
    assert len(records(folder)) == 401
    closing = threading.Thread(target=(run := Run(folder, "predict", SETTINGS)).close)
    closing.start()
    closing.join()
    run.close()
    assert records(folder), "whichever thread closes it, the lock is free"


def test_two_verbs_in_one_folder(folder):
    """Both would write confidence/NAME.png, say."""
    with pytest.raises(InputError, match="out holds results of hmsa predict, which might be over"):
        Run(folder, "autolabel", {"scales": [2]}, overwrite=True)
    assert records(folder) == {"a": [1, "x"]}
    assert not (folder / "autolabel.json").exists()
    (folder / "metadata.jsonl").write_text("of somebody else")
    with Run(folder, "predict", SETTINGS), pytest.raises(InputError, match="another process is"):
        Run(folder, "predict", SETTINGS, overwrite=True)


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(InputError, match=r"cannot write into .*out \(File exists\)"):
        Run(tmp_path / "out", "predict", SETTINGS)


@pytest.mark.skipif(sys.platform == "win32", reason="other rights")
@pytest.mark.parametrize("name", ["predict.jsonl", ".predict.lock", "."])
def test_a_folder_that_may_not_be_written_to(folder, name):
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    (folder / name).chmod(0o500)
    with pytest.raises(InputError, match=r"cannot write into .*out \(Permission denied\)"):
        Run(folder, "predict", SETTINGS, overwrite=name == ".")
    (folder / name).chmod(0o700)
    assert records(folder)


def test_a_full_disk(folder):
    """The kernel writes as much of a file as there is room for, then refuses, as a full disk."""
    resource = pytest.importorskip("resource", reason="no limits on files here")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def add(room):
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
        try:
            with Run(folder, "predict", SETTINGS) as run:
                run.add("b", "more than nine bytes")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    with pytest.raises(InputError, match=r"cannot write into .*out \(File too large\)"):
        add((folder / "predict.jsonl").stat().st_size + 9)
    assert records(folder) == {"a": [1, "x"]}
    add(10000)
    assert set(records(folder)) == {"a", "b"}


def test_other_errors_pass_through(folder):
    with pytest.raises(FileNotFoundError), Run(folder, "predict", SETTINGS):
        raise FileNotFoundError(2, "No such file", "elsewhere")
    assert records(folder)


def test_stamp_changes_with_the_file(tmp_path):
    file = tmp_path / "a.png"
    assert stamp(file) is None
    file.write_text("image")
    first = stamp(file)
    assert first == json.loads(json.dumps(first))
    assert first == stamp(tmp_path / "x" / ".." / "a.png") or not (tmp_path / "x").exists()
    file.write_text("another image")
    assert stamp(file) != first
    (tmp_path / "b.png").write_text("image")
    assert stamp(tmp_path / "b.png") != first


HOLD = """
import os, sys, time
from pathlib import Path
from hmsa.runs import Run
with Run(Path(sys.argv[1]), "predict", {}) as run:
    if len(sys.argv) > 2:
        os.fork()
    os.write(1, b"locked\\n")
    time.sleep(600)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
@pytest.mark.parametrize("fork", [False, True])
def test_a_second_process_waits_for_the_first_to_end(tmp_path, fork):
    """Also where the first has left a child behind, such as a process that loads images."""
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path, *["fork"] * fork], stdout=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    try:
        for _ in range(1 + fork):
            assert first.stdout.readline() == b"locked\n"
        with pytest.raises(InputError, match="another process is writing") as error:
            Run(tmp_path, "predict", {}, overwrite=True)
        assert "\n" not in str(error.value)
        first.kill()
        first.wait()
        Run(tmp_path, "predict", {}).close()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(first.pid, signal.SIGKILL)
        first.communicate()


WORK = """
import sys
from pathlib import Path
from hmsa.runs import Run, replace
folder, count = Path(sys.argv[1]), int(sys.argv[2])
names = [f"{i:03}" for i in range(count)]
with Run(folder, "work", {"count": count}) as run:
    todo = [name for name in names if name not in run.records]
    for name in todo:
        replace(folder / f"{name}.txt", lambda file: file.write_text(name * 20000))
        run.add(name, {"size": 60000, "more": "x" * 3000})
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_killed_at_any_moment(tmp_path):
    """Real processes and real SIGKILLs until all is done: each piece once, each file complete."""
    count, pause, kills = 300, random.Random(0), 0
    command = [sys.executable, "-c", WORK, tmp_path, str(count)]
    while True:
        process = subprocess.Popen(command)
        before, until = len(read_records(tmp_path, "work")), time.monotonic() + 120
        while process.poll() is None and kills < 8:
            assert time.monotonic() < until
            if len(read_records(tmp_path, "work")) > before + 10:
                time.sleep(pause.uniform(0, 0.01))
                process.kill()
        killed = process.wait() == -signal.SIGKILL
        kills += killed
        done = read_records(tmp_path, "work")
        assert list(done) == [f"{i:03}" for i in range(len(done))]
        for name in done:
            assert (tmp_path / f"{name}.txt").read_text() == name * 20000
        assert json.loads((tmp_path / "work.json").read_text()) == {"count": count}
        if not killed:
            break
    assert process.returncode == 0
    assert kills >= 2
    assert len(done) == count
    lines = [json.loads(x)[0] for x in (tmp_path / "work.jsonl").read_text().splitlines() if ok(x)]
    assert lines == list(done), "none done twice"
    files = {path.name for path in tmp_path.iterdir()}
    results = {f"{name}.txt" for name in done}
    assert files == {"work.json", "work.jsonl", ".work.lock"} | results


def ok(line):
    return line.endswith("]")
