"""What training minimises. Plain tensors in, scalars out; the model does not know its loss."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .data.labels import IGNORE
from .model import Output, effective_weights
from .model.heads import resize
from .rmi import binary_cross_entropy, region_mutual_information

Loss = Literal["cross_entropy", "rmi"]


def cross_entropy(logits: Tensor, label: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean over labelled pixels (weighted by class); 0, with a gradient of 0, where there is none.

    logits `[B,K,H,W]`, label `[B,H,W]` int64 with 255 = ignore, weight `[K]`.
    """
    total = F.cross_entropy(logits, label, weight, ignore_index=IGNORE, reduction="sum")
    labelled = label[label != IGNORE]
    count = weight[labelled].sum() if weight is not None else labelled.numel()
    return total / torch.as_tensor(count, device=total.device).clamp(min=1e-6)


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

    `fused`: of the fused logits. With loss="rmi" it is half `bce` and half `rmi`, every other part
    is binary cross-entropy as in the official code, and the class `weight` `[K]` has no say.
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
        terms = {"fused": cross_entropy(output.logits, label, weight)}
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
        weights = effective_weights(output.maps, size)
        costs = [(scale / finest) ** 2 * w.mean() for scale, w in weights.items()]
        terms["cost"] = torch.stack(costs).sum()
        total = total + penalty * terms["cost"]
    return terms | {"loss": total}
