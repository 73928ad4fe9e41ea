"""The exceptions that the command line shows as one line, and what to quote of other exceptions."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

_CONTROL = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029]")


class InputError(ValueError):
    """A mistake that the user can mend; the command line exits with code 2.

    The message is one line: what came, what is needed, which file, how to mend it. Line breaks and
    other control characters, such as a file's name may have, are written as escapes.
    """

    def __init__(self, message: str) -> None:
        super().__init__(_CONTROL.sub(lambda found: ascii(found[0])[1:-1], message))


class CannotWrite(InputError):
    """A folder is read-only or its disk is full, which concerns all files that go there."""


class Interrupted(Exception):
    """The user stopped the work (Ctrl-C or SIGTERM) and everything is saved."""


@contextmanager
def as_input_error(source: object = None) -> Iterator[None]:
    """Raise ValueErrors of `hmsa.model` as InputErrors, with `source` named first."""
    try:
        yield
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{source}: {error}" if source else str(error)) from error


def first_line(error: BaseException) -> str:
    """The first non-empty line of an exception's message, at most 160 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:160]


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """For a message about an unknown name: the one most like it, or else all known ones."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=cutoff)
    return f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
