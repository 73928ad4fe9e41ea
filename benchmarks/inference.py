"""What the whole chain costs at inference: ours, ours in bf16, and a plain full-size one.

    python benchmarks/inference.py [--sizes 256x512 512x1024] [--trunk hrnet_w48 --head ocr]
    python benchmarks/inference.py --checkpoint RUN --picture street.jpg

Scales 0.5, 1 and 2, one picture; 19 classes and random weights, or a trained network. Plain: every
head and every map whole, at full size, in fp32. `peak` is what the process holds above what it held
with the network loaded; each way has its own process, with one allocator setting for all.
`agreement` is the share of pixels with the plain way's label. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from hmsa.inference.predictor import Predictor
from hmsa.model import HMSA, heads
from hmsa.runs.machine import keep_memory

SCALES = (0.5, 1.0, 2.0)
WAYS = ("plain", "ours", "ours_bf16")
# Measured for the official code on two CPU cores, HRNet-W48 + OCR: seconds, MiB
OFFICIAL = {"256x512": (3.1, 774), "512x1024": (11.7, 2289), "1024x2048": (None, 9216)}


def network(options: argparse.Namespace) -> HMSA:
    """Random weights that neither explode nor say the same everywhere: norms have seen noise."""
    if options.checkpoint:
        return HMSA.from_pretrained(options.checkpoint)
    torch.manual_seed(0)
    model = HMSA(19, options.trunk, head=options.head, width=256, official=options.official)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        model.train()(torch.rand(2, 3, 128, 128), (0.5, 1.0))
    return model.eval()


def measure(way: str, options: argparse.Namespace) -> dict[str, float]:
    keep_memory()
    height, width = (int(side) for side in options.sizes[0].split("x"))
    model = network(options)
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (height // 16, width // 16, 3), np.uint8)
    grain = rng.integers(0, 128, (height, width, 3), np.uint8)
    image = coarse.repeat(16, 0).repeat(16, 1) // 2 + grain
    if options.picture:
        image = np.array(Image.open(options.picture).convert("RGB").resize((width, height)))
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
    precision = "bf16" if way == "ours_bf16" else "fp32"
    predictor = Predictor(model, SCALES, precision, tile=None)
    if way == "plain":
        heads.ROWS = 1 << 30
        model.to(memory_format=torch.contiguous_format)

    def run() -> np.ndarray:
        if way != "plain":
            return predictor(image).label
        with torch.inference_mode():
            _, label = model(pixels, SCALES).logits.softmax(1).max(1)
        return label[0].to(torch.uint8).numpy()

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = []
    for _ in range(options.repeats):
        start = time.perf_counter()
        label = run()
        times.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    with FlopCounterMode(display=False) as counter:
        run()
    np.save(Path(options.keep) / f"{way}.npy", label)
    return {
        "seconds": min(times), "peak_mib": peak / 1024, "gflop": counter.get_total_flops() / 1e9
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["256x512", "512x1024", "1024x2048"])
    parser.add_argument("--trunk", default="hrnet_w48")
    parser.add_argument("--head", default="ocr")
    parser.add_argument("--official", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--checkpoint", help="a trained network instead")
    parser.add_argument("--picture", help="the image, brought to each size")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--only", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--keep", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measure(options.only, options)))
        return
    shown = options.checkpoint or f"{options.trunk}, {options.head} head, random weights"
    print(
        f"{shown}, scales 0.5, 1, 2, CPU {platform.machine()}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    print(f"{'size':>10}{'way':>11}{'s':>9}{'of plain':>10}{'MiB':>8}{'of plain':>10}{'GFLOP':>9}"
          f"{'agreement':>11}")  # fmt: skip
    found: dict[str, dict[str, dict[str, float]]] = {}
    for size in options.sizes:
        found[size] = {}
        with tempfile.TemporaryDirectory() as folder:
            for way in WAYS:
                command = [
                    sys.executable, __file__, "--only", way, "--keep", folder, "--sizes", size,
                    "--trunk", options.trunk, "--head", options.head,
                    "--repeats", str(options.repeats),
                    *(["--checkpoint", options.checkpoint] if options.checkpoint else []),
                    *(["--picture", options.picture] if options.picture else []),
                    "--official" if options.official else "--no-official",
                ]  # fmt: skip
                ran = subprocess.run(command, check=True, capture_output=True, text=True)
                row = json.loads(ran.stdout.splitlines()[-1])
                plain, label = (np.load(Path(folder) / f"{w}.npy") for w in ("plain", way))
                row["agreement"] = float((plain == label).mean())
                found[size][way] = row
                first = found[size]["plain"]
                print(
                    f"{size:>10}{way:>11}{row['seconds']:9.2f}"
                    f"{row['seconds'] / first['seconds']:10.2f}{row['peak_mib']:8.0f}"
                    f"{row['peak_mib'] / first['peak_mib']:10.2f}{row['gflop']:9.0f}"
                    f"{row['agreement']:11.4%}",
                    flush=True,
                )
        if size in OFFICIAL:
            seconds, mib = OFFICIAL[size]
            print(f"{size:>10}{'official':>11}{seconds or float('nan'):9.2f}{'':>10}{mib:8.0f}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
