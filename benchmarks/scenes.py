"""Generated street scenes: the embedded data, in which the paper's conflict is real.

Wall, pavement, road and divider share one texture, so only a wide view (where do the edges run,
which side of them is this?) tells them apart. Posts and far figures are one to four pixels wide,
so they all but vanish when the image shrinks. No single scale is right for both. Tests and other
benchmarks use them.

    python benchmarks/scenes.py FOLDER --count train=200 --count val=40
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import maximum_filter, minimum_filter

from hmsa.data.descriptions import description_text
from hmsa.data.labels import LabelSet

NAMES = ("sky", "wall", "pavement", "road", "divider", "post", "figure")
SKY, WALL, PAVEMENT, ROAD, DIVIDER, POST, FIGURE = range(len(NAMES))
PALETTE = tuple((v >> 16, v >> 8 & 255, v & 255) for v in (
    0x4682B4, 0x66669C, 0xF423E8, 0x804080, 0x6B8E23, 0xFAAA1E, 0xDC143C
))  # fmt: skip
SURFACES = (WALL, PAVEMENT, ROAD, DIVIDER)  # wide, and alike in texture
SMALL = (POST, FIGURE)
MARGIN = 6  # pixels that people in a hurry stay away from a border


def scene(
    seed: int | tuple[int, ...], size: tuple[int, int]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Image `[H,W,3]` and label `[H,W]` of one street, a pure function of `seed` and `size`."""
    rng = np.random.default_rng(seed)
    height, width = size
    horizon, vanishing = height * rng.uniform(0.3, 0.45), width * rng.uniform(0.3, 0.7)
    label, edges = _surfaces(rng, size, horizon, vanishing)
    image = _texture(rng, size)
    image[edges] -= 45
    sky = label == SKY
    image[sky] = (image * 0.25 + (165, 185, 205))[sky]
    for kind, count in ((POST, rng.integers(7, 13)), (FIGURE, rng.integers(6, 12))):
        for _ in range(count):
            _stand(rng, image, label, horizon, kind)
    return np.clip(image, 0, 255).astype(np.uint8), label


def drawn_coarsely(label: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Label `[H,W]` as people in a hurry draw it: 255 up to `MARGIN` pixels from another class."""
    lowest, highest = (find(label, 2 * MARGIN + 1) for find in (minimum_filter, maximum_filter))
    return np.where(lowest == highest, label, np.uint8(255))


def write_scenes(
    folder: Path,
    counts: Mapping[str, int],
    size: tuple[int, int],
    seed: int = 0,
    coarse: bool = False,
) -> Path:
    """`counts` scenes per split as PNG files under `folder`; returns its dataset.yaml.

    coarse: also `SPLIT-coarse`, the same images with `drawn_coarsely` labels.
    """
    splits: dict[str, Any] = dict(zip(counts, counts, strict=True))
    for split_index, (split, count) in enumerate(counts.items()):
        if coarse:
            splits[f"{split}-coarse"] = {"images": f"{split}/images", "labels": f"{split}/coarse"}
        for i in range(count):
            image, label = scene((seed, split_index, i), size)
            made = {"images": image, "labels": label}
            made |= {"coarse": drawn_coarsely(label)} if coarse else {}
            for kind, array in made.items():
                (folder / split / kind).mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(folder / split / kind / f"{i:05d}.png")
    labels = LabelSet(NAMES, PALETTE, tuple(range(len(NAMES))))
    description = folder / "dataset.yaml"
    description.write_text(description_text(labels, splits))
    return description


def _surfaces(
    rng: np.random.Generator, size: tuple[int, int], horizon: float, vanishing: float
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """The wide classes, and the thin dark edges between them, in one-point perspective."""
    height, width = size
    y, x = np.mgrid[:height, :width] + 0.5
    depth = np.maximum(y - horizon, 1e-6)
    across = (x - vanishing) / depth * (height - horizon) / width  # position across the street
    # Borders of the strips, left to right, as multiples of the image's width at its lower edge
    middle, divider = rng.uniform(-0.15, 0.15), rng.uniform(0.03, 0.12)
    lanes, paths = rng.uniform(0.2, 0.4, 2), rng.uniform(0.15, 0.35, 2)
    widths = [-divider - lanes[0] - paths[0], paths[0], lanes[0], 2 * divider, lanes[1], paths[1]]
    borders = middle + np.cumsum(widths)
    strips = np.array([WALL, PAVEMENT, ROAD, DIVIDER, ROAD, PAVEMENT, WALL], np.uint8)
    ground = np.digitize(across, borders)
    # A wall rises over the line where it meets the ground; its top also runs to the vanishing
    # point. Left and right walls are of different heights, and their tops lie above the horizon.
    side = (x > vanishing).astype(int)
    foot = np.array([borders[0], borders[-1]])[side] * width / (height - horizon)
    at = (x - vanishing) / np.where(np.abs(foot) < 1e-6, 1e-6, foot)  # depth row of the wall here
    rise = rng.uniform(0.35, 0.9, 2)[side] * at
    is_ground = (y > horizon) & (ground > 0) & (ground < len(borders))
    is_wall = ~is_ground & (y > horizon - rise)
    region = np.where(is_wall, side * len(borders), np.where(is_ground, ground, 9))
    label = np.where(region == 9, SKY, strips[np.minimum(region, len(borders))]).astype(np.uint8)
    edges = np.zeros(size, bool)
    edges[:, 1:] |= region[:, 1:] != region[:, :-1]
    edges[1:] |= region[1:] != region[:-1]
    return label, edges


def _texture(rng: np.random.Generator, size: tuple[int, int]) -> NDArray[np.float64]:
    """One grey for every surface: slow light, and grain whose spots are two to three pixels wide.

    Grain of that width does not average out at half size, so what is thin drowns in it there.
    """
    light = _smooth(rng, size, max(size) // 3) * 16
    grain = _smooth(rng, size, 3) * 17
    return (120 + light + grain)[..., None] + rng.uniform(-8, 8, 3)


def _smooth(rng: np.random.Generator, size: tuple[int, int], period: int) -> NDArray[np.float64]:
    """Unit-variance noise that changes over `period` pixels."""
    height, width = size
    small = rng.standard_normal((height // period + 3, width // period + 3)).astype(np.float32)
    large = (small.shape[1] * period, small.shape[0] * period)
    noise = np.asarray(Image.fromarray(small).resize(large, Image.Resampling.BICUBIC), np.float64)
    field = noise[period : period + height, period : period + width]
    unit: NDArray[np.float64] = (field - field.mean()) / (field.std() + 1e-9)
    return unit


def _stand(
    rng: np.random.Generator,
    image: NDArray[np.float64],
    label: NDArray[np.uint8],
    horizon: float,
    kind: int,
) -> None:
    """Something that stands on the ground: near ones large and few, far ones small and many."""
    height, post = len(label), kind == POST
    depth = rng.uniform(0.03, 1) ** 1.7 if post else rng.uniform(0.03, 0.3)
    foot = min(height - 1, int(horizon + depth * (height - horizon)))
    places = np.flatnonzero(np.isin(label[foot], (PAVEMENT, DIVIDER) if post else (PAVEMENT, ROAD)))
    if not len(places):
        return
    column = int(rng.choice(places))
    unit = depth * height / 256  # sizes are those of a 256 pixel high image
    wide, tall = (
        (max(1, round(3.2 * unit)), max(6, round(150 * unit))) if post
        else (max(2, round(18 * unit)), max(5, round(52 * unit)))
    )  # fmt: skip
    rows, columns = slice(max(0, foot - tall), foot + 1), slice(column, column + wide)
    light = rng.choice((-1, 1)) * rng.uniform(45, 75)
    if post:
        image[rows, columns] = 120 + light + rng.normal(0, 4, image[rows, columns].shape)
    else:  # clothes of any colour, a lighter head
        image[rows, columns] = 120 + light * rng.uniform(-1, 1, 3) * 1.5
        head = slice(rows.start, rows.start + max(1, (rows.stop - rows.start) // 5))
        image[head, columns] = (205, 165, 140)
    label[rows, columns] = kind


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw street scenes as a labelled dataset.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", action="append", help="SPLIT=N images; repeat for more")
    parser.add_argument("--size", type=int, nargs=2, default=(256, 512), help="height and width")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--coarse", action="store_true", help="also labels as if drawn in a hurry")
    arguments = parser.parse_args()
    counts = dict(each.split("=") for each in arguments.count or ["train=200", "val=40"])
    print(write_scenes(
        arguments.folder, {split: int(n) for split, n in counts.items()},
        tuple(arguments.size), arguments.seed, arguments.coarse,
    ))  # fmt: skip


if __name__ == "__main__":
    main()
