"""A network that comes with hmsa, chosen by what the images look like.

Its card holds `look`: the mean, over its training images, of the deepest features of a trunk with
ImageNet weights. The nearest by cosine is chosen. Trunks of the networks themselves do not tell
apart what they have not learnt: docs/results.md.
"""

from __future__ import annotations

import glob
from collections.abc import Collection, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from ..checkpoint import shipped
from ..data.images import open_image
from ..data.rasters import OpenImage
from ..data.walk import files_below
from ..model.pretrained import BEST, LAST, WEIGHTS
from ..model.trunk import Trunk
from ..runs.errors import InputError
from . import video
from .predictor import thinned

TRUNK = "tf_efficientnet_lite0"
FEW, SIDE = 5, 320  # images that are compared, and pixels of the square that each is resized to


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
def look(trunk: Trunk, file: Path) -> Tensor:
    """What `trunk` sees in a whole image, or in the first one of a video: unit vector `[C]`.
    Raises InputError."""
    filmed = file.suffix.lower() in video.SUFFIXES
    with OpenImage(video.first_image(file)) if filmed else open_image(file) as image:
        pixels = thinned(image, max(1, min(image.size) // (2 * SIDE))).float() / 255
    small = F.interpolate(pixels, (SIDE, SIDE), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (trunk.mean, trunk.std))
    return F.normalize(trunk((small - mean) / std)[-1].mean((0, 2, 3)), dim=0)


def judge() -> Trunk:
    """The trunk that `look` takes, with its ImageNet weights."""
    trunk = Trunk(TRUNK, finest=32)
    trunk.load_state_dict(load_file(shipped.JUDGE))
    return trunk.eval()


def choose(files: Sequence[Path]) -> Path:
    """The folder of the network whose training images are most like the images `files`.

    Raises InputError if none of those that are compared can be read.
    """
    cards = {name: shipped.read_card(shipped.FOLDER / name) for name in shipped.names()}
    # Those without it are never chosen
    looks = {n: card["about"]["look"] for n, card in cards.items() if "look" in card["about"]}
    if not looks:
        raise InputError("this copy of hmsa comes without networks; name a checkpoint first")
    trunk, seen, problems = judge(), [], []
    for file in files[:: len(files) // FEW + 1]:
        try:
            seen.append(look(trunk, file))
        except InputError as problem:
            problems.append(problem)
    if not seen:
        raise problems[0]
    mean = torch.stack(seen).mean(0)
    near = {n: F.cosine_similarity(mean, torch.tensor(k), dim=0) for n, k in looks.items()}
    return shipped.FOLDER / max(near, key=lambda name: float(near[name]))
