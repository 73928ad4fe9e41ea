"""Scale attention around a segmentation network of any origin: a head learns, the network does not.

network = smp.Unet("resnet18", classes=11)  # any nn.Module that returns logits
model = ScaleAttention(network.eval(), classes=11)  # an HMSA: the same inference for all
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from .fusion import wide
from .heads import Head, Reading, predictor
from .hmsa import HMSA
from .pretrained import Card
from .variants import PairAttention

STRIDE = 4  # pixels a cell: the finest grid that the attention head works on
CONFIDENCE = 3  # channels of `confidence_of`


@dataclass(frozen=True)
class NetworkInfo:
    """A network, and what its weights do not tell."""

    module: nn.Module
    # JSON to rebuild it
    made: Mapping[str, Any] = field(default_factory=lambda: {"library": "own"})
    multiple: int = 32  # height and width of an image must be multiples of this
    mean: Sequence[float] = IMAGENET_DEFAULT_MEAN  # of RGB in 0..1
    std: Sequence[float] = IMAGENET_DEFAULT_STD
    names: Sequence[str] | None = None  # of its classes


def describe(network: nn.Module | Mapping[str, Any]) -> NetworkInfo:
    """What a module declares by its attributes, which are named as those of `NetworkInfo`."""
    if not isinstance(network, nn.Module):
        raise ValueError("the checkpoint holds a foreign network; give it as network=")
    keys = ("made", "multiple", "mean", "std", "names")
    declared = {key: getattr(network, key) for key in keys if hasattr(network, key)}
    return NetworkInfo(network, **declared)


def logits_of(output: Any) -> Tensor:
    """`[B,K,h,w]` out of what a network returned. Raises ValueError that says what came instead."""
    wrapped = isinstance(output, Mapping) and "out" in output
    found = output["out"] if wrapped else getattr(output, "logits", output)
    needed = "logits [B,K,h,w]: a tensor, a dictionary with out, or an object with .logits"
    return _maps(found, "the network returns", f"it must be {needed}")


def _maps(value: Any, what: str, needed: str) -> Tensor:
    if isinstance(value, Tensor) and value.ndim == 4:
        return value
    parts = getattr(value, "shape", value if isinstance(value, Mapping) else ())
    came = "nothing" if value is None else f"{type(value).__name__} {list(parts)}"
    raise ValueError(f"{what} {came}; {needed}")


def confidence_of(logits: Tensor) -> Tensor:
    """logits `[B,K,h,w]` -> entropy, top probability and its margin, `[B,3,h,w]` in 0..1."""
    log = wide(logits).log_softmax(1)
    share = log.exp()
    entropy = -(share * log).sum(1) / math.log(max(2, share.shape[1]))
    top = share.topk(min(2, share.shape[1]), 1).values
    return torch.stack([entropy, top[:, 0], top[:, 0] - top[:, -1]], 1)


class ForeignNetwork(nn.Module):
    """A frozen network in place of a trunk: image `[B,3,h,w]`, normalised -> features, logits.

    feature_source: where the features `[B,C,h',w']` of attention come from: the output of a module
    of the network, such as decoder.blocks.4, or its input, decoder.blocks.4:input; "auto" is the
    input of the last convolution that makes K channels; None: no features. Raises ValueError.
    """

    def __init__(
        self, module: nn.Module, multiple: int, classes: int | None, feature_source: str | None,
        in_channels: int = 3,
    ) -> None:  # fmt: skip
        super().__init__()
        if module.training:
            raise ValueError("the network is in training mode; call network.eval() first")
        self.module = module.requires_grad_(False)
        weight = next(module.parameters(), torch.zeros(()))
        image = weight.new_zeros(1, in_channels, 4 * multiple, 4 * multiple)
        names = {part: name for name, part in module.named_modules()}
        ran: dict[str, Any] = {}  # what each module took, NAME:input, and returned, NAME
        last: dict[int, str] = {}  # input of the last convolution that makes so many channels

        def note(part: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if name := names.get(part):
                ran[name], ran[f"{name}:input"] = output, next(iter(inputs), None)
                if isinstance(part, nn.Conv2d):
                    last[part.out_channels] = f"{name}:input"

        try:
            with register_module_forward_hook(note):
                output = module(image)
        except Exception as error:  # of somebody else's code: anything
            raise ValueError(
                f"the network fails on an image {list(image.shape)}, is its multiple {multiple}? "
                f"({type(error).__name__}: {' '.join(str(error).split())[:160]})"
            ) from None
        logits = features = logits_of(output)
        self.classes = logits.shape[1]
        if classes not in (None, self.classes):
            raise ValueError(f"the network returns {self.classes} classes, {classes} are wanted")
        self.feature_source = last.get(self.classes) if feature_source == "auto" else feature_source
        if self.feature_source:
            parts = ", ".join(name for name, _ in module.named_children())
            needed = f"name a module in it ({parts}, ..) that makes maps [B,C,h,w], or none"
            what = f"features: {self.feature_source} of the network gave"
            features = _maps(ran.get(self.feature_source), what, needed)
        self.channels = features.shape[1] if self.feature_source else 0
        far, near = _stride(image, features), _stride(image, logits)
        grid = math.lcm(near, far)
        grid *= math.ceil(STRIDE / grid)  # pixels a cell, of the attention head
        self.pooled = grid // far, grid // near  # cells that are averaged to one
        self.multiple = math.lcm(multiple, grid)
        self.strides = [near, self.multiple]

    def forward(self, image: Tensor, attended: bool = True) -> tuple[Tensor | None, Tensor]:
        if not attended or not self.feature_source:
            return None, logits_of(self.module(image))
        name, _, side = self.feature_source.partition(":")
        found: list[Tensor] = []
        part = self.module.get_submodule(name)
        with part.register_forward_hook(lambda _, i, o: found.append(i[0] if side else o)):
            logits = logits_of(self.module(image))
        return found[-1], logits

    def train(self, mode: bool = True) -> Self:
        """Stays in eval mode, whatever `mode` says."""
        return super().train(False)


def _stride(image: Tensor, maps: Tensor) -> int:
    """Pixels a cell. Raises ValueError if that is not one whole number."""
    stride = image.shape[-1] // maps.shape[-1]
    if [side * stride for side in maps.shape[-2:]] != list(image.shape[-2:]):
        came = f"maps {list(maps.shape)} of an image {list(image.shape)}"
        raise ValueError(f"the network makes {came}; they must be smaller by one whole number")
    return stride


class ScaleAttention(HMSA):
    """Multi-scale attention around `network`, which is frozen and stays in eval mode.

    network: an nn.Module, its `NetworkInfo`, or the `made` of a saved one. classes: K, to be
    checked. features: `feature_source` of `ForeignNetwork`; the head also takes `confidence_of` the
    logits. per_class: K attention maps. width: of the head. Raises ValueError for other networks.
    """

    fusion = "attention"
    views = 1  # scales whose features the head takes together
    # `hmsa.checkpoint.networks` replaces it: it knows other libraries, and rebuilds from `made`
    describe: Callable[[Any], NetworkInfo] = staticmethod(describe)

    def __init__(
        self,
        network: nn.Module | NetworkInfo | Mapping[str, Any],
        classes: int | None = None,
        *,
        features: str | None = "auto",
        per_class: bool = False,
        width: int = 64,
    ) -> None:
        nn.Module.__init__(self)  # there is no trunk and no head of `HMSA` to build
        info = network if isinstance(network, NetworkInfo) else self.describe(network)
        if "reference" in info.made:
            self.external = ("trunk.module.",)
        bands = len(info.mean)
        self.trunk = trunk = ForeignNetwork(info.module, info.multiple, classes, features, bands)
        self.classes = k = trunk.classes
        self.maps = k if per_class else 1
        self.head = Head()
        self.head.features = trunk.channels + CONFIDENCE
        # Features have the range that the network gives them: the norm makes them alike
        inputs = self.views * self.head.features
        self.attention = nn.Sequential(nn.BatchNorm2d(inputs), predictor(inputs, width, self.maps))
        self._register(info.mean, info.std)
        self.card = Card(
            network={
                "fusion": self.fusion, "network": dict(info.made), "classes": k,
                "features": trunk.feature_source, "per_class": per_class, "width": width,
            },
            names=list(info.names or (f"class {i}" for i in range(k))),
        )  # fmt: skip

    def see(self, image: Tensor, attended: bool = True, context: Tensor | None = None) -> Reading:
        features, logits = self.trunk(image, attended)
        if not attended:
            return Reading(None, logits)
        far, near = self.trunk.pooled
        found = F.avg_pool2d(confidence_of(logits), near)
        if features is not None:
            found = torch.cat([F.avg_pool2d(features, far), found.to(features)], 1)
        return Reading(found, logits)


class PairScaleAttention(ScaleAttention, PairAttention):
    """The attention of a pair of scales takes the features of both: no gate, no tiles."""

    fusion = "attention of pairs"
    views = 2
