"""What a frozen network says of images, computed once; the constant that attention begins at."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils._pytree import tree_map, tree_map_only

from ..config.recipe import Stage
from ..evaluation.confusion import Confusion
from ..model import HMSA, Encoded
from ..model.fusion import ordered
from ..runs import Progress, replace
from ..runs.machine import gathered
from .trainer import Outputs

PASSES = "passes"  # folder in the run folder
Prior = tuple[float, float]  # see `HMSA`
HELD_OUT = 5  # one image is held out for this many: attention does not learn from it
# Constant attentions to choose from, which reach nearly each scale alone
SHARES = (0.02, 1 / 6, 1 / 4, 1 / 3, 1 / 2, 2 / 3, 5 / 6, 0.98)


@dataclass(frozen=True)
class Passes:
    """Passes of a frozen network at `scales`: a file for each image, never computed twice.

    load: number -> image `[3,H,W]` and label `[H,W]`, both uint8.
    """

    folder: Path
    fabric: Fabric
    model: HMSA
    scales: Sequence[float]
    load: Callable[[int], tuple[Tensor, Tensor]]

    def compute(self, numbers: Sequence[int]) -> Iterator[None]:
        """Run the network on the images that it has not run on before, one at a time."""
        with Progress("frozen network", len(numbers)) as progress:
            for number in numbers:
                if not self.file(number).is_file():
                    replace(self.file(number), partial(torch.save, self._run(number)))
                progress.advance()
                yield

    @torch.no_grad()
    def _run(self, number: int) -> Any:
        image, label = self.load(number)
        with self.fabric.autocast():
            image = self.fabric.to_device(image[None])
            encoded = self.model.eval().encode(image, self.scales)
        # Training needs no logits on a finer grid than that of attention
        grids = {s: one.features.shape for s, one in encoded.items() if one.features is not None}
        cell = max(encoded[s].logits.shape[-1] // grid[-1] for s, grid in grids.items())
        pooled = {s: F.avg_pool2d(one.logits.float(), cell) for s, one in encoded.items()}
        kept = {s: tuple(one._replace(logits=pooled[s])) for s, one in encoded.items()}
        return tree_map_only(Tensor, lambda tensor: tensor.half().cpu(), (kept, label[None]))

    def read(self, numbers: Sequence[int]) -> tuple[dict[float, Encoded], Tensor]:
        """Images of one size as a batch: output of `HMSA.encode` and label `[B,H,W]`."""
        kept = [torch.load(self.file(n), self.fabric.device, weights_only=True) for n in numbers]
        encoded, label = tree_map(
            lambda one, *more: torch.cat([one, *more]).float() if isinstance(one, Tensor) else one,
            *kept,
        )
        return {scale: Encoded(*one) for scale, one in encoded.items()}, label.long()

    def outputs(
        self, stage: Stage, numbers: Sequence[int], seed: Sequence[int], network: Any, start: int
    ) -> Outputs:
        """Of the attention head on images drawn from `numbers`; see `Work`."""
        for step in range(start, stage.steps):
            random = np.random.default_rng((*seed, step))
            drawn = random.choice(numbers, min(stage.batch, len(numbers)), replace=False)
            encoded, label = self.read(drawn.tolist())
            yield network.attend(encoded, label.shape[-2:]), label, None

    def best_constant(self, numbers: Sequence[int]) -> Prior:
        """The prior of averaging or, where another constant is clearly better, of that.

        Clearly: its mean IoU on these images is higher by two standard errors, which are those of
        the bootstrap over images. On few and like images the best of many constants is one by
        chance. All processes agree.
        """
        priors, counts = self.try_constants(numbers)
        return priors[clearly_best(counts)]

    @torch.no_grad()
    def try_constants(self, numbers: Sequence[int]) -> tuple[list[Prior], np.ndarray[Any, Any]]:
        """G priors, of averaging the first; `parts_of_iou` of N images by each, `[N,G,2,K]`.

        Every fourth row and column counts.
        """
        scales, every = ordered(self.scales), (..., slice(None, None, 4), slice(None, None, 4))
        pairs = [(1 / len(scales), 1 / 2), *product(SHARES, repeat=2)]
        priors = [prior_of(shares, scales) for shares in pairs]
        mixtures = [constant_weights(prior, scales) for prior in priors]
        counts = []
        for number in numbers:
            encoded, label = self.read([number])
            size = label.shape[1], label.shape[2]
            maps = [e.grid(e.logits).pixels(size=size)[every] for e in encoded.values()]
            found = [Confusion(self.model.classes) for _ in mixtures]
            for weights, confusion in zip(mixtures, found, strict=True):
                mixed = torch.stack([w * m for w, m in zip(weights, maps, strict=True)]).sum(0)
                confusion.add(label[every].cpu(), mixed.argmax(1).cpu())
            counts.append(torch.stack([parts_of_iou(each.matrix) for each in found]))
        whole = gathered(torch.stack(counts).to(self.fabric.device))
        return priors, whole.cpu().numpy()

    def file(self, number: int) -> Path:
        return self.folder / f"{number}.pt"


def parts_of_iou(matrix: Tensor) -> Tensor:
    """Confusion matrix `[K,K]` -> `[2,K]`: pixels of each class that are right, and its union."""
    hit = matrix.diagonal()
    return torch.stack([hit, matrix.sum(0) + matrix.sum(1) - hit])


def clearly_best(counts: np.ndarray[Any, Any], draws: int = 200) -> int:
    """The number of the candidate with the highest mean IoU, or 0 if none is clearly above that.

    counts `[N,G,2,K]`: `parts_of_iou` of N images by G candidates.
    """
    random = np.random.default_rng(0)
    drawn = random.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), draws)
    sums = np.tensordot(np.concatenate([np.ones_like(drawn[:1]), drawn]), counts, 1)
    hit, union = sums[..., 0, :], sums[..., 1, :]
    miou = (hit / np.maximum(union, 1)).sum(-1) / np.maximum((union > 0).sum(-1), 1)
    gain = miou - miou[:, :1]
    noise = gain[1:].std(0) if len(counts) > 1 else np.inf
    return int(np.where(gain[0] > 2 * noise, gain[0], 0).argmax())


def prior_of(shares: Sequence[float], scales: Sequence[float]) -> Prior:
    """The prior that gives the coarsest scale, and the finest but one, these attentions."""
    low, high = (math.log(share / (1 - share)) for share in shares)
    first, last = math.log2(scales[0]), math.log2(scales[-2])
    slope = (high - low) / (last - first) if last > first else 0.0
    return high - slope * last, slope


def constant_weights(prior: Sequence[float], scales: Sequence[float]) -> list[float]:
    """The weight of each of the ascending `scales` where attention is the prior alone."""
    weights, rest = [], 1.0
    for scale in scales[:-1]:
        attention = 1 / (1 + math.exp(-prior[0] - prior[1] * math.log2(scale)))
        weights.append(rest * attention)
        rest -= weights[-1]
    return [*weights, rest]


def begin_at(model: HMSA, prior: Sequence[float]) -> None:
    """Let attention be this prior, and what its head adds begin with 0."""
    *_, last = cast(nn.Module, model.attention).modules()
    with torch.no_grad():
        model.prior.copy_(torch.tensor(prior))
        for parameter in last.parameters():
            parameter.zero_()
