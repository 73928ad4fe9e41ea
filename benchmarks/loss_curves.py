"""Whether training in less memory learns the same: loss curves of `memory: plain` in fp32, of
`lean` in fp32 and in bf16, all from one seed, and of plain from another seed, which is the noise.

    python benchmarks/loss_curves.py [--steps 400] [--out runs/loss-curves] [--plot curves.png]

`hmsa train` itself on the images of the demo, at 128x128 and from random weights. Prints how far
the loss of single steps lies from that of plain, and means over the last 50 steps; the last line is
one JSON object. `hmsa compare` of the run folders shows them as well.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path

import matplotlib
import numpy as np
import torch

from hmsa.config.reading import read
from hmsa.config.recipe import Recipe
from hmsa.runs.machine import describe_machine, keep_memory
from hmsa.training import trainer
from hmsa.training.metrics import read_curves
from hmsa.training.train import train

DATA = Path(__file__).parents[1] / "examples" / "aerial" / "dataset.yaml"
RUNS = {  # what differs, and how it is drawn
    "plain, fp32": (["joint.memory=plain"], {"color": "#d55e00", "linewidth": 4, "alpha": 0.45}),
    "lean, fp32": (["joint.memory=lean"], {"color": "#0072b2", "linewidth": 1}),
    "lean, bf16": (["joint.memory=lean", "precision=bf16"], {"color": "#009e73", "linewidth": 1}),
    "plain, fp32, seed 1": (["joint.memory=plain", "seed=1"], {"color": "0.6", "linewidth": 1}),
}
SMOOTH = 15  # steps of which a curve shows the mean
LAST = 50  # steps


def run(name: str, changes: list[str], steps: int, out: Path) -> tuple[np.ndarray, float, float]:
    """Loss of each step, final mIoU on val, seconds of the processor."""
    settings = [
        f"data.dataset={json.dumps(str(DATA))}", "data.long_edge=256", "data.workers=0",
        "model.trunk=hrnet_w18_small", "model.pretrained=false", "model.width=32",
        f"joint.steps={steps}", "joint.batch=4", "joint.crop=[128, 128]", "joint.warmup=30",
        f"joint.validate_every={steps}", "attention.steps=0", "accelerator=cpu", "precision=fp32",
    ]  # fmt: skip
    folder, began = out / name.replace(", ", "-").replace(" ", "-"), time.process_time()
    shutil.rmtree(folder, ignore_errors=True)
    train(read(Recipe, None, [*settings, *changes]), folder, DATA)
    rows = read_curves(folder)
    loss = np.array([row["loss"] for row in rows])
    return loss, rows[-1]["val_miou"], time.process_time() - began


def draw(curves: dict[str, np.ndarray], file: Path) -> None:
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4), dpi=120, layout="constrained")
    for name, loss in curves.items():
        mean = np.convolve(loss, np.ones(SMOOTH) / SMOOTH, "valid")
        axes.plot(np.arange(len(mean)) + SMOOTH, mean, label=name, **RUNS[name][1])
    axes.set(xlabel="step", ylabel=f"training loss, mean of {SMOOTH} steps")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--out", type=Path, default=Path("runs/loss-curves"))
    parser.add_argument("--plot", type=Path, default=Path("docs/pictures/loss-curves.png"))
    options = parser.parse_args()
    keep_memory()
    trainer.LOG_EVERY = 1
    found = {name: run(name, RUNS[name][0], options.steps, options.out) for name in RUNS}
    draw({name: loss for name, (loss, *_) in found.items()}, options.plot)
    first, summary = found["plain, fp32"][0], {}
    for name, (loss, miou, seconds) in found.items():
        gap = np.abs(loss - first)
        summary[name] = {
            "loss": loss[-LAST:].mean(), "largest_gap": gap.max(), "mean_gap": gap.mean(),
            "val_miou": miou, "seconds": seconds,
        }  # fmt: skip
        print(f"{name:>20}  " + "  ".join(f"{k} {v:.4g}" for k, v in summary[name].items()))
    print(f"{options.steps} steps, {describe_machine(torch.device('cpu'))}")
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
