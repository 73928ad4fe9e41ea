"""The pipeline: order, overlap, bounds, and what it does with errors."""

from __future__ import annotations

import threading
import time

import pytest

from hmsa.inference.pipeline import flow
from hmsa.runs.errors import InputError


def double(given):
    return 2 * given


@pytest.mark.parametrize("threads", [1, 3])
def test_every_item_is_written_once(threads):
    written = {}

    def write(item, given, result):
        written[item] = (given, result)

    done = list(flow(range(20), str, double, write, threads=threads))
    assert sorted(item for item, _ in done) == list(range(20))
    assert all(problem is None for _, problem in done)
    assert written == {i: (str(i), 2 * str(i)) for i in range(20)}


def test_one_thread_keeps_the_order():
    written = []
    list(flow(range(30), float, double, lambda i, g, r: written.append(i), threads=1))
    assert written == list(range(30))


def test_reading_working_and_writing_overlap():
    """All three meet at one gate, which nobody passes alone."""
    gate = threading.Barrier(3, timeout=120)
    calls = {"read": 0, "work": 0, "write": 0}

    def at(kind, turn):
        def call(*_):
            calls[kind] += 1
            if calls[kind] == turn:
                gate.wait()

        return call

    steps = flow(range(3), at("read", 3), at("work", 2), at("write", 1), threads=2)
    assert len(list(steps)) == 3


@pytest.mark.parametrize(("room", "most"), [(float("inf"), 6), (10, 3), (3, 1), (1, 1)])
def test_what_is_held_is_bounded(room, most):
    held, highest = set(), []

    def read(item):
        held.add(item)
        highest.append(len(held))
        return item

    def write(item, given, result):
        time.sleep(0.002)
        held.discard(item)

    steps = flow(range(40), read, double, write, threads=3, cost=lambda item: 3, room=room)
    assert len(list(steps)) == 40
    assert max(highest) <= most


@pytest.mark.parametrize(
    ("stage", "error"), [("read", InputError), ("read", KeyError), ("work", InputError)]
)
def test_a_bad_item_is_named_and_the_rest_is_done(stage, error):
    written = []

    def fail_at_5(kind):
        def call(item):
            if kind in (stage, "cost") and item == 5:
                raise error("five")
            return item

        return call

    steps = flow(
        range(9), fail_at_5("read"), fail_at_5("work"), lambda i, g, r: written.append(i),
        threads=2, cost=fail_at_5("cost"), room=9,
    )  # fmt: skip
    problems = dict(steps)
    assert isinstance(problems.pop(5), error)
    assert problems == {i: None for i in range(9) if i != 5}
    assert sorted(written) == [i for i in range(9) if i != 5]


def test_any_other_error_of_the_work_ends_it():
    with pytest.raises(ZeroDivisionError):
        list(flow(range(-2, 9), int, lambda i: 1 / i, lambda i, g, r: None, threads=2))


def test_an_error_in_writing_ends_it():
    def full(item, given, result):
        raise OSError("no space left")

    read = []
    with pytest.raises(OSError, match="no space"):
        list(flow(range(100), read.append, str, full, threads=1))
    assert len(read) < 10


def test_what_is_being_written_is_finished_when_work_is_stopped():
    written, before = [], threading.active_count()

    def stop_at_3(given):
        if given == 3:
            raise KeyboardInterrupt
        return given

    def write(item, given, result):
        time.sleep(0.02)
        written.append(item)

    with pytest.raises(KeyboardInterrupt):
        list(flow(range(9), int, stop_at_3, write, threads=2))
    assert written == [0, 1, 2]
    assert threading.active_count() == before
