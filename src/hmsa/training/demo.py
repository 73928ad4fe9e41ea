"""`hmsa demo`: the whole story on generated scenes: make, train, evaluate, predict, report."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from rich.table import Table

from ..config.recipe import Recipe, read
from ..data.scenes import write_scenes
from ..evaluation.verbs import evaluate
from ..inference.predict import predict
from ..inference.writer import DEFAULT
from ..runs.progress import say
from .train import train

RECIPE = Path(__file__).with_name("demo.yaml")
SIZE = (256, 512)
COUNTS = {"train": 400, "val": 16, "test": 60}


def demo(folder: Path, changes: list[str] | None = None) -> tuple[dict[str, Any], Table]:
    """Everything goes under `folder`, which is made anew."""
    recipe = read(Recipe, RECIPE, changes)
    scenes, run = folder / "scenes", folder / "run"
    for old in (scenes, run, folder / "predictions"):
        shutil.rmtree(old, ignore_errors=True)
    say(f"1/4 drawing {sum(COUNTS.values())} street scenes in {scenes}")
    data = write_scenes(scenes, COUNTS, SIZE)
    say("2/4 training: both scales jointly, then the attention head on the chain 0.5, 1, 2")
    best = train(recipe, run, data, pictures=None, resume=False)
    say("3/4 evaluating on held-out scenes: each scale, average pooling, hierarchical attention")
    report = folder / "report.html"
    outcome = evaluate(best, data, split="test", report=report)
    say(f"4/4 predicting four scenes into {folder / 'predictions'}")
    pictures = sorted(str(p) for p in (scenes / "test" / "images").iterdir())[:4]
    predict(best, pictures, folder / "predictions", save=(*DEFAULT, "panel"))
    return outcome.summary or {}, outcome.table
