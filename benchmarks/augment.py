"""Images a second on one core: our training pipeline against the official steps in Pillow.

    python benchmarks/augment.py [--repeats 5] [--images 12]

Both read the same files and end with what the network takes. The official steps, in their order
and with their parameters: resize the whole image (bicubic; label nearest), pad, crop, flip,
colour jitter of 0.25, to a float tensor, normalise. Ours are those of `hmsa train` with the same
parameters; it hands over uint8 and normalises inside the network, on its device, so a second row
has that done on the same core. Time is that of the process on its core, not of the clock on the
wall, so that a busy machine does not count. Rows take turns in every repeat; the median counts.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL
import torch
import torchvision
from PIL import Image, ImageEnhance, ImageOps
from scenes import write_scenes

from hmsa.config.recipe import Augment
from hmsa.data.datasets import Dataset, open_dataset
from hmsa.data.sampling import TrainingStream
from hmsa.data.transforms import training_transform
from hmsa.runs.machine import describe_machine, keep_memory

COLOR, SCALE = 0.25, (0.5, 2.0)
MEAN, STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])


def official(dataset: Dataset, index: int, crop: tuple[int, int], draw: random.Random) -> None:
    """One sample by the steps of the official pipeline, written anew from their description."""
    pair = dataset.pairs[index]
    image, label = Image.open(pair.image).convert("RGB"), Image.open(pair.label)
    scale = draw.uniform(*SCALE)
    size = int(image.width * scale), int(image.height * scale)
    image = image.resize(size, Image.Resampling.BICUBIC)
    label = label.resize(size, Image.Resampling.NEAREST)
    height, width = crop
    more = [(wanted - have) // 2 + 1 if have < wanted else 0
            for have, wanted in zip(size, (width, height), strict=True)]  # fmt: skip
    if any(more):
        border = (more[0], more[1], more[0], more[1])
        image, label = ImageOps.expand(image, border, 0), ImageOps.expand(label, border, 255)
    left, top = draw.randint(0, image.width - width), draw.randint(0, image.height - height)
    box = (left, top, left + width, top + height)
    image, label = image.crop(box), label.crop(box)
    if draw.random() < 0.5:
        flip = Image.Transpose.FLIP_LEFT_RIGHT
        image, label = image.transpose(flip), label.transpose(flip)
    image = jitter(image, draw)
    array = np.asarray(image, np.float32).transpose(2, 0, 1) / 255
    array = (array - MEAN[:, None, None]) / STD[:, None, None]
    torch.from_numpy(np.ascontiguousarray(array)), torch.from_numpy(np.array(label, np.int64))


def jitter(image: Image.Image, draw: random.Random) -> Image.Image:
    def hue(image: Image.Image) -> Image.Image:
        h, s, v = image.convert("HSV").split()
        shifted = np.asarray(h) + np.uint8(int(draw.uniform(-COLOR, COLOR) * 255) % 256)
        return Image.merge("HSV", (Image.fromarray(shifted), s, v)).convert("RGB")

    def enhance(kind: type) -> Callable[[Image.Image], Image.Image]:
        return lambda image: kind(image).enhance(draw.uniform(1 - COLOR, 1 + COLOR))

    steps = [hue, *map(enhance, (ImageEnhance.Brightness, ImageEnhance.Contrast,
                                 ImageEnhance.Color))]  # fmt: skip
    draw.shuffle(steps)
    for step in steps:
        image = step(image)
    return image


def measure(dataset: Dataset, crop: tuple[int, int], count: int, repeats: int) -> dict[str, float]:
    """Images a second of each way."""
    transform = training_transform(crop, SCALE, Augment(color=COLOR))
    stream = TrainingStream(dataset, transform, seed=0)
    mean, std = (torch.from_numpy(v)[:, None, None] for v in (MEAN, STD))
    draw = random.Random(0)

    def ours(position: int) -> None:
        _, label = stream[position]
        label.long()

    def normalised(position: int) -> None:
        image, label = stream[position]
        label.long()
        image.float().div_(255).sub_(mean).div_(std)

    def decoding(position: int) -> None:
        pair = dataset.pairs[position % len(dataset)]
        for file in (pair.image, pair.label):
            with Image.open(file) as opened:
                opened.load()

    ways: dict[str, Callable[[int], None]] = {
        "official steps in Pillow": lambda i: official(dataset, i % len(dataset), crop, draw),
        "hmsa": ours,
        "hmsa, normalised": normalised,
        "decoding alone": decoding,
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for repeat in range(repeats + 1):
        for way, work in ways.items():
            start = time.process_time()
            for i in range(count):
                work(repeat * count + i)
            if repeat:  # the first warms up
                seconds[way].append((time.process_time() - start) / count)
    return {way: 1 / statistics.median(taken) for way, taken in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--images", type=int, default=12, help="of each repeat")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()  # as the command line does
    cases = {
        "1024x2048 PNG, crop 1024x1024": ((1024, 2048), (1024, 1024), "png"),
        "1024x2048 JPEG, crop 1024x1024": ((1024, 2048), (1024, 1024), "jpg"),
        "360x480 JPEG, crop 288x288": ((360, 480), (288, 288), "jpg"),
    }
    result: dict[str, dict[str, float]] = {}
    for name, (size, crop, suffix) in cases.items():
        with tempfile.TemporaryDirectory() as folder:
            path = write_scenes(Path(folder), {"train": 6}, size)
            if suffix == "jpg":
                for file in (path.parent / "train" / "images").iterdir():
                    Image.open(file).save(file.with_suffix(".jpg"), quality=95)
                    file.unlink()
            many = options.images * (1 if size[0] > 500 else 8)
            result[name] = measure(open_dataset(path, "train"), crop, many, options.repeats)
    print(f"{'images a second, one core':32}" + "".join(f"{way:>28}" for way in result[name]))
    for case, rates in result.items():
        base = rates["official steps in Pillow"]
        cells = (f"{rate:.1f} ({rate / base:.2f}x)" for rate in rates.values())
        print(f"{case:32}" + "".join(f"{cell:>28}" for cell in cells))
    machine = describe_machine(torch.device("cpu"))
    versions = f"torchvision {torchvision.__version__}, Pillow {PIL.__version__}"
    versions += f", NumPy {np.__version__}, {platform.platform()}"
    print(f"{machine}; {versions}")
    print(json.dumps({"unit": "images/s", "machine": machine, "versions": versions} | result))


if __name__ == "__main__":
    main()
