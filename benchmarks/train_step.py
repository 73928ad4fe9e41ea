"""What a training step costs: one scale, hierarchical at two, explicit attention over three.
`ours_lean` is hierarchical as `hmsa train` runs it: with memory `lean`.

    python benchmarks/train_step.py [--trunk resnet50 --head deeplab --stride 8] [--batch 2]
    python benchmarks/train_step.py --plan

Same trunk and head, 19 classes, forward and backward. FLOPs by torch's own counter. `saved` are the
bytes of all tensors that operations of the forward pass have made and that still exist before
backward: what autograd keeps, what is kept beside it, and the outputs; `peak` is what the process
holds above what it held before its first step. Each network has its own process; they take their
timed steps in turn, and the quickest of each counts (without a GPU, in seconds of the processor).
Official: what the official code was measured to take for resnet50, deeplab, 256x512, batch 2, on
two CPU cores. The last line is one JSON object.

With --plan: what `hmsa train --plan` says beside what training then takes above the loaded
network, with optimizer, moving average and checkpoints. Each has its own process.
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
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import psutil
import timm
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from hmsa.config.recipe import Joint, Model, Recipe
from hmsa.evaluation.confusion import Confusion
from hmsa.model import HMSA, build
from hmsa.runs.machine import Precision, autocast, keep_memory, launch
from hmsa.runs.memory import Alive
from hmsa.training.lean import lean, regions
from hmsa.training.losses import objective
from hmsa.training.plan import plans
from hmsa.training.trainer import Outputs, Trainer, Validation, Work

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


def network(kind: str, options: argparse.Namespace, device: torch.device) -> HMSA:
    """With random weights, ready to be trained."""
    torch.manual_seed(0)
    model = build(
        fusion=KINDS[kind][0], classes=CLASSES, trunk=options.trunk, head=options.head,
        stride=options.stride, width=256, official=options.official,
    )  # fmt: skip
    return model.to(device, memory_format=torch.channels_last).train()


def batch_of(count: int, size: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Random images and labels."""
    image = torch.rand(count, 3, *size, device=device)
    return image, torch.randint(0, CLASSES, (count, *size), device=device)


def take_step(
    model: HMSA,
    kind: str,
    batch: tuple[Tensor, Tensor],
    precision: Precision,
    found: Sequence[torch.nn.Module] = (),
    alive: Alive | None = None,
) -> int:
    """Forward and backward; returns the bytes saved for backward, if `alive` counts them."""
    image, label = batch
    model.zero_grad()
    with alive or nullcontext(), autocast(image.device, precision), lean(found):
        loss = objective(model(image, KINDS[kind][1]), label, STAGE)["loss"]
    saved = alive.now if alive else 0
    loss.backward()
    if image.is_cuda:
        torch.cuda.synchronize()
    return saved


def measure(kind: str, options: argparse.Namespace) -> None:
    """All that one network takes, in this process: counts first, then a step for each line read."""
    keep_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = network(kind, options, device)
    batch = batch_of(options.batch, options.size, device)
    found = regions(model) if kind == "ours_lean" else []
    step = partial(take_step, model, kind, batch, options.precision, found)
    before = _held(device)
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


PLANNED = {  # network, batch, crop
    "EfficientNet-Lite0, plain": (Model(pretrained=False), 8, (288, 288)),
    "HRNet-W18-small, OCR": (
        Model(trunk="hrnet_w18_small", head="ocr", pretrained=False), 4, (256, 256)
    ),
    "ResNet-50, DeepLabV3+": (
        Model(trunk="resnet50", head="deeplab", stride=8, width=256, pretrained=False),
        2, (256, 512),
    ),
}  # fmt: skip


def planned(name: str, memory: str, precision: str) -> None:
    """MiB above the loaded network, for lean and plain as planned or, if named, as measured."""
    keep_memory()
    network, batch, crop = PLANNED[name]
    stage = Joint(steps=4, batch=batch, crop=crop, validate_every=2)
    torch.manual_seed(0)
    model = build(classes=CLASSES, **network.model_dump())
    model = model.to(memory_format=torch.channels_last)
    if not memory:
        recipe = Recipe(data={"dataset": ""}, model=network, joint=stage, precision=precision)
        loaded = sum(tensor.nbytes for tensor in model.state_dict().values())
        found = plans(model, recipe, torch.device("cpu"), 2**36)
        print(json.dumps({each.memory: (each.peak - loaded) / 2**20 for each in found}))
        return
    stage = stage.model_copy(update={"memory": memory})
    image = torch.randint(0, 256, (batch, 3, *crop), dtype=torch.uint8)
    label = torch.randint(0, CLASSES, (batch, *crop))

    def outputs(network: torch.nn.Module, start: int) -> Outputs:
        while True:
            yield network(image, stage.scales), label, None

    nothing = Validation(Confusion(CLASSES))
    work = Work("joint", stage, model, [*stage.scales], outputs, lambda network: nothing)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(launch("cpu", 1, precision), model, Path(folder), torch.ones(CLASSES))
        before = psutil.Process().memory_info().rss
        trainer.run(work)
    print(json.dumps({memory: (_held(torch.device("cpu")) - before) / 2**20}))


def compare(precision: str) -> None:
    """The table of --plan; the last line is one JSON object."""
    rows = {}
    for name in PLANNED:
        found = []
        for memory in ("", "lean", "plain"):
            call = f"import train_step as t; t.planned{name, memory, precision}"
            command, here = [sys.executable, "-c", call], Path(__file__).parent
            ran = subprocess.run(command, cwd=here, stdout=subprocess.PIPE, text=True, check=True)
            found.append(json.loads(ran.stdout))
        plan, *real = found
        rows[name] = {"plan": plan, "real": real[0] | real[1]}
        for memory, mib in rows[name]["real"].items():
            cells = f"{mib:8.0f} MiB, planned {plan[memory]:8.0f} ({plan[memory] / mib:.2f}x)"
            print(f"{name:>28}{memory:>7}{cells}", flush=True)
    print(json.dumps(rows))


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
    parser.add_argument("--plan", action="store_true", help="check `hmsa train --plan` instead")
    parser.add_argument("--only", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        measure(options.only, options)
        return
    if options.plan:
        compare(options.precision)
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
