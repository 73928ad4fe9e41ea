"""Reading, computing and writing at the same time, in memory that does not grow."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from ..runs.errors import InputError

Item = TypeVar("Item")
Input = TypeVar("Input")
Result = TypeVar("Result")


def flow(
    items: Iterable[Item],
    read: Callable[[Item], Input],
    work: Callable[[list[Input]], Sequence[Result]],
    write: Callable[[Item, Input, Result], None],
    *,
    threads: int,
    cost: Callable[[Item], int] = lambda item: 1,
    room: int | None = None,
    batch: int = 1,
    alike: Callable[[Input], object] = lambda given: None,
) -> Iterator[tuple[Item, InputError | None]]:
    """Each item in turn once it is written, or else with what kept it from being read or worked on.

    `read` and `write` run on `threads` threads each, with one in the order of the items; `work`
    runs here, on one or up to `batch` neighbours at once that are `alike`. Between the start of its
    reading and the end of its writing are at most 2 * threads items, or 2 * batch, whose costs sum
    to at most `room`; one that alone costs more goes alone. What `write` raises ends it all, as
    does any other error, but not before what is being written is whole.
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
            while ahead and len(reading) + len(writing) < 2 * max(threads, batch):
                item, size = ahead
                if held and room is not None and held + size > room:
                    break
                held += size
                reading.append((item, size, readers.submit(read, item)))
                ahead = next(coming, None)
            if reading:
                item, size, arriving = reading.popleft()
                try:
                    group = [(item, size, arriving.result())]
                except InputError as error:
                    held -= size
                    yield item, error
                else:
                    while reading and len(group) < batch:
                        item, size, arriving = reading[0]
                        if arriving.exception() or alike(arriving.result()) != alike(group[0][2]):
                            break
                        group.append((item, size, arriving.result()))
                        reading.popleft()
                    for (item, size, given), result in _worked(group, work):
                        if isinstance(result, InputError):
                            held -= size
                            yield item, result
                        else:
                            leaving = writers.submit(write, item, given, result)
                            writing.append((item, size, leaving))
                    del group, given, result  # else they are held until the next ones are there
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


Group = list[tuple[Item, int, Input]]


def _worked(
    group: Group[Item, Input], work: Callable[[list[Input]], Sequence[Result]]
) -> Iterator[tuple[tuple[Item, int, Input], Result | InputError]]:
    try:
        results: Sequence[Result] = work([given for _, _, given in group])
    except InputError as error:
        if len(group) == 1:
            yield group[0], error
        else:  # which of them is it?
            for one in group:
                yield from _worked([one], work)
    else:
        yield from zip(group, results, strict=True)
