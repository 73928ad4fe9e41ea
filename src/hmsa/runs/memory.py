"""How much memory is free, and how much a network takes."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def free_memory(device: torch.device) -> int:
    """Bytes that can still be had on `device`; of the machine's memory, what its limits leave."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + unused)
    free, group = psutil.virtual_memory().available, Path("/sys/fs/cgroup")
    try:  # the limit of a container, which psutil does not know
        limit, used = (int((group / f"memory.{n}").read_text()) for n in ("max", "current"))
        free = min(free, limit - used)
    except (OSError, ValueError):
        pass
    return max(0, int(free))


def used_memory(device: torch.device) -> int:
    """Bytes that this process has taken: of a GPU the most so far, of the machine now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    return int(psutil.Process().memory_info().rss)


def peak_of(module: nn.Module, call: Callable[[Any], Any]) -> int:
    """Bytes of tensors alive at once in `call(module)`, without the weights.

    Counted on tensors without content, on the meta device: nothing is computed, and `call` gets a
    copy of the module that lies there. Code that reads numbers of a tensor cannot run so; then
    `call` gets the module itself.
    """
    held = [*module.parameters(), *module.buffers()]
    memo: dict[int, Any] = {id(t): nn.Parameter(t.to("meta"), False) for t in held}
    try:
        return _counted(copy.deepcopy(module, memo).eval(), call)
    except Exception:  # of somebody else's code: anything
        return _counted(module, call)


def _counted(module: nn.Module, call: Callable[[Any], Any]) -> int:
    with torch.inference_mode(), Alive() as alive:
        call(module)
    peak: int = alive.peak
    return peak


class Alive(TorchDispatchMode):
    """Counts the bytes of storages that operations make, from then until they are freed."""

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
                    weakref.finalize(storage, self._freed, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return made

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size
