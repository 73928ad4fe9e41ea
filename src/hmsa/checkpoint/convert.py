"""`hmsa convert`: an official checkpoint, or a run of ours, becomes a folder to share."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table
from torch import Tensor

from ..data.descriptions import read_classes
from ..model import HMSA, build
from ..runs.errors import InputError
from . import files as checkpoint
from .official import NETWORKS, read

SCALES = [0.5, 1.0, 2.0]  # of the official evaluation recipes
OFFICIAL = (".pth", ".pt", ".tar")


def convert(
    source: Path, out: Path, classes: Path | None = None
) -> tuple[Table | None, str | None]:
    """Write `out`, a folder or a .safetensors file, from `source`.

    source: an official file, with a dataset that names its `classes`; or a checkpoint or run of
    ours. Returns the table of an official file's tensors and, if they do not all fit, why nothing
    was written.
    """
    if source.suffix not in OFFICIAL:
        _write(HMSA.from_pretrained(source), out)
        return None, None
    if classes is None:
        raise InputError(
            f"{source} does not name its classes; give a dataset as well: a YAML file, or a known "
            "name such as cityscapes"
        )
    labels = read_classes(classes)
    arch, weights = read(source)
    model = build(**NETWORKS[arch], classes=len(labels.names), width=256, official=True)
    # Normalisation is ours alone; the official code does it outside, with the same numbers
    wanted = {k: v for k, v in model.state_dict().items() if k not in ("mean", "std")}
    compared = compare(wanted, weights)
    table = Table(title=f"{source.name}, {arch}", title_justify="left")
    for column in ("tensors", "count", "such as"):
        table.add_column(column)
    for kind, names in compared.items():
        table.add_row(kind, str(len(names)), names[0] if names else "")
    wrong = {kind: names for kind, names in compared.items() if names and kind != "matched"}
    if wrong:
        told = "; ".join(
            f"{len(names)} {kind}, such as {names[0]}" for kind, names in wrong.items()
        )
        return table, f"{source} does not fit {arch} with {len(labels.names)} classes: {told}"
    model.load_state_dict(weights | {name: getattr(model, name) for name in ("mean", "std")})
    model.card = model.card.model_copy(
        update={
            "names": list(labels.names),
            "palette": list(labels.palette),
            "scales": [1.0] if model.fusion == "average" else SCALES,
            "trained_on": {"converted from": source.name, "arch": arch},
        }
    )
    _write(model, out)
    return table, None


def _write(model: HMSA, out: Path) -> None:
    if out.suffix == ".safetensors":
        checkpoint.save(out, model)
    elif out.is_file():
        raise InputError(f"{out} is a file; give a folder, or a name that ends in .safetensors")
    else:
        model.save_pretrained(out)


def compare(wanted: dict[str, Tensor], given: dict[str, Tensor]) -> dict[str, list[str]]:
    """Names of tensors that match, are missing, unexpected, or of another shape."""
    both = wanted.keys() & given.keys()
    return {
        "matched": sorted(k for k in both if wanted[k].shape == given[k].shape),
        "missing": sorted(wanted.keys() - given.keys()),
        "unexpected": sorted(given.keys() - wanted.keys()),
        "of another shape": sorted(k for k in both if wanted[k].shape != given[k].shape),
    }
