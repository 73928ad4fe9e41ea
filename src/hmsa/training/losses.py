"""What training minimises. Plain tensors in, scalars out; the model does not know its loss."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.labels import IGNORE
from ..model import Output
from ..model.fusion import resize
from .rmi import binary_cross_entropy, region_mutual_information

Loss = Literal["cross_entropy", "ohem", "rmi"]


def cross_entropy(logits: Tensor, label: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean over labelled pixels (weighted by class); 0, with a gradient of 0, where there is none.

    logits `[B,K,H,W]`, label `[B,H,W]` int64 with 255 = ignore, weight `[K]`.
    """
    total = F.cross_entropy(logits, label, weight, ignore_index=IGNORE, reduction="sum")
    labelled = label[label != IGNORE]
    count = weight[labelled].sum() if weight is not None else labelled.numel()
    return total / torch.as_tensor(count, device=total.device).clamp(min=1e-6)


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
    labelled = label != IGNORE
    loss = F.cross_entropy(logits, label, ignore_index=IGNORE, reduction="none")[labelled]
    if not loss.numel():
        return logits.sum() * 0
    count = math.ceil(least * loss.numel())
    hardest = loss.detach().topk(count).values[-1]
    kept = loss.detach() >= hardest.clamp(max=-math.log(threshold))
    if weight is None:
        return loss[kept].mean()
    share = weight[label[labelled][kept]]
    return (loss[kept] * share).sum() / share.sum().clamp(min=1e-6)


def objective(
    output: Output,
    label: Tensor,
    weight: Tensor | None = None,
    *,
    loss: Loss = "cross_entropy",
    auxiliary: float = 0.4,
    supervision: float = 0.0,
    penalty: float = 0.0,
) -> dict[str, Tensor]:
    """`loss`, what is minimised, and its parts.

    `fused`: of the fused logits; with loss="ohem" of their hard pixels alone. With loss="rmi" it is
    half `bce` and half `rmi`, every other part is binary cross-entropy as in the official code, and
    the class `weight` `[K]` has no say.
    `aux`: of the auxiliary head's fused logits, times `auxiliary`, where there is such a head.
    `scales`: sum over scales, each by itself, times `supervision` (official recipes: 0.05).
    `cost`: mean effective weights, each times its scale's share of the finest one's pixels, times
    `penalty`; it settles on the cheap scale where scales would do equally well.
    """
    size = label.shape[-2:]

    def plain(logits: Tensor) -> Tensor:
        if loss == "rmi":
            return binary_cross_entropy(resize(logits, size), label)
        return cross_entropy(resize(logits, size), label, weight)

    if loss == "rmi":
        whole = region_mutual_information(output.logits, label)
        fallbacks = torch.tensor(float(whole.fallbacks))
        terms = {"bce": whole.bce, "rmi": whole.rmi, "fallbacks": fallbacks, "fused": whole.loss}
    else:
        main = hard_cross_entropy if loss == "ohem" else cross_entropy
        terms = {"fused": main(output.logits, label, weight)}
    total = terms["fused"]
    aux = output.aux() if auxiliary else None
    if aux is not None:
        terms["aux"] = plain(aux)
        total = total + auxiliary * terms["aux"]
    if supervision:
        terms["scales"] = torch.stack([plain(m.logits) for m in output.maps.values()]).sum()
        total = total + supervision * terms["scales"]
    if penalty:
        finest = max(output.maps)
        costs = [(scale / finest) ** 2 * w.mean() for scale, w in output.weights().items()]
        terms["cost"] = torch.stack(costs).sum()
        total = total + penalty * terms["cost"]
    return terms | {"loss": total}
