"""`hmsa evaluate` and `hmsa gate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ..config.options import Chain, Checkpoint, Compute, Dataset, Files, Inference
from ..runs import Outcome, command_line

Split = Annotated[str, Parameter(help="split to score")]


def evaluate(
    checkpoint: Checkpoint,
    dataset: Dataset,
    /,
    *,
    split: Split = "val",
    files: Files = None,
    report: Annotated[
        Path | None, Parameter(help="page; default: report-SPLIT.html beside the checkpoint")
    ] = None,
    submission: Annotated[
        Path | None, Parameter(help="folder for labels as the Cityscapes server takes them")
    ] = None,
    inference: Inference = Inference(),
) -> Outcome:
    """Compare fusions on labelled images.

    example: hmsa evaluate runs/camvid camvid --data CamVid --split val --scales 0.5,1,2
    """
    from .evaluate import evaluate as work

    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    page = report or folder / f"report-{split}.html"
    summary, table = work(
        checkpoint, dataset, split, pictures=files, report=page, submission=submission,
        command=command_line(), **vars(inference),
    )  # fmt: skip
    return Outcome(summary, table, notes=[f"report: {page}"])


def gate(
    checkpoint: Checkpoint,
    dataset: Dataset,
    /,
    *,
    split: Split = "val",
    files: Files = None,
    chain: Chain = Chain(),
    compute: Compute = Compute(),
) -> Outcome:
    """Measure what leaving out fine scales saves and costs; the checkpoint keeps the curve.

    example: hmsa gate runs/camvid camvid --data CamVid --split val --scales 0.5,1,2
    """
    from .gate import gate as work

    settings = vars(chain) | vars(compute)
    return Outcome(*work(checkpoint, dataset, split, pictures=files, **settings))
