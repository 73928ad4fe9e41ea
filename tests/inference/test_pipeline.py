"""The pipeline: order, overlap, bounds, and what it does with errors."""

from __future__ import annotations

import threading
import time

import pytest

from hmsa.inference.pipeline import flow
from hmsa.runs.errors import InputError


def each(work):
    """As `flow` calls it, from what does one."""
    return lambda group: [work(given) for given in group]


double = each(lambda given: 2 * given)


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
    gate = threading.Barrier(3, timeout=20)
    calls = {"read": 0, "work": 0, "write": 0}

    def at(kind, turn):
        def call(*_):
            calls[kind] += 1
            if calls[kind] == turn:
                gate.wait()

        return call

    steps = flow(range(3), at("read", 3), each(at("work", 2)), at("write", 1), threads=2)
    assert len(list(steps)) == 3


@pytest.mark.parametrize(("room", "most"), [(None, 6), (10, 3), (3, 1), (1, 1)])
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


@pytest.mark.parametrize("stage", ["read", "work"])
def test_a_bad_item_is_told_and_passed_over(stage):
    written = []

    def fail_at_5(kind):
        def call(item):
            if kind == stage and item == 5:
                raise InputError("five")
            return item

        return call

    steps = flow(
        range(9), fail_at_5("read"), each(fail_at_5("work")), lambda i, g, r: written.append(i),
        threads=2, cost=lambda item: 1, room=2,
    )  # fmt: skip
    told = {item: problem and str(problem) for item, problem in steps}
    assert told == {i: "five" if i == 5 else None for i in range(9)}
    assert sorted(written) == [i for i in range(9) if i != 5]


def test_an_error_in_writing_ends_it():
    def full(item, given, result):
        raise OSError("no space left")

    read = []
    with pytest.raises(OSError, match="no space"):
        list(flow(range(100), read.append, list, full, threads=1))
    assert len(read) < 10


def test_what_is_being_written_is_finished_when_work_is_stopped():
    written = []

    def stop_at_3(given):
        if given == 3:
            raise KeyboardInterrupt
        return given

    def write(item, given, result):
        time.sleep(0.02)
        written.append(item)

    with pytest.raises(KeyboardInterrupt):
        list(flow(range(9), int, each(stop_at_3), write, threads=2))
    assert written == [0, 1, 2]
    assert not [t for t in threading.enumerate() if t.name.startswith(("read_", "write_"))]


def test_neighbours_that_are_alike_go_together():
    groups, written = [], []

    def work(group):
        groups.append(group)
        return [given + 1 for given in group]

    sizes = [1, 1, 1, 1, 1, 2, 2, 3, 1, 1]
    steps = flow(
        enumerate(sizes), lambda item: item[1], work,
        lambda item, given, result: written.append((item[0], given, result)),
        threads=1, batch=3, alike=lambda given: given,
    )  # fmt: skip
    assert len(list(steps)) == 10
    assert groups[0] == [1, 1, 1]
    assert all(len(group) <= 3 and len(set(group)) == 1 for group in groups)
    assert [given for group in groups for given in group] == sizes
    assert written == [(i, size, size + 1) for i, size in enumerate(sizes)]


def test_of_a_group_only_the_bad_one_is_passed_over():
    written = []

    def work(group):
        if 5 in group:
            raise InputError("five")
        return group

    def read(item):
        if item == 7:
            raise InputError("seven")
        return item

    steps = flow(
        range(10), read, work, lambda i, g, r: written.append(r), threads=1, batch=4
    )  # fmt: skip
    told = {item: problem and str(problem) for item, problem in steps}
    assert {i: t for i, t in told.items() if t} == {5: "five", 7: "seven"}
    assert sorted(told) == list(range(10))
    assert written == [0, 1, 2, 3, 4, 6, 8, 9]
