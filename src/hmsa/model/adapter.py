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

from .baselines import PairAttention
from .heads import Head, Reading, predictor
from .hmsa import HMSA
from .look import wide
from .pretrained import Card

STRIDE = 4  # pixels a cell: the finest grid that the attention head works on
CONFIDENCE = 3  # channels of `confidence_of`


@dataclass(frozen=True)
class NetworkInfo:
    """A network, and what its weights do not tell."""

    module: nn.Module
    made: Mapping[str, Any] = field(
        default_factory=lambda: {"library": "own"}
    )  # JSON to rebuild it
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
    found = output["out"] if isinstance(output, Mapping) and "out" in output else output
    found = getattr(found, "logits", found)
    if isinstance(found, Tensor) and found.ndim == 4:
        return found
    raise ValueError(
        f"the network returns {_form(output)}; it must be logits [B,K,h,w]: a tensor, a dictionary "
        "with out, or an object with .logits"
    )


def _form(value: Any) -> str:
    """What an error message says of a value."""
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)}"
    name = type(value).__name__
    return f"{name} with {', '.join(map(str, value))}" if isinstance(value, Mapping) else name


def confidence_of(logits: Tensor) -> Tensor:
    """logits `[B,K,h,w]` -> entropy, top probability and its margin, `[B,3,h,w]` in 0..1."""
    share = wide(logits).softmax(1)
    entropy = torch.special.entr(share).sum(1) / math.log(max(2, share.shape[1]))
    top = share.topk(min(2, share.shape[1]), 1).values
    return torch.stack([entropy, top[:, 0], top[:, 0] - top[:, -1]], 1)


class ForeignNetwork(nn.Module):
    """A frozen network in place of a trunk: image `[B,3,h,w]`, normalised -> features, logits.

    feature_source: where the features `[B,C,h',w']` of attention come from: the output of a module
    of the network, such as decoder.blocks.4, or its input, decoder.blocks.4:input; "auto" is the
    input of the last convolution that makes K channels; None: no features. Raises ValueError.
    """

    def __init__(
        self, module: nn.Module, multiple: int, classes: int | None, feature_source: str | None
    ) -> None:
        super().__init__()
        if module.training:
            raise ValueError("the network is in training mode; call network.eval() first")
        self.module = module.requires_grad_(False)
        weight = next(module.parameters(), torch.zeros(()))
        image = weight.new_zeros(1, 3, 4 * multiple, 4 * multiple)
        logits, ran = self._probe(image, multiple)
        self.classes = logits.shape[1]
        if classes not in (None, self.classes):
            raise ValueError(f"the network returns {self.classes} classes, {classes} are wanted")
        if feature_source == "auto":
            feature_source = next(
                (f"{name}:input" for name, part in reversed(ran)
                 if isinstance(part, nn.Conv2d) and part.out_channels == self.classes), None
            )  # fmt: skip
        self.feature_source = feature_source
        features, _ = self(image)
        self.channels = 0 if features is None else features.shape[1]
        own = _stride(image, logits, "logits")
        features_stride = own if features is None else _stride(image, features, "features")
        grid = math.lcm(own, features_stride)
        grid *= math.ceil(STRIDE / grid)  # pixels a cell, of the attention head
        self.pooled = grid // features_stride, grid // own  # cells that are averaged to one
        self.multiple = math.lcm(multiple, grid)
        self.strides = [own, self.multiple]

    def forward(self, image: Tensor, attended: bool = True) -> tuple[Tensor | None, Tensor]:
        if not attended or not self.feature_source:
            return None, logits_of(self.module(image))
        name, _, side = self.feature_source.partition(":")
        found: list[Any] = []

        def keep(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            found.append(inputs[0] if side == "input" else output)

        parts = dict(self.module.named_modules())
        if name not in parts:
            own = ", ".join(each for each in parts if each and "." not in each)
            raise ValueError(f"features: no module {name!r} in the network; it is made of {own}")
        with parts[name].register_forward_hook(keep):
            logits = logits_of(self.module(image))
        features = found[-1] if found else None
        if isinstance(features, Tensor) and features.ndim == 4:
            return features, logits
        came = _form(features) if found else "nothing"
        raise ValueError(
            f"features: {self.feature_source} of the network gave {came}; it must be maps "
            "[B,C,h,w]; name another module, or none"
        )

    def train(self, mode: bool = True) -> Self:
        """Stays in eval mode, whatever `mode` says."""
        return super().train(False)

    def _probe(self, image: Tensor, multiple: int) -> tuple[Tensor, list[tuple[str, nn.Module]]]:
        """The network's logits, and its modules, with their names, in the order they ran in."""
        names = {part: name for name, part in self.module.named_modules()}
        ran: list[nn.Module] = []
        try:
            with register_module_forward_hook(lambda part, *_: ran.append(part)):
                output = self.module(image)
        except Exception as error:  # of somebody else's code: anything
            raise ValueError(
                f"the network fails on an image {list(image.shape)}, is its multiple {multiple}? "
                f"({type(error).__name__}: {' '.join(str(error).split())[:160]})"
            ) from None
        return logits_of(output), [(names[part], part) for part in ran if part in names]


def _stride(image: Tensor, maps: Tensor, what: str) -> int:
    """Pixels a cell. Raises ValueError if that is not one whole number."""
    found = {side / cells for side, cells in zip(image.shape[-2:], maps.shape[-2:], strict=True)}
    if len(found) > 1 or min(found) % 1 or min(found) < 1:
        came = f"{what} {list(maps.shape)} of an image {list(image.shape)}"
        raise ValueError(f"the network makes {came}; they must be smaller by one whole number")
    return round(found.pop())


class ScaleAttention(HMSA):
    """Multi-scale attention around `network`, which is frozen and stays in eval mode.

    network: an nn.Module, its `NetworkInfo`, or the `made` of a saved one. classes: K, if it is to
    be checked. features: `feature_source` of `ForeignNetwork`; beside them the head takes
    `confidence_of` the logits. per_class: K attention maps instead of one. width: channels in the
    head. Raises ValueError if the network cannot be used.
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
            self.external = "trunk.module."
        self.trunk = trunk = ForeignNetwork(info.module, info.multiple, classes, features)
        self.classes = k = trunk.classes
        self.maps = k if per_class else 1
        self.head = Head()
        self.head.features = trunk.channels + CONFIDENCE
        # Features have the range that the network gives them: the norm makes them alike
        inputs = self.views * self.head.features
        self.attention = nn.Sequential(nn.BatchNorm2d(inputs), predictor(inputs, width, self.maps))
        self._normalise_by(info.mean, info.std)
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
        confidence = F.avg_pool2d(confidence_of(logits), near)
        if features is None:
            return Reading(confidence, logits)
        features = F.avg_pool2d(features, far)
        return Reading(torch.cat([features, confidence.to(features)], 1), logits)


class PairScaleAttention(ScaleAttention, PairAttention):
    """The attention of a pair of scales takes the features of both: no gate, no tiles."""

    fusion = "attention of pairs"
    views = 2
