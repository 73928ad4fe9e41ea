"""Trains a network in stages, in a run folder; stopped at any moment, it resumes exactly.

A stop by the user, and a file that cannot be read, are saved first. Training ends without saving
where its loss or weights are not finite, or a process dies; what was saved before is then whole.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from lightning_fabric import Fabric
from PIL import Image
from timm.optim import create_optimizer_v2, param_groups_layer_decay
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from ..config.recipe import Stage
from ..data import fingerprint
from ..data.datasets import Dataset
from ..data.walk import SHEETS
from ..evaluation.confusion import Confusion
from ..model import HMSA, Output
from ..model.pretrained import save
from ..runs import InputError, Interrupted, Progress, Run, first_line, replace, say
from ..runs.machine import total
from ..runs.progress import interruptible
from .lean import lean, regions
from .losses import objective
from .metrics import Metrics, Pace

BEST, LAST, RESUME = "best.safetensors", "last.safetensors", "resume.pt"
LOG_EVERY = 10  # steps
TIMED = 8  # steps after which the rest is forecast, from the median of these
WARMUP = {"warmup_gamma": 9, "warmup_power": 1}
PARTS = ("model", "optimizer", "validated")  # attributes of `Trainer` in resume.pt

# With the label `[B,H,W]`, and that of the whole batch if these images are a part of one
Outputs = Iterator[tuple[Output, Tensor, Tensor | None]]


class Validation(NamedTuple):
    """What a network reaches on the validation images."""

    confusion: Confusion
    sheet: Image.Image | None = None  # some of the images, with label and prediction


@dataclass
class Work:
    """A stage: its settings, what it trains, on what, and how it is validated."""

    name: str
    stage: Stage
    trained: nn.Module  # the network or a part of it; the rest is frozen
    scales: list[float]  # the default of its checkpoints
    outputs: Callable[[Any, int], Outputs]  # of the network, `parts` for each step from this one on
    validate: Callable[[HMSA], Validation]
    prepare: Iterable[None] = ()  # what comes before the first step; it can be stopped between two
    begin: Callable[[], None] | None = None  # sets where training begins, which is validated, too
    patience: int = 0  # validations without a gain that end the stage; 0: nothing ends it
    # What to say of how long it will take, by the seconds a step and the steps that are left
    forecast: Callable[[float, int], str] | None = None
    parts: int = 1  # of a batch, which run one after the other
    pace: Pace | None = None  # counts what waits for data


@dataclass
class State:
    """Where training is."""

    stage: str = ""
    step: int = 0  # steps done in this stage
    total: int = 0  # steps done in all stages
    best: float = -1.0  # highest mean IoU in this stage
    best_step: int = 0

    def finished(self, work: Work) -> bool:
        waited = (self.step - self.best_step) // work.stage.validate_every
        return self.step >= work.stage.steps or 0 < work.patience <= waited


class Trainer:
    """Trains `model` in the run folder `folder`; weight: of each class in the loss, `[K]`;
    loggers: those of `Metrics`."""

    def __init__(
        self, fabric: Fabric, model: HMSA, folder: Path, weight: Tensor,
        loggers: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.fabric, self.model, self.folder = fabric, model, folder
        self.weight = weight.to(torch.get_default_dtype()).to(fabric.device)
        self.saved = read_state(folder / RESUME)
        self.state = State(**self.saved.get("state", {}))
        self.metrics = None
        if fabric.is_global_zero:
            self.metrics = Metrics(folder, self.state.total, loggers, model.card.recipe)

    def run(self, work: Work) -> State:
        """Train what is left of a stage; the network then has the weights that are validated."""
        stage, fabric = work.stage, self.fabric
        if self.state.stage != work.name:
            self.state, self.saved = State(work.name, total=self.state.total), {}
        self.model.requires_grad_(False)
        work.trained.requires_grad_(True)
        if (attention := self.model.attention) and not self.model.attended([*stage.scales]):
            attention.requires_grad_(False)  # as a single scale has none
        optimizer = make_optimizer(work.trained, stage)
        self.network, self.optimizer = fabric.setup(self.model, optimizer)
        self.network.mark_forward_method("attend")
        self.average = None
        if stage.ema:  # the weight of step n is at least 9 / (9 + n), so that it forgets the start
            self.average = ModelEmaV3(self.model, stage.ema, use_warmup=True, **WARMUP)
        self.validated: HMSA = self.average.module if self.average else self.model
        for name in PARTS if self.saved else ():
            getattr(self, name).load_state_dict(self.saved.pop(name))
        self.regions = regions(self.model) if stage.memory == "lean" else []
        with interruptible() as interrupted:

            def stop() -> None:
                if total(torch.tensor(interrupted(), device=fabric.device).int()):  # any process
                    self._save(work)
                    raise Interrupted(f"stopped and saved: {work.name}, step {self.state.step}")

            for _ in () if self.state.finished(work) else work.prepare:
                stop()
            self._begin(work)
            outputs = work.outputs(self.network, self.state.step)
            self.pace = work.pace or Pace(fabric.device, fabric.world_size)
            with Progress(work.name, stage.steps, self.state.step) as progress:
                times = [time.monotonic()]
                while not self.state.finished(work):
                    self._step(work, outputs, progress)
                    if len(times) < TIMED:
                        times.append(time.monotonic())
                        self._say_forecast(work, times)
                    stop()
        self.model.load_state_dict(self.validated.state_dict())
        return self.state

    def _say_forecast(self, work: Work, times: Sequence[float]) -> None:
        """Say how long the rest will take, once `times` of enough steps are known."""
        if len(times) == TIMED and work.forecast and self.fabric.is_global_zero:
            step = statistics.median(b - a for a, b in pairwise(times))
            if line := work.forecast(step, work.stage.steps - self.state.step):
                say(line)

    def _begin(self, work: Work) -> None:
        """Validate and save where a stage begins: what training does not improve is kept."""
        state = self.state
        if not work.begin or state.step or state.best >= 0 or state.finished(work):
            return
        work.begin()
        if self.average:
            self.average.set(self.model)
        miou = self._validate(work)
        if self.metrics:
            self.metrics.write(work.name, state.total, {"val_miou": miou})

    def _step(self, work: Work, outputs: Outputs, progress: Progress) -> None:
        state, stage, began = self.state, work.stage, time.monotonic()
        row = {"lr": set_learning_rate(self.optimizer, stage, state.step)}
        self.model.eval()  # what is frozen keeps the statistics of its norms, too
        work.trained.train()
        if stage.freeze_norms:
            freeze_norms(getattr(work.trained, "trunk", None))
        self.optimizer.zero_grad()  # first, so that none are held next to activations
        parts = [self._part(work, outputs, n + 1 == work.parts) for n in range(work.parts)]
        row |= {name: math.fsum(part[name] for part in parts) for name in parts[0]}
        self.optimizer.step()
        state.step, state.total = state.step + 1, state.total + 1
        if self.average:
            self.average.update(self.model, state.step + 1)
        self.pace.add(stage.batch, time.monotonic() - began)
        if state.step % stage.validate_every == 0 or state.step == stage.steps:
            row["val_miou"] = self._validate(work)
        if self.metrics and ("val_miou" in row or state.step % LOG_EVERY == 0):
            row |= {"rate": progress.rate()} | self.pace.values()
            self.metrics.write(work.name, state.total, row)
        best = f"best mIoU {max(0, state.best):.3f}"
        progress.advance(f"loss {row['loss']:.3f}  {best}  {self.pace}")

    def _validate(self, work: Work) -> float:
        """Validate, save and draw what is validated; returns its mean IoU."""
        confusion, sheet = work.validate(self.validated)
        self._save(work, confusion)
        if sheet and self.fabric.is_global_zero:
            file = self.folder / SHEETS / f"{self.state.total:06}-{work.name}.jpg"
            replace(file, partial(sheet.save, format="JPEG", quality=85))
        return confusion.miou()

    def _part(self, work: Work, outputs: Outputs, last: bool) -> dict[str, float]:
        """Add the gradient of one part of a batch; returns the parts of its loss."""
        stage, fabric = work.stage, self.fabric
        with fabric.no_backward_sync(self.network, not last):
            try:
                with lean(self.regions):
                    output, label, batch = next(outputs)
            except InputError:  # a file that cannot be read
                self._save(work)
                raise
            except ValueError as error:  # such as batch norm, which needs two values
                where = f"{work.name}.batch {stage.batch}, {work.name}.crop {list(stage.crop)}"
                raise InputError(f"{where}: {error}; use larger batches or crops") from None
            terms = objective(output, label, stage, self.weight, batch)
            del output  # its maps need not stay while backward makes its own
            values = total(torch.stack([*terms.values()]).detach()).tolist()
            found = dict(zip(terms, values, strict=True))
            if not math.isfinite(found["loss"]):
                raise self._diverged(work, f"the loss is {found['loss']}")
            fabric.backward(terms["loss"] * fabric.world_size)  # gradients are averaged
        return found

    def _diverged(self, work: Work, why: str) -> RuntimeError:
        return RuntimeError(
            f"{why} after {self.state.step} steps of {work.name}; start another run with a lower "
            f"{work.name}.lr; {self.folder} keeps what was saved before"
        )

    def _save(self, work: Work, confusion: Confusion | None = None) -> None:
        """Write last.safetensors, resume.pt and, after the best validation, best.safetensors."""
        state, miou = self.state, confusion.miou() if confusion else -1.0
        better = miou > state.best
        for module in (self.model, self.validated):
            if not all(tensor.isfinite().all() for tensor in module.state_dict().values()):
                raise self._diverged(work, "the network has weights that are not finite")
        if better:
            state.best, state.best_step = miou, state.step
        if not self.fabric.is_global_zero:
            return
        scores: dict[str, float] = {"step": state.step}
        if confusion:
            iou = zip(self.model.card.names, confusion.iou().tolist(), strict=True)
            scores |= {f"val_iou {name}": value for name, value in iou if not math.isnan(value)}
            scores["val_miou"] = miou
        card = dataclasses.replace(self.model.card, scales=work.scales, metrics=scores)
        self.validated.card = card
        for name in [BEST, LAST] if better else [LAST]:
            save(self.folder / name, self.validated)
        parts = {name: getattr(self, name).state_dict() for name in PARTS}
        replace(self.folder / RESUME, partial(torch.save, parts | {"state": vars(state)}))


def note_data(run: Run, datasets: Sequence[Dataset], allowed: bool = False) -> str | None:
    """Keep in `run` what the datasets consist of; returns what has changed since it was kept.

    allowed: changes other than of the classes are kept instead.
    """
    now = [fingerprint.of(dataset) for dataset in datasets]
    for dataset, old, new in zip(datasets, run.records.get("data", now), now, strict=True):
        change = fingerprint.changes(old, new)
        if change and not (allowed and [*old["classes"]] == [*new["classes"]]):
            return f"{dataset.source}, split {dataset.split}, has changed since then: {change}"
    if run.records.get("data") != now:
        run.add("data", now)
    return None


def read_state(file: Path) -> dict[str, Any]:
    """What `Trainer` saved in resume.pt; empty if there is no such file. Runs no code."""
    try:
        return dict(torch.load(file, "cpu", weights_only=True)) if file.is_file() else {}
    except Exception as error:  # a damaged pickle may raise anything
        raise InputError(
            f"{file} is damaged or not by hmsa ({first_line(error)}); train in another --out, "
            f"which may start from {LAST}"
        ) from None


def make_optimizer(trained: nn.Module, stage: Stage) -> torch.optim.Optimizer:
    """The optimizer of a stage; norms and biases have no weight decay."""
    name = "momentum" if stage.optimizer == "sgd" else stage.optimizer  # timm's sgd is Nesterov's
    groups = parameter_groups(trained, stage)
    settings = name, stage.lr, stage.weight_decay, stage.momentum
    return cast(torch.optim.Optimizer, create_optimizer_v2(groups, *settings, fused=True))


def parameter_groups(trained: nn.Module, stage: Stage) -> list[dict[str, Any]]:
    """Parameters by weight decay and by `lr_scale`, a multiple of the stage's learning rate."""
    trunk = dict(trained.named_children()).get("trunk", nn.Module())
    scales = dict.fromkeys(map(id, trunk.parameters()), stage.trunk_factor)
    if stage.layer_decay < 1:
        extractor = getattr(trunk, "extractor", trunk)
        layers = getattr(extractor, "model", extractor)  # of timm's wrapper for transformers
        for group in param_groups_layer_decay(layers, layer_decay=stage.layer_decay):
            own = dict.fromkeys(map(id, group["params"]), group["lr_scale"] * stage.trunk_factor)
            scales |= own
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in filter(lambda each: each.requires_grad, trained.parameters()):
        decay = stage.weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((decay, scales.get(id(parameter), 1.0)), []).append(parameter)
    return [
        {"params": each, "weight_decay": decay, "lr_scale": scale}
        for (decay, scale), each in groups.items()
    ]


def freeze_norms(trunk: nn.Module | None) -> None:
    """Batch norms use and keep the statistics that they have."""
    for module in trunk.modules() if trunk else ():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def set_learning_rate(optimizer: Any, stage: Stage, step: int) -> float:
    """Set and return the learning rate of `step`, from 0: a linear warm-up, then a polynomial."""
    rise = min(1.0, (step + 1) / (stage.warmup + 1))
    lr: float = stage.lr * rise * (1 - step / stage.steps) ** stage.power
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
    return lr


def class_weights(pixels: np.ndarray[Any, Any], balance: float) -> Tensor:
    """(median frequency / frequency) ** balance, `[K]` float64; 1 for classes that do not occur."""
    present = pixels > 0
    weight = np.ones(len(pixels))
    weight[present] = (np.median(pixels[present]) / pixels[present]) ** balance
    return torch.from_numpy(weight)
