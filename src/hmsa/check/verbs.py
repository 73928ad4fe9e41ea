"""`hmsa data check` and `hmsa data stats`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ..config.options import Dataset, Files
from ..runs import Outcome, command_line

Splits = Annotated[
    list[str], Parameter(name="--split", negative="", help="repeat for more; default: all")
]


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
    from .data_check import check as work

    name = dataset.parent.resolve().name if dataset.name == "dataset.yaml" else dataset.stem
    page = report or Path("runs") / f"check-{name}.html"
    summary, table = work(dataset, split, data=files, report=page, command=command_line())
    errors = [""] * bool(summary["errors"])
    return Outcome(summary, table, notes=[f"report: {page}"], problems=errors)


def stats(dataset: Dataset, /, *, split: Splits = [], files: Files = None) -> Outcome:
    """Class frequencies, mean and deviation of a dataset.

    example: hmsa data stats camvid --split train
    """
    from .data_check import stats as work

    summary, table, errors = work(dataset, split, files)
    return Outcome(summary, table, problems=errors)
