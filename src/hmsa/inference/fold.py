"""Fusion of whole images in little memory: a few classes at a time.

A network's results stay on the trunk's grid, which is small. Fusion acts on each class by itself,
so a few classes at a time are brought to pixels and folded by the functions of `model.fusion`; what
is kept of them is the label, its logit and the log of the sum of exponentials.
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..model import HMSA, ScaleOutput, average, chain, effective_weights, maximum
from ..model.fusion import known_weight, resize
from ..model.hmsa import Grid, Size

AT_ONCE = 1 << 23  # values of a group of classes at the finest scale

Key = tuple[str, Any]  # field of a `Prediction`; key in it, None where it is one map


@dataclass
class Pass:
    """What the network returned for images of one size, on the trunk's grid of each scale."""

    model: HMSA
    size: Size  # of the images
    logits: Mapping[float, Grid]  # by ascending scale, K channels
    attention: Mapping[float, Grid]
    computed: dict[float, float] = field(default_factory=dict)  # scale -> share, behind a gate
    cost: float = 1.0  # pixels that went through the network, to those of all scales in full

    def groups(self, channels: int) -> Iterator[slice]:
        """As many channels at once as `AT_ONCE` allows."""
        finest = self.logits[max(self.logits)]
        values = len(finest.maps) * math.prod(self.size) * max(self.logits)
        step = max(1, int(AT_ONCE / values))
        return (slice(k, min(channels, k + step)) for k in range(0, channels, step))

    def fused(self, channels: slice) -> Tensor:
        """The network's logits of some classes, `[B,C,*self.size]`."""
        return self.model.fold(self._outputs(channels), self.size)

    def single(self, channels: slice) -> dict[float, ScaleOutput]:
        """Each scale's own logits of some classes, `[B,C,*self.size]`."""
        return {s: ScaleOutput(m.pixels(channels, self.size), None) for s, m in self.logits.items()}

    def weights(self) -> Tensor:
        """The effective weight of each scale, a channel each, `[B,S,*self.size]`."""

        def part(channels: slice) -> Tensor:
            found = effective_weights(self._outputs(channels), self.size, self.model.fold)
            share = (channels.stop - channels.start) / self.model.maps  # of classes
            return torch.cat([found[scale] for scale in self.logits], 1) * share

        return functools.reduce(torch.add, map(part, self.groups(self.model.maps)))

    def known_weight(self, size: Size) -> Tensor:
        """The weight of a scale that is finer than these and not computed yet, `[B,1,*size]`."""
        return known_weight((grid.pixels(size=size) for grid in self.attention.values()), size)

    def _outputs(self, channels: slice) -> dict[float, ScaleOutput]:
        """What the model's fold takes: each scale at its own pixels, or where it is needed."""
        sizes = {scale: grid.size for scale, grid in self.logits.items()}
        order = list(sizes)
        if self.model.fold is not chain:
            sizes = dict.fromkeys(order, self.size)
        elif len(order) > 1 and order[-2] >= 1:
            sizes[order[-1]] = sizes[order[-2]]  # a chain uses its finest scale on that grid only
        own = channels if self.model.maps > 1 else slice(None)
        trust = {scale: grid.pixels(own) for scale, grid in self.attention.items()}
        return {
            scale: ScaleOutput(grid.pixels(channels, sizes[scale]), trust.get(scale))
            for scale, grid in self.logits.items()
        }


class Decision:
    """Label, confidence and entropy of logits that come a few classes at a time."""

    label: Tensor  # [B,H,W] uint8: the first class of the highest logit

    def __init__(self) -> None:
        self._classes = 0

    def add(self, logits: Tensor, entropy: bool = False) -> None:
        """logits: of the next C classes, `[B,C,H,W]`. entropy: whether it will be needed."""
        top, index = logits.max(1)
        label, total = index.to(torch.uint8), logits.logsumexp(1)
        mean = (logits * logits.softmax(1)).sum(1) if entropy else total
        if self._classes:
            label = torch.where(top > self._top, label + self._classes, self.label)
            top, new = torch.maximum(top, self._top), torch.logaddexp(total, self._total)
            mean, total = self._mean.lerp(mean, (total - new).exp()), new
        self._classes += logits.shape[1]
        self.label, self._top, self._total, self._mean = label, top, total, mean

    def probability(self, logits: Tensor) -> Tensor:
        """Of classes that were added before, `[B,C,H,W]`."""
        return (logits - self._total[:, None]).exp()

    def confidence(self) -> Tensor:
        """The highest probability, `[B,H,W]`."""
        return (self._top - self._total).exp()

    def entropy(self) -> Tensor:
        """In 0..1, `[B,H,W]`."""
        return ((self._total - self._mean) / math.log(max(2, self._classes))).clamp(0, 1)


def decide(
    passes: Sequence[Pass],
    size: Sequence[int],
    detail: bool = False,
    probabilities: bool = False,
    entropy: bool = False,
) -> Iterator[tuple[Key, Tensor]]:
    """What a `Prediction` holds of an image, or of it and its mirror image: maps `[B,..,*size]`."""
    decisions, model = defaultdict[Key, Decision](Decision), passes[0].model
    groups = list(passes[0].groups(model.classes))
    for classes in groups:
        for key, logits in _logits(passes, classes, detail):
            decisions[key].add(resize(logits, size), entropy)
    for key, decision in decisions.items():
        yield key, decision.label
    fused = decisions["label", None]
    yield ("confidence", None), (fused.confidence() * 255).floor().to(torch.uint8)
    if entropy:
        yield ("entropy", None), (fused.entropy() * 255).floor().to(torch.uint8)
    if probabilities:
        shape = len(fused.label), model.classes, *size
        share = torch.empty(shape, dtype=torch.float16, device=fused.label.device)
        for classes in groups:
            _, logits = next(_logits(passes, classes))
            share[:, classes] = fused.probability(resize(logits, size))
        yield ("probabilities", None), share
    if detail and model.fold is not maximum:
        weights = resize(_mean([one.weights() for one in passes]), size)
        for scale, weight in zip(passes[0].logits, weights.unbind(1), strict=True):
            yield ("weights", scale), weight


def _logits(
    passes: Sequence[Pass], classes: slice, detail: bool = False
) -> Iterator[tuple[Key, Tensor]]:
    """Logits of some classes, `[B,C,h,w]`; with detail, of all that has a label of its own."""
    fused = [one.fused(classes) for one in passes]
    yield ("label", None), _mean(fused)
    if not detail:
        return
    if len(fused) > 1:
        yield ("flips", "plain"), fused[0]
        yield ("flips", "mirrored"), fused[1].flip(-1)
    single = [one.single(classes) for one in passes]
    for scale in single[0]:
        yield ("single", scale), _mean([maps[scale].logits for maps in single])
    for name, fold in (("average", average), ("max", maximum)):
        yield ("pooled", name), _mean([fold(maps, passes[0].size) for maps in single])


def _mean(maps: Sequence[Tensor]) -> Tensor:
    """Of an image's maps, or of those and its mirror image's."""
    first, *mirrored = maps
    return (first + mirrored[0].flip(-1)) / 2 if mirrored else first
