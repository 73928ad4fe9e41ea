"""Training steps in less memory: backward computes again what is cheap to compute.

A region is a residual block, a few of them in a row, or a head. Backward keeps the input of each
region, and of its convolutions the outputs that are not larger than their inputs. All else (norms,
activations, additions, resized and stacked maps, convolutions that widen) is computed again when
backward comes to the region. Loss, gradients and statistics of norms are equal to the last bit.
Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost", arXiv 1604.06174.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

TOGETHER = 4  # blocks in a row that make one region

Kept = deque[tuple[Tensor, int] | None]  # for each convolution: output and its version, or nothing


def regions(network: nn.Module) -> list[nn.Module]:
    """Blocks, heads and rows of blocks in `network`, none inside another one."""
    found = []
    for child in network.children():
        found += [child] if _is_row(child) or _is_block(child) else regions(child)
    return found


def _is_block(module: nn.Module) -> bool:
    """Two or more convolutions, one of them its own, with norms; but not a whole trunk."""
    inside = [*module.modules()]
    return (
        any(isinstance(child, nn.Conv2d) for child in module.children())
        and sum(isinstance(each, nn.Conv2d) for each in inside) > 1
        and any(isinstance(each, _BatchNorm) for each in inside)
        and not any(map(_is_row, inside[1:]))
    )


def _is_row(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential) and len(module) > 1 and all(map(_is_block, module))


@contextmanager
def lean(found: Sequence[nn.Module]) -> Iterator[None]:
    """What the modules `found`, of `regions`, compute in this block is kept as said above.

    Only this block changes them: copies, checkpoints and exports of the network know nothing of it.
    """
    with ExitStack() as stack:
        for module in found:
            module.forward = _leaner(module)
            stack.callback(delattr, module, "forward")
        yield


def _leaner(module: nn.Module) -> Callable[..., Any]:
    if not _is_row(module):
        return partial(_run, module.forward, _norms([module]))
    blocks = [*module.children()]
    parts = [blocks[i : i + TOGETHER] for i in range(0, len(blocks), TOGETHER)]

    def forward(maps: Tensor) -> Tensor:
        for part in parts:
            maps = _run(partial(_in_a_row, part), _norms(part), maps)
        return maps

    return forward


def _in_a_row(blocks: Sequence[nn.Module], maps: Tensor) -> Tensor:
    for block in blocks:
        maps = block(maps)
    return maps


def _norms(modules: Sequence[nn.Module]) -> list[_BatchNorm]:
    return [m for module in modules for m in module.modules() if isinstance(m, _BatchNorm)]


def _run(forward: Any, norms: Sequence[_BatchNorm], *args: Any, **kwargs: Any) -> Any:
    kept: Kept = deque()
    both = partial(_contexts, kept, norms)
    return checkpoint(forward, *args, use_reentrant=False, context_fn=both, **kwargs)


def _contexts(kept: Kept, norms: Sequence[_BatchNorm]) -> tuple[Any, Any]:
    return _Keeping(kept), _again(kept, norms)


@contextmanager
def _again(kept: Kept, norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """The forward pass once more: norms have seen these maps before, and count them only once."""
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        with _Using(kept):
            yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


class _Keeping(TorchDispatchMode):
    """Keeps outputs of convolutions that are not larger than the inputs.

    torch's own selective checkpoint fails where a kept output is changed in place later, as by an
    activation without a norm; here it is computed again.
    """

    def __init__(self, kept: Kept) -> None:
        super().__init__()
        self.kept = kept

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.convolution.default:
            narrow = made.numel() <= args[0].numel()
            with torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.ADInplaceOrView, False):
                # so that the copy, which shares the memory, knows of changes in place
                self.kept.append((made.detach(), made._version) if narrow else None)
        return made


class _Using(TorchDispatchMode):
    """Takes what `_Keeping` kept, in the same order, instead of computing it."""

    def __init__(self, kept: Kept) -> None:
        super().__init__()
        self.kept = kept

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution.default and (entry := self.kept.popleft()):
            made, version = entry
            if made._version == version:
                return made
        return func(*args, **(kwargs or {}))
