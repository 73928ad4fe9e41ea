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
    from ..data.descriptions import read_classes
    from ..model.pretrained import PICKLES, save
    from . import official
    from .networks import load

    note = ""
    if source.suffix not in PICKLES:
        model = load(source)
    elif classes is None:
        raise InputError(f"{source} does not name its classes; add a dataset, such as cityscapes")
    else:
        model = official.convert(source, read_classes(classes))
        note = f"{source}: all {len(model.state_dict())} tensors matched"
    if out.suffix == ".safetensors":
        save(out, model)
    else:
        model.save_pretrained(out)
    return Outcome(notes=[note] if note else [], path=out)
