"""Weights in files of any origin: read safely, whatever wrapper they were saved from."""

from __future__ import annotations

import pickle
from argparse import Namespace
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any
from warnings import catch_warnings, simplefilter

import torch
from safetensors.torch import load_file
from torch import Tensor

# Of what Lightning, timm and others save: the entry with the weights; averaged ones before others
ENTRIES = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model")


def read_state_dict(
    path: Path, harmless: Sequence[Any] = ()
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights in a file of torch or safetensors, and all that the file holds.

    Nothing is unpickled but tensors, plain values, arguments of a command line and the classes
    `harmless`. Raises ValueError.
    """
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            with torch.serialization.safe_globals([Namespace, *harmless]), catch_warnings():
                simplefilter("ignore")  # of what the file says of itself
                content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file may be anybody's
        pickled = isinstance(error, pickle.UnpicklingError)
        reason = "more than weights; save its state_dict" if pickled else str(error)
        short = " ".join(reason.split())[:160] or type(error).__name__
        raise ValueError(f"{path} cannot be read safely ({short})") from None
    found = content if isinstance(content, dict) else {}
    while inner := next((key for key in ENTRIES if isinstance(found.get(key), dict)), None):
        found = found[inner]
    weights = {str(name): each for name, each in found.items() if isinstance(each, Tensor)}
    if not weights:
        raise ValueError(f"{path} has no state_dict; save network.state_dict(), or a dict with it")
    return weights, content


def unwrapped(tensors: Mapping[str, Tensor], wanted: Collection[str]) -> dict[str, Tensor]:
    """`tensors` without the prefix by which most names are `wanted`, and only those with it.

    Such as `module.` of DDP, `model.` of Lightning, or both. Without any such name: as they are.
    """
    ends = {name.removesuffix(w) for w in wanted for name in tensors if name.endswith(w)}
    prefixes = sorted(end for end in ends if not end or end.endswith("."))
    prefix = max(prefixes, key=lambda p: sum(p + w in tensors for w in wanted), default="")
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def fitted(
    tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], source: object, network: str
) -> dict[str, Tensor]:
    """`tensors` under the names of the state_dict `wanted`, for `load_state_dict`.

    Raises ValueError, with counts, unless each has its place in the network, and the reverse.
    """
    came = unwrapped(tensors, wanted)
    shared = wanted.keys() & came.keys()
    wrong = {
        "missing": [name for name in wanted if name not in came],
        "of another shape": [n for n in wanted if n in shared and came[n].shape != wanted[n].shape],
        "not in it": [name for name in came if name not in wanted],
    }
    if any(wrong.values()):
        matched = len(shared) - len(wrong["of another shape"])
        parts = [
            f"{len(names)} {what}, such as {names[0]}" for what, names in wrong.items() if names
        ]
        raise ValueError(
            f"{source} does not fit {network}: {matched} of {len(wanted)} weights match; "
            f"{'; '.join(parts)}"
        )
    require_finite(came, source)
    return came


def require_finite(tensors: Mapping[str, Tensor], source: object) -> None:
    """Raises ValueError for weights that are not numbers: they would label all as one class."""
    floats = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    broken = [name for name, tensor in floats.items() if not tensor.float().isfinite().all()]
    if broken:
        raise ValueError(
            f"{source}: {len(broken)} of {len(tensors)} weights hold NaN or infinite numbers, such "
            f"as {broken[0]}; the training has failed, take an earlier checkpoint"
        )
