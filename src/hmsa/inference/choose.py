"""A network that comes with hmsa, chosen by what the images look like.

Its card holds `look`: the mean, over its training images, of the deepest features of one of these
networks, which is named there. The nearest by cosine is chosen.
"""

from __future__ import annotations

import glob
from collections.abc import Collection, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checkpoint import shipped
from ..checkpoint.networks import load
from ..data.images import open_image
from ..data.rasters import OpenImage
from ..data.walk import files_below
from ..model import HMSA
from ..model.pretrained import BEST, LAST, WEIGHTS
from ..runs.errors import InputError
from . import video
from .predictor import thinned

FEW, SIDE = 5, 224  # images that are looked at, and the pixels that each is squeezed to


def names_images(text: str, known: Collection[str]) -> bool:
    """Whether the first argument of `hmsa predict` means images rather than a network.

    known: suffixes of images, videos and lists. What neither exists nor looks like an image may be
    the name of a network.
    """
    path = Path(text)
    if path.is_dir():
        networks = (path / name for name in (WEIGHTS, BEST, LAST))
        inside = (file.suffix.lower() in known for file in files_below(path))
        return not any(map(Path.is_file, networks)) and any(inside)
    return path.suffix.lower() in known or (glob.has_magic(text) and not path.is_file())


@torch.inference_mode()
def look(model: HMSA, file: Path) -> Tensor:
    """What the trunk of `model` sees in a whole image, or in the first one of a video: unit vector
    `[C]`. Raises InputError."""
    filmed = file.suffix.lower() in video.SUFFIXES
    with OpenImage(video.first_image(file)) if filmed else open_image(file) as image:
        pixels = thinned(image, max(1, min(image.size) // (2 * SIDE))).float() / 255
    small = F.interpolate(pixels, (SIDE, SIDE), mode="bilinear", antialias=True)
    deepest = model.trunk(model.normalise(small))[-1]
    return F.normalize(deepest.mean((0, 2, 3)), dim=0)


def choose(files: Sequence[Path]) -> Path:
    """The folder of the network whose training images are most like the images `files`.

    Raises InputError if none of those that are looked at can be read.
    """
    looks = {n: shipped.read_card(shipped.FOLDER / n)["about"].get("look") for n in shipped.names()}
    looks = {name: known for name, known in looks.items() if known}  # others never by default
    if not looks:
        raise InputError("this copy of hmsa comes without networks; name a checkpoint first")
    (by,) = {known["by"] for known in looks.values()}
    model, seen, problems = load(shipped.FOLDER / by), [], []
    for file in files[:: len(files) // FEW + 1]:
        try:
            seen.append(look(model, file))
        except InputError as problem:
            problems.append(problem)
    if not seen:
        raise problems[0]
    mean = torch.stack(seen).mean(0)
    near = {n: F.cosine_similarity(mean, torch.tensor(k["mean"]), dim=0) for n, k in looks.items()}
    return shipped.FOLDER / max(near, key=lambda name: float(near[name]))
