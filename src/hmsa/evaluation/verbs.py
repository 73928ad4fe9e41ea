"""`hmsa evaluate`, `hmsa compare`, `hmsa view` and `hmsa gate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ..config.options import Chain, Checkpoint, Compute, Count, Dataset, Files, Inference, Out
from ..runs import InputError, Outcome, say

Split = Annotated[str, Parameter(help="split to score")]


def evaluate(
    checkpoint: Checkpoint,
    dataset: Dataset,
    /,
    *,
    split: Split = "val",
    files: Files = None,
    report: Annotated[Path | None, Parameter(help="page; default: RUN/report-SPLIT.html")] = None,
    submission: Annotated[Path | None, Parameter(help="folder for labels to submit")] = None,
    inference: Inference = Inference(),
    only: Annotated[Sequence[int] | None, Parameter(parse=False)] = None,
) -> Outcome:
    """Compare fusions on labelled images.

    example: hmsa evaluate runs/my-images my-images

    example: hmsa evaluate runs/camvid camvid --data CamVid --split val --scales 0.5,1,2 --flip
    """
    from ..check.folder import described
    from ..checkpoint.files import require_classes
    from ..data import fingerprint
    from ..data.datasets import open_dataset
    from ..inference.predictor import Predictor
    from ..report.page import require_page
    from ..report.tables import terminal
    from .measure import measure
    from .page import class_table, verdict, write_evaluation

    run = checkpoint if checkpoint.is_dir() else checkpoint.parent
    page = report or run / f"report-{split}.html"
    require_page(page)
    predictor = Predictor.load(checkpoint, **vars(inference))
    opened = open_dataset(described(dataset), split, files)
    require_classes(predictor.model.card, opened.labels.names, dataset, checkpoint)
    opened = opened if only is None else opened.only(only)
    found = measure(predictor, opened, submission)
    write_evaluation(page, found, predictor, checkpoint)
    summary = found.summary() | {"split": split, "scales": predictor.scales, "flip": predictor.flip}
    summary |= {"checkpoint": str(checkpoint), "dataset": str(dataset), "report": str(page)}
    summary["data"] = fingerprint.of(opened)["digest"][:16]
    title = f"IoU in %, {split}, {len(opened)} images"
    table = terminal(class_table(found), title, verdict(found))
    return Outcome(summary, table, notes=[f"report: {page}"])


def view(
    checkpoint: Checkpoint,
    /,
    *paths: Annotated[str, Parameter(
        help="images: files, folders, globs or .txt lists of paths; or one dataset: a YAML file, "
        "a folder with dataset.yaml, or a folder or known name with --split")],
    split: Annotated[str | None, Parameter(help="split of the dataset; default: val")] = None,
    files: Files = None,
    out: Annotated[Out | None, Parameter(
        help="page; default: view-NAME.html, named after the images, in the run or else in runs",
    )] = None,
    most: Annotated[Count, Parameter(
        help="images in the page, half a MB each: those of the lowest IoU or confidence")] = 40,
    inference: Inference = Inference(),
) -> Outcome:  # fmt: skip
    """Write a page to compare scales, truth and errors in, pixel by pixel.

    example: hmsa view runs/my-images my-images --split val

    example: hmsa view aerial photo.jpg folder/ -o look.html
    """
    from .view import view as work

    return work(checkpoint, paths, split, files, out, most, inference)


def compare(
    *runs: Annotated[Path, Parameter(help="run folders of hmsa train or hmsa attend")],
    out: Annotated[
        Out | None, Parameter(help="page; default: compare.html next to the first")
    ] = None,
) -> Outcome:
    """Draw runs on one page: curves, scores, settings that differ.

    example: hmsa compare runs/my-images

    example: hmsa compare runs/small runs/large -o compare.html
    """
    from .compare import compare as work

    return work(runs, out)


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
    """Measure what leaving out fine scales saves and costs.

    The checkpoint keeps the curve, from which `hmsa predict --budget` says what it costs.

    example: hmsa gate runs/my-images my-images

    example: hmsa gate runs/camvid camvid --data CamVid --split val --scales 0.5,1,2
    """
    from ..check.folder import described
    from ..checkpoint.files import GateCurve, amend, require_classes, trained_on
    from ..checkpoint.shipped import require_own
    from ..data.datasets import open_dataset
    from ..inference.predictor import Predictor
    from ..report.page import Table
    from ..report.tables import percent, terminal
    from .measure import gate_curve

    require_own(checkpoint)
    predictor = Predictor.load(checkpoint, **vars(chain), **vars(compute))
    card, scales = predictor.model.card, predictor.scales
    gated = predictor.model.attention is not None and predictor.model.tiles
    if not gated or len(scales) < 2 or scales[-1] <= 1:
        needed = "a gate is for scales above 1 after a coarser one, with attention; try 0.5,1,2"
        raise InputError(f"{checkpoint}, {predictor.model.fusion}, scales {scales}: {needed}")
    opened = open_dataset(described(dataset), split, files)
    require_classes(card, opened.labels.names, dataset, checkpoint)
    opened.require_labels()
    if trained_on(card, opened.source, split):
        say(f"note: {checkpoint} was trained on this split; its curve is too good")
    points = gate_curve(predictor, opened)
    curve = GateCurve(dataset=opened.source.name, split=split, scales=scales, points=points)
    amend(checkpoint, gate=curve.model_dump())
    columns = ["share %", "work %", "mIoU %", "labels as with all of it %"]
    rows = [[percent(number, 2) for number in vars(point).values()] for point in points]
    title = f"Finer scales in a share of the image, {split}"
    note = "work: pixels that the network computes, halos included; kept in the checkpoint"
    summary = curve.model_dump() | {"checkpoint": str(checkpoint)}
    return Outcome(summary, terminal(Table(columns, rows), title, note))
