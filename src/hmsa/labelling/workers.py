"""Processes of one machine that share one list of things to do, also when some of them die."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import DupFd
from typing import Any, TypeVar

import torch

from ..runs.errors import InputError
from ..runs.machine import keep_memory
from ..runs.progress import say

Item = TypeVar("Item")
Result = TypeVar("Result")

_AHEAD = 2  # items that a worker has: the one it does, and the next
_DEATHS = 2  # workers that may die at one item; then it is left
_PATIENCE = 30.0  # seconds that a worker has to end


@dataclass
class _Worker:
    process: BaseProcess
    given: deque[Any] = field(default_factory=deque)  # the first of them is being done
    ready: bool = False


def share(
    start: Callable[[int], Callable[[Item], Result]],
    items: Iterable[Item],
    count: int,
    lock: int,
    called: Callable[[Item], str] = str,
) -> Generator[tuple[Item, Result]]:
    """Each item and what came of it, as they come, from `count` processes.

    start: makes, in worker 0..count-1, the function of an item. lock: a file descriptor that stays
    open as long as any worker lives. What a dead worker had, the others do, but for an item that
    two have died at. RuntimeError in the end if any item is left, which names one as it is
    `called`; what a worker raises ends it all.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    todo, deaths, left = deque(items), Counter[Item](), list[Item]()
    workers: dict[Connection, _Worker] = {}
    try:
        for index in range(count):
            link, theirs = context.Pipe()
            threads = max(1, (os.cpu_count() or 1) // count)
            process = context.Process(
                target=_work, args=(start, index, threads, theirs, _Kept(lock)), daemon=True
            )
            process.start()
            theirs.close()  # else its end would not be noticed here
            workers[link] = _Worker(process)
        while workers and (todo or any(worker.given for worker in workers.values())):
            for link, worker in workers.items():
                _give(link, worker, todo)
            speaking = set(wait(list(workers)))
            for link in [link for link in workers if link in speaking]:
                worker = workers[link]
                try:
                    what, result = link.recv()
                except (EOFError, OSError):
                    del workers[link]
                    _bury(link, worker, deaths)
                    left += [item for item in worker.given if deaths[item] >= _DEATHS]
                    todo.extendleft(i for i in reversed(worker.given) if deaths[i] < _DEATHS)
                    continue
                if what == "ready":
                    worker.ready = True
                elif what == "done":
                    yield worker.given.popleft(), result
                else:
                    raise result
        left += todo
        if left:
            raise RuntimeError(
                f"{count - len(workers)} of {count} workers died, {len(left)} picture(s) are left, "
                f"such as {called(left[0])}; the same command goes on"
            )
    finally:
        for link, worker in workers.items():
            link.close()  # one that waits ends at this
            if worker.given:
                worker.process.terminate()
        for worker in workers.values():
            worker.process.join(_PATIENCE)
            worker.process.kill()
            worker.process.join()


def _give(link: Connection, worker: _Worker, todo: deque[Any]) -> None:
    while todo and len(worker.given) < _AHEAD:
        worker.given.append(todo.popleft())
        try:
            link.send(worker.given[-1])
        except OSError:  # it died; receiving from it will tell
            return


def _bury(link: Connection, worker: _Worker, deaths: Counter[Any]) -> None:
    link.close()
    worker.process.join()
    if worker.ready and worker.given:
        deaths[worker.given[0]] += 1
    number = worker.process.exitcode or 0
    how = signal.Signals(-number).name if number < 0 else f"exit code {number}"
    say(f"worker process {worker.process.pid} died ({how}); what it had goes to the others")


@dataclass(frozen=True)
class _Kept:
    """A file descriptor that the process it is sent to holds, too."""

    descriptor: int

    def __reduce__(self) -> Any:
        return _keep, (DupFd(self.descriptor),)


def _keep(sent: Any) -> _Kept:
    return _Kept(sent.detach())


def _work(start: Any, index: int, threads: int, link: Connection, lock: _Kept) -> None:
    """What a worker does, until its parent closes the link or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it, too, and says when to end
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # no half-written file stays
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    keep_memory()
    torch.set_num_threads(threads)
    try:
        do = start(index)
        link.send(("ready", None))
        while True:
            link.send(("done", do(link.recv())))
    except (EOFError, BrokenPipeError):
        return
    except Exception as error:
        told: Exception = error
        if not isinstance(error, InputError):
            told = RuntimeError(f"a worker failed: {type(error).__name__}: {error}")
            told.add_note(traceback.format_exc())
        link.send(("failed", told))


def _end_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent
    parent.join()
    os._exit(1)
