"""Progress of long work, on stderr, and stopping it between two steps."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

_LINE_EVERY = 15.0  # seconds between progress lines where there is no terminal


class Progress:
    """Progress of one long task, on stderr: a bar on a terminal, now and then a line elsewhere.

    total: None where it is not known.
    """

    def __init__(self, what: str, total: int | None, done: int = 0) -> None:
        self.what, self.total, self.done = what, total, done
        self._started, self._spoken, self._from = time.monotonic(), time.monotonic(), done
        self._bar: Any = None
        if sys.stderr.isatty():
            self._bar = _bar()
            self._task = self._bar.add_task(what, total=total, completed=done, note="")

    def __enter__(self) -> Progress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()

    def rate(self) -> float:
        """Things a second since the start."""
        return (self.done - self._from) / max(1e-9, time.monotonic() - self._started)

    def advance(self, note: str = "") -> None:
        self.done += 1
        note = f"{note}  {self.rate():.2f}/s".strip()
        if self._bar:
            self._bar.update(self._task, completed=self.done, note=note)
        elif time.monotonic() - self._spoken > _LINE_EVERY or self.done == self.total:
            self._spoken = time.monotonic()
            if self.total is None:
                say(f"{self.what} {self.done}  {note}")
                return
            left = (self.total - self.done) / max(1e-9, self.rate())
            say(f"{self.what} {self.done}/{self.total}  {note}  {_clock(left)} left")


def say(line: str) -> None:
    """For people, on stderr: stdout is for results."""
    print(line, file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _bar() -> Any:
    from rich import progress  # only where there is a terminal: it is slow to import
    from rich.console import Console

    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("{task.fields[note]}"),
        progress.TimeRemainingColumn(),
        console=Console(stderr=True),
    )


@contextmanager
def interruptible() -> Iterator[Any]:
    """Defer Ctrl-C and SIGTERM; yields a function that says whether one came. A second raises."""
    noted: list[int] = []

    def note(number: int, frame: Any) -> None:
        noted.append(number)
        if len(noted) > 1:
            raise KeyboardInterrupt
        say("stopping after this step; once more stops without saving")

    before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(noted)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
