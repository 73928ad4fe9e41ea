"""Self-training in rounds: a teacher labels images, a student learns them and is the next teacher.

    RUN/selftrain.json     the recipe without its section selftrain; it must stay the same
    RUN/selftrain.jsonl    what is done: labels-N and round-N, with their numbers
    RUN/round-0/           the teacher: a run of `hmsa train`, and report-SPLIT.html
    RUN/round-N/           student N, likewise; round-N/labels is what it learnt: `hmsa autolabel`
    RUN/rounds.json        the numbers of all finished rounds; rounds.html shows them
    RUN/best.safetensors   network of the round with the highest mIoU on the recipe's val split

All rounds have the same recipe and seed, so they differ only by what they learn from. After a kill
the first unfinished step of the first unfinished round goes on.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..config.options import Inference
from ..config.recipe import Recipe
from ..data.datasets import open_dataset
from ..evaluation.verbs import evaluate
from ..runs import InputError, Outcome, Run, replace, say
from ..runs.folder import difference, read_curves, read_records
from ..runs.machine import is_first
from ..runs.outcome import to_json
from ..training.train import train
from .autolabel import autolabel
from .folder import SPLIT
from .labelled import open_labelled
from .plan import Plan, check_plan
from .quality import drift
from .rounds_page import Numbers, rounds_tables, scores, write_rounds

NAME, BEST = "selftrain", "best.safetensors"
MEND = "continue with the same recipe, or give another --out"


def selftrain(plan: Plan, folder: Path, rounds: int, *, resume: bool, command: str) -> Outcome:
    """Run the rounds up to number `rounds` in `folder`.

    Whatever can be refused is refused before anything is trained. If a training has several
    processes, each of them runs this; all but the first only train, and return an empty outcome.
    """
    if not is_first():
        _follow(plan, folder, rounds)
        return Outcome()
    check_plan(plan, folder)
    _refuse_folder(folder, resume)
    settings = plan.recipe.model_dump(mode="json", exclude={"selftrain"})
    with Run(folder, NAME, settings, mend=MEND) as run:
        state = Rounds(plan, folder, run.records)
        state.refuse_other_section()
        if state.rounds:  # the last may not have been shown before a kill
            state.show(command)
        for number in range(len(state.rounds), rounds + 1):
            if number and f"labels-{number}" not in run.records:
                say(f"round {number}: labels by round {number - 1}")
                run.add(f"labels-{number}", state.label(number))
            say(f"round {number}: training {'a student' if number else 'the teacher'}")
            run.add(f"round-{number}", state.train(number))
            state.show(command)
    summary = {
        "rounds": state.rounds, "best": int(np.argmax(scores(plan, state.rounds))),
        "fusion": plan.recipe.model.fusion, "split": plan.val.split,
        "checkpoint": str(folder / BEST), "report": str(folder / "rounds.html"),
    }  # fmt: skip
    problems = (state.rounds[-1]["labels"] or {"failed": []})["failed"]
    return Outcome(summary, rounds_tables(plan, state.rounds), problems=problems)


@dataclass
class Rounds:
    """The rounds in one folder. records: key -> numbers, as `Run` keeps them."""

    plan: Plan
    folder: Path
    records: dict[str, Any]

    @property
    def rounds(self) -> list[Numbers]:
        """Numbers of the finished rounds, in order."""
        count = sum(key.startswith("round-") for key in self.records)
        return [self.records[f"round-{number}"] for number in range(count)]

    def refuse_other_section(self) -> None:
        """Raise InputError if the section selftrain has changed since the first labels."""
        first = self.records.get("labels-1")
        changed = first and difference(first["section"], self._section())
        if changed:
            raise InputError(
                f"{self.folder}: begun with other settings, selftrain.{changed}; {MEND}"
            )

    def label(self, number: int) -> Numbers:
        """Auto-label the images by the round before; thresholds, shares kept and what changed."""
        plan, section, rule = self.plan, self.plan.section, self.plan.section.rule
        inference = Inference(
            scales=section.scales, flip=section.flip, precision=plan.recipe.precision
        )
        outcome = autolabel(
            self._network(number - 1), str(plan.images), str(self._labels(number)),
            inference=inference, rules=plan.rules, held_out=plan.held_out,
            coarse=plan.people, overwrite=True,
        )  # fmt: skip
        result = outcome.summary or {}
        kept, changed = result["kept"][rule], None
        if not kept["all"]:
            raise InputError(
                f"round {number}: no pixel of its labels reaches the confidence that selftrain "
                f"needs ({rule} {plan.level:g}); change selftrain.level or rule"
            )
        if number > 1:
            changed = drift(*(open_labelled(self._labels(n)) for n in (number - 1, number))).share
        return {
            "section": self._section(), "pictures": result["images"] - result["failed"],
            "failed": list(outcome.problems), "thresholds": result["thresholds"][rule],
            "coverage": kept["all"], "kept": kept["class"], "changed": changed,
            "seconds": result["seconds"],
        }  # fmt: skip

    def train(self, number: int) -> Numbers:
        """Train and evaluate one round, or what is left of it; its scores."""
        plan, folder = self.plan, self._folder(number)
        recipe, labels = self.recipe(number), dict(self.records.get(f"labels-{number}", {}))
        best = train(recipe, folder, plan.data, pictures=plan.files, resume=True, near=plan.near)
        result = evaluate(
            best, plan.data, split=plan.val.split, files=plan.files,
            inference=Inference(precision=recipe.precision),
        )  # fmt: skip
        found = json.loads(to_json(result.summary or {}))  # no score: None
        labels.pop("section", None)
        seconds = {
            "label": labels.pop("seconds", 0.0),
            "train": read_curves(folder)[-1]["seconds"],
        }
        return {
            "round": number, "miou": found["miou"], "iou": found["iou"][recipe.model.fusion],
            "labels": labels or None, "seconds": seconds,
        }  # fmt: skip

    def recipe(self, number: int) -> Recipe:
        """The teacher's recipe, for students with the labels of their round mixed in."""
        plan = self.plan
        if not number:
            return plan.recipe
        description = (self._labels(number) / "dataset.yaml").resolve()
        thresholds = self.records[f"labels-{number}"]["thresholds"]
        recipe = plan.mixed(os.path.relpath(description, plan.near.resolve()), SPLIT, thresholds)
        if plan.section.start == "scratch":
            return recipe
        return recipe.model_copy(update={"start": str(self._network(number - 1).resolve())})

    def show(self, command: str) -> None:
        """Write the best network, rounds.json and the page."""
        rounds = self.rounds
        best = self._network(int(np.argmax(scores(self.plan, rounds))))
        replace(self.folder / BEST, lambda file: shutil.copyfile(best, file))
        text = json.dumps({"rounds": rounds}, indent=1)
        replace(self.folder / "rounds.json", text)
        learnt = [
            open_dataset(self._labels(n), SPLIT).trusting(rounds[n]["labels"]["thresholds"])
            for n in range(1, len(rounds))
        ]
        write_rounds(self.folder / "rounds.html", self.plan, rounds, learnt, command)

    def _section(self) -> Numbers:
        return self.plan.section.model_dump(mode="json")

    def _folder(self, number: int) -> Path:
        return self.folder / f"round-{number}"

    def _network(self, number: int) -> Path:
        return self._folder(number) / BEST

    def _labels(self, number: int) -> Path:
        return self._folder(number) / "labels"


def _follow(plan: Plan, folder: Path, rounds: int) -> None:
    """Train beside the first process, from its current round on; it does everything else."""
    first = os.getppid()
    state = Rounds(plan, folder, read_records(folder, NAME))
    for number in range(len(state.rounds), rounds + 1):
        while number and f"labels-{number}" not in state.records:  # a barrier would time out
            if os.getppid() != first:
                return
            time.sleep(0.1)
            state.records = read_records(folder, NAME)
        train(
            state.recipe(number), folder / f"round-{number}", plan.data,
            pictures=plan.files, resume=True, near=plan.near,
        )  # fmt: skip


def _refuse_folder(folder: Path, resume: bool) -> None:
    if not resume and any((folder / name).exists() for name in (f"{NAME}.json", "round-0")):
        raise InputError(
            f"{folder} holds rounds already; add --resume to continue them, or give another --out"
        )
