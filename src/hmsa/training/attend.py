"""Trains an attention head on a frozen network, which runs only once on each image."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..checkpoint.files import GateCurve, amend, read
from ..checkpoint.networks import allow, find
from ..config.options import Compute, HeadTraining
from ..config.recipe import Attention
from ..data.datasets import Dataset, open_dataset
from ..data.descriptions import describe
from ..data.labels import IGNORE
from ..data.stretch import Stretch, store_stretch, stretch_of
from ..evaluation.confusion import Confusion
from ..evaluation.measure import gate_curve
from ..inference.predictor import Predictor
from ..model import HMSA, PairScaleAttention, ScaleAttention
from ..model.fusion import ordered
from ..model.weights import hashed
from ..runs import InputError, say
from ..runs.errors import as_input_error
from ..runs.machine import in_use, launch
from .passes import HELD_OUT, PASSES, Passes, begin_at
from .trainer import BEST, LAST, RESUME, Trainer, Validation, Work, class_weights

VALIDATE_EVERY, PATIENCE = 200, 3  # steps; validations without a gain that end training
BALANCE = 0.4  # `class_balance` of a recipe
CURVE = 12  # images for the curve of the gate


class HeadJob:
    """Trains a head for the network `source` on a dataset; mistakes raise InputError at once.

    files: folder of the dataset's files, if elsewhere.
    """

    def __init__(
        self, source: str, data: Path, files: Path | None, options: HeadTraining, compute: Compute
    ) -> None:
        self.options = options
        with as_input_error("scales"):
            scales = ordered(options.scales)
        if len(scales) < 2:
            raise InputError(f"scales {scales[0]:g}: attention needs two or more, such as 0.5,1,2")
        learn = open_dataset(data, options.split, files)
        val = options.val or ("val" if "val" in describe(data, files)[1].splits else None)
        self.datasets = [learn, *([open_dataset(data, val, files)] if val else [])]
        for each in self.datasets[1:]:
            each.require_labels()
        pairs = [pair for each in self.datasets for pair in each.pairs]
        self.images = dataclasses.replace(learn, pairs=tuple(pairs))
        _, held = self._split(options.images)
        # What to score: a split, and the numbers of its images or all
        self.scored = (val, None) if val else (options.split, held)
        torch.manual_seed(options.seed)
        self.model, self.network = _model(source, learn, options)
        self.images = self.images.stretched(_stretch(source, learn))
        store_stretch(self.model.card, self.images.stretch)
        self.model.card.scales = scales
        self.fabric = launch(compute.device or "auto", 1, compute.precision)
        self.settings = dataclasses.asdict(options) | self.network | {
            "dataset": str(learn.source.resolve()), "names": [pair.name for pair in learn.pairs],
            "precision": in_use(self.fabric.device, compute.precision),
            "val": val, "cache": None,  # this may change
        }  # fmt: skip

    def train(self, out: Path) -> dict[str, Any]:
        """Write best.safetensors into the run folder `out`; returns what came of it, as JSON."""
        began, model, options, images = time.monotonic(), self.model, self.options, self.images
        passes = Passes(out / PASSES, self.fabric, model, model.card.scales, self._load)
        self.fabric.to_device(model)
        next(passes.compute([0]))
        most = int(options.cache * 2**30 / passes.file(0).stat().st_size)
        if most < 2:
            raise InputError(f"--cache: {options.cache:g} GiB are too little for two images")
        fit, held = self._split(min(most, options.images))
        model.card.trained_on |= {"pictures": len(fit)}
        stage = Attention(  # one image in a step, as their sizes may differ
            steps=options.steps, batch=1, penalty=options.penalty, validate_every=VALIDATE_EVERY
        )
        head, outputs = model.attention, partial(passes.outputs, stage, fit, [options.seed])
        validate, scales = partial(_held_out, passes, held), model.card.scales
        work = Work(
            "attention", stage, cast(nn.Module, head), scales, outputs, validate,
            passes.compute([*fit, *held]), lambda: begin_at(model, passes.best_constant(held)),
            patience=PATIENCE,
        )  # fmt: skip
        weight = class_weights(images.only(fit).frequencies(), BALANCE)
        state = Trainer(self.fabric, model, out, weight).run(work)
        if scales[-1] > 1 and not options.pairs:
            labelled = [n for n in held if (images.read_label(n) != IGNORE).any()][:CURVE]
            judges = dataclasses.replace(images.only(labelled), split=self.datasets[-1].split)
            _keep_gate(out / BEST, scales, judges, self.fabric.device)
        seconds = round(time.monotonic() - began, 1)
        return {"steps": state.best_step, "held_out_miou": state.best, "seconds": seconds}

    def _split(self, most: int) -> tuple[list[int], list[int]]:
        """`split_evenly` of the images. Raises InputError unless both parts have labels."""
        learn, *val = self.datasets
        parts = split_evenly(len(learn), most, sum(map(len, val)))
        if not all(part and self.images.only(part).frequencies().any() for part in parts):
            which = "those of val" if val else f"the last ones (1 in {HELD_OUT})"
            raise InputError(
                f"{learn.source}, split {learn.split}: no labelled pixel in the images to train "
                f"on, or in {which}, which are held out; label more"
            )
        return parts

    def _load(self, number: int) -> tuple[Tensor, Tensor]:
        image, label = self.images.read(number)
        return torch.from_numpy(image.copy()).permute(2, 0, 1), torch.from_numpy(label)


def _keep_gate(file: Path, scales: list[float], held: Dataset, device: torch.device) -> None:
    """Measure what a gate saves and costs, for `predict --budget`; the checkpoint keeps it."""
    points = gate_curve(Predictor(HMSA.from_pretrained(file), scales, device=device), held)
    split = f"{held.split}, {len(held)} held out"
    curve = GateCurve(dataset=held.source.name, split=split, scales=scales, points=points)
    amend(file, gate=curve.model_dump())


def clear(out: Path) -> None:
    """Remove from a run folder what is needed only while the head is trained."""
    shutil.rmtree(out / PASSES, ignore_errors=True)
    for name in (LAST, RESUME):
        (out / name).unlink(missing_ok=True)


def _held_out(passes: Passes, held: Sequence[int], network: HMSA) -> Validation:
    confusion = Confusion(network.classes)
    network.eval()
    for number in held:
        encoded, label = passes.read([number])
        with torch.inference_mode(), passes.fabric.autocast():
            output = network.attend(encoded, label.shape[-2:])
        confusion.add(label[0].cpu(), output.logits.argmax(1)[0].cpu())
    return Validation(confusion)


def split_evenly(count: int, most: int, val: int = 0) -> tuple[list[int], list[int]]:
    """At most `most` images, evenly: numbers to train on, of `count`, and numbers to hold out.

    Those are the last of the `count`, as neighbours are alike; with `val` images of another split,
    these, numbered from `count` on.
    """
    cut = count if val else count - max(1, count // HELD_OUT)
    others = val or count - cut
    held = max(1, min(most // HELD_OUT, others))
    fit = min(max(1, most - held), cut)
    return [i * cut // fit for i in range(fit)], [cut + i * others // held for i in range(held)]


def _stretch(source: str, learn: Dataset) -> Stretch:
    """How the network `source` takes images, if its checkpoint says that."""
    with suppress(InputError):
        if Path(source).exists() and (found := stretch_of(read(source)[2])) != Stretch():
            return found
    return learn.stretch


def _model(
    source: str, learn: Dataset, options: HeadTraining
) -> tuple[ScaleAttention, dict[str, Any]]:
    """The network with a new head, and what identifies the network."""
    allow(source)  # the user named it
    network = find(source)
    about = {"network": source, "sha256": hashed(network.module.state_dict())}
    if options.reference:
        place = os.path.abspath(source) if Path(source).exists() else source
        made = {"reference": place, "sha256": about["sha256"]}
        network = dataclasses.replace(network, made=made)
    kind = PairScaleAttention if options.pairs else ScaleAttention
    features = None if options.features == "none" else options.features
    with as_input_error(source):
        model = kind(network, features=features, per_class=options.per_class)
    names, own = learn.labels.names, network.names or learn.labels.names
    plain, own_plain = ([re.sub(r"[\W_]", "", n.lower()) for n in some] for some in (names, own))
    if model.classes != len(names) or plain != own_plain:
        raise InputError(
            f"{source} has {model.classes} classes ({', '.join(own[:4])}, ...), {learn.source} has "
            f"{len(names)} ({', '.join(names[:4])}, ...); both need the same ones in the same order"
        )
    card = model.card
    card.names, card.palette = list(names), list(learn.labels.palette)
    card.trained_on = {"dataset": learn.source.name, "split": learn.split, **about}
    source_name = model.trunk.feature_source or "no features"
    say(f"{source}: attention sees {source_name} and confidence, {model.head.features} channels")
    return model, about
