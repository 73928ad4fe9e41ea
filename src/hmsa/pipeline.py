"""Reading, computing and writing at the same time, in memory that does not grow."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from .errors import InputError

Item = TypeVar("Item")
Input = TypeVar("Input")
Result = TypeVar("Result")


def flow(
    items: Iterable[Item],
    read: Callable[[Item], Input],
    work: Callable[[Input], Result],
    write: Callable[[Item, Input, Result], None],
    *,
    threads: int,
    cost: Callable[[Item], int] = lambda item: 1,
    room: int | None = None,
) -> Iterator[tuple[Item, InputError | None]]:
    """Each item in turn once it is written, or else with what kept it from being read or worked on.

    `read` and `write` run on `threads` threads each, with one in the order of the items; `work`
    runs here. Between the start of its reading and the end of its writing are at most 2 * threads
    items, whose costs sum to at most `room`; one that alone costs more goes alone. What `write`
    raises ends it all, as does any other error, but not before what is being written is whole.
    """
    coming = ((item, cost(item)) for item in items)
    ahead = next(coming, None)
    reading: deque[tuple[Item, int, Future[Input]]] = deque()
    writing: deque[tuple[Item, int, Future[None]]] = deque()
    held = 0
    readers = ThreadPoolExecutor(threads, "read")
    writers = ThreadPoolExecutor(threads, "write")
    try:
        while ahead or reading or writing:
            while ahead and len(reading) + len(writing) < 2 * threads:
                item, size = ahead
                if held and room is not None and held + size > room:
                    break
                held += size
                reading.append((item, size, readers.submit(read, item)))
                ahead = next(coming, None)
            if reading:
                item, size, arriving = reading.popleft()
                try:
                    given = arriving.result()
                    result = work(given)
                except InputError as error:
                    held -= size
                    yield item, error
                else:
                    writing.append((item, size, writers.submit(write, item, given, result)))
                    del given, result  # else they are held until the next ones are there
                del arriving
            while writing and (writing[0][2].done() or not reading):
                item, size, leaving = writing.popleft()
                leaving.result()
                held -= size
                yield item, None
                if ahead:
                    break  # there may be room for it now
    finally:
        readers.shutdown(wait=True, cancel_futures=True)
        writers.shutdown(wait=True)
