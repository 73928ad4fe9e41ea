"""Milliseconds for the tiles of one 1024x2048 label of 19 classes, on one core.

    python benchmarks/tile_index.py [--repeats 15] [--images 4]

Decoding the PNG alone; decoding and indexing as `hmsa` does it; decoding and a plain loop, as the
official builder works: for each tile and class a mask and its centre of mass (scipy where it is
installed, as there). The labels are drawn: wide surfaces, thin posts, ragged outlines. Time is that
of the process on its core. The ways take turns in every repeat; the median counts.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scenes import scene

from hmsa.data.datasets import Dataset, open_dataset
from hmsa.data.sampling import centres
from hmsa.runs.machine import describe_machine, keep_memory

SIZE, CLASSES, TILE = (1024, 2048), 19, 1024


def drawn(seed: int) -> Image.Image:
    """A street's surfaces, with things of all classes before them."""
    picture = Image.fromarray(scene(seed, SIZE)[1])
    draw, rng = ImageDraw.Draw(picture), np.random.default_rng(seed)
    for _ in range(120):
        x, y, size = rng.integers(0, SIZE[1]), rng.integers(200, SIZE[0]), rng.integers(3, 90)
        corners = rng.normal((x, y), size, (9, 2))
        draw.polygon([tuple(c) for c in corners], fill=int(rng.integers(CLASSES)))
    for _ in range(40):
        x, top = int(rng.integers(0, SIZE[1])), int(rng.integers(100, 500))
        post = (x, top, x + int(rng.integers(1, 8)), top + int(rng.integers(50, 400)))
        draw.rectangle(post, fill=int(rng.integers(CLASSES)))
    return picture


def centre_of_mass(mask: NDArray[np.bool_]) -> tuple[float, ...]:
    y, x = np.nonzero(mask)
    return float(y.mean()), float(x.mean())


try:
    from scipy.ndimage import center_of_mass
except ImportError:
    center_of_mass = centre_of_mass


def plain_loop(dataset: Dataset, index: int) -> list[tuple[int, int, int]]:
    with Image.open(dataset.pairs[index].label) as picture:
        label = np.asarray(picture)
    found = []
    for top in range(0, SIZE[0], TILE):
        for left in range(0, SIZE[1], TILE):
            tile = label[top : top + TILE, left : left + TILE]
            for class_ in range(CLASSES):
                mask = tile == class_
                if mask.any():
                    y, x = center_of_mass(mask)
                    found.append((class_, left + int(x), top + int(y)))
    return found


def decode(dataset: Dataset, index: int) -> None:
    with Image.open(dataset.pairs[index].label) as picture:
        np.asarray(picture)


def ours(dataset: Dataset, index: int) -> list[tuple[int, int, int]]:
    return [tuple(row[:3]) for row in centres(dataset.read_label(index), TILE).tolist()]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--images", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()  # as the command line does
    ways: dict[str, Callable[[Dataset, int], object]] = {
        "decoding alone": decode, "hmsa: read and index": ours, "read and plain loop": plain_loop
    }  # fmt: skip
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind in ("images", "labels"):
            (folder / "train" / kind).mkdir(parents=True)
        for i in range(options.images):
            drawn(i).save(folder / "train" / "labels" / f"{i}.png")
            Image.new("RGB", SIZE[::-1]).save(folder / "train" / "images" / f"{i}.png")
        content = {"splits": {"train": "train"}, "names": [str(i) for i in range(CLASSES)]}
        (folder / "dataset.yaml").write_text(yaml.safe_dump(content))
        dataset = open_dataset(folder, "train")
        for i in range(len(dataset)):
            assert sorted(ours(dataset, i)) == sorted(plain_loop(dataset, i)), "same centres"
        for repeat in range(options.repeats + 1):
            for way, work in ways.items():
                start = time.process_time()
                for i in range(len(dataset)):
                    work(dataset, i)
                if repeat:  # the first warms up
                    seconds[way].append((time.process_time() - start) / len(dataset))
    result = {way: 1000 * statistics.median(taken) for way, taken in seconds.items()}
    print(f"{'one label, one core':24}{'ms':>10}{'x decoding':>14}")
    for way, taken in result.items():
        print(f"{way:24}{taken:10.2f}{taken / result['decoding alone']:13.2f}x")
    machine = describe_machine(torch.device("cpu"))
    loop = center_of_mass.__module__.partition(".")[0].replace("__main__", "numpy")
    versions = f"Pillow {PIL.__version__}, NumPy {np.__version__}, {platform.platform()}"
    versions += f", centre of mass of the loop by {loop}"
    print(f"{machine}; {versions}")
    print(json.dumps({"unit": "ms/label", "machine": machine, "versions": versions} | result))


if __name__ == "__main__":
    main()
