"""`hmsa data scenes` and `hmsa data import`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ..config.options import Flag, Share, Size
from ..runs import InputError, Outcome

NewFolder = Annotated[Path, Parameter(help="new or empty")]
_SPLIT_COUNT = "SPLIT=N images of a split; repeat for more (default: train=200 and val=40)"


def scenes(
    folder: NewFolder,
    /,
    *,
    count: Annotated[list[str], Parameter(negative="", help=_SPLIT_COUNT)] = [],
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
    counts = {}
    for text in count or ("train=200", "val=40"):
        split, _, number = text.partition("=")
        if not split or not number.isdigit():
            raise InputError(f"--count {text} is not SPLIT=N, like train=200")
        counts[split] = int(number)
    return Outcome(path=write_scenes(folder, counts, size, seed, coarse))


def import_masks(
    source: Annotated[
        Path, Parameter(help="zip, folder or file of CVAT (masks 1.1, images 1.1), COCO or labelme")
    ],
    folder: NewFolder,
    /,
    *,
    images: Annotated[
        Path | None, Parameter(help="folder of the images, if they are not in SOURCE")
    ] = None,
    ignore: Annotated[
        list[str], Parameter(negative="", help="a class that means no label; repeat for more")
    ] = [],
    split: Annotated[str, Parameter(help="its name if SOURCE has none")] = "train",
    val: Annotated[Share, Parameter(help="held out of SOURCE if all of it is train")] = 0.2,
) -> Outcome:
    """Make a dataset of what an annotation tool exported.

    example: hmsa data import task.zip my-images --ignore background
    """
    from .imports import import_masks as work

    return work(source, folder, images, ignore, split, val)
