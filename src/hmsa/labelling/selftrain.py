"""`hmsa selftrain`: a teacher labels pictures, a student learns from them and teaches the next one.

    RUN/selftrain.json        the recipe, which must stay what it was
    RUN/round-0/              the teacher: a run as `hmsa train` leaves it, and report-SPLIT.html
    RUN/round-1/              the first student, likewise
    RUN/round-1/labels/       what it learnt from its teacher: see `hmsa autolabel`
    RUN/round-1/labels.json   thresholds, what they keep, what changed; written when labels are done
    RUN/rounds.json           numbers of each round that is done, one after the other
    RUN/rounds.html           the same, to be looked at
    RUN/best.safetensors      network of the round with the highest mIoU on the recipe's val split

Rounds have the same recipe and seed, so that they differ by what they learn from alone. Whatever is
killed, going on is to do the first round that rounds.json has not; its parts go on by themselves.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from ..config.options import Inference
from ..config.recipe import Extra, Mixed, Recipe
from ..data.datasets import Dataset, open_dataset
from ..data.images import read_image
from ..evaluation.verbs import evaluate
from ..report.pictures import colorize
from ..report.rounds import Rounds, Sight, titles, verdict, write_rounds
from ..runs.errors import InputError
from ..runs.files import replace, sweep
from ..runs.progress import say
from ..training.train import train
from ..training.trainer import read_curves
from .autolabel import Rules, autolabel
from .labelling import locked
from .out import SPLIT
from .selftraining import Given, changed

ROUNDS, PAGE, SETTINGS = "rounds.json", "rounds.html", "selftrain.json"
BEST, LABELS = "best.safetensors", "labels.json"
EXAMPLES = 3  # pictures on the page

Told = dict[str, Any]  # what rounds.json says of one round


def selftrain(
    recipe: Recipe,
    folder: Path,
    data: Path,
    *,
    rounds: int,
    pictures: Path | None,
    resume: bool,
    near: Path = Path(),
    command: str = "",
) -> tuple[dict[str, Any], Table, list[str]] | None:
    """Rounds up to number `rounds`; parameters else as those of `train`.

    Returns the JSON object, the table for people, and one line for each picture that could not be
    labelled. All that can be refused is refused before anything is trained. Where a training has
    several processes, each of them runs this; all but the first learn only, and return None.
    """
    given = Given(recipe, data, pictures, near)
    run = _Run(given, folder, command)
    if int(os.environ.get("LOCAL_RANK", 0)):  # Fabric's word
        run.follow(rounds)
        return None
    given.refuse(folder)
    before = _refuse_others(recipe, folder, resume)
    with locked(folder):
        sweep(folder / name for name in (ROUNDS, PAGE, SETTINGS, BEST))
        settings = json.dumps(before, indent=1)
        replace(folder / SETTINGS, lambda file: file.write_text(settings))
        while len(run.told) <= rounds:
            run.round(len(run.told))
        problems = run.show()
    summary = {
        "rounds": run.told, "best": run.best, "fusion": run.own, "split": given.judge.split,
        "checkpoint": str(folder / BEST), "report": str(folder / PAGE),
    }  # fmt: skip
    return summary, _table(run), problems


@dataclass
class _Run:
    """What all rounds share."""

    given: Given
    folder: Path
    command: str

    @cached_property
    def told(self) -> list[Told]:
        """Rounds that are done."""
        file = self.folder / ROUNDS
        if not file.is_file():
            return []
        told: list[Told] = json.loads(file.read_text())["rounds"]
        return told

    @property
    def own(self) -> str:
        """The network's own fusion."""
        return self.given.recipe.model.fusion

    @property
    def best(self) -> int:
        """Number of the best round; the earliest of equals."""
        return max(range(len(self.told)), key=lambda r: self.told[r]["miou"][self.own] or 0.0)

    def round(self, number: int) -> None:
        """Do one round, or what is left of it, and write down what came of it."""
        given, folder = self.given, self._folder(number)
        sweep([folder / LABELS])
        labels: Told | None = None
        recipe = given.recipe
        if number:
            say(f"round {number}: labels by round {number - 1}")
            labels = self._labelled(number)
            recipe = self._student(number, labels["thresholds"])
        say(f"round {number}: {'a student' if number else 'the teacher'} learns")
        best = train(
            recipe, folder, given.data, pictures=given.pictures, resume=True, near=given.near
        )
        began, split = time.monotonic(), given.judge.split
        outcome = evaluate(
            best,
            given.data,
            split=split,
            files=given.pictures,
            inference=Inference(precision=recipe.precision),
        )
        found = outcome.summary or {}
        seconds = {
            "label": labels["seconds"] if labels else 0.0,
            "train": float(read_curves(folder)[-1]["seconds"]),
            "evaluate": round(time.monotonic() - began, 3),
        }
        self.told.append({
            "round": number, "miou": found["miou"], "iou": found["iou"][self.own],
            "labels": labels and {k: v for k, v in labels.items() if k != "seconds"},
            "seconds": seconds,
        })  # fmt: skip
        text = json.dumps({"rounds": self.told}, indent=1)
        replace(self.folder / ROUNDS, lambda file: file.write_text(text))
        self.show()

    def follow(self, rounds: int) -> None:
        """Learn beside the first process, from the round on that it is in; it does all else."""
        given, first = self.given, os.getppid()
        for number in range(len(self.told), rounds + 1):
            recipe, labels = given.recipe, self._folder(number) / LABELS
            if number:
                while not labels.is_file():  # a collective wait would time out
                    if os.getppid() != first:
                        return
                    time.sleep(0.1)
                recipe = self._student(number, self._labelled(number)["thresholds"])
            train(
                recipe, self._folder(number), given.data,
                pictures=given.pictures, resume=True, near=given.near,
            )  # fmt: skip

    def show(self) -> list[str]:
        """The best network and the page, of the rounds there are; what could not be labelled."""
        given, best = self.given, self._best(self.best)
        replace(self.folder / best.name, lambda file: shutil.copyfile(best, file))
        labelled = [
            self._auto(r).trusting(self.told[r]["labels"]["thresholds"])
            for r in range(1, len(self.told))
        ]
        palette = np.array(given.learn.labels.palette, np.uint8)
        facts = [
            ("Learns from", f"{given.learn.source}, split {given.learn.split}, {len(given.learn)} "
                            "pictures"),
            ("Labels", f"{given.images}, {len(labelled[-1]) if labelled else 0} pictures"),
            ("How sure", f"by the rule {given.asked.rule}, {given.level:g}"),
            ("Judged on", f"{given.judge.source}, split {given.judge.split}, {len(given.judge)} "
                          "pictures"),
            ("Students start", {"scratch": "as the teacher did", "teacher": "from their teacher"}[
                given.asked.start]),
            ("Command", self.command),
        ]  # fmt: skip
        page = Rounds(
            f"Self-training, {self.folder.resolve().name}", facts, list(given.learn.labels.names),
            palette, self.own, self.told, self.best, f"report-{given.judge.split}.html",
            _sights(labelled, palette),
        )  # fmt: skip
        write_rounds(self.folder / PAGE, page)
        last = self.told[-1]["labels"]
        problems: list[str] = last["failed"] if last else []
        return problems

    def _labelled(self, number: int) -> Told:
        """What the teacher before says of the pictures; labelled now, if not before."""
        given, kept = self.given, self._folder(number) / LABELS
        if kept.is_file():
            told: Told = json.loads(kept.read_text())
            return told
        asked, level = given.asked, given.level
        rules = {
            "fixed": Rules(threshold=level),
            "quantile": Rules(keep=level),
            "precision": Rules(held_out=given.held_out, target=level),
        }[asked.rule]
        out = self._folder(number) / "labels"
        found, _, failed = autolabel(
            self._best(number - 1), given.images, out, asked.scales,
            flip=asked.flip, precision=given.recipe.precision, coarse=given.coarse, fill=given.fill,
            rules=rules, overwrite=True,  # what is asked for may have changed until now
        )  # fmt: skip
        kept_share = found["kept"][asked.rule]
        if not kept_share["all"]:
            raise InputError(
                f"round {number}: no pixel of its labels is as sure as selftrain asks ({asked.rule}"
                f" {level:g}), so there is nothing to learn from; change selftrain.level or rule"
            )
        before = self._auto(number - 1) if number > 1 else None
        told = {
            "pictures": found["images"] - found["failed"],
            "failed": failed,
            "thresholds": found["thresholds"][asked.rule],
            "coverage": kept_share["all"],
            "kept": kept_share["class"],
            "changed": before and changed(before, self._auto(number)),
            "seconds": found["seconds"],
        }
        text = json.dumps(told, indent=1)
        replace(kept, lambda file: file.write_text(text))
        return told

    def _student(self, number: int, thresholds: dict[str, float]) -> Recipe:
        """The teacher's recipe, and the labels mixed in."""
        description = self._folder(number) / "labels" / "dataset.yaml"
        given = self.given
        mixed = given.asked.model_dump(include=set(Mixed.model_fields))
        extra = Extra(
            # As a recipe beside ours would write it
            dataset=os.path.relpath(description.resolve(), given.near.resolve()),
            split=SPLIT, confidence=thresholds, **mixed,
        )  # fmt: skip
        recipe = given.recipe
        sampling = recipe.sampling.model_copy(update={"extra": [*recipe.sampling.extra, extra]})
        start = recipe.start
        if given.asked.start == "teacher":
            start = str(self._best(number - 1).resolve())
        return recipe.model_copy(update={"sampling": sampling, "start": start})

    def _folder(self, number: int) -> Path:
        return self.folder / f"round-{number}"

    def _best(self, number: int) -> Path:
        return self._folder(number) / BEST

    def _auto(self, number: int) -> Dataset:
        return open_dataset(self._folder(number) / "labels" / "dataset.yaml", SPLIT)


def _refuse_others(recipe: Recipe, folder: Path, resume: bool) -> dict[str, Any]:
    """What selftrain.json is to hold; InputError if RUN is of something else, or of other settings.

    What concerns students alone may change until the first has got its labels.
    """
    now, file = recipe.model_dump(mode="json"), folder / SETTINGS
    taken = [name for name in (SETTINGS, "round-0") if (folder / name).exists()]
    if not taken:
        others = [name for name in (BEST, "resume.pt") if (folder / name).exists()]
        if others:
            raise InputError(f"{folder} holds a run of hmsa train; give another --out")
        return now
    if not resume:
        raise InputError(
            f"{folder} holds rounds already; add --resume to go on with them, or give another --out"
        )
    before = json.loads(file.read_text()) if file.is_file() else now
    other = [key for key, value in now.items() if before.get(key) != value]
    if other == ["selftrain"] and not (folder / "round-1" / LABELS).exists():
        return now
    if other:
        came = ", ".join(f"{key} ({before.get(key)} -> {now[key]})" for key in other)
        raise InputError(
            f"{folder} was begun with another recipe: {came}; go on with the same one, or give "
            "another --out"
        )
    return now


def _sights(labelled: list[Dataset], palette: Any) -> list[tuple[str, list[Sight]]]:
    """A few of the labelled pictures, and what of them was learnt in each round."""
    if not labelled:
        return []
    names = {pair.name: i for i, pair in enumerate(labelled[-1].pairs)}
    order = sorted(names)
    chosen = [order[int(i)] for i in np.linspace(0, len(order) - 1, min(EXAMPLES, len(order)))]
    shown = []
    for name in chosen:
        strip = [Sight("picture", read_image(labelled[-1].pairs[names[name]].image), True)]
        for number, auto in enumerate(labelled, 1):
            index = next((i for i, pair in enumerate(auto.pairs) if pair.name == name), None)
            if index is not None:
                label = colorize(auto.read_label(index), palette)
                strip.append(Sight(f"labels of round {number}", label, False))
        shown.append((name, strip))
    return shown


def _table(run: _Run) -> Table:
    """Round by round: scores in per cent, what was learnt from, and how long it took."""
    told, split = run.told, run.given.judge.split
    table = Table(title=f"Rounds, {split}, {len(run.given.judge)} pictures", title_justify="left")
    table.add_column("in %")
    for title in titles(len(told)):
        table.add_column(title, justify="right")

    def row(name: str, values: list[float | None], crown: bool = True) -> None:
        top = max((v for v in values if v is not None), default=None)
        cells = ["" if v is None else f"{100 * v:.1f}" for v in values]
        for i, value in enumerate(values):
            if crown and value is not None and value == top:
                cells[i] = f"[bold]{cells[i]}[/]"
        table.add_row(name, *cells)

    for fusion in dict.fromkeys((run.own, "average")):
        row(f"mIoU, {fusion}", [one["miou"][fusion] for one in told])
    table.add_section()
    for name in run.given.learn.labels.names:
        row(name, [one["iou"][name] for one in told])
    table.add_section()
    for key, what in (("coverage", "labels kept"), ("changed", "labels changed")):
        row(what, [one["labels"] and one["labels"][key] for one in told], crown=False)
    table.add_row("seconds", *(f"{sum(one['seconds'].values()):.0f}" for one in told))
    table.caption, table.caption_justify = verdict(told, run.own, run.best), "left"
    return table
