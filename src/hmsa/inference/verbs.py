"""`hmsa predict`, `hmsa app` and `hmsa export`."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated

from cyclopts import Parameter

from ..config.options import Chain, Checkpoint, Compute, Count, Flag, Inference, Names, Out, Size
from ..runs import InputError, Outcome


def predict(
    checkpoint: Annotated[str | None, Parameter(
        help="as for evaluate, or an exported file; without one, a network of `hmsa models` is "
        "chosen by what the images look like")] = None,
    /,
    *paths: Annotated[str, Parameter(help="files, folders, globs, or .txt lists of paths")],
    out: Annotated[Out | None, Parameter(
        help="folder; what the same settings did there is kept; default: runs/predict/NAME, named "
        "after the first image or folder")] = None,
    save: Annotated[Names, Parameter(
        help="label, overlay, confidence, weights, panel, npz, rle, probabilities, entropy, "
        "geotiff; of a video always its overlay")] = ["label", "overlay", "confidence"],
    overwrite: Annotated[Flag, Parameter(help="do all of it again")] = False,
    inference: Inference = Inference(),
) -> Outcome:  # fmt: skip
    """Label images and videos.

    example: hmsa predict photo.jpg

    example: hmsa predict runs/my-images photo.jpg folder/ 'more/*.png' -o out --save label,rle
    """
    from .predict import predict as work

    return work([*filter(None, [checkpoint]), *paths], out, save, inference, overwrite)


def app(
    *checkpoints: Annotated[str, Parameter(
        help="as for predict; the first is the default; without one, those of `hmsa models` that "
        "predict may choose")],
    host: Annotated[str, Parameter(
        help="address to listen on; 0.0.0.0: everyone who reaches this machine may use it")
    ] = "127.0.0.1",
    port: Annotated[int, Parameter(help="0: any free one")] = 7860,
    megabytes: Annotated[Count, Parameter(help="of an upload, at most")] = 20,
    megapixels: Annotated[Count, Parameter(help="of an upload, at most")] = 12,
    seconds: Annotated[Count, Parameter(help="for a request, waiting included")] = 120,
    queue: Annotated[Count, Parameter(help="requests at a time; more are refused")] = 8,
    compute: Compute = Compute(),
) -> None:  # fmt: skip
    """Serve a web page and an HTTP API that label uploaded images.

    /openapi.json describes the API. Nothing of an upload is kept.

    example: hmsa app

    example: hmsa app runs/my-images --port 8000 --megapixels 24
    """
    if not (find_spec("fastapi") and find_spec("uvicorn")):
        raise InputError('hmsa app needs FastAPI and uvicorn: pip install "hmsa[app]"')
    from .app import Limits, serve

    serve(checkpoints, host, port, Limits(megabytes, megapixels, seconds, queue), compute)


def export(
    checkpoint: Checkpoint,
    /,
    *,
    out: Annotated[Out, Parameter(help="file to write: .onnx, or .pt2 for torch")],
    size: Annotated[Size | None, Parameter(
        help="HEIGHTxWIDTH, the one size of images that it takes; default: any")] = None,
    chain: Chain = Chain(),
) -> Outcome:  # fmt: skip
    """Write a network and its scales as one ONNX or torch file.

    example: hmsa export runs/my-images -o mine.onnx

    example: hmsa export runs/camvid -o camvid.onnx --scales 0.5,1 --size 360x480
    """
    from .export import export as work

    return work(checkpoint, out, size, chain)
