"""The network in a runtime that is faster than torch on a processor.

Two functions of it are replaced in a copy: `see` (pixels of one scale -> logits, features, context)
and `attention` (features -> attention). Scales, fusion, gate and tiles are the same code on each.
"""

from __future__ import annotations

import copy
import json
import math
import threading
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from ..config.options import Backend
from ..model import HMSA
from ..model.heads import Reading
from ..runs.errors import InputError
from ..runs.machine import Precision, in_use
from ..runs.progress import say_once
from .runtimes import RUNTIMES, Graph, Inputs

_SIDES = ((96, 160), (160, 96))  # pixels to trace with and to compare with, or a little more
_CELLS = ((24, 40), (40, 24))  # the same on the trunk's grid
_EXPORT = threading.Lock()  # torch's exporter runs in one thread at a time


def checked(backend: Backend, device: torch.device, precision: Precision) -> Precision:
    """The precision for a backend, which may have fp32 alone. Raises InputError if it cannot be."""
    if backend in ("auto", "torch"):
        return precision
    if device.type != "cpu":
        raise InputError(f"backend {backend} is for CPUs; use torch, or --device cpu")
    if not find_spec(backend):
        raise InputError(f'backend {backend} is not installed: pip install "hmsa[{backend}]"')
    if in_use(device, precision) in RUNTIMES[backend].precisions:
        return precision
    if precision != "auto":
        raise InputError(f"backend {backend} computes in fp32 alone, not in {precision}")
    return "fp32"


def _candidates(wanted: Backend, device: torch.device, precision: str) -> list[str]:
    """The backends to try, fastest first."""
    if wanted != "auto" or device.type != "cpu":
        return [wanted] if wanted in RUNTIMES else []
    able = [name for name, runtime in RUNTIMES.items() if precision in runtime.precisions]
    return [name for name in able if find_spec(name)]


def noise(*size: int) -> Tensor:
    """The same at each call; nobody else's random numbers change."""
    return torch.randn(size, generator=torch.Generator().manual_seed(0))


class Network:
    """`model`, eval mode, on one of the backends. Raises InputError if the wanted one cannot be.

    backend: the one in use. run: the network to call, an `HMSA` with the weights of now.
    """

    def __init__(
        self, model: HMSA, wanted: Backend, device: torch.device, precision: Precision
    ) -> None:
        self.model, self.run, self.backend = model, model, "torch"
        self._must, self._precision = wanted != "auto", in_use(device, precision)
        self._held = list(model.state_dict(keep_vars=True).values())
        self._version = self._versions()
        self._graphs: dict[tuple[bool, bool] | int, Graph | None] = {}
        for name in _candidates(wanted, device, self._precision):
            self.backend = name
            if self._for_see(bool(model.attended([0.5, 1.0])), None):
                self.run = self._copy()
                say_once(f"the network runs in {self.backend}")
                return
            self._graphs.clear()
        self.backend = "torch"

    @property
    def outdated(self) -> bool:
        """Whether the weights have changed since."""
        return self.run is not self.model and self._version != self._versions()

    def see(self, image: Tensor, attended: bool = True, context: Tensor | None = None) -> Reading:
        """As `HMSA.see`."""
        graph = self._for_see(attended, context)
        if graph is None:
            return self.model.see(image, attended, context)
        logits, *others = graph(image) if context is None else graph(image, context)
        features = others.pop(0) if attended else None
        return Reading(features, logits, context=others.pop() if others else context)

    def attend(self, features: Tensor) -> Tensor:
        """As `HMSA.attention`."""
        attention, channels = self.model.attention, features.shape[1]
        assert attention is not None
        with _EXPORT:
            if channels not in self._graphs:
                inputs = [(noise(b, channels, *grid),) for b, grid in enumerate(_CELLS, 1)]
                self._graphs[channels] = self._graph(_Parts(attention), *inputs)
            graph = self._graphs[channels]
        return graph(features)[0] if graph else attention(features)

    def _for_see(self, attended: bool, context: Tensor | None) -> Graph | None:
        key = attended, context is not None
        with _EXPORT:
            if key not in self._graphs:
                multiple = self.model.multiple
                sides = [[multiple * math.ceil(n / multiple) for n in size] for size in _SIDES]
                images = [noise(b, self.model.channels, *s) for b, s in enumerate(sides, 1)]
                known = [] if context is None else [context[:1].float()]
                inputs = [(i, *(each.expand(len(i), -1, -1, -1) for each in known)) for i in images]
                self._graphs[key] = self._graph(_See(self.model, attended), *inputs)
            return self._graphs[key]

    def _graph(self, module: nn.Module, inputs: Inputs, others: Inputs) -> Graph | None:
        about = json.dumps([self.model.card.network, repr(module)])
        try:
            return Graph(module.eval(), inputs, others, about, self.backend, self._precision)
        except InputError as error:
            if self._must:
                raise InputError(f"backend {self.backend}: {error}; use torch") from None
            say_once(f"the network does not run in {self.backend}: {error}", self.backend)
            return None

    def _versions(self) -> int:
        return sum(each._version for each in self._held if not each.is_inference())

    def _copy(self) -> HMSA:
        made = copy.copy(self.model)
        made._modules = dict(self.model._modules)
        made.see = self.see  # type: ignore[method-assign]
        if made.attention is not None:
            made.attention = _Attention(self)  # type: ignore[assignment]
        return made


class _See(nn.Module):
    """`HMSA.see` as tensors: image, context if it is known -> logits, features, context."""

    def __init__(self, model: HMSA, attended: bool) -> None:
        super().__init__()
        self.model, self.attended = model, attended

    def forward(self, image: Tensor, known: Tensor | None = None) -> Inputs:
        reading = self.model.see(image, self.attended, known)
        features = reading.features if self.attended else None
        context = reading.context if known is None else None
        return tuple(p for p in (reading.logits, features, context) if p is not None)

    def extra_repr(self) -> str:
        return f"attended={self.attended}"


class _Parts(nn.Module):
    """A module of one result, as one of several."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, maps: Tensor) -> Inputs:
        return (self.module(maps),)


class _Attention(nn.Module):
    def __init__(self, network: Network) -> None:
        super().__init__()
        self.forward = network.attend
