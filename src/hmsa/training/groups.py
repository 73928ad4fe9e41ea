"""Logits at each pixel, made a few classes at a time: those of all classes never exist together.

Fusion acts on each class by itself. Losses are sums over groups of classes, and the gradient of a
group is taken as soon as the group is there. Kept for backward is only that gradient, on the
trunk's small grids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

AT_ONCE = 1 << 21  # values of a group

Part = Callable[[Tensor, slice], Tensor]  # some logits `[B,C,H,W]` and their classes -> a number


class Logits(NamedTuple):
    """Of `classes` classes: `make(source, some)` returns those of some classes, `[B,C,H,W]`."""

    make: Callable[[Any, slice], Tensor]
    source: Any  # tensors, and what else may be in it
    classes: int

    def groups(self) -> Iterator[tuple[slice, Tensor]]:
        """As many classes at once as `AT_ONCE` allows; the first group is one class."""
        start, step = 0, 1
        while start < self.classes:
            classes = slice(start, min(self.classes, start + step))
            some = self.make(self.source, classes)
            yield classes, some
            start, step = classes.stop, max(1, AT_ONCE // some[:, 0].numel())
            del some  # before the next ones are made

    def sum(self, part: Part, value: Tensor | None = None) -> Tensor:
        """The sum of `part` over groups; with `value`, this number with the gradient of the sum."""
        leaves, spec = tree_flatten(self.source)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        return cast(Tensor, _Sum.apply(self, (leaves, spec), part, value, *tensors))


def whole(logits: Tensor) -> Logits:
    """Those that are already there, `[B,K,H,W]`."""
    return Logits(lambda source, classes: source[:, classes], logits, logits.shape[1])


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Logits, tree: Any, part: Part, value: Tensor | None, *tensors: Tensor
    ) -> Tensor:
        leaves, spec = tree
        own = [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in tensors]
        rest = iter(own)
        leaves = [next(rest) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        summed = []
        with torch.enable_grad():
            for classes, some in logits._replace(source=tree_unflatten(leaves, spec)).groups():
                number = part(some, classes)
                if number.requires_grad:
                    number.backward()
                summed.append(number.detach())
        ctx.gradients = [tensor.grad for tensor in own]
        return torch.stack(summed).sum() if value is None else value.clone()

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        slope, gradients = slopes[0], ctx.gradients
        return None, None, None, None, *(g if g is None else g * slope for g in gradients)


def one_hot(label: Tensor, classes: slice) -> Tensor:
    """`[B,H,W]` -> bool `[B,C,H,W]`: where the label is each of these classes."""
    return label[:, None] == torch.arange(classes.start, classes.stop, device=label.device).view(
        -1, 1, 1
    )
