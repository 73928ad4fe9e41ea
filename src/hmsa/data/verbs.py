"""`hmsa data scenes` and `hmsa data import`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ..config.options import Flag, Size
from ..runs import InputError, Outcome


def _split_count(text: str) -> tuple[str, int]:
    split, _, number = text.partition("=")
    if not split or not number.isdigit():
        raise ValueError(f"{text!r} is not SPLIT=N, like train=200")
    return split, int(number)


SplitCount = Annotated[
    list[str],
    Parameter(
        negative="", help="SPLIT=N images of a split; repeat for more (train=200 and val=40)"
    ),
]


def scenes(
    folder: Annotated[Path, Parameter(help="new or empty")],
    /,
    *,
    count: SplitCount = [],
    size: Annotated[Size, Parameter(help="pixels, at least 64 a side")] = (256, 512),
    seed: int = 0,
    coarse: Annotated[
        Flag, Parameter(help="also SPLIT-coarse: labels as if drawn in a hurry")
    ] = False,
) -> Outcome:
    """Draw street scenes as a labelled dataset.

    example: hmsa data scenes scenes --count train=400 --count val=40
    """
    from .scenes import write_scenes

    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty; name a new folder for the scenes")
    if min(size) < 64:
        raise InputError(f"--size {size[0]}x{size[1]}: scenes need at least 64 pixels a side")
    try:
        counts = dict(map(_split_count, count)) or {"train": 200, "val": 40}
    except ValueError as error:
        raise InputError(f"--count: {error}") from None
    return Outcome(path=write_scenes(folder, counts, size, seed, coarse))


def import_masks(
    source: Annotated[
        Path, Parameter(help="CVAT zip (Segmentation mask 1.1) or COCO panoptic JSON")
    ],
    folder: Annotated[Path, Parameter(help="new or empty")],
    /,
    *,
    images: Annotated[
        Path | None, Parameter(help="folder of the images, if they are not in SOURCE")
    ] = None,
    ignore: Annotated[
        list[str], Parameter(negative="", help="a class that means no label; repeat for more")
    ] = [],
    split: Annotated[str, Parameter(help="its name where SOURCE gives none")] = "train",
) -> Outcome:
    """Make a dataset of what an annotation tool exported.

    example: hmsa data import task.zip my-pictures --ignore background
    """
    from .imports import import_masks as work

    made = work(source, folder, images, ignore, split)
    counts = ", ".join(f"{n} in {split}" for split, n in made.pictures.items())
    note = f"labelled images: {counts}; {made.unlabelled} of the export are not labelled yet"
    return Outcome(path=made.description, notes=[note])
