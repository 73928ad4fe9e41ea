"""`hmsa data import`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ..config.options import Dataset, Share
from ..runs import Outcome

NewFolder = Annotated[Path, Parameter(help="new or empty")]


def import_masks(
    source: Annotated[
        Path,
        Parameter(
            help="zip, folder or file of CVAT (masks 1.1, images 1.1), COCO, labelme, Label Studio "
            "(JSON) or Hugging Face datasets"
        ),
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

    example: hmsa data import instances.json my-images --images photos --val 0.1
    """
    from .imports import import_masks as work

    return work(source, folder, images, ignore, split, val)


def export(
    dataset: Dataset,
    folder: NewFolder,
    /,
    *,
    split: Annotated[list[str], Parameter(negative="", help="repeat for more; default: all")] = [],
) -> Outcome:
    """Make Parquet files of a dataset for `datasets` of Hugging Face.

    example: hmsa data export my-images my-parquet

    example: hmsa data export camvid camvid-parquet --split train --split val
    """
    from .parquet import export as work

    return work(dataset, folder, split)
