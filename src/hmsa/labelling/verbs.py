"""`hmsa autolabel`, `hmsa review` and `hmsa selftrain`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from ..config.options import Changes, Checkpoint, Count, Files, Flag, Inference, Names, Share
from ..runs import InputError, Outcome, command_line


def autolabel(
    teacher: Checkpoint,
    images: Annotated[str, Parameter(help="folder of images; see also --cluster")],
    /,
    *,
    out: Annotated[str, Parameter(alias="-o", help="new folder, or that of a run to go on with")],
    overwrite: Annotated[
        Flag, Parameter(help="label again if the teacher or a setting has changed")
    ] = False,
    agreement: Annotated[Flag, Parameter(
        help="also store where scales, and with --flip the mirror image, agree")] = False,
    raw: Annotated[
        Path | None, Parameter(help="dataset whose raw values the label files shall hold")
    ] = None,
    workers: Annotated[
        Count | None, Parameter(help="processes, GPUs in turn; default: 1, with --cluster 1 a GPU")
    ] = None,
    cluster: Annotated[str | None, Parameter(
        help="label with Ray: address of a cluster, or local. IMAGES may then be a folder, .txt "
        "list, .parquet or .tar files (with a *), here or at a URI; labels go to OUT/shards unless "
        "both are folders")] = None,
    coarse: Annotated[
        Path | None, Parameter(help="dataset with coarse labels, by people, of the same images")
    ] = None,
    coarse_split: str = "train",
    override: Annotated[Flag, Parameter(help="coarse labels count everywhere")] = False,
    fill: Annotated[Names | None, Parameter(help="coarse labels of these classes count")] = None,
    grow: Annotated[int, Parameter(validator=Number(gte=0),
        help="pixels around coarse labels that get the nearest one")] = 0,
    threshold: Annotated[Share, Parameter(help="rule fixed: one confidence for all classes")] = 0.5,
    keep: Annotated[
        Share, Parameter(help="rule quantile: share of each class that is kept")
    ] = 0.5,
    held_out: Annotated[Path | None, Parameter(
        help="rule precision: dataset with labels that the teacher has not learnt from")] = None,
    split: Annotated[str, Parameter(help="split of the held-out dataset")] = "val",
    precision_target: Annotated[
        Share, Parameter(help="share of the kept labels that is right there")
    ] = 0.95,
    inference: Inference = Inference(),
) -> Outcome:  # fmt: skip
    """Label many images for a student to learn from.

    example: hmsa autolabel runs/camvid more-images/ -o labelled --held-out camvid --split test
    """
    from .autolabel import Rules
    from .autolabel import autolabel as work

    if override and fill is not None:
        raise InputError("--override and --fill exclude each other; give one of them")
    if bool(coarse) != (override or fill is not None):
        raise InputError("coarse labels need --coarse DATA and either --override or --fill NAMES")
    if grow and not coarse:
        raise InputError("--grow is about coarse labels; name them with --coarse DATA")
    summary, table, problems = work(
            teacher, images, out, overwrite=overwrite, raw=raw, coarse=coarse,
            coarse_split=coarse_split, fill=fill, agreement=agreement, grow=grow,
            rules=Rules(threshold, keep, held_out, split, precision_target),
            workers=workers, cluster=cluster, **vars(inference),
    )  # fmt: skip
    return Outcome(summary, table, problems=problems)


def review(
    folder: Annotated[Path, Parameter(help="folder that hmsa autolabel made")],
    /,
    *,
    report: Annotated[Path | None, Parameter(help="page; default: FOLDER/quality.html")] = None,
    people: Annotated[
        Path | None, Parameter(help="dataset with labels by people, to compare classes with")
    ] = None,
    people_split: str = "train",
    truth: Annotated[
        Path | None, Parameter(help="dataset with true labels of some of these images")
    ] = None,
    split: Annotated[str, Parameter(help="split of the truth")] = "val",
    before: Annotated[
        Path | None, Parameter(help="an earlier round on the same images: what has changed")
    ] = None,
    export: Annotated[Literal["cvat", "labelstudio"] | None, Parameter(
        help="write the most doubtful images, with their labels, as tasks for this tool")] = None,
    take: Annotated[Path | None, Parameter(
        help="labels that people corrected: CVAT zip (Segmentation mask 1.1) or Label Studio JSON"
    )] = None,
    out: Annotated[Path | None, Parameter(
        alias="-o", help="file for --export: .zip (cvat), .json (labelstudio)")] = None,
    worst: Annotated[Count, Parameter(help="images to export")] = 50,
    url: Annotated[str | None, Parameter(
        help="prefix of the image addresses for Label Studio; default: its local files")] = None,
) -> Outcome:  # fmt: skip
    """See what auto-labels are worth; have people correct the worst.

    example: hmsa review labelled --truth camvid --split val
    """
    from . import review as module

    if export and take:
        raise InputError("--export and --take exclude each other; give one of them")
    if bool(out) != bool(export):
        raise InputError(
            "-o FILE and --export go together; the page is written where --report says"
        )
    if export and out:
        summary, files = module.export(folder, export, out, worst, url)
        note = f"{summary['images']} image(s) in {' and '.join(map(str, files))}"
        return Outcome(summary, notes=[note])
    if take:
        summary = module.take_back(folder, take)
        note = (
            f"{summary['taken']} label(s) taken, {summary['same']} were there already, "
            f"{summary['empty']} left empty; {summary['people']} by people in all"
        )
        return Outcome(summary, notes=[note])
    page = report or folder / "quality.html"
    summary, table = module.review(
        folder, people=people, people_split=people_split, truth=truth, split=split, before=before,
        report=page, command=command_line(),
    )  # fmt: skip
    return Outcome(summary, table, notes=[f"report: {page}"])


def selftrain(
    config: Annotated[Path, Parameter(help="recipe with a section selftrain, a YAML file")],
    /,
    *,
    rounds: Annotated[Count, Parameter(help="students, each taught by the one before")] = 1,
    changes: Changes = [],
    out: Annotated[Path | None, Parameter(help="folder; default: runs/CONFIG-selftrain")] = None,
    files: Files = None,
    resume: Annotated[Flag, Parameter(help="continue the rounds in OUT, or add to them")] = False,
) -> Outcome:
    """Rounds of auto-labelling and training.

    example: hmsa selftrain recipe.yaml --rounds 2 --set selftrain.images=more --out runs/self
    """
    from ..config.reading import read
    from ..config.recipe import Recipe
    from ..data.descriptions import beside
    from .selftrain import selftrain as work

    recipe, near = read(Recipe, config, changes), config.parent
    folder = out or Path("runs") / f"{config.stem}-selftrain"
    data = beside(near, recipe.data.dataset)
    result = work(
        recipe, folder, data, rounds=rounds, pictures=files, resume=resume, near=near,
        command=command_line(),
    )  # fmt: skip
    if result is None:  # another process of the same training shows the result
        return Outcome()
    summary, table, problems = result
    return Outcome(summary, table, problems=problems)
