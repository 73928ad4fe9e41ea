"""The one exception for mistakes that the user can mend."""


class InputError(Exception):
    """What came, what is needed, which file, how to mend it: one line, shown without a traceback.

    The command line turns it into exit code 2.
    """
