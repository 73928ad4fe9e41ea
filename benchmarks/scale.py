"""What auto-labelling costs beside the network, and what many images would cost.

    python benchmarks/scale.py [--counts 1000 10000 100000] [--ways one ray]
        [--camvid FOLDER --teacher RUN] [--seconds 0.25] [--dollars 3]

Images are generated, 64x64 JPEG; the teacher costs nothing, its label is the upper bits of one
channel and its confidence another. Ways: one process, or Ray with two workers on this machine
(--workers 2). Milliseconds are of wall clock per image; of one process also those of each phase,
which run in several threads, so that their sum may be more than the whole. `again` is the same
command when all is done. With CamVid and a network, the bytes of labels are measured, too.
--seconds: of one image in a real network on one GPU; --dollars: of an hour of that GPU. The last
line is one JSON object.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from hmsa.data.images import read_image
from hmsa.data.labels import LabelSet, spread
from hmsa.data.stretch import Stretch
from hmsa.data.walk import images_below
from hmsa.inference.predictor import Predictor
from hmsa.inference.result import Prediction
from hmsa.labelling import engine, folder
from hmsa.labelling.engine import Labeller, label_here, label_with_ray
from hmsa.labelling.folder import Folder, total
from hmsa.labelling.sources import find
from hmsa.runs.machine import describe_machine

WAYS = ("one", "ray")
CLASSES = 19
LABELS = LabelSet(
    tuple(f"class {k}" for k in range(CLASSES)), tuple(spread(CLASSES)), tuple(range(CLASSES))
)
SIZES = {"Cityscapes": (1024, 2048), "CamVid": (360, 480)}


class Free:
    """A teacher that costs nothing."""

    stretch = Stretch()

    def __call__(self, image: Any, detail: bool = False) -> Prediction:
        return Prediction(image[..., 0] >> 4, image[..., 1])


def make_free(known: set[str]) -> Labeller:
    return Labeller(Free(), LABELS, known)  # type: ignore[arg-type]


def generate(folder: Path, count: int) -> None:
    """Some hundred different images, in folders of a thousand."""
    rng, whole = np.random.default_rng(0), []
    for _ in range(200):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
        coarse.resize((64, 64), Image.Resampling.BICUBIC).save(folder / "one.jpg", quality=90)
        whole.append((folder / "one.jpg").read_bytes())
    (folder / "one.jpg").unlink()
    for i in range(count):
        if i % 1000 == 0:
            (folder / f"{i // 1000:04}").mkdir()
        (folder / f"{i // 1000:04}" / f"{i:07}.jpg").write_bytes(whole[i % 200])


def timed(spent: Counter[str], phase: str, function: Any) -> Any:
    def wrapped(*arguments: Any, **named: Any) -> Any:
        began = time.perf_counter()
        try:
            return function(*arguments, **named)
        finally:
            spent[phase] += time.perf_counter() - began

    return wrapped


PHASES = {  # by module and function
    (engine, "read"): "read", (engine, "read_image"): "decode", (engine, "tally"): "figures",
    (engine, "figures"): "figures", (engine, "png_bytes"): "encode", (folder, "replace"): "write",
}  # fmt: skip


def measure(way: str, images: Path, out: Path) -> dict[str, Any]:
    settings = {
        "images": str(images), "teacher": "free", "scales": [1.0], "flip": False,
        "classes": dict.fromkeys(LABELS.names, 0),
    }  # fmt: skip
    began = time.perf_counter()
    source = find(str(images))
    listed = time.perf_counter()
    if way == "ray":
        import ray

        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
        )
    started = time.perf_counter()

    def run(output: Folder) -> None:
        make = partial(make_free, output.known())
        if way == "one":
            label_here(make(), source.pieces, output.store)
        else:
            label_with_ray(make, source.pieces, output.store, None, "local", 2)

    spent: Counter[str] = Counter()
    for (module, name), phase in PHASES.items():
        setattr(module, name, timed(spent, phase, getattr(module, name)))
    with Folder(out, settings, LABELS, source.images) as output:
        run(output)
        ran, phases = time.perf_counter(), dict(spent)
        total(output.rows(), CLASSES)
        output.finish("{}")
    done = time.perf_counter()
    with Folder(out, settings, LABELS, source.images) as output:
        run(output)
    again = time.perf_counter()
    found = {"list": listed - began, "run": ran - started, "manifest": done - ran}
    found |= phases if way == "one" else {}
    found |= {"all": done - started + listed - began, "again": again - done}
    return {phase: 1000 * seconds / len(source.images) for phase, seconds in found.items()}


def stored(camvid: Path, teacher: Path) -> dict[str, float]:
    """Mean bytes of label and confidence of a picture of CamVid's val, as files and as people's."""
    from hmsa.data.datasets import open_dataset
    from hmsa.labelling.autolabel import autolabel
    from hmsa.report.pictures import palette_png

    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary)
        autolabel(teacher, str(camvid / "val" / "images"), str(out / "auto"))
        files = {k: list((out / "auto" / k).rglob("*.png")) for k in ("labels", "confidence")}
        found = {k: float(np.mean([f.stat().st_size for f in files[k]])) for k in files}
        dataset = open_dataset(Path("camvid"), "val", camvid)
        palette = np.array(dataset.labels.palette, np.uint8)
        sizes = []
        for i in range(len(dataset)):
            palette_png(dataset.read_label(i), palette).save(out / "true.png")
            sizes.append((out / "true.png").stat().st_size)
        found["labels by people"] = float(np.mean(sizes))
        found["pixels"] = float(dataset.read_label(0).size)
    return found


def cores(camvid: Path, teacher: Path) -> dict[str, float]:
    """Milliseconds of a core per million pixels of real pictures, beside the network."""
    predictor, spent, pixels = Predictor.load(teacher), Counter[str](), 0
    for file in images_below(camvid / "val" / "images")[:6]:
        began = time.process_time()
        image = read_image(file)
        spent["decode"] += time.process_time() - began
        prediction = predictor(image)
        for kind in ("label", "confidence"):
            began = time.process_time()
            Image.fromarray(getattr(prediction, kind)).save(io.BytesIO(), "PNG")
            spent[kind] += time.process_time() - began
        pixels += prediction.label.size
    return {kind: 1e9 * seconds / pixels for kind, seconds in spent.items()}


def on_paper(
    options: argparse.Namespace, per_image: float, per_megapixel: float, bytes_per_pixel: float
) -> list[Any]:
    """Per number of pictures of Cityscapes' size: hours, dollars, days, TB of labels.

    per_image, per_megapixel: milliseconds of a core beside the network.
    """
    rows = []
    for images in (20_000, 10**7, 10**9):
        hours = images * options.seconds / 3600
        pixels = images * np.prod(SIZES["Cityscapes"])
        rows.append({
            "images": images, "gpu_hours": hours, "dollars": hours * options.dollars,
            "core_hours": (images * per_image + pixels / 1e6 * per_megapixel) / 3.6e6,
            "days_8": hours / 24 / 8, "days_1000": hours / 24 / 1000,
            "tb_hard": pixels * bytes_per_pixel / 1e12,
            "tb_soft_fp16": pixels * CLASSES * 2 / 1e12,
            "tb_soft_fp32": pixels * CLASSES * 4 / 1e12,
        })  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--camvid", type=Path)
    parser.add_argument("--teacher", type=Path)
    parser.add_argument("--seconds", type=float, default=0.25)
    parser.add_argument("--dollars", type=float, default=3.0)
    parser.add_argument("--only", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--images", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        with tempfile.TemporaryDirectory() as out:
            print(json.dumps(measure(options.only, options.images, Path(out) / "out")))
        return
    print(describe_machine(torch.device("cpu")))
    found: dict[str, Any] = {"overhead": {}}
    print("milliseconds per image")
    for count in options.counts:
        with tempfile.TemporaryDirectory() as folder:
            generate(Path(folder), count)
            assert len(images_below(Path(folder))) == count
            found["overhead"][count] = {}
            for way in options.ways:
                command = [sys.executable, __file__, "--only", way, "--images", folder]
                ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                row = json.loads(ran.stdout.splitlines()[-1])
                found["overhead"][count][way] = row
                told = "  ".join(f"{phase} {ms:.3f}" for phase, ms in row.items())
                print(f"{count:>8} {way:>4}  {told}", flush=True)
    per_pixel, per_megapixel = 0.214, 88.0  # what the measurements below gave; see docs/scale.md
    if options.camvid and options.teacher:
        found["bytes"] = stored(options.camvid, options.teacher)
        print("bytes per image of CamVid: " + ", ".join(
            f"{k} {v:.0f}" for k, v in found["bytes"].items()))  # fmt: skip
        per_pixel = (found["bytes"]["labels"] + found["bytes"]["confidence"]) / (
            found["bytes"]["pixels"])  # fmt: skip
        found["core_ms_per_megapixel"] = cores(options.camvid, options.teacher)
        per_megapixel = sum(found["core_ms_per_megapixel"].values())
        print("milliseconds of a core per million pixels: " + ", ".join(
            f"{k} {v:.1f}" for k, v in found["core_ms_per_megapixel"].items()))  # fmt: skip
    last = found["overhead"][options.counts[-1]]
    found["paper"] = on_paper(options, next(iter(last.values()))["all"], per_megapixel, per_pixel)
    print(f"on paper, {options.seconds} s an image, {options.dollars} dollars an hour:")
    for row in found["paper"]:
        print("  ".join(f"{name} {number:.4g}" for name, number in row.items()))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
