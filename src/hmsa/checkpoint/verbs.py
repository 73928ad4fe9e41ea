"""`hmsa convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ..config.options import Out
from ..runs import InputError, Outcome


def convert(
    source: Annotated[Path, Parameter(help="an official .pth, or a file or run of hmsa")],
    classes: Annotated[
        Path | None, Parameter(help="dataset that names the classes of a .pth")
    ] = None,
    /,
    *,
    out: Annotated[Out, Parameter(help="folder to share, or one .safetensors file")],
) -> Outcome:
    """Turn an official checkpoint, or a run, into a folder to share.

    example: hmsa convert best_checkpoint.pth cityscapes -o cityscapes
    """
    from . import convert as module

    table, problem = module.convert(source, out, classes)
    if problem:
        Outcome(table=table).show()
        raise InputError(problem)
    return Outcome(table=table, path=out)
