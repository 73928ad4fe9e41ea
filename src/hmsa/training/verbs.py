"""`hmsa train`, `hmsa attend` and `hmsa data preview`."""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from ..config.options import (
    Changes,
    Compute,
    Count,
    Dataset,
    Files,
    Flag,
    HeadTraining,
    Inference,
    Out,
    Preset,
)
from ..runs import InputError, Outcome, Run, replace, say

if TYPE_CHECKING:
    from ..config.recipe import Recipe
    from .plan import Plan


def train(
    config: Annotated[
        Path,
        Parameter(help="a dataset: a folder, YAML file or known name; or a recipe, a YAML file"),
    ],
    /,
    *,
    preset: Annotated[
        Preset | None,
        Parameter(
            help="for a dataset: laptop takes minutes for 20 images on two cores; gpu has a larger "
            "network and crops; paper is HRNet-W48-OCR with RMI for 175 passes on eight GPUs; "
            "default: gpu if there is one, else laptop"
        ),
    ] = None,
    changes: Changes = [],
    out: Annotated[Path | None, Parameter(help="run folder; default: runs/CONFIG")] = None,
    files: Files = None,
    resume: Annotated[Flag, Parameter(help="continue the run in OUT")] = False,
    changed_data: Annotated[
        Flag, Parameter(help="continue although images or labels have changed")
    ] = False,
    plan: Annotated[Flag, Parameter(help="only say what a step costs and what fits")] = False,
    profile: Annotated[
        Flag, Parameter(help="only say where the time of a step goes; a trace goes into OUT")
    ] = False,
    memory: Annotated[
        float | None,
        Parameter(validator=Number(gt=0), help="GiB to plan for; default: most of what is free"),
    ] = None,
) -> Outcome:
    """Train a network on a dataset, or by a recipe.

    example: hmsa train my-images --preset laptop --set joint.steps=1000

    example: hmsa train configs/camvid.yaml --data CamVid --out runs/camvid --resume
    """
    from ..check.folder import described
    from ..config.reading import read
    from ..config.recipe import Recipe
    from ..data.descriptions import beside, is_dataset
    from ..runs.machine import keep_memory
    from .train import planned
    from .train import profile as profiled
    from .train import train as work

    keep_memory()
    is_data = is_dataset(config)
    named = [f"data.dataset={json.dumps(config.name)}"] if is_data else []
    recipe = read(Recipe, None if is_data else config, [*named, *changes])
    if preset and not is_data:
        raise InputError(f"{config} is a recipe; name a dataset, or leave out --preset {preset}")
    data = described(beside(config.parent, recipe.data.dataset))
    whole = config.resolve()
    folder = out or Path("runs") / (whole.parent if whole.name == "dataset.yaml" else whole).stem
    if is_data:
        recipe = _fitted(recipe, preset, data, files, named, changes)
    if plan:
        room = None if memory is None else memory * 2**30
        return _shown(planned(recipe, data, files, config.parent, room), recipe)
    if profile:
        return profiled(recipe, folder, data, files, config.parent)
    best = work(
        recipe, folder, data, pictures=files, resume=resume, changed_data=changed_data,
        near=config.parent,
    )  # fmt: skip
    return Outcome(path=best, notes=_next_steps(folder, data, recipe, files))


def _fitted(
    recipe: Recipe, chosen: Preset | None, data: Path, files: Path | None, named: list[str],
    changes: list[str],
) -> Recipe:  # fmt: skip
    """The recipe of a preset, of the dataset and of `changes`; chosen: None: by the machine."""
    from ..config.reading import read
    from ..config.recipe import Recipe, preset
    from ..data.datasets import open_dataset
    from ..runs.machine import find_device, processes
    from .plan import suited

    if not chosen:
        device = None if recipe.accelerator == "auto" else recipe.accelerator
        chosen = "gpu" if find_device(device).type == "cuda" else "laptop"
    settings = preset(chosen)
    recipe = read(Recipe, None, [*named, *settings, *changes])
    learn = open_dataset(data, recipe.data.train, files)
    world = processes(recipe.accelerator, recipe.devices)
    settings += suited(learn, recipe, chosen, world)
    recipe = read(Recipe, None, [*named, *settings, *changes])
    joint, size = recipe.joint, "x".join(map(str, recipe.joint.crop))
    say(
        f"--preset {chosen}, for {len(learn)} images: {recipe.model.trunk}, {joint.steps} steps of "
        f"{joint.batch} crops of {size}; to train longer: --set joint.steps={4 * joint.steps}"
    )
    return recipe


def _next_steps(folder: Path, data: Path, recipe: Recipe, files: Path | None) -> list[str]:
    """What to do with a trained network, for people."""
    from ..runs.folder import read_curves

    val = recipe.data.val
    where = shlex.join([str(folder), str(data)] + (["--data", str(files)] if files else []))
    where += f" --split {val}"
    scores = [row for row in read_curves(folder) if "val_miou" in row]
    best = max(row["val_miou"] for row in scores if row["stage"] == scores[-1]["stage"])
    return [
        f"done: {100 * best:.1f} mIoU on {val}. Next:",
        f"  hmsa evaluate {where}  # scores of each class, and a page",
        f"  hmsa view {where}  # a page of each pixel: truth, error, votes of the scales",
        f"  hmsa predict {folder} IMAGES  # label other images",
        f"  hmsa app {folder}  # in the browser",
    ]


def _shown(found: Sequence[Plan], recipe: Recipe) -> Outcome:
    from rich.table import Table

    stage, table = recipe.joint, Table(box=None)
    for head in ("memory", "precision", "saved MiB", "peak GiB", "s a step", "hours", "batch",
                 "its lr", "crop"):  # fmt: skip
        table.add_column(head, justify="right", no_wrap=True)
    for each in found:
        table.add_row(
            each.memory, each.precision, f"{each.saved / 2**20:,.0f}", f"{each.peak / 2**30:.2f}",
            f"{each.seconds:.2f}", f"{each.seconds * stage.steps / 3600:.1f}",
            f"{each.batch or 'none'}", f"{each.lr:.2g}", f"{each.crop or 'none'}",
        )  # fmt: skip
    crop = "x".join(map(str, stage.crop))
    notes = [
        f"for {stage.steps} steps of {stage.batch} crops of {crop}; batch, crop: the largest that "
        "fits, if the other stays; lr: for that batch; memory and lr: settings of joint"
    ]
    best = max(found, key=lambda each: (each.crop, -each.seconds))
    if best.crop:
        settings = [f"joint.memory={best.memory}", f"precision={best.precision}"]
        settings += [f"joint.crop=[{best.crop},{best.crop}]"]
        notes += [f"largest crop: --set {' --set '.join(settings)}"]
    if 0 < best.batch < stage.batch:
        parts = math.ceil(stage.batch * stage.accumulate / best.batch)
        notes += [f"batch {stage.batch} fits in parts: --set joint.accumulate={parts}"]
    return Outcome({"plans": [dataclasses.asdict(each) for each in found]}, table, notes=notes)


def attend(
    network: Annotated[str, Parameter(
        help="transformers:NAME, smp:NAME, torchvision:NAME[@FILE], a folder of save_pretrained, "
        "MODULE:FUNCTION of your own, or a checkpoint of hmsa; its weights do not change")],
    dataset: Dataset,
    /,
    *,
    out: Annotated[Out, Parameter(help="run folder, for predict, autolabel and the others")],
    files: Files = None,
    overwrite: Annotated[Flag, Parameter(help="train again if a setting has changed")] = False,
    head: HeadTraining = HeadTraining(),
    compute: Compute = Compute(),
) -> Outcome:  # fmt: skip
    """Give any segmentation network attention over scales.

    example: hmsa attend torchvision:deeplabv3_resnet50@my.pth my-images -o runs/deeplab

    example: hmsa attend transformers:nvidia/segformer-b0-finetuned-cityscapes-1024-1024 cityscapes
    --data Cityscapes -o runs/segformer
    """
    from ..check.folder import described
    from ..evaluation.verbs import evaluate
    from ..runs.machine import keep_memory
    from .attend import HeadJob, clear
    from .trainer import note_data

    keep_memory()
    dataset = described(dataset)
    job = HeadJob(network, dataset, files, head, compute)
    with Run(out, "attend", job.settings, overwrite=overwrite) as run:
        if overwrite:
            clear(out)
        if changed := note_data(run, job.datasets):
            raise InputError(f"{out}: {changed}; restore it, or start again with --overwrite")
        job.model.card.trained_on["data"] = run.records["data"][0]["digest"][:16]
        if "attention" not in run.records:
            run.add("attention", job.train(out))
        clear(out)
        split, only = job.scored
        scored = evaluate(
            out, dataset, split=split, files=files, only=only, inference=Inference(**vars(compute))
        )
    found = run.records["attention"] | {"network": job.network}
    return dataclasses.replace(scored, summary=(scored.summary or {}) | found)


def preview(
    dataset: Dataset,
    /,
    *,
    out: Annotated[Out, Parameter(help="PNG file to write")],
    recipe: Annotated[Path | None, Parameter(help="YAML file; default: the defaults")] = None,
    changes: Changes = [],
    count: Annotated[Count, Parameter(help="samples on the sheet")] = 8,
    files: Files = None,
) -> Outcome:
    """Draw the first samples that `hmsa train` uses, with their labels.

    example: hmsa data preview my-images -o sheet.png --set joint.crop=[512,512]

    example: hmsa data preview camvid --recipe configs/camvid.yaml --data CamVid -o sheet.png
    """
    from numpy import array, uint8

    from ..check.folder import described
    from ..config.reading import read
    from ..config.recipe import Recipe
    from ..data.datasets import open_dataset
    from ..data.sampling import open_mix
    from ..report.pictures import overlay, panel, shown
    from .train import stream_of

    dataset = described(dataset)
    fixed = f"data.dataset={json.dumps(str(dataset))}"
    checked, near = read(Recipe, recipe, [*changes, fixed]), (recipe or dataset).parent
    stage, sampling = checked.joint, checked.sampling
    learn = open_dataset(dataset, checked.data.train, files).trusting(sampling.confidence)
    learn = learn.stretched(learn.stretch)
    samples = max(count, stage.steps * stage.batch)
    mix = open_mix(learn, sampling, samples, near, files)
    stream, labels = stream_of(checked, "joint", learn, mix), learn.labels
    palette, cells = array(labels.palette, uint8), []
    for position in range(count):
        draw, (image, label) = stream.draw(position), stream[position]
        source, crop = stream.source(draw), shown(image.permute(1, 2, 0).numpy())
        name = source.pairs[draw.index].name + f" ({source.split})" * bool(draw.source)
        why = "plain" if draw.class_ is None else f"around {labels.names[draw.class_]}"
        cells += [(name, crop), (why, overlay(crop, label.numpy(), palette, 0.6))]
    sheet = panel([cells[i : i + 4] for i in range(0, len(cells), 4)])
    replace(out, lambda temporary: sheet.save(temporary, format="PNG"))
    return Outcome(path=out)
