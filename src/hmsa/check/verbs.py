"""`hmsa data check`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ..config.options import Dataset, Files, Flag
from ..runs import InputError, Outcome

_STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}


def check(
    dataset: Dataset,
    /,
    *,
    split: Annotated[list[str], Parameter(negative="", help="repeat for more; default: all")] = [],
    files: Files = None,
    report: Annotated[Path | None, Parameter(help="page; default: runs/check-NAME.html")] = None,
    fix: Annotated[Flag, Parameter(help="write the dataset.yaml that a folder lacks")] = False,
    overwrite: Annotated[Flag, Parameter(help="with --fix: replace dataset.yaml")] = False,
) -> Outcome:
    """Find what is wrong with a dataset, or what a folder without dataset.yaml holds.

    example: hmsa data check camvid --split train --split val
    """
    from rich.console import Group
    from rich.text import Text

    from ..report.page import require_page, write_page
    from ..report.tables import terminal
    from . import show
    from .check import check as work

    if fix or _undescribed(dataset):
        return _examine(dataset, fix, overwrite)
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
    summary, notes = found.summary() | {"report": str(file)}, [f"report: {file}"]
    return Outcome(summary, table, notes=notes, code=2 * bool(found.of("error")), long=True)


def _undescribed(folder: Path) -> bool:
    from ..data.descriptions import locate

    try:
        locate(folder)
    except InputError:
        return folder.is_dir()
    return False


def _examine(folder: Path, fix: bool, overwrite: bool) -> Outcome:
    """What a folder holds; fix: write its dataset.yaml, and never over another unless overwrite."""
    from ..report.tables import terminal
    from ..runs import replace
    from . import doctor

    file = folder / "dataset.yaml"
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; --fix writes the dataset.yaml of a folder")
    if fix and file.exists() and not overwrite:
        raise InputError(f"{file} exists; add --overwrite to replace it")
    groups = doctor.examine(folder)
    content = doctor.description(groups)
    if not content:
        verdict = "No labels that can be read have the names of images; see the table."
    elif fix:
        replace(file, doctor.text(content))
        verdict = f"Written: {file}; name its classes, then: hmsa data check {folder}"
    else:
        verdict = f"Not described yet; hmsa data check {folder} --fix writes {file}"
    table = doctor.table(groups)
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    summary = {"folder": str(folder), "groups": rows, "description": content}
    code = None if content else 2
    return Outcome(summary, terminal(table, str(folder), verdict), code=code, long=True)
