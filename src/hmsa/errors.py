"""The one exception for mistakes that the user can mend, and what to tell of others' exceptions."""


class InputError(Exception):
    """What came, what is needed, which file, how to mend it: one line, shown without a traceback.

    The command line turns it into exit code 2.
    """


def first_line(error: Exception) -> str:
    """The first line of its message that says something, short: libraries can be wordy."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:160]
