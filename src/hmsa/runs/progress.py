"""Progress of long work, on stderr, and stopping it between two steps."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Self

_LINE_EVERY = 15.0  # seconds between progress lines where there is no terminal
_SAID: set[str] = set()


class Progress:
    """Progress of one long task, on stderr: a bar on a terminal, elsewhere a line now and then.

    total: None where it is not known. done: steps of an earlier run.
    """

    def __init__(self, what: str, total: int | None, done: int = 0) -> None:
        self.what, self.total, self.done = what, total, done
        self._first, self._began = done, time.monotonic()
        self._last_line = self._began
        self._bar: Any = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            self._bar = _bar()
            count = {"total": self.total, "completed": self.done}
            self._task = self._bar.add_task(self.what, **count, note="")
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar:
            self._bar.stop()

    def rate(self) -> float:
        """Steps a second since the start."""
        return (self.done - self._first) / max(1e-9, time.monotonic() - self._began)

    def advance(self, note: str = "") -> None:
        """One more step is done; note: shown behind the count, such as the loss."""
        self.done += 1
        note = f"{note}  {self.rate():.2f}/s".strip()
        if self._bar:
            self._bar.update(self._task, completed=self.done, note=note)
        elif time.monotonic() - self._last_line > _LINE_EVERY or self.done == self.total:
            self._last_line = time.monotonic()
            text = f"{self.what} {self.done}"
            if self.total is not None:
                seconds = (self.total - self.done) / max(1e-9, self.rate())
                text += f"/{self.total}, {timedelta(seconds=round(seconds))} left"
            say(f"{text}  {note}")


def say(line: str) -> None:
    """A line for people, on stderr: stdout is for results."""
    print(line, file=sys.stderr, flush=True)


def say_once(line: str, kind: str = "") -> None:
    """A line for people, once in a process; of several lines of one `kind`, the first alone."""
    if (kind or line) not in _SAID:
        _SAID.add(kind or line)
        say(line)


def _bar() -> Any:
    from rich import progress  # only where there is a terminal: it is slow to import
    from rich.console import Console
    from rich.table import Column

    return progress.Progress(
        "{task.description}",
        progress.BarColumn(20),
        progress.MofNCompleteColumn(),
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.fields[note]}", table_column=Column()),  # wraps if need be
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
