"""`hmsa convert`: a checkpoint of the official code becomes one of ours."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table
from torch import Tensor

from .. import checkpoint
from ..checkpoint import Card
from ..data.datasets import read_classes
from ..model import HMSA
from ..official import NETWORKS, read

SCALES = [0.5, 1.0, 2.0]  # of the official evaluation recipes


def convert(source: Path, out: Path, classes: Path) -> tuple[Table, str | None]:
    """Write `out` (.safetensors) from the official file `source`; classes: a dataset's YAML file.

    Returns the table of tensors and, if they do not all fit, why nothing was written.
    """
    labels = read_classes(classes)
    arch, weights = read(source)
    network = NETWORKS[arch] | {"classes": len(labels.names), "width": 256, "official": True}
    model = HMSA(**network)
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
    card = Card(
        network=network,
        names=list(labels.names),
        palette=list(labels.palette),
        scales=SCALES,
        trained_on={"converted from": source.name, "arch": arch},
    )
    checkpoint.save(out, model, card)
    return table, None


def compare(wanted: dict[str, Tensor], given: dict[str, Tensor]) -> dict[str, list[str]]:
    """Names of tensors that match, are missing, unexpected, or of another shape."""
    both = wanted.keys() & given.keys()
    return {
        "matched": sorted(k for k in both if wanted[k].shape == given[k].shape),
        "missing": sorted(wanted.keys() - given.keys()),
        "unexpected": sorted(given.keys() - wanted.keys()),
        "of another shape": sorted(k for k in both if wanted[k].shape != given[k].shape),
    }
