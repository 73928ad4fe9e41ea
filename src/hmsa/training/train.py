"""`hmsa train`: the whole network at two scales, then the attention head on all scales."""

from __future__ import annotations

import copy
import shutil
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from ..checkpoint.files import begin_from
from ..config.recipe import Augment, Recipe, Stage
from ..data.datasets import Dataset, open_dataset
from ..data.sampling import Mix, TrainingStream, batches, open_mix
from ..data.stretch import store_stretch
from ..data.transforms import training_transform
from ..evaluation.measure import score
from ..inference.predictor import Predictor
from ..model import HMSA, build
from ..model.fusion import chain
from ..report.pictures import colorize, panel, shown, thin
from ..runs import InputError, Outcome, Run, say
from ..runs.errors import as_input_error
from ..runs.machine import (
    Precision,
    describe_machine,
    in_use,
    is_first,
    launch,
    loader_processes,
    processes,
    together,
    total,
)
from .metrics import Pace
from .passes import HELD_OUT, PASSES, Passes, begin_at
from .plan import BATCH, SIDE, Plan, forecast, plans, step_cost
from .profile import STEPS, profiled
from .trainer import BEST, RESUME, Outputs, Trainer, Validation, Work, class_weights, note_data

STAGES = ("joint", "attention")
DRAWN = 4  # validation images on the sheet
GAIN = 0.9  # time in bf16 relative to fp32, below which its 8 bits of mantissa are worth it


def train(
    recipe: Recipe,
    folder: Path,
    data: Path,
    *,
    pictures: Path | None = None,
    resume: bool = False,
    changed_data: bool = False,
    near: Path = Path(),
) -> Path:
    """Train as the recipe says, in the run folder `folder`; returns the best checkpoint.

    data: YAML file of the dataset; pictures: the folder of its images, if elsewhere; near: what
    other paths in the recipe are relative to; changed_data: resume although images or labels have
    changed. Raises Interrupted when stopped, after saving.
    """
    begun = (folder / RESUME).exists()
    if begun and not resume:
        raise InputError(f"{folder} has a run; add --resume to continue it, or name another --out")
    world = processes(recipe.accelerator, recipe.devices)
    recipe = recipe.model_copy(update={"devices": world})
    free: Any = {"selftrain": True, "loggers": True, "data": {"workers"}}
    free |= {name: {"memory"} for name in STAGES}
    settings = recipe.model_dump(mode="json", exclude=free)  # what has an influence
    mend = "continue with the same recipe, or name another --out"
    place = Run(folder, "train", settings, overwrite=not begun, mend=mend) if is_first() else None
    with place or nullcontext() as run, together():
        fabric = launch(recipe.accelerator, world, recipe.precision)
        if fabric.is_global_zero and run is None:
            raise InputError(f"{folder}: another process trains here; start training by torchrun")
        job = _Job(recipe, fabric, data, pictures, near)
        if changed := fabric.broadcast(run and note_data(run, job.datasets, changed_data)):
            raise InputError(
                f"{folder}: {changed}; restore it, train in another --out, or resume hmsa train "
                "with --changed-data if the classes are the same"
            )
        model = job.network(settings, fresh=not begun)
        if run and recipe.precision == "auto" and world == 1:  # processes must agree: as for others
            if "precision" not in run.records:
                run.add("precision", faster_precision(model, recipe.joint, fabric.device))
            job.fabric = fabric = launch(recipe.accelerator, 1, run.records["precision"])
        if run:
            model.card.trained_on["data"] = run.records["data"][0]["digest"][:16]
        trainer = Trainer(fabric, model, folder, job.class_weights(), recipe.loggers)
        for name in STAGES[STAGES.index(trainer.state.stage or STAGES[0]) :]:
            if name == "joint" or model.attention is not None:  # pooling has no attention
                trainer.run(job.work(name, model, folder / PASSES))
        fabric.barrier()
        shutil.rmtree(folder / PASSES, ignore_errors=True)
    if not (folder / BEST).is_file():
        raise InputError(f"{folder}: no stage had a step; set joint.steps or attention.steps")
    return folder / BEST


def faster_precision(model: HMSA, stage: Stage, device: torch.device) -> Precision:
    """fp32 or bf16: by the hardware, and on a CPU that has bf16 by the time of training steps.

    There bf16 doubles the speed of dense convolutions, but slows down those of few channels.
    """
    precision = in_use(device, "auto")
    if device.type != "cpu" or precision == "fp32" or not stage.steps:
        return cast(Precision, precision)
    try:
        seconds = {each: step_seconds(model, stage, each) for each in ("fp32", "bf16")}
    except ValueError:  # a crop that is too small; the first step says so
        return "fp32"
    best: Precision = "bf16" if seconds["bf16"] < GAIN * seconds["fp32"] else "fp32"
    compared = f"{seconds['fp32']:.2f} s in fp32 and {seconds['bf16']:.2f} s in bf16"
    say(f"precision: {best}; a small training step takes {compared}")
    return best


def step_seconds(model: HMSA, stage: Stage, precision: Precision) -> float:
    """Of a training step on a CPU with two crops of at most 256 x 256 pixels; the best of three."""
    trial, small = copy.deepcopy(model).train(), [min(side, SIDE) for side in stage.crop]
    with torch.random.fork_rng(devices=()):
        return min(step_cost(trial, stage, precision, BATCH, small).seconds for _ in range(3))


def planned(
    recipe: Recipe, data: Path, pictures: Path | None, near: Path, memory: float | None
) -> list[Plan]:
    """What `plans` says of the recipe and its network; memory: bytes. Reads no weights."""
    network = recipe.model.model_copy(update={"pretrained": False})
    recipe = recipe.model_copy(update={"model": network, "start": None})
    fabric = launch("auto" if recipe.accelerator == "cuda" else recipe.accelerator, 1, "fp32")
    model = _Job(recipe, fabric, data, pictures, near).network({}, fresh=True)
    return plans(model, recipe, fabric.device, memory)


def profile(recipe: Recipe, folder: Path, data: Path, pictures: Path | None, near: Path) -> Outcome:
    """What `profiled` says of steps of the joint stage; the trace goes into `folder`."""
    stage = recipe.joint.model_copy(update={"steps": STEPS})
    recipe = recipe.model_copy(update={"joint": stage, "devices": 1})
    job = _Job(recipe, launch(recipe.accelerator, 1, "fp32"), data, pictures, near)
    model, device = job.network({}, fresh=True), job.fabric.device
    precision: Precision = recipe.precision
    if precision == "auto":
        precision = faster_precision(model, stage, device)
    job.fabric = fabric = launch(recipe.accelerator, 1, precision)
    weight = job.class_weights()
    with as_input_error("joint"):
        return profiled(model, recipe, fabric, job.crops(), weight, job.workers, folder)


def stream_of(recipe: Recipe, name: str, learn: Dataset, mix: Mix) -> TrainingStream:
    """The augmented samples of a stage; each stage has its own order."""
    stage, augment = getattr(recipe, name), recipe.augment
    transform = training_transform(stage.crop, stage.resize, augment, recipe.data.long_edge)
    return TrainingStream(learn, transform, recipe.seed * 2 + STAGES.index(name), mix)


class _Job:
    """A recipe and its data, in one process of the training."""

    def __init__(
        self, recipe: Recipe, fabric: Fabric, data: Path, pictures: Path | None, near: Path
    ) -> None:
        self.recipe, self.fabric, sampling = recipe, fabric, recipe.sampling
        self.say = partial(fabric.print, file=sys.stderr)  # the first process alone
        fabric.seed_everything(recipe.seed, verbose=False)
        learn = open_dataset(data, recipe.data.train, pictures).trusting(sampling.confidence)
        learn = learn.stretched(learn.stretch)
        self.val = replace(open_dataset(data, recipe.data.val, pictures), stretch=learn.stretch)
        self.val.require_labels()
        count = recipe.joint.steps * recipe.joint.batch * fabric.world_size
        with fabric.rank_zero_first():  # the others then find its tile index
            mix = open_mix(learn, sampling, count, near, pictures)
        self.learn, self.mix = learn, mix
        self.datasets = [learn, self.val, *(extra.dataset for extra in mix.extras)]

    def network(self, settings: dict[str, Any], *, fresh: bool) -> HMSA:
        """The network to train, not yet with the weights of a run to resume."""
        recipe, learn, fabric = self.recipe, self.learn, self.fabric
        network = recipe.model.model_dump() | {"classes": len(learn.labels.names)}
        if recipe.start:
            network["pretrained"] = False  # all weights of the trunk come from there
        network["in_channels"] = learn.stretch.channels
        if recipe.model.fusion == "explicit":
            network["scales"] = recipe.joint.scales
        with as_input_error(), fabric.init_module():
            model = build(**network)
        card = model.card
        card.names, card.palette = list(learn.labels.names), list(learn.labels.palette)
        card.recipe, card.flip = settings, recipe.inference.flip
        card.long_edge = recipe.data.long_edge
        store_stretch(card, learn.stretch)
        card.trained_on |= {
            "dataset": learn.source.name, "split": learn.split, "pictures": len(learn)
        }  # fmt: skip
        if recipe.start and fresh:
            new = begin_from(model, recipe.start)
            self.say(f"starts from {recipe.start}; new: {', '.join(new) or 'nothing'}")
        if origin := card.trained_on.get("trunk"):
            self.say("pretrained: {source}, {license}, SHA-256 {sha256:.8}".format(**origin))
        size = f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters"
        machine = f"{fabric.world_size} x {describe_machine(fabric.device)}"
        self.say(f"{recipe.model.trunk}, {size}; {len(learn)} images of {learn.source}; {machine}")
        if fabric.world_size > 1 and fabric.device.type == "cuda":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        elif fabric.world_size > 1:
            self.say("note: without GPUs, batch norms see the images of their own process only")
        return model.to(memory_format=torch.channels_last)

    def class_weights(self) -> Tensor:
        """Raises InputError if there are fewer than two classes."""
        pixels = self.learn.frequencies()
        if (pixels > 0).sum() < 2:
            raise InputError(
                f"{self.learn.source}, split {self.learn.split}: training needs labels of two or "
                f"more classes, not {(pixels > 0).sum()}; `hmsa data check` shows their values"
            )
        return class_weights(pixels, self.recipe.class_balance)

    def work(self, name: str, model: HMSA, folder: Path) -> Work:
        """A stage: on new crops at each step, or on passes in `folder` of a fixed set of crops.

        Attention begins at a constant that crops of val choose, which no stage learns from.
        """
        recipe, stage = self.recipe, getattr(self.recipe, name)
        scales = list(recipe.inference.scales or stage.scales)
        validate = partial(self._validate, scales)
        if name == "joint":
            left = partial(forecast, recipe, self.learn, self.val)
            pace = Pace(self.fabric.device, self.fabric.world_size)
            crops = partial(self._crops, parts := min(stage.batch, stage.accumulate), pace)
            return Work(
                name, stage, model, scales, crops, validate, parts=parts, forecast=left, pace=pace
            )
        rank, world = self.fabric.global_rank, self.fabric.world_size
        learn, plain = stream_of(recipe, name, self.learn, Mix()), Augment(flip=0, color=0)
        whole = training_transform(stage.crop, (1.0, 1.0), plain, recipe.data.long_edge)
        val = TrainingStream(self.val, whole, recipe.seed)
        first = world * min(stage.pictures, max(1, len(learn.dataset) // world))  # of val
        last = first + world * max(1, min(stage.pictures // HELD_OUT, len(self.val) // world))

        def load(number: int) -> tuple[Tensor, Tensor]:
            return learn[number] if number < first else val[number - first]

        def begin() -> None:
            if model.fold is chain:  # explicit attention begins as the joint stage left it
                begin_at(model, passes.best_constant(held))

        passes = Passes(folder, self.fabric, model, stage.scales, load)
        numbers, held = range(rank, first, world), range(first + rank, last, world)
        outputs = partial(passes.outputs, stage, numbers, [recipe.seed, rank])
        trained, prepare = cast(nn.Module, model.attention), passes.compute([*numbers, *held])
        return Work(name, stage, trained, scales, outputs, validate, prepare, begin)

    def _crops(self, parts: int, pace: Pace, network: Any, start: int) -> Outputs:
        for pair in pace.waiting(self.crops(start)):
            image, label = self.fabric.to_device(pair)
            whole = label if parts > 1 else None
            for some in range(parts):
                images, labels = (each.tensor_split(parts)[some] for each in (image, label))
                yield network(images, self.recipe.joint.scales), labels, whole

    def crops(self, start: int = 0) -> Iterator[Any]:
        """Batches of images and labels from a step of the joint stage on."""
        fabric, stage = self.fabric, self.recipe.joint
        stream, steps = stream_of(self.recipe, "joint", self.learn, self.mix), stage.steps
        rank, world = fabric.global_rank, fabric.world_size
        return batches(stream, range(start, steps), stage.batch, self.workers, rank, world)

    @property
    def workers(self) -> int:
        """Processes that load crops."""
        count = self.recipe.data.workers
        return loader_processes(self.fabric.device) if count is None else count

    def _validate(self, scales: list[float], model: HMSA) -> Validation:
        """On the validation images, of which each process runs its share."""
        fabric, recipe = self.fabric, self.recipe
        predictor = Predictor(
            model, scales, recipe.precision, fabric.device, recipe.inference.flip,
            recipe.data.long_edge, backend="torch",
        )  # fmt: skip
        own = range(fabric.global_rank, len(self.val), fabric.world_size)
        some, rows = own[:: -(-len(own) // DRAWN) or 1], []
        palette = np.array(self.val.labels.palette, np.uint8)

        def draw(index: int, *maps: Any) -> None:
            if index in some and fabric.is_global_zero:
                image, label, predicted = (thin(each, 640) for each in maps)
                rows.append([
                    (self.val.pairs[index].name, shown(image)),
                    ("label", colorize(label, palette)),
                    ("prediction", colorize(predicted, palette)),
                ])  # fmt: skip

        confusion = score(predictor, self.val, own, draw)
        confusion.matrix = total(confusion.matrix.to(fabric.device)).cpu()
        return Validation(confusion, panel(rows) if rows else None)
