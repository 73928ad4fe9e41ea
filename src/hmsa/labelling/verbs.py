"""`hmsa autolabel`, `hmsa review` and `hmsa selftrain`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from ..config.options import Changes, Checkpoint, Count, Files, Flag, Inference, Names, Rules
from ..runs import InputError, Outcome, command_line

Short = Parameter(alias="-o")


def autolabel(
    teacher: Checkpoint, images: str, /, *, out: Annotated[str, Short], overwrite: Flag = False,
    agreement: Flag = False, raw: Path | None = None,
    workers: Count | None = None, cluster: str | None = None,
    coarse: Path | None = None, coarse_split: str = "train", override: Flag = False,
    fill: Names | None = None, grow: Annotated[int, Parameter(validator=Number(gte=0))] = 0,
    held_out: Path | None = None, split: str = "val",
    rules: Rules = Rules(), inference: Inference = Inference(),
) -> Outcome:  # fmt: skip
    """Label many images for a student to learn from.

    example: hmsa autolabel runs/my-images more-images/ -o labelled --threshold 0.8

    example: hmsa autolabel runs/camvid more-images/ -o labelled --held-out camvid --split val

    Args:
        images: folder, .txt list, .parquet or .tar files (with a *) of images, here or at a URI
        out: new folder, or that of a run to continue; at a URI: Parquet shards
        overwrite: label again if the teacher or a setting has changed
        agreement: also store where scales, and with --flip the mirrored image, agree
        raw: dataset whose raw values the label files shall hold
        workers: networks at once; default: 1, with --cluster 1 a GPU
        cluster: label with Ray: address of a cluster, or local
        coarse: dataset with coarse labels, by people, of the same images
        coarse_split: split of the coarse labels
        override: coarse labels count everywhere
        fill: coarse labels of these classes count
        grow: pixels around coarse labels that get the nearest one
        held_out: rule precision: dataset with labels that the teacher has not learnt from
        split: split of the held-out dataset
    """
    from ..check.folder import described
    from ..data.coarse import Coarse
    from ..data.datasets import open_dataset
    from .autolabel import autolabel as work

    if override and fill is not None:
        raise InputError("--override and --fill exclude each other; use one of them")
    if bool(coarse) != (override or fill is not None):
        raise InputError("coarse labels need --coarse DATA and either --override or --fill NAMES")
    if grow and not coarse:
        raise InputError("--grow is about coarse labels; name them with --coarse DATA")
    people = None
    if coarse:
        drawn = open_dataset(described(coarse), coarse_split)
        named = frozenset(drawn.labels.index(name, "--fill") for name in fill or ())
        people = Coarse(drawn, None if override else named, grow)
    return work(
        teacher, images, out, inference=inference, rules=rules, coarse=people, raw=raw,
        held_out=open_dataset(described(held_out), split) if held_out else None,
        agreement=agreement, workers=workers, cluster=cluster, overwrite=overwrite,
    )  # fmt: skip


def review(
    folder: Path, /, *, report: Path | None = None,
    people: Path | None = None, people_split: str = "train",
    truth: Path | None = None, split: str = "val", before: Path | None = None,
    export: Literal["cvat", "labelstudio"] | None = None, out: Annotated[Path | None, Short] = None,
    worst: Count = 50, url: str | None = None, take: Path | None = None,
) -> Outcome:  # fmt: skip
    """See what auto-labels are worth; have people correct the worst.

    example: hmsa review labelled --truth my-images --split val

    example: hmsa review labelled --export cvat -o tasks.zip --worst 20

    Args:
        folder: folder that hmsa autolabel made
        report: page; default: FOLDER/quality.html
        people: dataset with labels by people, to compare classes with
        people_split: split of the labels by people
        truth: dataset with true labels of some of these images
        split: split of the truth
        before: an earlier round on the same images: what has changed
        export: write the most doubtful images, with their labels, as tasks for this tool
        out: file for --export: .zip (cvat), .json (labelstudio)
        worst: images to export
        url: prefix of the image addresses for Label Studio; default: its local files
        take: labels that people corrected: CVAT zip (Segmentation mask 1.1) or Label Studio JSON
    """
    from ..check.folder import described
    from . import review as module

    if export and take:
        raise InputError("--export and --take exclude each other; give one of them")
    if bool(out) != bool(export):
        raise InputError(
            "-o FILE and --export go together; the page is written where --report says"
        )
    if export and out:
        return module.export(folder, export, out, worst, url)
    if take:
        return module.take_back(folder, take)
    return module.review(
        folder, people=(people, people_split) if people else None,
        truth=(described(truth), split) if truth else None, before=before,
        report=report or folder / "quality.html", command=command_line(),
    )  # fmt: skip


def selftrain(
    config: Path, /, *, rounds: Count = 1, changes: Changes = [], out: Path | None = None,
    files: Files = None, resume: Flag = False,
) -> Outcome:  # fmt: skip
    """Rounds of auto-labelling and training.

    example: hmsa selftrain recipe.yaml --set selftrain.images=more-images

    example: hmsa selftrain recipe.yaml --rounds 2 --out runs/self --resume

    Args:
        config: recipe with a section selftrain, a YAML file
        rounds: students, each taught by the one before
        out: folder; default: runs/CONFIG-selftrain
        resume: continue the rounds in OUT, or add to them
    """
    from ..config.reading import read
    from ..config.recipe import Recipe
    from ..data.descriptions import beside
    from .plan import open_plan
    from .selftrain import selftrain as work

    recipe, near = read(Recipe, config, changes), config.parent
    folder = out or Path("runs") / f"{config.stem}-selftrain"
    plan = open_plan(recipe, beside(near, recipe.data.dataset), files, near)
    return work(plan, folder, rounds, resume=resume, command=command_line())
