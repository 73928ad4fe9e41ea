"""Trains an attention head on a frozen network, which runs only once on each image."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from rich.table import Table
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ..checkpoint.files import GateCurve, amend, hashed
from ..checkpoint.networks import allow
from ..config.options import Compute, HeadTraining
from ..config.recipe import Attention, Stage
from ..data.datasets import Dataset, open_dataset
from ..data.descriptions import describe
from ..evaluation.confusion import Confusion
from ..evaluation.evaluate import evaluate
from ..evaluation.measure import gate_curve
from ..inference.predictor import Predictor
from ..model import HMSA, Encoded, PairScaleAttention, ScaleAttention
from ..model.hmsa import ordered
from ..model.scale_attention import find_network
from ..runs import InputError, Progress, Run, replace, say, sweep
from ..runs.errors import as_input_error
from ..runs.machine import in_use, launch
from .trainer import BEST, LAST, RESUME, Outputs, Trainer, Work, class_weights

PASSES = "passes"  # folder in the run folder
HELD_OUT = 5  # one image in this many is held out: the last ones, as neighbours are alike
PATIENCE = 3  # validations without a gain
BATCH = 2  # images in a step, one by one as their sizes may differ
BALANCE = 0.4  # `class_balance` of a recipe
CURVE = 12  # images for the curve of the gate


@dataclass(frozen=True)
class Passes:
    """Passes of a frozen network at `scales`: a file for each image, never computed twice.

    load: number -> image `[3,H,W]` and label `[H,W]`, both uint8.
    """

    folder: Path
    fabric: Fabric
    model: HMSA
    scales: Sequence[float]
    load: Callable[[int], tuple[Tensor, Tensor]]

    def compute(self, numbers: Sequence[int]) -> None:
        """Run the network on the images that it has not run on before."""
        missing = [number for number in numbers if not self.file(number).is_file()]
        with Progress("frozen network", len(missing)) as progress:
            for number in missing:
                kept = tree_map(_halved, self._run(number))
                replace(self.file(number), partial(torch.save, kept))
                progress.advance()

    @torch.no_grad()
    def _run(self, number: int) -> tuple[dict[float, Any], Tensor]:
        image, label = self.load(number)
        with self.fabric.autocast():
            image = self.fabric.to_device(image[None])
            encoded = self.model.eval().encode(image, self.scales)
        # Training needs no logits on a finer grid than that of attention
        grids = {s: one.features.shape for s, one in encoded.items() if one.features is not None}
        cell = max(encoded[s].logits.shape[-1] // grid[-1] for s, grid in grids.items())
        pooled = {s: F.avg_pool2d(one.logits.float(), cell) for s, one in encoded.items()}
        kept = {s: tuple(one._replace(logits=pooled[s])) for s, one in encoded.items()}
        return kept, label[None]

    def read(self, numbers: Sequence[int]) -> tuple[dict[float, Encoded], Tensor]:
        """Images of one size as a batch: output of `HMSA.encode` and label `[B,H,W]`."""
        kept = [torch.load(self.file(n), self.fabric.device, weights_only=True) for n in numbers]
        encoded, label = tree_map(_joined, *kept)
        return {scale: Encoded(*one) for scale, one in encoded.items()}, label.long()

    def file(self, number: int) -> Path:
        return self.folder / f"{number}.pt"


def _halved(leaf: Any) -> Any:
    return leaf.half().cpu() if isinstance(leaf, Tensor) else leaf


def _joined(first: Any, *others: Any) -> Any:
    return torch.cat([first, *others]).float() if isinstance(first, Tensor) else first


def head_outputs(
    passes: Passes, stage: Stage, numbers: Sequence[int], seed: Sequence[int], accumulate: int = 1
) -> Callable[[Any, int], Outputs]:
    """`Work.outputs` that train the attention head on the images `numbers`."""

    def outputs(network: Any, start: int) -> Outputs:
        passes.compute(numbers)
        for turn in range(start * accumulate, stage.steps * accumulate):
            random = np.random.default_rng((*seed, turn))
            drawn = random.choice(numbers, min(stage.batch, len(numbers)), replace=False)
            encoded, label = passes.read(drawn.tolist())
            yield network.attend(encoded, label.shape[-2:]), label

    return outputs


def attend(
    source: str,
    data: Path,
    out: Path,
    options: HeadTraining = HeadTraining(),
    compute: Compute = Compute(),
    *,
    files: Path | None = None,
    val: str | None = None,
    reference: bool = False,
    overwrite: bool = False,
    command: str = "",
) -> tuple[dict[str, Any], Table]:
    """Train a head for the network `source` on a dataset, in the run folder `out`, and score it.

    files: folder of the dataset's files, if elsewhere. val: split to score; default: val if there
    is one, else the held-out images. reference: leave the network out of the checkpoint.
    Returns the JSON object and the table for people.
    """
    with as_input_error("scales"):
        scales = ordered(options.scales)
    if len(scales) < 2:
        raise InputError(f"scales {scales[0]:g}: attention needs two or more, such as 0.5,1,2")
    learn = open_dataset(data, options.split, files)
    parts = _parts(len(learn), options.images)
    if not all(part and learn.only(part).frequencies().any() for part in parts):
        raise InputError(
            f"{learn.source}, split {learn.split}: no labelled pixel in the images to train on, or "
            f"in the last ones (1 in {HELD_OUT}), which are held out; label more, or name another"
        )
    torch.manual_seed(options.seed)
    model, about = _model(source, learn, options, reference)
    model.card.scales = scales
    val = val or ("val" if "val" in describe(data, files)[1].splits else None)
    if val:
        open_dataset(data, val, files)  # finds mistakes now
    fabric = launch(compute.device or "auto", 1, compute.precision)
    settings = about | vars(options) | {
        "dataset": str(learn.source.resolve()), "images": [pair.name for pair in learn.pairs],
        "precision": in_use(fabric.device, compute.precision), "reference": reference,
    }  # fmt: skip
    with Run(out, "attend", settings, overwrite=overwrite) as run:
        sweep(out / name for name in (BEST, LAST, RESUME))
        if overwrite:
            _clear(out)
        if "attention" not in run.records:
            run.add("attention", _train(fabric, model, learn, out, options))
        _clear(out)
        summary, table = evaluate(
            out / BEST, data, val or options.split, pictures=files, command=command,
            report=out / f"report-{val or 'held-out'}.html", only=None if val else parts[1],
            **vars(compute),
        )  # fmt: skip
        return summary | run.records["attention"] | {"network": about}, table


def _clear(out: Path) -> None:
    """Remove what is needed only until the head is trained."""
    shutil.rmtree(out / PASSES, ignore_errors=True)
    for name in (LAST, RESUME):
        (out / name).unlink(missing_ok=True)


def _parts(count: int, most: int) -> tuple[list[int], list[int]]:
    """At most `most` of `count` images, evenly: numbers to train on, and numbers to hold out."""
    cut = count - max(1, count // HELD_OUT)
    held = max(1, min(most // HELD_OUT, count - cut))
    fit = min(max(1, most - held), cut)
    return [i * cut // fit for i in range(fit)], [
        cut + i * (count - cut) // held for i in range(held)
    ]


def _model(
    source: str, learn: Dataset, options: HeadTraining, reference: bool
) -> tuple[ScaleAttention, dict[str, Any]]:
    """The network with a new head, and what identifies the network."""
    allow(source)  # the user named it
    network = find_network(source)
    about = {"network": source, "sha256": hashed(network.module.state_dict())}
    if reference:
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
    looked = model.trunk.looked_at or "no features"
    say(f"{source}: attention sees {looked} and confidence, {model.head.features} channels")
    return model, about


def _train(
    fabric: Fabric, model: ScaleAttention, learn: Dataset, out: Path, options: HeadTraining
) -> dict[str, Any]:
    """Train the head; best.safetensors has it. Returns what came of it, as JSON."""

    def load(number: int) -> tuple[Tensor, Tensor]:
        image, label = learn.read(number)
        return torch.from_numpy(image.copy()).permute(2, 0, 1), torch.from_numpy(label)

    def validate(network: HMSA) -> float:
        confusion = Confusion(network.classes)
        network.eval()
        for number in held:
            encoded, label = passes.read([number])
            with torch.inference_mode(), fabric.autocast():
                output = network.attend(encoded, label.shape[-2:])
            confusion.add(label[0].cpu(), output.logits.argmax(1)[0].cpu())
        return confusion.miou()

    began, scales = time.monotonic(), model.card.scales
    fabric.to_device(model)
    passes = Passes(out / PASSES, fabric, model, scales, load)
    passes.compute([0])
    most = int(options.cache * 2**30 / passes.file(0).stat().st_size)
    if most < 2:
        raise InputError(f"--cache: {options.cache:g} GiB are too little for two images")
    fit, held = _parts(len(learn), min(most, options.images))
    passes.compute([*fit, *held])
    model.card.trained_on |= {"pictures": len(fit) + len(held)}
    weight = class_weights(learn.only([*fit, *held]).frequencies(), BALANCE)
    stage = Attention(steps=options.steps, batch=1, penalty=options.penalty, scales=tuple(scales))
    outputs = head_outputs(passes, stage, fit, [options.seed], BATCH)
    head = cast(nn.Module, model.attention)
    work = Work("attention", stage, head, scales, outputs, validate, BATCH, PATIENCE)
    state = Trainer(fabric, model, out, weight).run(work)
    if scales[-1] > 1 and not options.pairs:
        few = learn.only(held[:CURVE])
        predictor = Predictor(HMSA.from_pretrained(out / BEST), scales, device=fabric.device)
        split, points = f"{learn.split}, {len(few)} held out", gate_curve(predictor, few)
        curve = GateCurve(dataset=learn.source.name, split=split, scales=scales, points=points)
        amend(out / BEST, gate=curve)
    seconds = round(time.monotonic() - began, 1)
    return {"steps": state.best_step, "held_out_miou": state.best, "seconds": seconds}
