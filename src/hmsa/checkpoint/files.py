"""What commands do with checkpoint files; `hmsa.model.pretrained` reads and writes them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, Field, ValidationError
from torch import Tensor

from ..model import HMSA
from ..model.pretrained import Card, read_checkpoint, write_checkpoint
from ..model.weights import hashed
from ..runs.errors import InputError, as_input_error
from .shipped import locate


class GatePoint(BaseModel):
    """Cost and result if finer scales are computed in a share of each image only."""

    share: float
    cost: float  # pixels that the network processes, as a share of those without a gate
    miou: float
    agreement: float  # share of labels that equal those without a gate


class GateCurve(BaseModel):
    """Measured by `hmsa gate`, kept in `Card.gate`."""

    dataset: str
    split: str
    scales: list[float]
    points: Annotated[list[GatePoint], Field(min_length=1)]  # by rising share

    @classmethod
    def of(cls, card: Card) -> GateCurve | None:
        """Raises InputError if the card holds something else."""
        try:
            return cls(**card.gate) if card.gate else None
        except (TypeError, ValidationError):
            raise InputError(
                "the checkpoint's gate curve is damaged; run hmsa gate again"
            ) from None

    def at(self, share: float) -> GatePoint:
        """Linear interpolation between the measured shares."""
        columns = {n: [getattr(p, n) for p in self.points] for n in GatePoint.model_fields}
        return GatePoint(**{n: np.interp(share, columns["share"], c) for n, c in columns.items()})


def read(source: str | Path) -> tuple[Path, dict[str, Tensor], Card]:
    """File, weights and card of a checkpoint. Raises InputError."""
    with as_input_error():
        return read_checkpoint(locate(source))


def amend(source: str | Path, **fields: Any) -> None:
    """Change fields of a checkpoint's card; its weights stay as they are."""
    file, tensors, card = read(source)
    write_checkpoint(file, tensors, dataclasses.replace(card, **fields))


def begin_from(model: HMSA, source: str | Path) -> list[str]:
    """Copy the weights of a checkpoint into `model`; returns the names of those not copied.

    Only attention and what depends on the classes may differ. Raises InputError.
    """
    _, tensors, _ = read(source)
    wanted = model.state_dict()
    fresh = [n for n, t in wanted.items() if n not in tensors or tensors[n].shape != t.shape]
    for name in fresh:
        came, needed = [*getattr(tensors.get(name), "shape", ())], [*wanted[name].shape]
        if not name.startswith(("attention.", "prior")) and (not came or came[1:] != needed[1:]):
            raise InputError(
                f"start: {source} has {came or 'nothing'} for {name} {needed}; begin from a "
                "checkpoint of the same trunk, head and width"
            )
    model.load_state_dict({n: tensors[n] for n in wanted if n not in fresh}, strict=False)
    return fresh


def fingerprint(source: str | Path) -> str:
    """SHA-256 of all in a checkpoint that results depend on; of any other file, of its bytes."""
    path = Path(source)
    if path.is_file() and path.suffix != ".safetensors":
        return hashlib.sha256(path.read_bytes()).hexdigest()
    _, tensors, card = read(source)
    fields = [card.network, card.names, card.scales, card.flip, card.long_edge]
    fields += [card.bands, card.stretch] if card.bands or card.stretch else []
    return hashed(tensors, json.dumps(fields, sort_keys=True))


def require_classes(card: Card, names: Sequence[str], other: object, source: object) -> None:
    """Raises InputError unless the classes `names`, of `other`, are those of `source`."""
    if list(names) != card.names:
        own, others = (f"{len(n)} ({', '.join(n[:4])}, ...)" for n in (card.names, names))
        raise InputError(
            f"{source} and {other} need the same classes; they have {own} and {others}"
        )


def trained_on(card: Card, dataset: Path, split: str) -> bool:
    """Whether the network was trained on a split of the YAML file `dataset`, also as extra data."""
    main = card.trained_on.get("dataset")
    sets = [(main, card.trained_on.get("split"))]
    try:
        extra = card.recipe.get("sampling", {}).get("extra", [])
        sets += [(each.get("dataset") or main, each["split"]) for each in extra]
        paths = [Path(name or "") for name, own_split in sets if own_split == split]
    except (AttributeError, KeyError, TypeError):
        raise InputError("the checkpoint's recipe is damaged; train it again") from None
    # The name of a folder stands for the dataset.yaml in it
    return any(dataset.stem in (p.stem, p.stem if p.suffix else "dataset") for p in paths)


def require_unseen(card: Card, dataset: Path, split: str, source: object, option: str) -> None:
    """Raises InputError, naming `option`, if the network was trained on that split."""
    if trained_on(card, dataset, split):
        raise InputError(
            f"{option}: {source} was trained on {dataset.name}, split {split}, so it cannot be "
            "judged there; name another split"
        )
