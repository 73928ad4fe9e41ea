"""`hmsa train`, `hmsa attend`, `hmsa demo` and `hmsa data preview`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from ..config.options import (
    Changes,
    Compute,
    Count,
    Dataset,
    Files,
    Flag,
    Out,
    ScaleList,
    Share,
)
from ..runs import Outcome, command_line

Recipe = Annotated[Path, Parameter(help="recipe, a YAML file")]


def train(
    config: Recipe,
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
    from ..config.recipe import Recipe, read
    from ..data.descriptions import beside
    from ..runs.machine import keep_memory
    from .train import train as work

    keep_memory()
    recipe = read(Recipe, config, changes)
    folder = out or Path("runs") / config.stem
    data = beside(config.parent, recipe.data.dataset)
    best = work(recipe, folder, data, pictures=files, resume=resume, near=config.parent)
    return Outcome(path=best, notes=[f"done: {best}"])


def attend(
    network: Annotated[str, Parameter(
        help="transformers:NAME, smp:NAME, torchvision:NAME[@FILE], a folder of save_pretrained, "
        "MODULE:FUNCTION of your own, or a checkpoint of hmsa; its weights stay as they are")],
    dataset: Dataset,
    /,
    *,
    out: Annotated[Out, Parameter(help="run folder, for predict, autolabel and the others")],
    files: Files = None,
    split: Annotated[str, Parameter(help="split to learn from")] = "train",
    val: Annotated[
        str | None, Parameter(help="split to score; default: val, or what is held out")
    ] = None,
    scales: Annotated[ScaleList, Parameter(help="chain to learn")] = (0.5, 1.0, 2.0),
    reference: Annotated[
        Flag, Parameter(help="keep the network's weights where they are, out of OUT")
    ] = False,
    features: Annotated[str, Parameter(
        help="input of the attention head beside confidence: output of a module of the network, "
        "such as backbone.layer4, or its input, such as classifier.4:input; none; auto: input of "
        "the last convolution")] = "auto",
    per_class: Annotated[Flag, Parameter(help="one attention map for each class")] = False,
    pairs: Annotated[Flag, Parameter(
        help="the head also sees the finer scale of a pair: no gate, no tiles")] = False,
    penalty: Annotated[Share, Parameter(help="weight of the use of fine scales in the loss")] = 0.0,
    steps: Annotated[Count, Parameter(help="at most, of two images each")] = 600,
    pictures: Annotated[Count, Parameter(
        help="images at most, evenly out of the split; the last fifth is held out")] = 200,
    seed: int = 0,
    cache: Annotated[float, Parameter(validator=Number(gt=0),
        help="GiB on disk for the outputs of the network")] = 4.0,
    compute: Compute = Compute(),
) -> Outcome:  # fmt: skip
    """Give any segmentation network attention over scales.

    example: hmsa attend transformers:nvidia/segformer-b0-finetuned-cityscapes-1024-1024 cityscapes
    --data Cityscapes -o runs/segformer
    """
    from ..runs.machine import keep_memory
    from .attend import Head
    from .attend import attend as work

    keep_memory()
    head = Head(
        None if features == "none" else features, per_class, pairs, steps, penalty,
        pictures=pictures, seed=seed,
    )  # fmt: skip
    summary, table = work(
        network, dataset, out, split, scales, head, val=val, files=files,
        cache=int(cache * (1 << 30)), reference=reference, command=command_line(), **vars(compute),
    )  # fmt: skip
    return Outcome(summary, table)


def demo(
    *,
    out: Annotated[Path, Parameter(help="folder, made anew")] = Path("runs/demo"),
    changes: Changes = [],
) -> Outcome:
    """Train, evaluate and predict on generated scenes.

    example: hmsa demo --out runs/demo
    """
    from ..runs.machine import keep_memory
    from .demo import demo as work

    keep_memory()
    return Outcome(*work(out, changes))


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
    """Draw a sheet of what the network will see.

    example: hmsa data preview camvid --recipe configs/camvid.yaml -o sheet.png
    """
    from ..config.recipe import Recipe, changed, read_yaml, validate
    from .preview import preview as work

    content: dict[str, Any] = read_yaml(recipe) if recipe else {}
    fixed = [f"data.dataset={json.dumps(str(dataset))}"]
    fixed += [f"data.train={json.dumps(split)}"] if split else []
    checked = validate(Recipe, changed(content, [*changes, *fixed]), recipe or "default recipe")
    near = (recipe or dataset).parent
    return Outcome(path=work(checked, dataset, out, count, pictures=files, near=near))
