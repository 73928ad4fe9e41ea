"""Run folders, whole-file writes, errors, progress. Loads no torch; `runs.machine` does."""

from .errors import CannotWrite, InputError, Interrupted, did_you_mean, first_line
from .files import cache_folder, replace, sha256
from .folder import Run, read_records, stamp
from .outcome import Outcome, command_line
from .progress import Progress, say, say_once

__all__ = [
    "CannotWrite", "InputError", "Interrupted", "Outcome", "Progress", "Run", "cache_folder",
    "command_line", "did_you_mean", "first_line", "read_records", "replace", "say",
    "say_once", "sha256",
    "stamp",
]  # fmt: skip
