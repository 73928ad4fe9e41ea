"""Several processes on one list: each item once, also when they are killed, for real."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from hmsa.labelling.workers import share
from hmsa.runs.errors import InputError

ITEMS = list(range(40))


def start(folder: Path, index: int):
    """A function that notes who did what, and dies where there is a file that says so."""

    def do(item: int) -> tuple[int, int]:
        (folder / f"{item}-{os.getpid()}").touch()
        time.sleep(0.002)
        if (folder / f"kill {item}").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        if (folder / f"refuse {item}").exists():
            raise InputError(f"not {item}")
        if (folder / f"break {item}").exists():
            raise ZeroDivisionError("no")
        return index, item * item

    if (folder / f"worker {index}").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    return do


@pytest.fixture
def run(tmp_path):
    """`run(*files)` -> what came of all items; `files` are made first, `start` says for what."""
    with (tmp_path / "lock").open("w") as lock:

        def run(*files, count=2):
            for name in files:
                (tmp_path / name).touch()
            return list(share(partial(start, tmp_path), ITEMS, count, lock.fileno()))

        yield run


def begun(folder) -> Counter[int]:
    return Counter(int(f.name.split("-")[0]) for f in folder.glob("*-*"))


def test_each_item_once_by_all_workers(run, tmp_path):
    found = run(count=3)
    assert sorted(item for item, _ in found) == ITEMS
    assert all(result == item * item for item, (_, result) in found)
    assert {index for _, (index, _) in found} == {0, 1, 2}
    assert set(begun(tmp_path).values()) == {1}


def test_what_a_killed_worker_had_is_done_by_the_other(run, tmp_path, capsys):
    # The one that meets item 7 first dies, whoever that is
    found = list(share(partial(dies_once, tmp_path), ITEMS, 2, 0))
    assert sorted(item for item, _ in found) == ITEMS
    times = begun(tmp_path)
    assert times.pop(7) == 2
    assert set(times.values()) == {1}
    assert "died (SIGKILL)" in capsys.readouterr().err


def dies_once(folder: Path, index: int):
    do = start(folder, index)

    def careful(item: int) -> tuple[int, int]:
        if item == 7 and not list(folder.glob("7-*")):
            (folder / "kill 7").touch()
        elif item == 7:
            (folder / "kill 7").unlink()
        return do(item)

    return careful


def test_an_item_that_kills_is_left_and_told(run, tmp_path):
    with pytest.raises(RuntimeError, match="2 of 3 workers died, 1 picture.* such as 7; the same"):
        run("kill 7", count=3)
    assert begun(tmp_path) == Counter(ITEMS) + Counter([7])


def test_all_dead(run, tmp_path):
    with pytest.raises(RuntimeError, match="2 of 2 workers died, 40 picture"):
        run("worker 0", "worker 1")
    assert not begun(tmp_path)


def test_one_dead_before_its_first_item(run):
    assert sorted(item for item, _ in run("worker 0")) == ITEMS


@pytest.mark.parametrize(
    ("file", "error", "says"),
    [("refuse 5", InputError, "not 5"), ("break 5", RuntimeError, "ZeroDivisionError: no")],
)
def test_what_a_worker_raises_ends_it_all(run, tmp_path, file, error, says):
    with pytest.raises(error, match=says):
        run(file)
    before = begun(tmp_path)
    time.sleep(0.1)
    assert begun(tmp_path) == before
