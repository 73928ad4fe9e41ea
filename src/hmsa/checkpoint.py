"""A trained network in one file: safetensors weights, and in its header all that rebuilds it.

The header's `hmsa` entry is a `Card` as JSON: network, class table, scales, what it learnt from.
Nothing in it can run code, and one file is replaced whole or not at all.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from . import __version__
from .errors import InputError
from .files import replace
from .model import HMSA


class Card(BaseModel):
    """Everything about a network but its weights. Normalisation is in the weights' buffers."""

    network: dict[str, Any]  # arguments of HMSA
    names: list[str]  # K class names
    palette: list[tuple[int, int, int]]  # K colours, RGB
    scales: list[float]  # the chain it was trained for last; the default at inference
    trained_on: dict[str, Any] = {}  # dataset, split, pictures
    recipe: dict[str, Any] = {}  # as given to hmsa train
    metrics: dict[str, float] = {}  # on which step, with what result
    version: str = __version__


def save(path: Path, model: HMSA, card: Card) -> None:
    """Write `path` (a .safetensors file); an older file there stays whole until this one is."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    header = {"format": "pt", "hmsa": card.model_dump_json()}
    replace(path, lambda temporary: save_file(tensors, temporary, metadata=header))


def load(path: Path) -> tuple[HMSA, Card]:
    """The network, in eval mode on the CPU, and its card.

    path: a checkpoint file, or a run folder (its best, else its last). InputError if it is none.
    """
    if path.is_dir():
        found = [path / f"{name}.safetensors" for name in ("best", "last")]
        existing = [file for file in found if file.is_file()]
        if not existing:
            raise InputError(f"{path} is a folder without best.safetensors or last.safetensors")
        path = existing[0]
    if not path.is_file():
        raise InputError(f"no checkpoint {path}; give a .safetensors file or a run folder")
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get("hmsa")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a checkpoint ({error})") from None
    if header is None:
        raise InputError(f"{path} holds weights but no hmsa header; it was not written by hmsa")
    try:
        card = Card.model_validate(json.loads(header))
    except (ValueError, ValidationError) as error:
        raise InputError(f"{path}: its header is damaged ({str(error).splitlines()[0]})") from None
    model = HMSA(**card.network)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(f"{path}: weights do not fit its network ({error})") from None
    return model.eval(), card
