"""Checkpoints of the official multi-scale attention code; official.yaml has their names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from torch import Tensor

from ..data.labels import LabelSet
from ..model import HMSA, build
from ..model.state_dicts import fitted, read_state_dict
from ..runs.errors import InputError, as_input_error

_TABLES = yaml.safe_load(Path(__file__).with_name("official.yaml").read_text(encoding="utf-8"))
NETWORKS: dict[str, dict[str, Any]] = _TABLES["networks"]  # by `arch`
# What the official code stores beside weights. Nothing else is unpickled, so no code of a file runs
_WRAPPERS = re.compile(r"^((module|model|net|network|_orig_mod)\.)+")
_SCALAR: Any = np.float64(0).__reduce__()[0]
_HARMLESS: list[Any] = [
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    np.dtype, np.dtypes.Float64DType, np.dtypes.Float32DType,
]  # fmt: skip


def our_name(key: str, arch: str) -> str:
    """Our name of an official weight, with or without the prefixes of wrappers."""
    key = _WRAPPERS.sub("", key)
    prefixes = _TABLES["short_prefixes"] if NETWORKS[arch].get("short") else {}
    for official, ours in (prefixes | _TABLES["prefixes"]).items():
        if key.startswith(official):
            return f"{ours}{key.removeprefix(official)}"
    raise InputError(f"{key!r} is not a weight of an official network")


def read(path: Path) -> tuple[str, dict[str, Tensor]]:
    """`arch`, and weights under our names, of an official file. Raises InputError."""
    with as_input_error():
        weights, content = read_state_dict(path, _HARMLESS)
    arch = str(content.get("arch"))
    if arch not in NETWORKS:
        raise InputError(f"{path} is of arch {arch!r}; supported are {', '.join(NETWORKS)}")
    return arch, {our_name(key, arch): tensor for key, tensor in weights.items()}


def convert(path: Path, labels: LabelSet) -> HMSA:
    """The network of an official file, with the classes `labels`.

    Raises InputError unless each weight of the file has its place in the network, and the reverse.
    """
    arch, weights = read(path)
    model = build(**NETWORKS[arch], classes=len(labels.names), width=256, official=True)
    # The official code normalises outside of the network, by the same numbers
    weights |= dict(model.named_buffers(recurse=False))
    network = f"{arch} with {len(labels.names)} classes"
    with as_input_error():
        model.load_state_dict(fitted(weights, model.state_dict(), path, network))
    model.card.names, model.card.palette = list(labels.names), list(labels.palette)
    # As evaluated there
    model.card.scales = [1.0] if model.fusion == "average" else [0.5, 1.0, 2.0]
    model.card.trained_on = {"converted from": path.name, "arch": arch}
    return model
