"""`hmsa selftrain`: a student learns from what its teacher labels, and teaches the next one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .arguments import show, typed, verb, whole_number


def add_selftrain(verbs: Any) -> None:
    parser = verb(
        verbs, "selftrain", selftrain, "have a network label pictures and a student learn them",
        "hmsa selftrain recipe.yaml --rounds 2 --set selftrain.images=more --out runs/self",
    )  # fmt: skip
    parser.add_argument("config", type=Path, metavar="CONFIG",
                        help="recipe with a section selftrain, a YAML file")  # fmt: skip
    parser.add_argument("--rounds", type=whole_number, default=1, metavar="R",
                        help="students, each taught by the one before (1)")  # fmt: skip
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                        help="change one knob, such as selftrain.rule=quantile")  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="RUN", help="folder (runs/CONFIG-selftrain)")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="where the pictures are")
    parser.add_argument("--resume", action="store_true",
                        help="go on with the rounds in RUN, or add to them")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="the JSON line alone on stdout")


def selftrain(options: argparse.Namespace) -> int:
    from ..commands.selftrain import selftrain
    from ..config import Recipe, read
    from ..data.layouts import beside
    from ..runtime import say

    recipe, near = read(Recipe, options.config, options.set), options.config.parent
    told = selftrain(
        recipe, options.out or Path("runs") / f"{options.config.stem}-selftrain",
        beside(near, recipe.data.dataset), rounds=options.rounds, pictures=options.data,
        resume=options.resume, near=near, command=typed(),
    )  # fmt: skip
    if told is None:
        return 0
    summary, table, problems = told
    for problem in problems:
        say(f"hmsa: {problem}")
    show(options.json, summary, table)
    return 2 if problems else 0
