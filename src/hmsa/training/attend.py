"""`hmsa attend`: scale attention for a network that others made, which stays as it is."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table

from ..checkpoint.files import GateCurve, amend, hashed, save
from ..checkpoint.networks import allow
from ..config.recipe import Attention
from ..data.datasets import Dataset, open_dataset
from ..data.descriptions import describe
from ..evaluation.confusion import Confusion
from ..evaluation.evaluate import evaluate
from ..evaluation.measure import gate_curve
from ..inference.predictor import Predictor
from ..model import PairScaleAttention, ScaleAttention, ordered
from ..model.scale_attention import find_network
from ..runs.errors import InputError, as_input_error
from ..runs.machine import Precision, autocast, find_device, in_use
from ..runs.progress import Progress, say
from .losses import objective
from .optim import Schedule, class_weights, make_optimizer
from .passes import Passes, spread_over

HELD_OUT = 5  # of as many pictures one says when to stop: the last, since neighbours are alike
PATIENCE = 3  # looks at the held-out pictures without a gain
CURVE = 12  # pictures that the gate's curve is measured on


@dataclasses.dataclass(frozen=True)
class Head:
    """What is trained, and how long; see `ScaleAttention`."""

    features: str | None = "auto"
    per_class: bool = False
    pairs: bool = False
    steps: int = 600  # at most
    penalty: float = 0.0  # weight of the use of fine scales, as `objective` has it
    balance: float = 0.4  # class weights, as `class_balance` of a recipe
    pictures: int = 200  # that are looked at
    seed: int = 0


def attend(
    source: str,
    data: Path,
    out: Path,
    split: str = "train",
    scales: Sequence[float] = (0.5, 1.0, 2.0),
    head: Head = Head(),
    *,
    val: str | None = None,
    files: Path | None = None,
    cache: int = 4 << 30,
    reference: bool = False,
    precision: Precision = "auto",
    device: str | None = None,
    command: str = "",
) -> tuple[dict[str, Any], Table]:
    """Train a head for the network `source` on a split; write it, as a run, into the folder `out`.

    val: the split that all fusions are then compared on; None: "val" if the dataset has it, else
    what was held out. files: where the dataset's pictures are. cache: bytes on disk for what the
    network says of the pictures. reference: leave the network's weights where they are.
    Returns the JSON object and the table for people.
    """
    with as_input_error():
        chain = ordered(scales)
    if len(chain) < 2:
        raise InputError(f"scales {chain[0]:g}: attention weighs two or more, such as 0.5,1,2")
    learn = open_dataset(data, split, files)
    fit, held = parts(learn, head.pictures)
    for what, some in (("to learn from", fit), ("held out to tell when to stop", held)):
        if not learn.only(some).frequencies().any():
            raise InputError(
                f"{learn.source}, split {split}: no labelled pixel in the {len(some)} picture(s) "
                f"{what}; label some, or name another split"
            )
    torch.manual_seed(head.seed)
    model, about = _model(source, learn, head, reference)
    on = val or ("val" if "val" in describe(data, files)[1].splits else None)
    if on:
        open_dataset(data, on, files)  # what is wrong with it shows now
    model.to(find_device(device)).to(memory_format=torch.channels_last)
    where, began = model.mean.device, time.monotonic()
    settings = about | {
        "scales": chain, "features": model.trunk.looked_at, "pairs": head.pairs,
        "dataset": str(learn.source.resolve()), "split": split,
        "pictures": [learn.pairs[i].name for i in range(len(learn))],
        "precision": in_use(where, precision),
    }  # fmt: skip
    # Of both parts alike, so that a beginning of it will do
    order = sorted((i / len(part), index) for part in (fit, held) for i, index in enumerate(part))
    passes = Passes(out / "passes", model.eval(), learn, chain, [index for _, index in order])
    passes = passes.look(cache, precision, settings)
    if len(passes.order) < 2:
        raise InputError(f"cache: not two pictures fit into {cache / (1 << 30):g} GiB; give more")
    if len(passes.order) < len(order):
        say(f"{len(passes.order)} of {len(order)} pictures fit into {cache / (1 << 30):g} GiB")
    looked, began = time.monotonic() - began, time.monotonic()
    seen = set(passes.order)
    trainer = Trainer(model, passes, head, precision)
    best, steps = trainer.run([i for i in fit if i in seen], [i for i in held if i in seen])
    trained = time.monotonic() - began
    card = model.card
    card.names, card.palette = list(learn.labels.names), list(learn.labels.palette)
    card.scales = chain
    card.trained_on = {
        "dataset": learn.source.name, "split": split, "pictures": len(seen), **about,
    }  # fmt: skip
    card.metrics = {"step": steps, "held_out_miou": best}
    file = out / "best.safetensors"
    save(file, model)
    if chain[-1] > 1 and not head.pairs:
        _keep_curve(file, model, learn, held, chain, precision)
    passes.clear()
    say(f"{file}: looked for {looked:.0f} s, trained for {trained:.0f} s")
    summary, table = evaluate(
        file, data, on or split, pictures=files, precision=precision, device=device,
        report=out / f"report-{on or 'held-out'}.html", command=command,
        only=None if on else held,
    )  # fmt: skip
    told = {"seconds": {"look": round(looked, 1), "train": round(trained, 1)}, "steps": steps}
    return summary | told | {"network": about, "held_out_miou": best}, table


def parts(learn: Dataset, most: int) -> tuple[list[int], list[int]]:
    """Pictures to learn from and, the last ones of the split, to judge by."""
    if len(learn) < 2:
        raise InputError(
            f"{learn.source}, split {learn.split}: {len(learn)} labelled picture(s); attention "
            "needs 2 or more, one of them to tell when to stop"
        )
    cut = len(learn) - max(1, len(learn) // HELD_OUT)
    fit = spread_over(cut, max(1, most - most // HELD_OUT))
    return fit, [cut + i for i in spread_over(len(learn) - cut, max(1, most // HELD_OUT))]


def _model(
    source: str, learn: Dataset, head: Head, reference: bool
) -> tuple[ScaleAttention, dict[str, Any]]:
    """The network with a fresh head, and what tells it from any other."""
    allow(source)  # it was asked for by name
    network, names = find_network(source), learn.labels.names
    about = {"network": source, "sha256": hashed(network.module.state_dict())}
    if reference:
        # A folder or file is found from anywhere
        place = os.path.abspath(source) if Path(source).exists() else source
        made = {"reference": place, "sha256": about["sha256"]}
        network = dataclasses.replace(network, made=made)
    kind = PairScaleAttention if head.pairs else ScaleAttention
    model = kind(network, None, features=head.features, per_class=head.per_class)
    alike = network.names is None or list(map(_plain, network.names)) == list(map(_plain, names))
    if model.classes != len(names) or not alike:
        own = f" ({', '.join(network.names[:4])}, ...)" if network.names else ""
        raise InputError(
            f"{source} knows {model.classes} classes{own}, {learn.source} has {len(names)} "
            f"({', '.join(names[:4])}, ...); both must have the same ones in the same order"
        )
    looked = model.trunk.looked_at or "no features"
    say(f"{source}: attention looks at {looked} and at confidence, {model.head.features} channels")
    return model, about


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _keep_curve(
    file: Path, model: ScaleAttention, learn: Dataset, held: Sequence[int], chain: list[float],
    precision: Precision,
) -> None:  # fmt: skip
    """What a gate saves and costs, for `predict --budget`."""
    shown = learn.only(held[:CURVE])
    predictor = Predictor(model, chain, precision, model.mean.device)
    points = gate_curve(predictor, shown)
    split = f"{learn.split}, {len(shown)} held out"
    amend(file, gate=GateCurve(dataset=learn.source.name, split=split, scales=chain, points=points))


class Trainer:
    """The head alone, on what the network said of each picture once."""

    def __init__(
        self, model: ScaleAttention, passes: Passes, head: Head, precision: Precision
    ) -> None:
        self.model, self.passes, self.head, self.precision = model, passes, head, precision
        self.device = model.mean.device
        pixels = passes.dataset.only(passes.order).frequencies()
        self.weight = class_weights(pixels, head.balance).to(self.device)

    def run(self, fit: Sequence[int], held: Sequence[int]) -> tuple[float, int]:
        """Train until it no longer gets better on `held`; the best mean IoU there, at what step."""
        head, stage = self.model.attention, Attention(steps=self.head.steps)
        assert head is not None
        every = min(stage.validate_every, max(1, stage.steps))
        optimizer, schedule = make_optimizer(head, stage), Schedule(stage)
        draw = np.random.default_rng(self.head.seed)
        best, at, kept = -1.0, 0, _copy(head)
        smooth: float | None = None
        with Progress("attention", stage.steps) as meter:
            for step in range(stage.steps):
                head.train()
                schedule(optimizer, step)
                chosen = draw.choice(fit, min(stage.batch, len(fit)), replace=False)
                optimizer.zero_grad()
                for index in chosen.tolist():  # one by one: of any sizes
                    loss = self._loss(index)
                    (loss / len(chosen)).backward()
                    now = loss.item()
                    smooth = now if smooth is None else 0.98 * smooth + 0.02 * now
                optimizer.step()
                note = f"loss {smooth:.3f}"
                if (step + 1) % every == 0 or step + 1 == stage.steps:
                    miou = self._judge(held)
                    if miou > best:
                        best, at, kept = miou, step + 1, _copy(head)
                meter.advance(f"{note}  held out {best:.3f}" if at else note)
                if at and step + 1 - at >= PATIENCE * every:
                    break
        head.load_state_dict(kept)
        head.eval()
        return best, at

    def _loss(self, index: int) -> torch.Tensor:
        encoded, label = self.passes.read(index, self.device)
        with autocast(self.device, self.precision):
            output = self.model.attend(encoded, label.shape[-2:])
        return objective(output, label, self.weight, penalty=self.head.penalty)["loss"]

    @torch.inference_mode()
    def _judge(self, held: Sequence[int]) -> float:
        assert self.model.attention is not None
        self.model.attention.eval()
        confusion = Confusion(self.model.classes)
        for index in held:
            encoded, label = self.passes.read(index, self.device)
            with autocast(self.device, self.precision):
                output = self.model.attend(encoded, label.shape[-2:])
            confusion.add(label[0].cpu(), output.logits.argmax(1)[0].cpu())
        return confusion.miou()


def _copy(head: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in head.state_dict().items()}
