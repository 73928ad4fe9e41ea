"""`hmsa data WHAT`: make, import, check and look at data."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from .arguments import height_width, show, split_count, typed, verb, whole_number


def add_data(verbs: Any) -> None:
    data = verbs.add_parser("data", help="make, import, check and look at data")
    kinds = data.add_subparsers(required=True, metavar="WHAT", title="what")
    scenes = verb(
        kinds, "scenes", _scenes, "draw street scenes as a labelled dataset",
        "hmsa data scenes scenes --count train=400 --count val=40",
    )  # fmt: skip
    scenes.add_argument("folder", type=Path, metavar="FOLDER", help="new or empty")
    scenes.add_argument("--count", action="append", metavar="SPLIT=N", type=split_count,
                        help="pictures of a split (train=200, val=40); again for more")  # fmt: skip
    scenes.add_argument(
        "--size", type=height_width, default=(256, 512), metavar="HxW", help="(256x512)"
    )
    scenes.add_argument("--seed", type=int, default=0, help="(0)")
    scenes.add_argument("--coarse", action="store_true",
                        help="also SPLIT-coarse: labels as if drawn in a hurry")  # fmt: skip

    masks = verb(
        kinds, "import", _import, "make a dataset of what an annotation tool exported",
        "hmsa data import task.zip my-pictures --ignore background",
    )  # fmt: skip
    masks.add_argument("source", type=Path, metavar="SOURCE",
                       help="CVAT zip (Segmentation mask 1.1) or COCO panoptic json")  # fmt: skip
    masks.add_argument("folder", type=Path, metavar="OUT", help="new or empty")
    masks.add_argument("--images", type=Path, metavar="FOLDER",
                       help="the pictures, if they are not in SOURCE; they stay there")  # fmt: skip
    masks.add_argument("--ignore", action="append", default=[], metavar="CLASS",
                       help="a class that means no label; again for more")  # fmt: skip
    masks.add_argument("--split", default="train", metavar="SPLIT",
                       help="its name where SOURCE gives none (train)")  # fmt: skip

    check = verb(
        kinds, "check", _check, "find what is wrong with a dataset",
        "hmsa data check camvid --split train --split val",
    )  # fmt: skip
    check.add_argument("--report", type=Path, metavar="HTML", help="page (runs/check-NAME.html)")
    stats = verb(
        kinds, "stats", _stats, "class frequencies, mean and deviation of a dataset",
        "hmsa data stats camvid --split train",
    )  # fmt: skip
    for one in (check, stats):
        one.add_argument("dataset", type=Path, metavar="DATA", help="YAML file of the dataset")
        one.add_argument("--split", action="append", default=[], help="(all); again for more")
        one.add_argument("--data", type=Path, metavar="FOLDER", help="where the pictures are")
        one.add_argument("--json", action="store_true", help="the JSON line alone on stdout")

    preview = verb(
        kinds, "preview", _preview, "draw a sheet of what the network will see",
        "hmsa data preview camvid --split train --recipe configs/camvid.yaml "
        "-o sheet.png",
    )  # fmt: skip
    preview.add_argument("dataset", type=Path, metavar="DATA", help="YAML file of the dataset")
    preview.add_argument("--split", help="(that which the recipe learns from)")
    preview.add_argument("--recipe", type=Path, metavar="CONFIG", help="(the defaults)")
    preview.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                         help="change one knob of the recipe")  # fmt: skip
    preview.add_argument("--count", type=whole_number, default=8, metavar="N", help="samples (8)")
    preview.add_argument("--data", type=Path, metavar="FOLDER", help="where the pictures are")
    preview.add_argument("-o", "--out", type=Path, required=True, metavar="PNG")


def _scenes(options: argparse.Namespace) -> None:
    from ..commands.data import scenes

    counts = dict(options.count or [("train", 200), ("val", 40)])
    print(scenes(options.folder, counts, options.size, options.seed, options.coarse))


def _import(options: argparse.Namespace) -> None:
    from ..data.imports import import_masks
    from ..runtime import say

    made = import_masks(
        options.source, options.folder, options.images, options.ignore, options.split
    )
    counts = ", ".join(f"{n} in {split}" for split, n in made.pictures.items())
    say(f"labelled pictures: {counts}; {made.unlabelled} of the export are not labelled yet")
    print(made.description)


def _check(options: argparse.Namespace) -> int:
    from ..commands.data_check import check

    source: Path = options.dataset
    name = source.parent.resolve().name if source.name == "dataset.yaml" else source.stem
    summary, table = check(
        source, options.split, data=options.data,
        report=options.report or Path("runs") / f"check-{name}.html", command=typed(),
    )  # fmt: skip
    show(options.json, summary, table)
    return 2 if summary["errors"] else 0


def _stats(options: argparse.Namespace) -> int:
    from ..commands.data_check import stats
    from ..runtime import say

    summary, table, errors = stats(options.dataset, options.split, options.data)
    show(options.json, summary, table)
    for error in errors:
        say(f"hmsa: {error}")
    return 2 if errors else 0


def _preview(options: argparse.Namespace) -> None:
    from ..commands.data import preview
    from ..config import Recipe, changed, read_yaml, validate

    content = read_yaml(options.recipe) if options.recipe else {}
    given = [f"data.dataset={json.dumps(str(options.dataset))}"]
    given += [f"data.train={json.dumps(options.split)}"] if options.split else []
    recipe = validate(
        Recipe, changed(content, [*options.set, *given]), options.recipe or "the default recipe"
    )
    near = (options.recipe or options.dataset).parent
    print(preview(recipe, options.dataset, options.out, options.count,
                  pictures=options.data, near=near))  # fmt: skip


RESUMING = (_check, _stats)  # what they have looked at is kept
