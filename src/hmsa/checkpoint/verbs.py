"""`hmsa convert` and `hmsa models`."""

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

    example: hmsa convert runs/my-images -o my-network

    example: hmsa convert best_checkpoint.pth cityscapes -o cityscapes-network
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


def models(
    name: Annotated[str | None, Parameter(help="of a network: show its card")] = None, /
) -> Outcome:
    """List the networks of hmsa, and those in the Hugging Face cache.

    example: hmsa models

    example: hmsa models aerial
    """
    from rich.box import SIMPLE
    from rich.markdown import Markdown
    from rich.table import Table
    from rich.text import Text

    from ..runs import did_you_mean
    from .shipped import networks, read_card

    found = {network.name: network for network in networks()}
    if name is not None and name not in found:
        raise InputError(f"no network {name}; {did_you_mean(name, found)}")
    if name is not None:
        folder = Path(found[name].folder)
        page = folder / "README.md"  # of the hub, only what prediction needs is in the cache
        text = page.read_text("utf-8").split("---", 2)[-1] if page.is_file() else ""
        shown = Markdown(text.replace("\x1b", "")) if text else None
        return Outcome(read_card(folder), shown, long=bool(text))
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    table.caption = "CPU s/MP: seconds of one CPU core for a megapixel"
    for column in ("name", "classes", "licence", "MB", "mIoU %", "of", "CPU s/MP", "from"):
        table.add_column(column, no_wrap=column == "name", overflow="fold")
    for one in found.values():
        miou, seconds = ("" if n is None else f"{n:.1f}" for n in (one.percent, one.seconds))
        row = [one.name, str(one.classes), one.license or "", f"{one.megabytes:.1f}", miou]
        table.add_row(*map(Text, [*row, one.measured_on or "", seconds, one.place]))
    return Outcome({"networks": [one._asdict() for one in found.values()]}, table, long=True)
