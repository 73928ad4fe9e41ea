"""`hmsa train --profile`: where the time of a training step goes, and what to change."""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from lightning_fabric import Fabric
from rich.table import Table
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils._pytree import tree_leaves

from ..config.recipe import Recipe
from ..model import HMSA
from ..runs import Outcome, replace
from ..runs.machine import fast_bf16
from ..runs.memory import free_memory
from .lean import lean, regions
from .losses import objective
from .plan import SHARE, counted
from .trainer import make_optimizer

WARM, TIMED, TRACED = 3, 8, 2  # steps, one after the other
STEPS = WARM + TIMED + TRACED
MUCH, LITTLE = 0.1, 0.01  # of the time
WAIT, LOSS, OPTIMIZER, OTHER = "waiting for images", "loss", "optimizer", "other"
TRACE = "trace.json.gz"

Phase = Literal["forward", "backward"]
PHASES: tuple[Phase, ...] = ("forward", "backward")
Parts = Mapping[tuple[str, Phase], float]  # seconds a step


class Ledger:
    """Seconds by part and phase: time belongs to what was entered last.

    Backward reaches a module when the gradient of its output is there. A GPU is waited for at each
    border, so a step takes somewhat longer than without.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[tuple[str, Phase], float] = defaultdict(float)
        self.at: tuple[str, Phase] = (OTHER, "forward")
        self.since = time.perf_counter()
        self.outer: list[tuple[Any, tuple[str, Phase]]] = []

    def enter(self, part: str, phase: Phase = "forward") -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        self.seconds[self.at] += now - self.since
        self.at, self.since = (part, phase), now

    def watch(self, part: str, module: nn.Module) -> None:
        """Enter `part` wherever `module` runs, and where backward reaches it."""

        def before(*_: Any) -> None:
            self.outer.append((record_function(part).__enter__(), self.at))
            self.enter(part, self.at[1])

        def after(module: nn.Module, inputs: Any, output: Any) -> None:
            for tensor in tree_leaves(output):
                if isinstance(tensor, Tensor) and tensor.requires_grad:
                    tensor.register_hook(lambda _: self.enter(part, "backward"))
            span, outer = self.outer.pop()
            span.__exit__(None, None, None)
            self.enter(*outer)

        module.register_forward_pre_hook(before)
        module.register_forward_hook(after)


def parts_of(model: HMSA) -> dict[str, nn.Module]:
    """Head, attention, and the layers of the trunk: rows of rows of blocks count one by one."""
    found: dict[str, nn.Module] = {}
    for name, child in getattr(model.trunk, "extractor", model.trunk).named_children():
        inner = dict(child.named_children())
        rows = inner and all(isinstance(each, nn.Sequential) for each in inner.values())
        layers = {f"{name}.{n}": each for n, each in inner.items()} if rows else {name: child}
        found |= {f"trunk.{layer}": each for layer, each in layers.items()}
    found["head"] = model.head
    return found | ({"attention": model.attention} if model.attention else {})


def profiled(
    model: HMSA, recipe: Recipe, fabric: Fabric, crops: Iterator[Any], weight: Tensor,
    workers: int, folder: Path,
) -> Outcome:  # fmt: skip
    """Time steps of the joint stage, trace some more into `folder`; `model` changes, and nothing
    else is kept.

    crops: batches of images and labels, as many as `STEPS`; workers: processes that load them.
    Losses take their gradient as they go: that time counts as the loss's forward pass.
    """
    stage, ledger = recipe.joint, Ledger(fabric.device)
    for part, module in parts_of(model).items():
        ledger.watch(part, module)
    network, optimizer = fabric.setup(model.train(), make_optimizer(model, stage))
    weight = weight.to(torch.get_default_dtype()).to(fabric.device)
    again = regions(model) if stage.memory == "lean" else []

    few = -(-stage.batch // stage.accumulate)  # images that run together

    def step() -> None:
        ledger.enter(WAIT)
        with record_function(WAIT):
            pair = next(crops)
        ledger.enter(OTHER)
        image, label = fabric.to_device(pair)
        optimizer.zero_grad()
        for images, labels in zip(image.split(few), label.split(few), strict=True):
            with lean(again):
                output = network(images, stage.scales)
            ledger.enter(LOSS)
            with record_function(LOSS):
                loss = objective(output, labels, stage, weight, label)["loss"]
            ledger.enter(LOSS, "backward")
            with record_function("backward"):
                fabric.backward(loss)
            ledger.enter(OTHER)
        ledger.enter(OPTIMIZER)
        with record_function(OPTIMIZER):
            optimizer.step()
        ledger.enter(OTHER)

    for _ in range(WARM):
        step()
    ledger.seconds.clear()
    for _ in range(TIMED):
        step()
    seconds = {at: spent / TIMED for at, spent in ledger.seconds.items()}
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it prints lines of its own
    kinds = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * (fabric.device.type == "cuda")]
    with profile(activities=kinds) as trace:
        for _ in range(TRACED):
            step()
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / TRACE
        trace.export_chrome_trace(str(file))
        replace(folder / TRACE, file.read_bytes())
    plain = counted(model, stage.model_copy(update={"memory": "plain"}), stage.batch).peak
    spare = bool(again) and plain < SHARE * free_memory(fabric.device)
    faster = recipe.precision == "fp32" and fast_bf16(fabric.device)
    what = advice(seconds, workers, os.cpu_count() or 1, spare, faster)
    summary = {
        "seconds": sum(seconds.values()), "trace": str(folder / TRACE), "advice": what,
        "parts": {f"{part}, {phase}": spent for (part, phase), spent in seconds.items()},
    }  # fmt: skip
    return Outcome(summary, _table(seconds), notes=[f"trace: {folder / TRACE}", what])


def shares(seconds: Parts) -> dict[str, float]:
    """Of each part, both phases together, in the time of a step."""
    found: dict[str, float] = defaultdict(float)
    for (part, _), spent in seconds.items():
        found[part] += spent / sum(seconds.values())
    return found


def advice(seconds: Parts, workers: int, cores: int, spare: bool, faster: bool) -> str:
    """One sentence on what to change first.

    spare: memory suffices for steps that compute nothing twice; faster: bf16 may be, but the
    recipe says fp32.
    """
    of = shares(seconds)
    if of[WAIT] > MUCH and workers < cores:
        more = min(cores, max(1, math.ceil(workers / (1 - of[WAIT])), workers + 1))
        return f"{of[WAIT]:.0%} of a step waits for images: --set data.workers={more}"
    if of[WAIT] > MUCH:
        return f"{of[WAIT]:.0%} of a step waits for images, and all cores load: store them smaller"
    if faster:
        return "this device has units for bf16: --set precision=auto takes it where it is faster"
    if spare:
        return "backward computes again what memory could hold: --set joint.memory=plain"
    if of[OPTIMIZER] > MUCH:
        return (
            f"the optimizer takes {of[OPTIMIZER]:.0%} of a step, whatever the batch: larger "
            "batches, which hmsa train --plan proposes, take less time for each image"
        )
    part = max(of, key=lambda name: of[name])
    return (
        f"no setting wastes time: {part} takes most, {of[part]:.0%}; what is left is a smaller "
        "trunk, smaller crops or fewer steps"
    )


def _table(seconds: Parts) -> Table:
    table, of = Table(box=None), shares(seconds)
    for head in ("part", "forward ms", "backward ms", "share %"):
        table.add_column(head, justify="left" if head == "part" else "right")
    small = [part for part, share in of.items() if share < LITTLE and part != WAIT]
    shown = sorted((part for part in of if part not in [*small, OTHER]), key=lambda p: -of[p])

    def row(name: str, parts: list[str]) -> None:
        cells = [sum(seconds.get((p, phase), 0.0) for p in parts) for phase in PHASES]
        share = f"{100 * sum(of[part] for part in parts):.1f}"
        table.add_row(name, *(f"{1000 * cell:.1f}" if cell else "" for cell in cells), share)

    for part in shown:
        row(part, [part])
    row(OTHER, [*{*small, OTHER} & {*of}])
    row("a step", [*of])
    return table
