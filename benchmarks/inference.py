"""What the whole chain costs at inference: ours on each backend, a plain full-size one, and others.

    python benchmarks/inference.py [--sizes 256x512 512x1024] [--trunk hrnet_w48 --head ocr]
    python benchmarks/inference.py --demo --sizes 256x512
    python benchmarks/inference.py --checkpoint RUN --picture street.jpg

Scales 0.5, 1 and 2, one picture; random weights, or a trained network. Plain: every head and every
map whole, at full size, in fp32. ttach: multi-scale test-time augmentation around the same network,
by that library. graph: the whole chain as `hmsa export` writes it, in OpenVINO by itself. bare: the
network alone in OpenVINO, at the three sizes, without fusion. `cpu` are seconds of the process,
`peak` is what it holds above what it held with the network loaded; each way has its own process,
with the system's allocator as it is. `agreement` is the share of pixels with the plain way's label.
The last line is one JSON object.
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
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from hmsa.inference.export import freeze, write
from hmsa.inference.predictor import Predictor
from hmsa.inference.tiles import Runner
from hmsa.model import HMSA, heads

SCALES = (0.5, 1.0, 2.0)
WAYS = ("plain", "ours", "ours_bf16")
BACKENDS = ("openvino", "openvino_bf16", "onnxruntime", "ttach", "graph", "bare")
# Measured for the official code on two CPU cores, HRNet-W48 + OCR: seconds, MiB
OFFICIAL = {"256x512": (3.1, 774), "512x1024": (11.7, 2289), "1024x2048": (None, 9216)}


def network(options: argparse.Namespace) -> HMSA:
    """Random weights that neither explode nor say the same everywhere: norms have seen noise."""
    if options.checkpoint:
        return HMSA.from_pretrained(options.checkpoint)
    torch.manual_seed(0)
    if options.demo:
        model = HMSA(7, "tf_efficientnet_lite0", width=64)
    else:
        model = HMSA(19, options.trunk, head=options.head, width=256, official=options.official)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        model.train()(torch.rand(2, 3, 128, 128), (0.5, 1.0))
    return model.eval()


def measure(way: str, options: argparse.Namespace) -> dict[str, float]:
    height, width = (int(side) for side in options.sizes[0].split("x"))
    model = network(options)
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (height // 16, width // 16, 3), np.uint8)
    grain = rng.integers(0, 128, (height, width, 3), np.uint8)
    image = coarse.repeat(16, 0).repeat(16, 1) // 2 + grain
    if options.picture:
        image = np.array(Image.open(options.picture).convert("RGB").resize((width, height)))
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
    run = runner(way, model, image, pixels)
    if way == "plain":
        heads.ROWS = 1 << 30
        model.to(memory_format=torch.contiguous_format)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times, cpu = [], []
    for _ in range(options.repeats):
        start, used = time.perf_counter(), time.process_time()
        label = run()
        times.append(time.perf_counter() - start)
        cpu.append(time.process_time() - used)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    row = {"seconds": min(times), "cpu": min(cpu), "peak_mib": peak / 1024}
    if label is not None:
        np.save(Path(options.keep) / f"{way}.npy", label)
    if way in WAYS:
        with FlopCounterMode(display=False) as counter:
            run()
        row["gflop"] = counter.get_total_flops() / 1e9
    return row


def runner(
    way: str, model: HMSA, image: np.ndarray, pixels: torch.Tensor
) -> Callable[[], np.ndarray | None]:
    """What is measured: a call that returns the label, if it makes one."""
    if way in ("plain", "ttach"):
        network: Callable = (
            model_at_once(model) if way == "ttach" else partial(model, scales=SCALES)
        )

        @torch.inference_mode()
        def run() -> np.ndarray:
            made = network(pixels)
            logits = made if way == "ttach" else made.logits
            return logits.softmax(1).max(1)[1][0].to(torch.uint8).numpy()

        return run
    if way in ("graph", "bare"):
        import openvino

        precision = {"INFERENCE_PRECISION_HINT": "f32"}
        precision["INFERENCE_NUM_THREADS"] = torch.get_num_threads()
    if way == "graph":
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "network.onnx"
            eager = Predictor(model, SCALES, "fp32", "cpu", tile=None, backend="torch")
            write(file, freeze(eager, image.shape[:2]), model.card, image.shape[:2])
            whole = openvino.Core().compile_model(file, "CPU", precision)
        return lambda seen=pixels: whole(seen.numpy())[0][0]
    predictor = Predictor(
        model, SCALES, "bf16" if way.endswith("bf16") else "fp32", "cpu", tile=None,
        backend={"ours": "torch", "bare": "openvino"}.get(name := way.removesuffix("_bf16"), name),
    )  # fmt: skip
    fast = predictor._network().run
    if way == "bare":
        return lambda seen=pixels: Runner(fast, seen).run(list(SCALES)) and None
    return lambda: predictor(image).label


def model_at_once(model: HMSA) -> torch.nn.Module:
    import ttach

    class Logits(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return model(image, (1,)).logits

    scales = ttach.Compose([ttach.Scale(SCALES, interpolation="bilinear", align_corners=False)])
    return ttach.SegmentationTTAWrapper(Logits(), scales, merge_mode="mean")


def peak_of_processor() -> float:
    """GFLOP a CPU second of a product of matrices in fp32: what a core can do."""
    one, best = torch.rand(1536, 1536), 1e9
    for _ in range(5):
        start = time.process_time()
        one @ one
        best = min(best, time.process_time() - start)
    return 2 * 1536**3 / best / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["256x512", "512x1024", "1024x2048"])
    parser.add_argument("--trunk", default="hrnet_w48")
    parser.add_argument("--head", default="ocr")
    parser.add_argument("--official", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--checkpoint", help="a trained network instead")
    parser.add_argument("--picture", help="the image, brought to each size")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--demo", action="store_true", help="the network of make demo instead")
    parser.add_argument("--ways", nargs="+", default=[*WAYS, *BACKENDS], help="plain and others")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    parser.add_argument("--keep", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measure(options.only, options)))
        return
    shown = options.checkpoint or f"{options.trunk}, {options.head} head, random weights"
    shown = "tf_efficientnet_lite0, plain head, random weights" if options.demo else shown
    print(
        f"{shown}, scales 0.5, 1, 2, CPU {platform.machine()}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"{peak_of_processor():.0f} GFLOP a CPU second in a product of matrices"
    )
    print(f"{'size':>10}{'way':>14}{'s':>8}{'cpu':>8}{'of plain':>9}{'MiB':>7}{'of plain':>9}"
          f"{'GFLOP':>8}{'agreement':>11}")  # fmt: skip
    found: dict[str, dict] = {}
    for size in options.sizes:
        found[size] = {"backends": {}}
        with tempfile.TemporaryDirectory() as folder:
            for way in options.ways:
                command = [
                    sys.executable, __file__, "--only", way, "--keep", folder, "--sizes", size,
                    "--trunk", options.trunk, "--head", options.head,
                    "--repeats", str(options.repeats), *(["--demo"] if options.demo else []),
                    *(["--checkpoint", options.checkpoint] if options.checkpoint else []),
                    *(["--picture", options.picture] if options.picture else []),
                    "--official" if options.official else "--no-official",
                ]  # fmt: skip
                ran = subprocess.run(command, capture_output=True, text=True)
                if ran.returncode:
                    print(f"{size:>10}{way:>14} {ran.stderr.strip().splitlines()[-1]}")
                    continue
                row = json.loads(ran.stdout.splitlines()[-1])
                if (label := Path(folder) / f"{way}.npy").is_file():
                    plain = np.load(Path(folder) / "plain.npy")
                    row["agreement"] = float((plain == np.load(label)).mean())
                (found[size] if way in WAYS else found[size]["backends"])[way] = row
                first, none = found[size]["plain"], float("nan")
                print(
                    f"{size:>10}{way:>14}{row['seconds']:8.2f}{row['cpu']:8.2f}"
                    f"{row['cpu'] / first['cpu']:9.2f}{row['peak_mib']:7.0f}"
                    f"{row['peak_mib'] / first['peak_mib']:9.2f}{row.get('gflop', none):8.0f}"
                    f"{row.get('agreement', none):11.4%}",
                    flush=True,
                )
        if size in OFFICIAL and not options.demo:
            seconds, mib = OFFICIAL[size]
            print(f"{size:>10}{'official':>14}{seconds or float('nan'):8.2f}{'':>17}{mib:7.0f}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
