"""`hmsa predict` and `hmsa export`."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import Parameter

from ..config.options import (
    Chain,
    Checkpoint,
    Count,
    Flag,
    Inference,
    Names,
    Out,
    height_width,
    parsed_by,
)
from ..runs import Outcome


def graph_size(text: str) -> tuple[int, int] | None:
    """`512x1024` as height and width; None, any size, for `dynamic`."""
    return None if text == "dynamic" else height_width(text)


def predict(
    checkpoint: Annotated[Checkpoint, Parameter(help="as for evaluate, or an exported file")],
    /,
    *paths: Annotated[str, Parameter(help="files, folders, globs, or .txt lists of paths")],
    out: Annotated[Out, Parameter(help="folder; what the same settings did there is kept")],
    save: Annotated[Names, Parameter(
        help="label, overlay, confidence, weights, panel, npz, rle, probabilities, entropy, "
        "geotiff; of a video always its overlay")] = ["label", "overlay", "confidence"],
    panel: Annotated[
        Flag, Parameter(help="also save panel: prediction and weight of each scale")
    ] = False,
    batch: Annotated[Count, Parameter(help="images of one size that run together")] = 1,
    overwrite: Annotated[Flag, Parameter(help="do all of it again")] = False,
    inference: Inference = Inference(),
) -> Outcome:  # fmt: skip
    """Label images and videos.

    example: hmsa predict runs/camvid photo.jpg folder/ 'more/*.png' -o out --save label,rle
    """
    from ..runs import InputError
    from .predict import predict as work
    from .writer import KINDS

    for kind in save:
        if kind not in KINDS:
            raise InputError(f"--save: {kind!r} is not one of {', '.join(KINDS)}")
    if not paths:
        raise InputError("predict: no images given; name files, folders, globs or .txt lists")
    done = work(
        checkpoint, paths, out, save=[*save, *["panel"] * panel], overwrite=overwrite,
        batch=batch, **vars(inference),
    )  # fmt: skip
    before = f" ({done.before} of them before)" if done.before else ""
    note = (
        f"{done.made + done.before} image(s) labelled in {out}{before}, "
        f"{len(done.problems)} could not be read"
    )
    return Outcome(notes=[note], problems=done.problems)


def export(
    checkpoint: Checkpoint,
    /,
    *,
    out: Annotated[Out, Parameter(help="file to write: .onnx, or .pt2 for torch")],
    size: Annotated[Any, parsed_by(graph_size), Parameter(
        help="HEIGHTxWIDTH, the one size of images that it takes; default: dynamic, any")] = None,
    chain: Chain = Chain(),
) -> Outcome:  # fmt: skip
    """Write a network and its scales as one ONNX or torch file.

    example: hmsa export runs/camvid -o camvid.onnx --scales 0.5,1 --size 360x480
    """
    from .export import export as work

    return work(checkpoint, out, size, chain)
