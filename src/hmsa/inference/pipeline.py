"""Reading, computing and writing at the same time, in memory that does not grow."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

from ..runs import InputError

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
    room: float = float("inf"),
) -> Iterator[tuple[Item, Exception | None]]:
    """Yield each item once it is written, or with any error of `read`, or InputError of `work`.

    `read` and `write` run on `threads` threads each, on one in the order of the items; `work` runs
    here. Between reading and having written are at most 2 * threads items whose costs sum to at
    most `room`, or one item. Other errors end everything once what is being written is complete.
    """
    reading: deque[tuple[Item, int, Future[Any]]] = deque()
    writing: deque[tuple[Item, int, Future[None]]] = deque()

    def fits(size: int) -> bool:
        held = [each[1] for each in (*reading, *writing)]
        return not held or (len(held) < 2 * threads and sum(held) + size <= room)

    def advance() -> Iterator[tuple[Item, Exception | None]]:
        if reading:
            item, size, read_ahead = reading.popleft()
            value = read_ahead.result()
            result = value if isinstance(value, Exception) else _attempt(work, value, InputError)
            if isinstance(result, Exception):
                yield item, result
            else:
                writing.append((item, size, writers.submit(write, item, value, result)))
        else:
            wait([writing[0][2]])
        while writing and writing[0][2].done():
            item, _, leaving = writing.popleft()
            leaving.result()  # raises what `write` raised
            yield item, None

    with ThreadPoolExecutor(threads) as readers, ThreadPoolExecutor(threads) as writers:
        for item in items:
            size = _attempt(cost, item)
            size = 0 if isinstance(size, Exception) else size
            while not fits(size):
                yield from advance()
            reading.append((item, size, readers.submit(_attempt, read, item)))
        while reading or writing:
            yield from advance()


def _attempt(call: Callable[[Any], Any], value: Any, error: type[Exception] = Exception) -> Any:
    try:
        return call(value)
    except error as problem:
        return problem
