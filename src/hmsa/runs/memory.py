"""How much memory there is, and how much a network takes."""

from __future__ import annotations

import copy
import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def free_memory(device: torch.device) -> int:
    """Bytes that can still be had on `device`; of the machine's memory what its limits leave."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + kept)
    try:
        told = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(told["MemAvailable"].split()[0]) << 10
    except (OSError, KeyError, ValueError):  # not Linux
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    group = Path("/sys/fs/cgroup")
    try:  # of a container
        limit = int((group / "memory.max").read_text())
        free = min(free, limit - int((group / "memory.current").read_text()))
    except (OSError, ValueError):
        pass
    return max(0, free)


def peak_of(module: nn.Module, call: Callable[[Any], Any]) -> int:
    """Bytes of tensors alive at once, weights not counted, in `call(module)`.

    Counted on tensors without content, on the meta device: nothing is computed, and `call` is given
    a copy of the module that is there. Code that asks for a tensor's numbers cannot run so; then
    `call` is given the module itself.
    """
    try:
        return _counted(_hollow(module), call)
    except Exception:  # of somebody else's code: anything
        return _counted(module, call)


def _hollow(module: nn.Module) -> nn.Module:
    """A copy without numbers."""
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        empty = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
        memo[id(parameter)] = empty
    for buffer in module.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(module, memo).eval()


def _counted(module: nn.Module, call: Callable[[Any], Any]) -> int:
    with torch.inference_mode(), _Alive() as alive:
        call(module)
    peak: int = alive.peak
    return peak


class _Alive(TorchDispatchMode):
    """Counts the storages that operations make, from when they are made until they are let go."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._known:
                    self._known.add(storage._cdata)
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return made

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size
