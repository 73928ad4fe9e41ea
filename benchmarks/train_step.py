"""What a training step costs: one scale, hierarchical at two, explicit attention over three.
`ours_lean` is hierarchical as `hmsa train` runs it: with memory `lean`.

    python benchmarks/train_step.py [--trunk resnet50 --head deeplab --stride 8] [--batch 2]

Same trunk and head, 19 classes, forward and backward. FLOPs by torch's own counter. `saved` are the
bytes of all tensors that operations of the forward pass have made and that still exist before
backward: what autograd keeps, what is kept beside it, and the outputs; `peak` is what the process
holds above what it held before its first step. Each network has its own process; they take their
timed steps in turn, and the quickest of each counts (without a GPU, in seconds of the processor).
Official: what the official code was measured to take for resnet50, deeplab, 256x512, batch 2, on
two CPU cores. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from contextlib import nullcontext

import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from hmsa.config.recipe import Joint
from hmsa.model import build
from hmsa.runs.machine import autocast, keep_memory
from hmsa.runs.memory import Alive
from hmsa.training.lean import lean, regions
from hmsa.training.losses import objective

KINDS = {
    "single": ("average", (1.0,)),
    "hierarchical": ("hierarchical", (0.5, 1.0)),
    "ours_lean": ("hierarchical", (0.5, 1.0)),
    "explicit": ("explicit", (0.5, 1.0, 2.0)),
}
OFFICIAL = {
    "flops": {"single": 1, "hierarchical": 1.318, "explicit": 5.492},
    "saved_mib": {"single": 1098, "hierarchical": 1498, "explicit": 5878},
    "step_s": {"single": 1, "hierarchical": 1.29, "explicit": 5.9},
}
CLASSES = 19
STAGE = Joint(supervision=0)  # cross-entropy


def measure(kind: str, options: argparse.Namespace) -> None:
    """All that one network takes, in this process: counts first, then a step for each line read."""
    keep_memory()
    fusion, scales = KINDS[kind]
    torch.manual_seed(0)
    model = build(
        fusion=fusion, classes=CLASSES, trunk=options.trunk, head=options.head,
        stride=options.stride, width=256, official=options.official,
    ).train()  # fmt: skip
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = model.to(device, memory_format=torch.channels_last)
    image = torch.rand(options.batch, 3, *options.size, device=device)
    label = torch.randint(0, CLASSES, (options.batch, *options.size), device=device)
    found = regions(model) if kind == "ours_lean" else []
    before = _held(device)

    def step(alive: Alive | None = None) -> int:
        model.zero_grad()
        with alive or nullcontext(), autocast(device, options.precision), lean(found):
            loss = objective(model(image, scales), label, STAGE)["loss"]
        saved = alive.now if alive else 0
        loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return saved

    saved = step(Alive())
    peak = _held(device) - before
    with FlopCounterMode(display=False) as counter:
        step()
    counts = {
        "flops": counter.get_total_flops(),
        "saved_mib": saved / 2**20,
        "peak_mib": peak / 2**20,
    }
    print(json.dumps(counts), flush=True)
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    for _ in sys.stdin:
        start = clock()
        step()
        print(clock() - start, flush=True)


def _held(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def answer(process: subprocess.Popen[str]) -> str:
    line = process.stdout.readline()
    if not line:
        sys.exit(f"a process ended with {process.wait()}")
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trunk", default="resnet50")
    parser.add_argument("--head", default="deeplab")
    parser.add_argument("--stride", type=int, default=8)
    parser.add_argument("--official", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--size", type=int, nargs=2, default=(256, 512))
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        measure(options.only, options)
        return
    found: dict[str, dict[str, float]] = {}
    running: dict[str, subprocess.Popen[str]] = {}
    for kind in KINDS:
        command = [sys.executable, __file__, *sys.argv[1:], "--only", kind]
        pipe = subprocess.PIPE
        running[kind] = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        found[kind] = json.loads(answer(running[kind]))
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(options.repeats):
        for kind, process in running.items():
            process.stdin.write("\n")
            process.stdin.flush()
            times[kind].append(float(answer(process)))
    for kind, process in running.items():
        process.communicate()
        found[kind]["step_s"] = min(times[kind])  # whatever else the machine does only adds
    what = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    print(
        f"{options.trunk}, {options.head} head, stride {options.stride}, {CLASSES} classes, batch "
        f"{options.batch} of {options.size[0]}x{options.size[1]}, {options.precision}, {what}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, timm {timm.__version__}"
    )
    print(f"{'':>22}" + "".join(f"{kind:>24}" for kind in KINDS))
    for measured, unit in (
        ("flops", "GFLOP"), ("saved_mib", "MiB saved"), ("peak_mib", "MiB peak"), ("step_s", "s"),
    ):  # fmt: skip
        first = found["single"][measured]
        cells = []
        for kind in KINDS:
            value = found[kind][measured] / (1e9 if measured == "flops" else 1)
            cells.append(f"{value:14,.2f} ({found[kind][measured] / first:.3f}x)")
        print(f"{unit:>22}" + "".join(f"{cell:>24}" for cell in cells))
        if measured in OFFICIAL:
            row = "".join(f"{OFFICIAL[measured].get(kind, ''):>24}" for kind in KINDS)
            print(f"{'official':>22}{row}")
    keys = ("flops", "saved_mib", "peak_mib", "step_s")
    print(json.dumps({key: {kind: found[kind][key] for kind in KINDS} for key in keys}))


if __name__ == "__main__":
    main()
