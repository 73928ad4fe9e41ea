"""`hmsa train`: joint training at two scales, then the attention head on a whole chain."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ..checkpoint.files import begin_from, save
from ..config.recipe import Attention, Joint, Recipe, Stage
from ..data.datasets import Dataset, open_dataset
from ..data.sampling import Mix, TrainingStream, batches, open_mix
from ..data.transforms import training_transform
from ..evaluation.measure import score
from ..inference.predictor import Predictor
from ..model import HMSA, Encoded, Output, build
from ..runs.errors import InputError, Interrupted
from ..runs.files import replace, sweep
from ..runs.machine import describe_machine, launch, loader_processes
from ..runs.progress import Progress, interruptible, say
from .losses import objective
from .optim import Schedule, class_weights, make_optimizer, moving_average
from .record import Record

STAGES = ("joint", "attention")
LOG_EVERY = 10  # steps


@dataclass
class State:
    """Where a run stands: what `resume.pt` holds beside the tensors."""

    recipe: dict[str, Any]
    stage: str = STAGES[0]
    step: int = 0  # of this stage, done
    best: float = -1.0  # mean IoU of this stage on the val split
    tensors: dict[str, Any] = field(default_factory=dict)  # model, averaged, optimizer


def train(
    recipe: Recipe,
    folder: Path,
    data: Path,
    *,
    pictures: Path | None,
    resume: bool,
    near: Path = Path(),
) -> Path:
    """Run the recipe; returns the best checkpoint. data: the dataset's YAML file; near: the folder
    that the recipe's other paths start from.

    folder receives best.safetensors, last.safetensors, resume.pt, metrics.csv and TensorBoard
    events. Raises Interrupted after saving when the user stops it.
    """
    state = _start_or_resume(recipe, folder, resume)
    fabric = launch(recipe.accelerator, recipe.devices, recipe.precision)
    fabric.seed_everything(recipe.seed, verbose=False)
    sampling = recipe.sampling
    learn = open_dataset(data, recipe.data.train, pictures).trusting(sampling.confidence)
    judge = open_dataset(data, recipe.data.val, pictures)
    judge.frequencies()  # a label outside the table shows now rather than at the first validation
    positions = recipe.joint.steps * recipe.joint.batch * fabric.world_size
    with fabric.rank_zero_first():  # the others then find the tile index that it made
        mix = open_mix(learn, sampling, positions, near, pictures)
    run = _Run(fabric, recipe, folder, learn, judge, mix, state)
    if fabric.is_global_zero:
        size = sum(p.numel() for p in run.model.parameters()) / 1e6
        say(
            f"{recipe.model.trunk}, {size:.2f} M parameters, on {len(learn)} pictures of {data} "
            f"({learn.split}), into {folder}; "
            f"{fabric.world_size} x {describe_machine(fabric.device)}"
        )
    for name in STAGES[STAGES.index(state.stage) :]:
        if name == "attention" and run.model.attention is None:
            continue  # pooling has nothing to learn there
        run.stage(name)
    return folder / "best.safetensors"


def _start_or_resume(recipe: Recipe, folder: Path, resume: bool) -> State:
    now = recipe.model_dump(mode="json", exclude={"selftrain"})  # not what this run depends on
    file = folder / "resume.pt"
    if not file.exists():
        return State(now)
    if not resume:
        raise InputError(
            f"{folder} holds a run already; add --resume to go on with it, or give another --out"
        )
    sweep(folder / name for name in ("best.safetensors", "last.safetensors", file.name))
    state = State(**torch.load(file, map_location="cpu", weights_only=True))
    changed = [f"{k} ({v} -> {now.get(k)})" for k, v in state.recipe.items() if now.get(k) != v]
    if changed:
        raise InputError(
            f"{folder} was begun with another recipe: {', '.join(changed)}; "
            "go on with the same one, or give another --out"
        )
    return state


Seen = tuple[dict[float, Encoded], Tensor]  # what the network says of one picture; its label


class _Run:
    """The parts that both stages share."""

    def __init__(
        self,
        fabric: Fabric,
        recipe: Recipe,
        folder: Path,
        learn: Dataset,
        judge: Dataset,
        mix: Mix,
        state: State,
    ) -> None:
        self.fabric, self.recipe, self.folder = fabric, recipe, folder
        self.learn, self.judge, self.mix, self.state = learn, judge, mix, state
        network = {"classes": len(learn.labels.names)} | recipe.model.model_dump()
        if recipe.model.fusion == "explicit":
            network["scales"] = recipe.joint.scales
        with fabric.init_module():
            self.model = build(**network)
        card = self.model.card
        card.names, card.palette = list(learn.labels.names), list(learn.labels.palette)
        card.flip, card.long_edge = recipe.inference.flip, recipe.data.long_edge
        card.recipe = state.recipe
        card.trained_on = {
            "dataset": learn.source.name, "split": learn.split, "pictures": len(learn)
        }  # fmt: skip
        if recipe.start and not state.tensors:
            fresh = begin_from(self.model, recipe.start)
            if fabric.is_global_zero:
                say(f"begins from {recipe.start}; fresh: {', '.join(fresh) or 'nothing'}")
        if fabric.world_size > 1 and fabric.device.type == "cuda":
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
        self.model = self.model.to(memory_format=torch.channels_last)
        if "model" in state.tensors:
            self.model.load_state_dict(state.tensors["model"])
        pixels = learn.frequencies()
        if (pixels > 0).sum() < 2:
            held = ", ".join(n for n, p in zip(card.names, pixels, strict=True) if p) or "no class"
            raise InputError(
                f"{learn.source}, split {learn.split}: its labels hold {held} alone, there is "
                "nothing to tell apart; `hmsa data check` shows what values they have"
            )
        self.weight = class_weights(pixels, recipe.class_balance).to(fabric.device)
        self.record = Record(folder, self._done()) if fabric.is_global_zero else None

    def stage(self, name: str) -> None:
        """Run what is left of a stage; the model ends with the weights that it arrived at."""
        stage: Joint | Attention = getattr(self.recipe, name)
        state = self.state
        if state.stage != name:
            state.stage, state.step, state.best, state.tensors = name, 0, -1.0, {}
        optimizer = make_optimizer(self._learning(name), stage)
        module, self.optimizer = self.fabric.setup(self.model, optimizer)
        self.averaged: AveragedModel | None = None
        if stage.ema:
            self.averaged = AveragedModel(
                self.model, multi_avg_fn=moving_average(stage.ema), use_buffers=True
            )
        if state.tensors:
            self.optimizer.load_state_dict(state.tensors["optimizer"])
            if self.averaged is not None:
                self.averaged.load_state_dict(state.tensors["averaged"])
        if state.step < stage.steps:
            if isinstance(stage, Attention):
                self._steps(stage, self._from_memory(module, stage, self._look_once(stage)))
            else:
                self._steps(stage, self._live(module, stage))
        self.model.load_state_dict(self._judged().state_dict())

    def _steps(self, stage: Stage, outputs: Iterator[tuple[Output, Tensor]]) -> None:
        state, schedule = self.state, Schedule(stage)
        smooth: float | None = None  # running mean of the loss, to be shown
        with (
            Progress(state.stage, stage.steps, state.step) as meter,
            interruptible() as interrupted,
        ):
            for output, label in outputs:
                lr = schedule(self.optimizer, state.step)
                terms = objective(
                    output,
                    label,
                    self.weight,
                    loss=stage.loss,
                    auxiliary=stage.auxiliary,
                    supervision=stage.supervision,
                    penalty=stage.penalty,
                )
                self.optimizer.zero_grad()
                self.fabric.backward(terms["loss"])
                self.optimizer.step()
                if self.averaged is not None:
                    self.averaged.update_parameters(self.model)
                state.step += 1
                row = {name: float(term.detach()) for name, term in terms.items()}
                loss = row["loss"]
                if not math.isfinite(loss):
                    raise RuntimeError(f"the loss is {loss} at step {state.step}; lower lr")
                smooth = loss if smooth is None else 0.95 * smooth + 0.05 * loss
                row |= {"lr": lr, "rate": meter.rate()}
                if state.step % stage.validate_every == 0 or state.step == stage.steps:
                    row["val_miou"] = self._validate(stage)
                    self._save(stage, row["val_miou"])
                if self.record and ("val_miou" in row or state.step % LOG_EVERY == 0):
                    self.record.write(state.stage, self._done(), row)
                best = f"  val mIoU {state.best:.3f}" if state.best >= 0 else ""
                meter.advance(f"loss {smooth:.3f}{best}")
                if self._agree(interrupted()):
                    self._save(stage, None)
                    raise Interrupted(f"stopped in stage {state.stage} at step {state.step}, saved")

    def _done(self) -> int:
        """Steps counted over the whole run: those of the stages before, and of this one."""
        earlier = STAGES[: STAGES.index(self.state.stage)]
        before: int = sum(getattr(self.recipe, name).steps for name in earlier)
        return before + self.state.step

    def _agree(self, stop: bool) -> bool:
        """Processes stop together, or the others would wait for ever for the one that did."""
        if self.fabric.world_size == 1:
            return stop
        votes = self.fabric.all_reduce(torch.tensor(float(stop), device=self.fabric.device))
        return bool(cast(Tensor, votes) > 0)

    def _judged(self) -> HMSA:
        """The weights that are validated and saved."""
        return self.model if self.averaged is None else cast(HMSA, self.averaged.module)

    def _learning(self, name: str) -> nn.Module:
        """Freeze what the stage does not train; what it does."""
        trained = self.model.attention if name == "attention" else self.model
        assert trained is not None
        self.model.requires_grad_(False)
        return trained.requires_grad_(True)

    def _live(self, module: Any, stage: Stage) -> Iterator[tuple[Output, Tensor]]:
        """The joint stage: the whole network, on fresh crops at every step."""
        for image, label in self._batches(stage, range(self.state.step, stage.steps), stage.batch):
            self.model.train()  # a validation may have come between
            yield module(image, stage.scales), label

    def _look_once(self, stage: Attention) -> list[Seen]:
        """The attention stage: the frozen network sees each picture once, the head many times."""
        fabric = self.fabric
        seen: list[Seen] = []
        count = min(stage.pictures, max(1, len(self.learn) // fabric.world_size))
        self.model.eval()
        with Progress("look once", count) as meter:
            for image, label in self._batches(stage, range(count), 1):
                with torch.no_grad(), fabric.autocast():
                    seen.append((self.model.encode(image, stage.scales), label))
                meter.advance()
        return seen

    def _from_memory(
        self, module: Any, stage: Attention, seen: list[Seen]
    ) -> Iterator[tuple[Output, Tensor]]:
        fabric, count = self.fabric, len(seen)
        module.mark_forward_method("attend")
        for step in range(self.state.step, stage.steps):
            self.model.eval()  # frozen statistics, too, but for the head's own
            cast(nn.Module, self.model.attention).train()
            draw = np.random.default_rng((self.recipe.seed, fabric.global_rank, step))
            chosen = [seen[i] for i in draw.choice(count, min(stage.batch, count), replace=False)]
            label = torch.cat([label for _, label in chosen])
            encoded = {s: stack([one[s] for one, _ in chosen]) for s in chosen[0][0]}
            with fabric.autocast():
                output = module.attend(encoded, label.shape[-2:])
            yield output, label

    def _batches(self, stage: Stage, steps: range, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        augment, fabric = self.recipe.augment, self.fabric
        long_edge = self.recipe.data.long_edge
        transform = training_transform(stage.crop, stage.resize, augment, long_edge)
        # Each stage walks its own stream, so that changing the length of one leaves the other be.
        seed = self.recipe.seed * 2 + STAGES.index(self.state.stage)
        mix = self.mix if isinstance(stage, Joint) else Mix()
        stream = TrainingStream(self.learn, transform, seed, mix)
        rank, processes = fabric.global_rank, fabric.world_size
        for pair in batches(stream, steps, batch, self._workers(), rank, processes):
            yield fabric.to_device(pair)

    def _workers(self) -> int:
        given = self.recipe.data.workers
        return loader_processes(self.fabric.device) if given is None else given

    def _validate(self, stage: Stage) -> float:
        fabric = self.fabric
        predictor = Predictor(
            self._judged(), self._scales(stage), self.recipe.precision, fabric.device,
            self.recipe.inference.flip, self.recipe.data.long_edge,
        )  # fmt: skip
        confusion = score(predictor, self.judge, fabric.global_rank, fabric.world_size)
        matrix = fabric.all_reduce(confusion.matrix.to(fabric.device), reduce_op="sum")
        confusion.matrix = cast(Tensor, matrix).cpu()
        return confusion.miou()

    def _scales(self, stage: Stage) -> list[float]:
        """Of the network's use, wherever it is in its training."""
        return list(self.recipe.inference.scales or stage.scales)

    def _save(self, stage: Stage, miou: float | None) -> None:
        """last, resume.pt and, where `miou` is the stage's highest so far, best."""
        state = self.state
        names = ["last"]
        if miou is not None and miou > state.best:
            state.best = miou
            names.append("best")
        if not self.fabric.is_global_zero:
            return
        judged = self._judged()
        judged.card = self.model.card.model_copy(
            update={
                "scales": self._scales(stage),
                "metrics": {"step": state.step} | ({} if miou is None else {"val_miou": miou}),
            }
        )
        for name in names:
            save(self.folder / f"{name}.safetensors", judged)
        tensors = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        if self.averaged is not None:
            tensors["averaged"] = self.averaged.state_dict()
        content = vars(state) | {"tensors": tensors}
        replace(self.folder / "resume.pt", lambda temporary: torch.save(content, temporary))


def stack(parts: list[Encoded]) -> Encoded:
    """The same scale of several pictures as one batch."""
    features = [part.features for part in parts if part.features is not None]
    logits = torch.cat([part.logits for part in parts])
    return parts[0]._replace(features=torch.cat(features) if features else None, logits=logits)
