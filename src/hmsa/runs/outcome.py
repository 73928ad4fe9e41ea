"""What a verb hands to the command line."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .progress import say

SOME_FAILED = 3  # exit code: done, but some files could not be processed


@dataclass(frozen=True)
class Outcome:
    """The result of one verb: how it is shown, and the exit code.

    table: anything that rich can print, for people. summary: the JSON object in the last line;
    long: too long for people, so only --json prints it.
    path: what was made, printed where there is no summary. notes: lines for people, on stderr.
    problems: one line for each file that could not be processed; the exit code is then 3.
    failure: why the whole failed although the input was right; the exit code is then 1.
    code: another exit code, where the summary or table shows why.
    """

    summary: dict[str, Any] | None = None
    table: Any = None
    path: Path | None = None
    notes: Sequence[str] = ()
    problems: Sequence[str] = ()
    failure: str | None = None
    code: int | None = None
    long: bool = False

    def show(self, json_alone: bool = False) -> int:
        """Print results on stdout, notes and problems on stderr; returns the exit code."""
        for problem in [*self.problems, *([self.failure] if self.failure else [])]:
            say(f"hmsa: {problem}")
        for note in self.notes:
            say(note)
        if self.table is not None and not json_alone:
            from rich.console import Console

            Console(stderr=self.summary is None).print(self.table)
        if self.summary is not None and (json_alone or not self.long):
            print(to_json(self.summary))
        elif self.path is not None and not self.failure:
            print(self.path)
        if self.code is not None:
            return self.code
        return 1 if self.failure else SOME_FAILED if self.problems else 0


def to_json(summary: dict[str, Any]) -> str:
    """One line of JSON; what has no score (nan) is null, which JSON has no number for."""
    return json.dumps(json.loads(json.dumps(summary), parse_constant=lambda _: None))


def command_line() -> str:
    """The command as typed, to be shown beside its results."""
    return shlex.join(["hmsa", *sys.argv[1:]])
