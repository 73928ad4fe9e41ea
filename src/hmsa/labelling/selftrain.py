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

from ..config.options import Inference, Rules
from ..config.recipe import Extra, Mixed, Recipe
from ..data.datasets import Dataset, open_dataset
from ..evaluation.verbs import evaluate
from ..runs import InputError, Outcome, Run, replace, say
from ..runs.folder import difference, read_records
from ..runs.machine import is_first
from ..runs.outcome import to_json
from ..training.train import train
from ..training.trainer import read_curves
from .autolabel import autolabel
from .folder import SPLIT
from .labelled import open_labelled
from .plan import Plan, check_plan
from .quality import drift
from .rounds_page import rounds_tables, write_rounds

NAME, BEST = "selftrain", "best.safetensors"
MEND = "continue with the same recipe, or give another --out"

Numbers = dict[str, Any]  # JSON


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
        state = Rounds(plan, folder, command, run.records)
        state.refuse_other_section()
        for number in range(len(state.rounds), rounds + 1):
            if number and f"labels-{number}" not in run.records:
                say(f"round {number}: labels by round {number - 1}")
                run.add(f"labels-{number}", state.label(number))
            say(f"round {number}: training {'a student' if number else 'the teacher'}")
            run.add(f"round-{number}", state.train(number))
            state.show()
        problems = state.show()
    summary = {
        "rounds": state.rounds, "best": state.best, "fusion": state.fusion,
        "split": plan.val.split, "checkpoint": str(folder / BEST),
        "report": str(folder / "rounds.html"),
    }  # fmt: skip
    table = rounds_tables(state.rounds, state.fusion, state.best, plan)
    return Outcome(summary, table, problems=problems)


@dataclass
class Rounds:
    """The rounds in one folder. records: key -> numbers, as `Run` keeps them."""

    plan: Plan
    folder: Path
    command: str
    records: dict[str, Any]

    @property
    def rounds(self) -> list[Numbers]:
        """Numbers of the finished rounds, in order."""
        count = sum(key.startswith("round-") for key in self.records)
        return [self.records[f"round-{number}"] for number in range(count)]

    @property
    def fusion(self) -> str:
        """Name of the network's own fusion."""
        return self.plan.recipe.model.fusion

    @property
    def best(self) -> int:
        """Number of the best round; the earliest of equals."""
        rounds = self.rounds
        return max(range(len(rounds)), key=lambda n: rounds[n]["miou"][self.fusion] or 0.0)

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
        plan, section, level = self.plan, self.plan.section, self.plan.level
        rules = {
            "fixed": Rules(threshold=level),
            "quantile": Rules(keep=level),
            "precision": Rules(precision_target=level),
        }[section.rule]
        inference = Inference(
            scales=section.scales, flip=section.flip, precision=plan.recipe.precision
        )
        outcome = autolabel(
            self._network(number - 1), str(plan.images), str(self._folder(number) / "labels"),
            inference=inference, rules=rules, held_out=plan.held_out, coarse=plan.people,
            overwrite=True,
        )  # fmt: skip
        result = outcome.summary or {}
        kept = result["kept"][section.rule]
        if not kept["all"]:
            raise InputError(
                f"round {number}: no pixel of its labels reaches the confidence that selftrain "
                f"needs ({section.rule} {level:g}); change selftrain.level or rule"
            )
        return {
            "section": self._section(),
            "pictures": result["images"] - result["failed"],
            "failed": list(outcome.problems),
            "thresholds": result["thresholds"][section.rule],
            "coverage": kept["all"],
            "kept": kept["class"],
            "changed": self._changed(number) if number > 1 else None,
            "seconds": result["seconds"],
        }

    def train(self, number: int) -> Numbers:
        """Train and evaluate one round, or what is left of it; its scores."""
        plan, folder = self.plan, self._folder(number)
        labels = self.records.get(f"labels-{number}")
        recipe = self.recipe(number)
        best = train(recipe, folder, plan.data, pictures=plan.files, resume=True, near=plan.near)
        began, split = time.monotonic(), plan.val.split
        result = evaluate(
            best, plan.data, split=split, files=plan.files,
            report=folder / f"report-{split}.html", inference=Inference(precision=recipe.precision),
        )  # fmt: skip
        scores = json.loads(to_json(result.summary or {}))  # no score: None
        seconds = {
            "label": labels["seconds"] if labels else 0.0,
            "train": float(read_curves(folder)[-1]["seconds"]),
            "evaluate": round(time.monotonic() - began, 3),
        }
        shown = labels and {k: v for k, v in labels.items() if k not in ("seconds", "section")}
        return {
            "round": number, "miou": scores["miou"], "iou": scores["iou"][self.fusion],
            "labels": shown, "seconds": seconds,
        }  # fmt: skip

    def recipe(self, number: int) -> Recipe:
        """The teacher's recipe, for students with the labels of their round mixed in."""
        plan, recipe = self.plan, self.plan.recipe
        if not number:
            return recipe
        description = (self._folder(number) / "labels" / "dataset.yaml").resolve()
        extra = Extra(
            dataset=os.path.relpath(description, plan.near.resolve()), split=SPLIT,
            confidence=self.records[f"labels-{number}"]["thresholds"],
            **plan.section.model_dump(include=set(Mixed.model_fields)),
        )  # fmt: skip
        sampling = recipe.sampling.model_copy(update={"extra": [*recipe.sampling.extra, extra]})
        start = recipe.start
        if plan.section.start == "teacher":
            start = str(self._network(number - 1).resolve())
        return recipe.model_copy(update={"sampling": sampling, "start": start})

    def show(self) -> list[str]:
        """Write the best network, rounds.json and the page; returns what could not be labelled."""
        rounds, best = self.rounds, self._network(self.best)
        replace(self.folder / BEST, lambda file: shutil.copyfile(best, file))
        text = json.dumps({"rounds": rounds}, indent=1)
        replace(self.folder / "rounds.json", lambda file: file.write_text(text))
        labelled = [
            self._labels(number).trusting(rounds[number]["labels"]["thresholds"])
            for number in range(1, len(rounds))
        ]
        write_rounds(
            self.folder / "rounds.html", self.plan, rounds, self.fusion, self.best, labelled,
            self.command,
        )  # fmt: skip
        labels = rounds[-1]["labels"]
        return list(labels["failed"]) if labels else []

    def _changed(self, number: int) -> float:
        before, now = (open_labelled(self._folder(n) / "labels") for n in (number - 1, number))
        return drift(before, now).share

    def _section(self) -> Numbers:
        return self.plan.section.model_dump(mode="json")

    def _folder(self, number: int) -> Path:
        return self.folder / f"round-{number}"

    def _network(self, number: int) -> Path:
        return self._folder(number) / BEST

    def _labels(self, number: int) -> Dataset:
        return open_dataset(self._folder(number) / "labels" / "dataset.yaml", SPLIT)


def _follow(plan: Plan, folder: Path, rounds: int) -> None:
    """Train beside the first process, from its current round on; it does everything else."""
    first = os.getppid()
    state = Rounds(plan, folder, "", read_records(folder, NAME))
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
    begun = any((folder / name).exists() for name in (f"{NAME}.json", "round-0"))
    if not begun and any((folder / name).exists() for name in (BEST, "resume.pt")):
        raise InputError(f"{folder} holds a run of hmsa train; give another --out")
    if begun and not resume:
        raise InputError(
            f"{folder} holds rounds already; add --resume to continue them, or give another --out"
        )
