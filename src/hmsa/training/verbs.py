"""`hmsa train`, `hmsa attend`, `hmsa demo` and `hmsa data preview`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ..config.options import Changes, Compute, Count, Dataset, Files, Flag, HeadTraining, Out
from ..runs import Outcome, command_line, replace, say

DEMO = Path(__file__).with_name("demo.yaml")
DEMO_SIZE, DEMO_COUNTS = (256, 512), {"train": 400, "val": 16, "test": 60}


def train(
    config: Annotated[Path, Parameter(help="recipe, a YAML file")],
    /,
    *,
    changes: Changes = [],
    out: Annotated[Path | None, Parameter(help="run folder; default: runs/CONFIG")] = None,
    files: Files = None,
    resume: Annotated[Flag, Parameter(help="continue the run in OUT")] = False,
) -> Outcome:
    """Train a network by a recipe.

    example: hmsa train configs/camvid.yaml --data CamVid --set joint.steps=100 --out runs/try
    """
    from ..config.reading import read
    from ..config.recipe import Recipe
    from ..data.layouts import beside
    from ..runs.machine import keep_memory
    from .train import train as work

    keep_memory()
    recipe = read(Recipe, config, changes)
    folder, data = out or Path("runs") / config.stem, beside(config.parent, recipe.data.dataset)
    best = work(recipe, folder, data, pictures=files, resume=resume, near=config.parent)
    return Outcome(path=best, notes=[f"done: {best}"])


def attend(
    network: Annotated[str, Parameter(
        help="transformers:NAME, smp:NAME, torchvision:NAME[@FILE], a folder of save_pretrained, "
        "MODULE:FUNCTION of your own, or a checkpoint of hmsa; its weights do not change")],
    dataset: Dataset,
    /,
    *,
    out: Annotated[Out, Parameter(help="run folder, for predict, autolabel and the others")],
    files: Files = None,
    val: Annotated[str | None, Parameter(
        help="split to score; default: val if there is one, else the held-out images")] = None,
    reference: Annotated[
        Flag, Parameter(help="do not copy the network's weights into OUT")
    ] = False,
    overwrite: Annotated[Flag, Parameter(help="train again if a setting has changed")] = False,
    head: HeadTraining = HeadTraining(),
    compute: Compute = Compute(),
) -> Outcome:  # fmt: skip
    """Give any segmentation network attention over scales.

    example: hmsa attend transformers:nvidia/segformer-b0-finetuned-cityscapes-1024-1024 cityscapes
    --data Cityscapes -o runs/segformer
    """
    from ..runs.machine import keep_memory
    from .attend import attend as work

    keep_memory()
    return Outcome(*work(
        network, dataset, out, head, compute, files=files, val=val, reference=reference,
        overwrite=overwrite, command=command_line(),
    ))  # fmt: skip


def demo(
    *,
    out: Annotated[Path, Parameter(help="folder; an earlier demo there is replaced")] = Path(
        "runs/demo"
    ),
    changes: Changes = [],
) -> Outcome:
    """Train, evaluate and predict on generated scenes.

    example: hmsa demo --out runs/demo
    """
    import shutil

    from ..config.reading import read
    from ..config.recipe import Recipe
    from ..data.scenes import write_scenes
    from ..evaluation.evaluate import evaluate
    from ..inference.predict import predict
    from ..inference.writer import DEFAULT
    from ..runs.machine import keep_memory
    from .train import train as work

    keep_memory()
    recipe = read(Recipe, DEMO, changes)
    for folder in ("scenes", "run", "predictions"):
        shutil.rmtree(out / folder, ignore_errors=True)
    say(f"1/4 drawing {sum(DEMO_COUNTS.values())} street scenes in {out / 'scenes'}")
    data = write_scenes(out / "scenes", DEMO_COUNTS, DEMO_SIZE)
    say("2/4 training the network at two scales, then the attention head at 0.5, 1 and 2")
    best = work(recipe, out / "run", data)
    say("3/4 evaluating on held-out scenes: each scale, average pooling, hierarchical attention")
    result = evaluate(best, data, "test", report=out / "report.html", command="hmsa demo")
    say(f"4/4 predicting four scenes into {out / 'predictions'}")
    images = sorted(str(path) for path in (out / "scenes" / "test" / "images").iterdir())[:4]
    predict(best, images, out / "predictions", save=(*DEFAULT, "panel"))
    return Outcome(*result)


def preview(
    dataset: Dataset,
    /,
    *,
    out: Annotated[Out, Parameter(help="PNG file to write")],
    split: Annotated[str | None, Parameter(help="default: the recipe's training split")] = None,
    recipe: Annotated[Path | None, Parameter(help="YAML file; default: the defaults")] = None,
    changes: Changes = [],
    count: Annotated[Count, Parameter(help="samples on the sheet")] = 8,
    files: Files = None,
) -> Outcome:
    """Draw the first samples that `hmsa train` would use, with their labels.

    example: hmsa data preview camvid --recipe configs/camvid.yaml -o sheet.png
    """
    from ..config.reading import read
    from ..config.recipe import Recipe
    from .preview import draw

    fixed = [f"data.dataset={json.dumps(str(dataset))}"]
    fixed += [f"data.train={json.dumps(split)}"] if split else []
    checked = read(Recipe, recipe, [*changes, *fixed])
    sheet = draw(checked, dataset, count, files, (recipe or dataset).parent)
    replace(out, lambda temporary: sheet.save(temporary, format="PNG"))
    return Outcome(path=out)
