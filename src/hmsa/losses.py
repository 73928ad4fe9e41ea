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
    supervision: float = 0.0,
    penalty: float = 0.0,
    loss: Loss = "cross_entropy",
) -> dict[str, Tensor]:
    """`fused`: loss of the fused logits; `scales`: sum over scales, each by itself; `cost`: mean of
    the effective weights, each times its scale's share of the finest one's pixels; `loss`: total.

    loss: with "rmi", `fused` is half `bce` and half `rmi`, and a scale by itself is held to the
    binary cross-entropy alone, as in the official code; there `weight` has no part.
    supervision: weight of `scales` (the official recipes call it supervised_mscale_loss_wt, 0.05).
    penalty: weight of `cost`; it settles on the cheap scale where scales would do equally well.
    """
    if loss == "rmi":
        whole = region_mutual_information(output.logits, label)
        fallbacks = torch.tensor(float(whole.fallbacks))
        terms = {"bce": whole.bce, "rmi": whole.rmi, "fallbacks": fallbacks, "fused": whole.loss}
    else:
        terms = {"fused": cross_entropy(output.logits, label, weight)}
    terms["loss"] = terms["fused"]
    if supervision:
        terms["scales"] = torch.stack(
            [
                binary_cross_entropy(logits, label)
                if loss == "rmi"
                else cross_entropy(logits, label, weight)
                for logits in (resize(m.logits, label.shape[-2:]) for m in output.maps.values())
            ]
        ).sum()
        terms["loss"] = terms["loss"] + supervision * terms["scales"]
    if penalty:
        finest = max(output.maps)
        weights = effective_weights(output.maps, label.shape[-2:])
        terms["cost"] = torch.stack(
            [(s / finest) ** 2 * w.mean() for s, w in weights.items()]
        ).sum()
        terms["loss"] = terms["loss"] + penalty * terms["cost"]
    return terms
