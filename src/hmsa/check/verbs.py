"""`hmsa data check` and `hmsa doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from ..config.options import Dataset, Files, Flag
from ..runs import InputError, Outcome

if TYPE_CHECKING:
    from .folder import Described

_STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}
_NOTHING = "No labels that can be read have the names of images; see the table."


def check(
    dataset: Dataset,
    /,
    *,
    split: Annotated[list[str], Parameter(negative="", help="repeat for more; default: all")] = [],
    files: Files = None,
    report: Annotated[Path | None, Parameter(help="page; default: runs/check-NAME.html")] = None,
    images: Annotated[str | None, Parameter(help="where a folder has its images")] = None,
    labels: Annotated[str | None, Parameter(help="where a folder has its labels")] = None,
    overwrite: Annotated[Flag, Parameter(help="write a folder's dataset.yaml anew")] = False,
) -> Outcome:
    """Find what is wrong with a dataset; write a missing dataset.yaml.

    example: hmsa data check my-images

    example: hmsa data check my-images --labels masks --overwrite
    """
    from rich.console import Group
    from rich.text import Text

    from ..data.exports import UnknownExport
    from ..report.page import require_page, write_page
    from ..report.tables import terminal
    from . import doctor, show
    from .check import check as work
    from .folder import imported, lacks_description, summary

    made = None
    if overwrite or images or labels or lacks_description(dataset):
        made = _describe(dataset, images, labels, overwrite)
        rows = doctor.table(made.groups)
        groups = [dict(zip(rows.columns, row, strict=True)) for row in rows.rows]
        facts = {"folder": str(dataset), "groups": groups, "description": made.content}
        above = terminal(rows, f"{dataset}: files", "" if made.found else _NOTHING)
        dataset = made.file
        if not made.found:
            try:
                dataset, made = imported(made), None
            except UnknownExport:
                if not rows.rows:
                    raise
                return Outcome(facts, above, code=2, long=True)
    name = dataset.resolve().parent.name if dataset.name == "dataset.yaml" else dataset.stem
    file = report or Path("runs") / f"check-{name}.html"
    require_page(file)
    found = (made and not split and made.found) or work(dataset, split, files)
    write_page(file, show.page(found))
    problems = [
        Text.assemble((f"{problem.level:8}", _STYLES[problem.level]), found.short(problem.message))
        for problem in found.problems
    ]
    shown = [above, summary(made)] if made else [terminal(show.table(found), str(dataset))]
    table = Group(*shown, *problems, Text(found.verdict()))
    all_found = (facts if made else {}) | found.summary() | {"report": str(file)}
    code = 2 * bool(found.of("error"))
    return Outcome(all_found, table, notes=[f"report: {file}"], code=code, long=True)


def _describe(folder: Path, images: str | None, labels: str | None, overwrite: bool) -> Described:
    """Write the dataset.yaml of a folder, and over another only with `overwrite`."""
    from .folder import FILE, describe_folder

    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; name the folder of the images and labels")
    if (folder / FILE).exists() and not overwrite:
        raise InputError(f"{folder / FILE} exists; add --overwrite to replace it")
    return describe_folder(folder, images, labels)


def doctor() -> Outcome:
    """Show versions, devices and arithmetic, and what each extra would add.

    example: hmsa doctor

    example: hmsa doctor --json
    """
    from rich.box import SIMPLE
    from rich.console import Group
    from rich.table import Table

    from . import installation

    found = installation.machine()
    lacking = {extra: installation.missing(extra) for extra in installation.ADDS}
    facts, extras = Table(box=SIMPLE, show_header=False), Table("extra", "is here", box=SIMPLE)
    for fact in found.items():
        facts.add_row(*fact)
    extras.add_column("adds")
    for extra, parts in lacking.items():
        extras.add_row(
            extra, f"no: {', '.join(parts)}" if parts else "yes", installation.ADDS[extra]
        )
    notes = ['an extra is installed by: pip install "hmsa[EXTRA]"'] if any(lacking.values()) else []
    return Outcome(found | {"missing": lacking}, Group(facts, extras), notes=notes, long=True)
