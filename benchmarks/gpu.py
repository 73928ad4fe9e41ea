"""Everything that one GPU can say within 8 minutes: what training, inference and RMI cost on it.

    python benchmarks/gpu.py [--trunk hrnet_w48 --head ocr --stride 4] [--minutes 8]

In turn: limits of the card (products of matrices, copies); a training step at one scale,
hierarchical and explicit, in fp32, bf16 and with memory lean; inference at scales (1), (0.5, 1) and
(0.5, 1, 2), ours beside a plain one that keeps all maps whole; the RMI loss; the largest square
crop that fits; a step with a compiled trunk. Random weights. `peak` is what is allocated above the
loaded network. What no time is left for is left out, and said. A row with device and versions is
appended to results/gpu.jsonl (--results). Without a GPU it does most of it on the CPU with a small
network and small images, which shows that it runs, and no more.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import rmi
import timm
import torch
import train_step

from hmsa.inference.predictor import Predictor
from hmsa.model import HMSA, heads
from hmsa.runs import replace, say
from hmsa.runs.machine import describe_machine
from hmsa.training.lean import regions

RESULTS = Path(__file__).parent / "results" / "gpu.jsonl"
SCALES = ((1.0,), (0.5, 1.0), (0.5, 1.0, 2.0))
STEPS = (("fp32", "plain"), ("bf16", "plain"), ("bf16", "lean"))  # precision, memory
COMPILING = 150  # seconds that must be left
NETWORKS = ("single", "hierarchical", "explicit")
Row = dict[str, Any]


class Machine:
    """A device, its clock and its memory; it is used for some seconds."""

    def __init__(self, seconds: float) -> None:
        self.until = time.monotonic() + seconds
        self.gpu = torch.cuda.is_available()
        self.device = torch.device("cuda" if self.gpu else "cpu")

    def left(self) -> float:
        return self.until - time.monotonic()

    def wait(self) -> None:
        if self.gpu:
            torch.cuda.synchronize()

    def free(self) -> None:
        gc.collect()
        if self.gpu:
            torch.cuda.empty_cache()

    def cost(self, act: Callable[[], object], repeats: int) -> Row:
        """Median seconds, after one call that is not timed, and the peak in MiB; or why not."""
        self.free()
        held = torch.cuda.memory_allocated() if self.gpu else 0
        if self.gpu:
            torch.cuda.reset_peak_memory_stats()
        try:
            act()
            peak = (torch.cuda.max_memory_allocated() - held) / 2**20 if self.gpu else None
            return {"seconds": self.seconds(act, repeats), "peak_mib": peak}
        except Exception as error:  # of a compiler, too; all else is still worth measuring
            return {"failed": f"{type(error).__name__}: {str(error).strip().splitlines()[0][:120]}"}

    def seconds(self, act: Callable[[], object], repeats: int) -> float:
        times = []
        for _ in range(repeats):
            self.wait()
            start = time.perf_counter()
            act()
            self.wait()
            times.append(time.perf_counter() - start)
        return statistics.median(times)


def limits(machine: Machine, options: argparse.Namespace) -> Iterator[Row]:
    """What the card can do at best."""
    side = 8192 if machine.gpu else 512
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        one = torch.randn(side, side, device=machine.device, dtype=dtype)
        seconds = machine.cost(partial(torch.matmul, one, one), options.repeats)["seconds"]
        yield {"product": name, "tflops": 2 * side**3 / seconds / 1e12}
    one = torch.empty(2**30 if machine.gpu else 2**24, dtype=torch.uint8, device=machine.device)
    seconds = machine.cost(partial(torch.empty_like(one).copy_, one), options.repeats)["seconds"]
    yield {"copy": "read and written", "gb_per_s": 2 * one.numel() / seconds / 1e9}


def training(machine: Machine, options: argparse.Namespace) -> Iterator[Row]:
    """A training step of each network in each way."""
    for (precision, memory), kind in product(STEPS, NETWORKS):
        model = train_step.network(kind, options, machine.device)
        row = one_step(machine, options, model, kind, precision, memory)
        yield {"network": kind, "precision": precision, "memory": memory, **row}


def compiled(machine: Machine, options: argparse.Namespace) -> Iterator[Row]:
    """A step with a compiled trunk, the last of all, as to compile takes minutes."""
    if machine.gpu and machine.left() > COMPILING:
        model = train_step.network("hierarchical", options, machine.device)
        model.trunk.compile()
        row = one_step(machine, options, model, "hierarchical", "bf16", "plain")
        yield {"network": "hierarchical", "precision": "bf16", "memory": "plain", **row}


def one_step(machine: Machine, options: argparse.Namespace, model: HMSA, *way: str) -> Row:
    kind, precision, memory = way
    batch = train_step.batch_of(options.batch, options.crop, machine.device)
    found = regions(model) if memory == "lean" else []
    step = partial(train_step.take_step, model, kind, batch, precision, found)
    row = machine.cost(step, options.repeats)
    return row | ({"images_per_s": options.batch / row["seconds"]} if "seconds" in row else {})


def largest_crop(machine: Machine, options: argparse.Namespace) -> Iterator[Row]:
    """The largest side of a square crop, in steps of 64 pixels, of one image in bf16."""
    if not machine.gpu:
        return
    for kind, memory in product(("hierarchical", "explicit"), ("lean", "plain")):
        model = train_step.network(kind, options, machine.device)
        found = regions(model) if memory == "lean" else []

        def fits(side: int) -> bool:
            batch = train_step.batch_of(1, (side, side), machine.device)
            try:
                train_step.take_step(model, kind, batch, "bf16", found)  # noqa: B023, called here
                return True
            except torch.cuda.OutOfMemoryError:
                return False
            finally:
                model.zero_grad()  # noqa: B023
                machine.free()

        # Bytes grow with pixels: a guess from a small crop, then one step after the other
        small, total = 512, torch.cuda.get_device_properties(0).total_memory
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        side = 0
        if fits(small):
            pixel = (torch.cuda.max_memory_allocated() - held) / small**2
            side = int(math.sqrt((total - held) / pixel)) // 64 * 64
            while side > small and not fits(side):
                side -= 64
            while machine.left() > 0 and fits(side + 64):
                side += 64
        yield {"network": kind, "memory": memory, "largest_crop": side}


@contextmanager
def plain_maps() -> Iterator[None]:
    """Heads make all rows at once, as a plain implementation does."""
    rows, heads.ROWS = heads.ROWS, 1 << 30
    try:
        yield
    finally:
        heads.ROWS = rows


def inference(machine: Machine, options: argparse.Namespace) -> Iterator[Row]:
    """One image, from its pixels on the CPU to its label there."""
    model = train_step.network("hierarchical", options, machine.device).eval()
    image = torch.randint(0, 256, (*options.size, 3), dtype=torch.uint8)
    pixels = image.permute(2, 0, 1)[None]

    @torch.inference_mode()
    def plain(scales: tuple[float, ...]) -> object:
        logits = model(pixels.to(machine.device), scales).logits
        return logits.softmax(1).max(1)[1][0].to(torch.uint8).cpu()

    for scales in SCALES:
        with plain_maps():
            yield {"way": "plain fp32", "scales": scales, **machine.cost(
                partial(plain, scales), options.repeats
            )}  # fmt: skip
        for precision in ("fp32", "bf16"):
            ours = Predictor(model, scales, precision, machine.device, tile=None, backend="torch")
            row = machine.cost(partial(_label, ours, image), options.repeats)
            yield {"way": f"ours {precision}", "scales": scales, **row}


def _label(predictor: Predictor, image: torch.Tensor) -> object:
    return predictor(image.numpy()).label


def losses(machine: Machine, options: argparse.Namespace) -> Iterator[Row]:
    """RMI on one crop, forward and backward, as benchmarks/rmi.py measures it."""
    _, label = train_step.batch_of(1, options.crop, machine.device)
    logits = 3 * torch.randn(1, rmi.CLASSES, *options.crop, device=machine.device)
    logits.requires_grad_()
    for name, loss in (("plain", rmi.plain), ("ours", rmi.ours), ("entropy", rmi.entropy)):
        yield {"loss": name, **rmi.measure(loss, logits, label)}


PARTS = (limits, training, inference, losses, largest_crop, compiled)


def shown(row: Row) -> str:
    cells = {k: f"{v:.4g}" if isinstance(v, float) else str(v) for k, v in row.items()}
    return "  ".join(f"{name} {cell}" for name, cell in cells.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    gpu = torch.cuda.is_available()
    size, crop = ([1024, 2048], [512, 1024]) if gpu else ([128, 256], [64, 128])
    parser.add_argument("--trunk", default="hrnet_w48" if gpu else "resnet18")
    parser.add_argument("--head", default="ocr" if gpu else "plain")
    parser.add_argument("--stride", type=int, default=4)
    parser.add_argument("--official", action=argparse.BooleanOptionalAction, default=gpu)
    parser.add_argument("--batch", type=int, default=2, help="of a training step")
    parser.add_argument("--crop", type=int, nargs=2, default=crop, help="of a training step")
    parser.add_argument("--size", type=int, nargs=2, default=size, help="of an inference")
    parser.add_argument("--repeats", type=int, default=5 if gpu else 1)
    parser.add_argument("--minutes", type=float, default=8, help="after which nothing more begins")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    machine = Machine(60 * options.minutes)
    about = f"{describe_machine(machine.device)}, timm {timm.__version__}"
    if not gpu:
        say("no GPU is at hand: the CPU part, with a small network")
    print(f"{options.trunk}, {options.head} head, stride {options.stride}; {about}")
    found: dict[str, list[Row]] = {}
    for part in PARTS:
        found[part.__name__] = rows = []
        for row in part(machine, options):
            rows.append(row)
            print(f"{part.__name__:>13}  {shown(row)}", flush=True)
            if machine.left() < 0:
                say(f"the time is over: the rest of {part.__name__} is left out")
                break
    asked = {name: value for name, value in vars(options).items() if name != "results"}
    made = {"machine": about, "date": str(datetime.date.today()), "options": asked, **found}
    before = options.results.read_text() if options.results.is_file() else ""
    replace(options.results, lambda file: file.write_text(before + json.dumps(made) + "\n"))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
