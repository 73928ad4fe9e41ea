"""What training minimises. The network does not know its loss.

Every function returns the part of this process in the loss of the batch that all processes have
together: the parts sum up to what one process would return for the joined batch.
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
from ..runs.machine import gathered, total
from .rmi import binary_cross_entropy, region_mutual_information


def cross_entropy(logits: Tensor, label: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean over labelled pixels, weighted by class; 0, with a gradient of 0, if there are none.

    logits `[B,K,H,W]`, label `[B,H,W]` int64 with 255 = ignore, weight `[K]`.
    """
    summed = F.cross_entropy(logits, label, weight, ignore_index=IGNORE, reduction="sum")
    labelled = label[label != IGNORE]
    count = summed.new_tensor(labelled.numel()) if weight is None else weight[labelled].sum()
    return summed / total(count).clamp(min=1e-6)


def hard_cross_entropy(
    logits: Tensor,
    label: Tensor,
    weight: Tensor | None = None,
    *,
    threshold: float = 0.7,
    least: float = 1 / 16,
) -> Tensor:
    """OHEM: cross-entropy of the pixels whose true class has a probability below `threshold`.

    Never fewer than the hardest `least` share of the labelled pixels. Shapes as `cross_entropy`.
    Source: Shrivastava et al., "Training Region-based Object Detectors with OHEM", 2016.
    """
    with torch.no_grad():
        loss = F.cross_entropy(logits, label, ignore_index=IGNORE, reduction="none")
        labelled = loss[label != IGNORE]
        count = max(1, math.ceil(least * int(total(label.new_tensor(labelled.numel())))))
        own = labelled.topk(min(count, labelled.numel())).values
        own = F.pad(own, (0, count - own.numel()), value=-math.inf)
        hardest = gathered(own).topk(count).values[-1]
        label = label.masked_fill(loss < hardest.clamp(max=-math.log(threshold)), IGNORE)
    return cross_entropy(logits, label, weight)


def objective(
    output: Output, label: Tensor, stage: Stage, weight: Tensor | None = None
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

    def plain(logits: Tensor) -> Tensor:
        logits = resize(logits, label.shape[-2:])
        if stage.loss == "rmi":
            return binary_cross_entropy(logits, label)
        return cross_entropy(logits, label, weight)

    if stage.loss == "rmi":
        whole = region_mutual_information(output.logits, label)
        terms = whole._asdict() | {"fused": whole.loss}
    else:
        main = hard_cross_entropy if stage.loss == "ohem" else cross_entropy
        terms = {"fused": main(output.logits, label, weight)}
    if stage.auxiliary and (aux := output.aux()) is not None:
        terms["aux"] = plain(aux)
    if stage.supervision:
        terms["scales"] = torch.stack([plain(one.logits) for one in output.maps.values()]).sum()
    if stage.penalty:
        finest, images = max(output.maps), total(label.new_tensor(len(label)))
        costs = [(s / finest) ** 2 * w.mean((1, 2, 3)).sum() for s, w in output.weights().items()]
        terms["cost"] = torch.stack(costs).sum() / images
    factors = {"aux": stage.auxiliary, "scales": stage.supervision, "cost": stage.penalty}
    more = [factor * terms[name] for name, factor in factors.items() if name in terms]
    return terms | {"loss": torch.stack([terms["fused"], *more]).sum()}
