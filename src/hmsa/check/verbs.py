"""`hmsa data check` and `hmsa data stats`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ..config.options import Dataset, Files
from ..runs import Outcome

Splits = Annotated[
    list[str], Parameter(name="--split", negative="", help="repeat for more; default: all")
]
_STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}


def check(
    dataset: Dataset,
    /,
    *,
    split: Splits = [],
    files: Files = None,
    report: Annotated[Path | None, Parameter(help="page; default: runs/check-NAME.html")] = None,
) -> Outcome:
    """Find what is wrong with a dataset.

    example: hmsa data check camvid --split train --split val
    """
    from rich.console import Group
    from rich.text import Text

    from ..report.page import require_page, write_page
    from ..report.tables import terminal
    from . import show
    from .check import check as work

    name = dataset.parent.resolve().name if dataset.name == "dataset.yaml" else dataset.stem
    file = report or Path("runs") / f"check-{name}.html"
    require_page(file)
    found = work(dataset, split, files)
    write_page(file, show.page(found))
    problems = [
        Text.assemble((f"{problem.level:8}", _STYLES[problem.level]), found.short(problem.message))
        for problem in found.problems
    ]
    table = Group(terminal(show.table(found), str(dataset)), *problems, Text(found.verdict()))
    summary = found.summary() | {"report": str(file)}
    return Outcome(summary, table, notes=[f"report: {file}"], code=2 * bool(summary["errors"]))


def stats(dataset: Dataset, /, *, split: Splits = [], files: Files = None) -> Outcome:
    """Class frequencies, mean and deviation of a dataset.

    example: hmsa data stats camvid --split train
    """
    from ..report.tables import terminal
    from . import show
    from .check import check as work

    found = work(dataset, split, files, compare=False)
    summary = found.summary()
    errors = [error["message"] for error in summary["errors"]]
    table = terminal(show.table(found), str(dataset))
    keys = ("dataset", "folder", "frequencies", "void", "sizes", "mean", "std")
    return Outcome({key: summary[key] for key in keys}, table, problems=errors)
