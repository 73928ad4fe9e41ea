"""What training minimises. The network does not know its loss.

Every function returns the part of these images in the loss of the batch that all processes have
together: the parts sum up to what one process would return for the joined batch. Where a process
computes its batch in several parts, `batch` is the label of all of them.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config.recipe import Stage
from ..data.labels import IGNORE
from ..model import Output
from ..model.fusion import resize
from ..model.hmsa import Grid
from ..runs.machine import gathered, total
from .groups import Logits, one_hot
from .rmi import binary_cross_entropy, region_mutual_information


def cross_entropy(
    logits: Logits, label: Tensor, weight: Tensor | None = None, batch: Tensor | None = None
) -> Tensor:
    """Mean over labelled pixels, weighted by class; 0, with a gradient of 0, if there are none.

    logits of `[B,K,H,W]`, label `[B,H,W]` int64 with 255 = ignore, weight `[K]`.
    """
    whole, own = _totals(logits, label)

    def factors(label: Tensor) -> Tensor:
        factor = (label != IGNORE).to(whole)
        return factor if weight is None else factor * weight[label * (label != IGNORE)]

    factor = factors(label)

    def part(some: Tensor, classes: slice) -> Tensor:
        slope = (some.detach() - whole[:, None]).exp_()
        slope -= one_hot(label, classes).to(slope)
        return (slope.mul_(factor[:, None]) * some).sum()

    summed = logits.sum(part, (factor * (whole - own)).sum())
    count = factor if batch is None else factors(batch)
    return summed / total(count.sum()).clamp(min=1e-6)


def hard_cross_entropy(
    logits: Logits,
    label: Tensor,
    weight: Tensor | None = None,
    batch: Tensor | None = None,
    *,
    threshold: float = 0.7,
    least: float = 1 / 16,
) -> Tensor:
    """OHEM: cross-entropy of the pixels whose true class has a probability below `threshold`.

    Never fewer than the hardest `least` share of the labelled pixels. Shapes as `cross_entropy`.
    Each part of a batch has its own hard pixels; what comes back is the mean over parts.
    Source: Shrivastava et al., "Training Region-based Object Detectors with OHEM", 2016.
    """
    whole, own = _totals(logits, label)
    loss = whole - own
    labelled = loss[label != IGNORE]
    count = max(1, math.ceil(least * int(total(label.new_tensor(labelled.numel())))))
    hard = labelled.topk(min(count, labelled.numel())).values
    hard = F.pad(hard, (0, count - hard.numel()), value=-math.inf)
    hardest = gathered(hard).topk(count).values[-1]
    easy = loss < hardest.clamp(max=-math.log(threshold))
    share = 1 if batch is None else len(label) / len(batch)
    return share * cross_entropy(logits, label.masked_fill(easy, IGNORE), weight)


@torch.no_grad()
def _totals(logits: Logits, label: Tensor) -> tuple[Tensor, Tensor]:
    """Log of the sum of exponentials, and the logit of the true class or 0, `[B,H,W]`."""
    whole = own = torch.empty(0)
    for classes, some in logits.groups():
        part, true = some.logsumexp(1), (some * one_hot(label, classes)).sum(1)
        first = not classes.start
        whole, own = (part, true) if first else (whole.logaddexp(part), own + true)
    return whole, own


def objective(
    output: Output,
    label: Tensor,
    stage: Stage,
    weight: Tensor | None = None,
    batch: Tensor | None = None,
) -> dict[str, Tensor]:
    """The sum to minimise, `loss`, and its parts; weight: of each class, `[K]`.

    `fused`: of the fused logits. With stage.loss "ohem", of their hard pixels only. With "rmi",
    half `bce` and half `rmi`; all other parts are then binary cross-entropy, as in the official
    code, and `weight` is not used.
    `aux`: of the fused logits of the auxiliary head if there is one, times stage.auxiliary.
    `scales`: sum over scales, each alone, times stage.supervision (official recipes: 0.05).
    `cost`: mean effective weights, each times the pixels of its scale relative to the finest one,
    times stage.penalty; it prefers the cheap scale where scales are equally good.
    """

    def plain(logits: Logits) -> Tensor:
        if stage.loss == "rmi":
            return binary_cross_entropy(logits, label, batch)
        return cross_entropy(logits, label, weight, batch)

    def single(grid: Grid, classes: slice) -> Tensor:
        return resize(grid.pixels(classes), label.shape[-2:])

    fused = Logits(Output.fused, output, output.classes)
    if stage.loss == "rmi":
        whole = region_mutual_information(fused, label, batch)
        terms = {"bce": whole.bce, "rmi": whole.rmi, "fused": whole.loss}
    else:
        main = hard_cross_entropy if stage.loss == "ohem" else cross_entropy
        terms = {"fused": main(fused, label, weight, batch)}
    if stage.auxiliary and (aux := output.aux()) is not None:
        terms["aux"] = plain(Logits(Output.fused, aux, output.classes))
    if stage.supervision:
        grids = [one.logits for one in output.scales.values()]
        alone = [plain(Logits(single, grid, output.classes)) for grid in grids]
        terms["scales"] = torch.stack(alone).sum()
    if stage.penalty:
        finest = max(output.scales)
        images = total(label.new_tensor(len(label if batch is None else batch)))
        costs = [(s / finest) ** 2 * w.mean((1, 2, 3)).sum() for s, w in output.weights().items()]
        terms["cost"] = torch.stack(costs).sum() / images
    factors = {"aux": stage.auxiliary, "scales": stage.supervision, "cost": stage.penalty}
    more = [factor * terms[name] for name, factor in factors.items() if name in terms]
    return terms | {"loss": torch.stack([terms["fused"], *more]).sum()}
