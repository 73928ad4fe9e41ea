"""The command line: each verb is a typed function of a room, imported when it is used.

Results go to stdout, logs to stderr. Exit codes: 0 done, 1 failure, 2 usage or data,
3 done but some files could not be processed, 130 stopped.
"""

# ruff: noqa: E402, as Ctrl-C must be safe before anything slow is imported

from __future__ import annotations

import errno
import os
import signal
import sys
from typing import Any


def _stop(number: int, frame: Any) -> None:
    """Ctrl-C, SIGTERM: an exception would abort in the C++ of libraries that are loading."""
    while frame:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            os.write(2, b"hmsa: stopped\n")  # also where sys.stderr is redirected
            os._exit(130)  # nothing is lost: every file is whole, even after SIGKILL
        frame = frame.f_back
    raise KeyboardInterrupt


for _signal in (signal.SIGINT, signal.SIGTERM):
    if signal.getsignal(_signal) in (signal.default_int_handler, signal.SIG_DFL):  # not ignored
        signal.signal(_signal, _stop)

import io
import re
import shlex
import textwrap
from collections.abc import Sequence
from typing import Annotated, NoReturn

from cyclopts import App, CycloptsError, Group, Parameter
from cyclopts.help import PlainFormatter

from . import __version__
from .runs import InputError, Interrupted, Outcome, say
from .runs.files import DISK_FULL

VERBS = {
    "train": "training.verbs:train",
    "evaluate": "evaluation.verbs:evaluate",
    "predict": "inference.verbs:predict",
    "compare": "evaluation.verbs:compare",
    "view": "evaluation.verbs:view",
    "app": "inference.verbs:app",
    "attend": "training.verbs:attend",
    "autolabel": "labelling.verbs:autolabel",
    "review": "labelling.verbs:review",
    "selftrain": "labelling.verbs:selftrain",
    "gate": "evaluation.verbs:gate",
    "convert": "checkpoint.verbs:convert",
    "export": "inference.verbs:export",
    "models": "checkpoint.verbs:models",
    "doctor": "check.verbs:doctor",
}
DATA_VERBS = {
    "import": "data.verbs:import_masks",
    "export": "data.verbs:export",
    "check": "check.verbs:check",
    "preview": "training.verbs:preview",
}
# What is added to the same command to go on after an interruption; other verbs begin again
RESUME = dict.fromkeys(["predict", "attend", "autolabel", "review", "check"], "")
RESUME |= {"train": "--resume", "selftrain": "--resume"}
Switch = Annotated[
    bool, Parameter(negative="", show_default=False, group=Group("Every verb", sort_key=99))
]


class _Help(PlainFormatter):
    """Wraps each entry once, below its name; an example stays one line, to be copied."""

    def _print_plain(self, console: Any, text: str) -> None:
        indent, shown = text[: len(text) - len(text.lstrip())], []
        for paragraph in re.split(r"\n\s*\n", text):
            line = " ".join(paragraph.split())
            if not line.startswith("example: "):
                further, width = 3 * indent, console.width
                line = textwrap.fill(
                    line, width, initial_indent=indent, subsequent_indent=further,
                    break_long_words=False, break_on_hyphens=False,
                )  # fmt: skip
            shown.append(line)
        console.print("\n\n".join(shown), soft_wrap=True, highlight=False, markup=False)


def _app() -> App:
    app = App(
        name="hmsa",
        help="Semantic segmentation with hierarchical multi-scale attention.",
        help_epilogue="Exit codes: 0 done, 1 failure, 2 usage or data, 3 done but some files could "
        "not be processed, 130 stopped",
        version=f"hmsa {__version__}",
        help_formatter=_Help(),
        help_format="plaintext",
        result_action="return_value",
    )
    for order, (name, place) in enumerate(VERBS.items()):  # as one needs them
        app.command(f"{__package__}.{place}", name=name, sort_key=order)
    data = App(name="data", help="Make, import, check and look at data.", sort_key=len(VERBS))
    for name, place in DATA_VERBS.items():
        data.command(f"{__package__}.{place}", name=name)
    app.command(data)
    app.register_install_completion_command()
    app.meta.default(_launch)
    # `run` says how to go on after Ctrl-C
    app.suppress_keyboard_interrupt = app.meta.suppress_keyboard_interrupt = False
    return app


def _launch(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    json: Annotated[Switch, Parameter(help="print the JSON line alone")] = False,
    debug: Annotated[Switch, Parameter(help="show where a failure happened")] = False,
) -> int:
    """Run one verb and show its outcome; returns the exit code."""
    try:
        outcome = _APP(tokens, exit_on_error=False, print_error=False)
        return outcome.show(json) if isinstance(outcome, Outcome) else 0
    except (CycloptsError, InputError, BrokenPipeError, SystemExit):
        raise
    except Interrupted as stop:
        say(f"{stop}{_how_to_resume(tokens)}")
        return 130
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK_FULL | {errno.EACCES, errno.EPERM}:
            raise InputError(f"{error.filename or 'cannot write'}: {error.strerror}") from error
        if debug:
            raise
        say(f"hmsa: failed: {type(error).__name__}: {error} (--debug shows where)")
        return 1


_APP = _app()


def run(arguments: Sequence[str] | None = None) -> int:
    """Parse and run one command; returns the exit code."""
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # names of files that are not UTF-8
    try:
        _import_summaries(tokens)
        return int(_APP.meta(tokens, exit_on_error=False, print_error=False) or 0)
    except CycloptsError as error:
        verb = " ".join(error.command_chain or ())
        text = re.sub(r"(?<!\.)\.$", "", str(error))
        say(f"hmsa: {text}; see hmsa {verb}{' ' * bool(verb)}--help")
        return 2
    except InputError as error:
        say(f"hmsa: {error}")
        return 2
    except KeyboardInterrupt:
        say(f"hmsa: stopped{_how_to_resume(tokens)}")
        return 130
    except BrokenPipeError:  # the reader of stdout went away, such as `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _import_summaries(tokens: Sequence[str]) -> None:
    """An overview of verbs shows the first line of each, so it imports them all."""
    data = tokens[:1] == ["data"]
    app, verbs = (_APP["data"], DATA_VERBS) if data else (_APP, VERBS)
    if all(token.startswith("-") for token in tokens[data:]):
        for name in verbs:
            app[name]


def main() -> NoReturn:
    """The console script `hmsa`."""
    sys.exit(run())


def _how_to_resume(tokens: Sequence[str]) -> str:
    verb = next((token for token in tokens if token in RESUME), None)
    if verb is None:
        return ""
    flag = RESUME[verb]
    if not flag:
        return "; the same command goes on" + " without --overwrite" * ("--overwrite" in tokens)
    kept = [token for token in tokens if token != flag]
    return f"; go on with: hmsa {shlex.join([*kept, flag])}"


if __name__ == "__main__":
    main()
