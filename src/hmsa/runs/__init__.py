"""One run folder: its settings, what is done in it, its lock, whole-file writes; errors, progress.

Importing this room loads no torch; `runs.machine`, which knows devices, does.
"""

from .errors import InputError, Interrupted, did_you_mean, first_line
from .files import cache_folder, replace, sweep
from .folder import Run, stamp
from .outcome import Outcome, command_line
from .progress import Progress, say

__all__ = [
    "InputError",
    "Interrupted",
    "Outcome",
    "Progress",
    "Run",
    "cache_folder",
    "command_line",
    "did_you_mean",
    "first_line",
    "replace",
    "say",
    "stamp",
    "sweep",
]
