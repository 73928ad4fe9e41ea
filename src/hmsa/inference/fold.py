"""Fusion of whole images in little memory: a few classes at a time.

A network's results stay on the trunk's grid, which is small. Fusion acts on each class by itself,
so a few classes at a time are brought to pixels and folded by the functions of `model.fusion`; what
is kept of them is the label, its logit and the log of the sum of exponentials.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ..model import HMSA, ScaleOutput, average, chain, effective_weights, maximum
from ..model.fusion import known_weight, resize
from ..model.hmsa import Grid, Size

AT_ONCE = 1 << 21  # values of a group of classes at the finest scale


@dataclass(frozen=True)
class Pass:
    """What the network returned for images of one size, on the trunk's grid of each scale."""

    model: HMSA
    size: Size  # of the images
    logits: Mapping[float, Grid]  # by ascending scale, K channels
    attention: Mapping[float, Grid]
    computed: Mapping[float, float] = field(default_factory=dict)  # scale -> share, behind a gate
    cost: float = 1.0  # pixels that went through the network, to those of all scales in full
    context: Tensor | None = None  # see `Head`; of the finest scale that was computed whole

    def groups(self, channels: int) -> Iterator[slice]:
        """As many channels at once as `AT_ONCE` allows."""
        finest = max(self.logits)
        values = len(self.logits[finest].maps) * math.prod(self.size) * finest
        step = max(1, int(AT_ONCE / values))
        return (slice(k, min(channels, k + step)) for k in range(0, channels, step))

    def fused(self, channels: slice, sampled: Size | None = None) -> Tensor:
        """The network's logits of some classes, `[B,C,*self.size]`.

        sampled: places, of which the result is nearly that of all pixels, for far less work.
        """
        return self.model.fold(self._outputs(channels, sampled), sampled or self.size)

    def single(self, channels: slice) -> dict[float, ScaleOutput]:
        """Each scale's own logits of some classes, `[B,C,*self.size]`."""
        return {s: ScaleOutput(m.pixels(channels, self.size), None) for s, m in self.logits.items()}

    def weights(self) -> Tensor:
        """The effective weight of each scale, a channel each, `[B,S,*self.size]`."""

        def part(channels: slice) -> Tensor:
            found = effective_weights(self._outputs(channels), self.size, self.model.fold)
            share: float = (channels.stop - channels.start) / self.model.maps  # of classes
            return torch.cat([found[scale] for scale in self.logits], 1) * share

        return functools.reduce(operator.add, map(part, self.groups(self.model.maps)))

    def known_weight(self, size: Size) -> Tensor:
        """The weight of a scale that is finer than these and not computed yet, `[B,1,*size]`."""
        return known_weight((grid.pixels(size=size) for grid in self.attention.values()), size)

    def _outputs(self, channels: slice, sampled: Size | None = None) -> dict[float, ScaleOutput]:
        """What the model's fold takes: each scale at its own pixels, or where it is needed."""
        sizes = {scale: grid.size for scale, grid in self.logits.items()}
        order = list(sizes)
        if sampled or self.model.fold is not chain:
            sizes = dict.fromkeys(order, sampled or self.size)
        elif len(order) > 1 and order[-2] >= 1:
            sizes[order[-1]] = sizes[order[-2]]  # a chain uses its finest scale on that grid only
        own = channels if self.model.maps > 1 else slice(None)
        trust = {scale: grid.pixels(own, sampled) for scale, grid in self.attention.items()}
        return {
            scale: ScaleOutput(grid.pixels(channels, sizes[scale]), trust.get(scale))
            for scale, grid in self.logits.items()
        }


class Decision:
    """Label, confidence and entropy of logits that come a few classes at a time."""

    classes = 0  # that have come
    label: Tensor  # [B,H,W] uint8: the first class of the highest logit
    top: Tensor  # that logit
    total: Tensor  # log of the sum of exponentials
    mean: Tensor  # expected logit

    def add(self, logits: Tensor, entropy: bool = False) -> None:
        """logits: of the next C classes, `[B,C,H,W]`. entropy: whether it will be needed."""
        top, index = logits.max(1)
        label, total = index.to(torch.uint8), top
        if logits.shape[1] > 1:
            total = (logits - top[:, None]).exp_().sum(1).log_() + top
        mean = (logits * logits.softmax(1)).sum(1) if entropy else total
        if self.classes:
            label = torch.where(top > self.top, label + self.classes, self.label)
            part, total = total, torch.logaddexp(total, self.total)
            mean = self.mean.lerp(mean, (part - total).exp()) if entropy else total
            top = torch.maximum(top, self.top)
        self.classes += logits.shape[1]
        self.label, self.top, self.total, self.mean = label, top, total, mean

    def probability(self, logits: Tensor) -> Tensor:
        """Of any logits `[B,C,H,W]` among those that were added."""
        return (logits - self.total[:, None]).exp()

    def entropy(self) -> Tensor:
        """In 0..1, `[B,H,W]`."""
        return ((self.total - self.mean) / math.log(max(2, self.classes))).clamp(0, 1)


def decide(
    passes: Sequence[Pass],
    size: Sequence[int],
    detail: bool = False,
    probabilities: bool = False,
    entropy: bool = False,
) -> dict[str, Any]:
    """The fields of a `Prediction` of an image, or of it and its mirror image: maps `[B,..,*size]`
    and dictionaries of such."""
    model, decisions = passes[0].model, dict[str, Any]()
    groups = list(passes[0].groups(model.classes))
    for classes in groups:
        logits = _logits(passes, classes, size, detail)
        decisions = decisions or tree_map(lambda _: Decision(), logits)
        tree_map(lambda decision, part: decision.add(part, entropy), decisions, logits)
        del logits  # before those of the next classes are made
    maps: dict[str, Any] = tree_map(lambda decision: decision.label, decisions)
    fused = decisions["label"]
    confidence = fused.probability(fused.top[:, None])[:, 0]
    maps["confidence8"] = (confidence * 255).floor().to(torch.uint8)
    if entropy:
        maps["entropy8"] = (fused.entropy() * 255).floor().to(torch.uint8)
    if probabilities:
        parts = (fused.probability(_logits(passes, c, size)["label"]).half() for c in groups)
        maps["probabilities"] = torch.cat(list(parts), 1)
    if detail and model.fold is not maximum:
        weights = resize(_mean([one.weights() for one in passes]), size).unbind(1)
        maps["weights"] = dict(zip(passes[0].logits, weights, strict=True))
    return maps


def _logits(
    passes: Sequence[Pass], classes: slice, size: Sequence[int], detail: bool = False
) -> dict[str, Any]:
    """Logits of some classes, `[B,C,*size]`; with detail, of whatever has a label of its own."""
    fused = [one.fused(classes) for one in passes]
    found: dict[str, Any] = {"label": _mean(fused)}
    if detail:
        single = [one.single(classes) for one in passes]
        found["single"] = {s: _mean([maps[s].logits for maps in single]) for s in single[0]}
        found["pooled"] = {
            name: _mean([fold(maps, passes[0].size) for maps in single])
            for name, fold in (("average", average), ("max", maximum))
        }
        if len(fused) > 1:
            found["flips"] = {"plain": fused[0], "mirrored": fused[1].flip(-1)}
    return tree_map(lambda logits: resize(logits, size), found)  # type: ignore[no-any-return]


def _mean(maps: Sequence[Tensor]) -> Tensor:
    """Of an image's maps, or of those and its mirror image's."""
    first, *mirrored = maps
    return (first + mirrored[0].flip(-1)) / 2 if mirrored else first
