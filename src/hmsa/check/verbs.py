"""`hmsa data check`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ..config.options import Dataset, Files
from ..runs import Outcome

_STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}


def check(
    dataset: Dataset,
    /,
    *,
    split: Annotated[list[str], Parameter(negative="", help="repeat for more; default: all")] = [],
    files: Files = None,
    report: Annotated[Path | None, Parameter(help="page; default: runs/check-NAME.html")] = None,
) -> Outcome:
    """Find what is wrong with a dataset.

    example: hmsa data check camvid --split train --split val
    """
    from rich.console import Group
    from rich.text import Text

    from ..report.page import write_page
    from ..report.tables import terminal
    from . import show
    from .check import check as work

    found = work(dataset, split, files)
    name = dataset.parent.resolve().name if dataset.name == "dataset.yaml" else dataset.stem
    file = report or Path("runs") / f"check-{name}.html"
    write_page(file, show.page(found))
    problems = [
        Text.assemble((f"{problem.level:8}", _STYLES[problem.level]), found.short(problem.message))
        for problem in found.problems
    ]
    table = Group(terminal(show.table(found), str(dataset)), *problems, Text(found.verdict()))
    summary, notes = found.summary() | {"report": str(file)}, [f"report: {file}"]
    return Outcome(summary, table, notes=notes, code=2 * bool(found.of("error")), long=True)
