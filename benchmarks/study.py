"""Does learned attention hold? Each drive held out in turn, every fusion of the network judged.

    python benchmarks/study.py --out runs/study --data ../shared/camvid
    python benchmarks/study.py --out runs/study --table

study.yaml says what is trained: variants of one recipe, folds of a dataset, seeds. A cell is one
variant, fold and seed. Its network is trained jointly, judged, then its attention alone is trained
on all scales, and it is judged again. Each finished cell is a row of results/study.jsonl beside
this file, and is not computed again; its confusion matrix of each image stays in OUT, for the
intervals of --table. Stopped, the same command goes on. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from hmsa.config.reading import read
from hmsa.config.recipe import Recipe
from hmsa.data.datasets import Dataset, open_dataset
from hmsa.evaluation.boundary import Boundary
from hmsa.evaluation.confusion import Confusion
from hmsa.model import HMSA
from hmsa.model.fusion import ScaleOutput, average, effective_weights, maximum, resize
from hmsa.runs.files import replace
from hmsa.runs.machine import autocast, best_device, describe_machine, keep_memory
from hmsa.training.train import train

PLAN = Path(__file__).with_name("study.yaml")
ROWS = Path(__file__).parent / "results" / "study.jsonl"
CHAINS = ((0.5, 1.0), (0.5, 1.0, 2.0), (0.25, 0.5, 1.0, 2.0))
SCALES = CHAINS[-1]
MAIN = CHAINS[1]


class Cell(NamedTuple):
    variant: str
    fold: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.variant}-{self.fold}-{self.seed}"


class Plan:
    """study.yaml."""

    def __init__(self, file: Path) -> None:
        self.file, self.content = file, yaml.safe_load(file.read_text(encoding="utf-8"))

    def cells(self) -> Iterator[Cell]:
        """Seeds come last, so that an unfinished study has whole rows of few seeds."""
        for seed in self.content["seeds"]:
            for variant, about in self.content["variants"].items():
                for fold in self.content["folds"]:
                    if seed in about.get("seeds", [seed]) and fold in about.get("folds", [fold]):
                        yield Cell(variant, fold, seed)

    def recipe(self, cell: Cell, *changes: str) -> Recipe:
        content, fold = self.content, self.content["folds"][cell.fold]
        sections = [content["recipe"], content["variants"][cell.variant].get("set", {})]
        flat = {key: value for section in sections for key, value in section.items()}
        own = {"data.dataset": fold["dataset"], "data.train": fold["train"], "seed": cell.seed}
        own |= {"data.val": fold["judge"]}
        return read(
            Recipe, None, [f"{k}={json.dumps(v)}" for k, v in (flat | own).items()] + list(changes)
        )


def run_cell(plan: Plan, cell: Cell, out: Path, data: Path | None) -> dict[str, Any]:
    """Train and judge one cell; returns its row."""
    keep_memory()
    folder, fold = out / cell.name, plan.content["folds"][cell.fold]
    recipe, began = plan.recipe(cell, "attention.steps=0"), time.monotonic()
    source = Path(fold["dataset"])
    best = train(recipe, folder / "joint", source, pictures=data, resume=True)
    seconds, judged = {"joint": time.monotonic() - began}, open_dataset(source, fold["judge"], data)
    readings = judge(HMSA.from_pretrained(best), judged, "")
    whole = plan.recipe(cell, "joint.steps=0", f"start={json.dumps(str(best.resolve()))}")
    if recipe.model.fusion == "hierarchical" and whole.attention.steps:
        began = time.monotonic()
        best = train(whole, folder / "attention", source, pictures=data, resume=True)
        seconds["attention"] = time.monotonic() - began
        readings |= judge(HMSA.from_pretrained(best), judged, "staged ")
    matrices = {name: found["matrices"] for name, found in readings.items()}
    replace(out / f"{cell.name}.npz", lambda to: np.savez_compressed(to.open("wb"), **matrices))
    scores = {name: score(found) for name, found in readings.items()}
    model = HMSA.from_pretrained(best)
    return {
        "variant": cell.variant, "fold": cell.fold, "seed": cell.seed, "classes": model.card.names,
        "images": len(judged), "readings": scores, "flops": flops(model), "seconds": seconds,
        "machine": describe_machine(best_device()),
    }  # fmt: skip


def pooled(matrices: np.ndarray) -> Confusion:
    """One confusion matrix out of those of all images, `[N,K,K]`."""
    confusion = Confusion(matrices.shape[-1])
    confusion.matrix = torch.from_numpy(matrices.sum(0).astype(np.int64))
    return confusion


def score(found: dict[str, Any]) -> dict[str, Any]:
    confusion = pooled(found["matrices"])
    iou = [round(each, 5) for each in confusion.iou().tolist()]
    row = {"miou": round(confusion.miou(), 5), "iou": iou}
    return row | {key: found[key] for key in ("boundary_f1", "weights") if key in found}


def flops(model: HMSA) -> dict[str, float]:
    """Multiplications and additions of one image of 360 x 480, in 1e9, by chain."""
    image, counts = torch.zeros(1, 3, 360, 480, dtype=torch.uint8), {}
    for chain in [model.scales] if hasattr(model, "scales") else [(1.0,), *CHAINS]:
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            model.encode(image, chain)
        counts[",".join(f"{s:g}" for s in chain)] = counter.get_total_flops() / 1e9
    return counts


def fusions(model: HMSA, image: Tensor, pooled: bool) -> Iterator[tuple[str, Tensor, Any]]:
    """Name, logits `[1,K,H,W]` and maps of every way to read the network; pooled: also the ways
    that do not depend on attention."""
    size = image.shape[-2:]
    explicit = hasattr(model, "scales")  # works at its own scales only
    if explicit:
        output = model(image, model.scales)
        yield "explicit " + ",".join(f"{s:g}" for s in model.scales), output.logits, None
        return
    normal = model.normalise(image)
    encoded = {scale: model.at_scale(normal, scale) for scale in SCALES}
    maps = {s: ScaleOutput(e.grid(e.logits).pixels(), None) for s, e in encoded.items()}
    for scale, one in maps.items() if pooled else ():
        yield f"{scale:g}", resize(one.logits, size), None
    for chain in CHAINS:
        name = ",".join(f"{scale:g}" for scale in chain)
        if pooled:
            part = {scale: maps[scale] for scale in chain}
            yield f"average {name}", average(part, size), None
            yield f"max {name}", maximum(part, size), None
        if model.attention is not None:
            some = {scale: encoded[scale] for scale in chain}
            some[chain[-1]] = some[chain[-1]]._replace(features=None)
            output = model.attend(some, size)
            yield f"hierarchical {name}", output.logits, output.maps


def judge(model: HMSA, dataset: Dataset, prefix: str) -> dict[str, Any]:
    """Confusion matrices `[N,K,K]` of every reading; boundary F1 and weights by class of some."""
    device, k = best_device(), len(dataset.labels.names)
    model = model.to(device, memory_format=torch.channels_last).eval()
    main = ",".join(f"{scale:g}" for scale in MAIN)
    outlined = {name: Boundary(k) for name in ("1", f"average {main}", f"hierarchical {main}")}
    found: dict[str, Any] = {}
    weights = torch.zeros(k, len(MAIN), dtype=torch.float64)

    def add(name: str, label: np.ndarray, logits: Tensor) -> None:
        predicted, confusion = logits.argmax(1)[0].byte().cpu(), Confusion(k)
        confusion.add(label, predicted)
        found.setdefault(name, []).append(confusion.matrix.numpy().astype(np.int32))
        if name in outlined:
            outlined[name].add(label, predicted.numpy())

    with ThreadPoolExecutor(3) as pool, torch.inference_mode():
        for array, label in pool.map(dataset.read, range(len(dataset))):
            image = torch.from_numpy(array).permute(2, 0, 1)[None].to(device)
            mirrored: dict[str, Tensor] = {}
            with autocast(device, "auto"):
                both = [
                    dict_of(fusions(model, each, not prefix)) for each in (image, image.flip(-1))
                ]
            for name, (logits, maps) in both[0].items():
                add(name, label, logits)
                mirrored[name] = logits + both[1][name][0].flip(-1)
                if maps and name == f"hierarchical {main}":
                    for column, weight in enumerate(by_class(maps, label, k)):
                        weights[:, column] += weight
            for name in (f"hierarchical {main}", f"average {main}"):
                if name in mirrored:
                    add(f"{name} flip", label, mirrored[name])
    pixels = sum(m.sum(1) for m in next(iter(found.values())))
    result = {prefix + name: {"matrices": np.stack(each)} for name, each in found.items()}
    for name, boundary in outlined.items():
        if prefix + name in result:
            result[prefix + name]["boundary_f1"] = float(boundary.f1().nanmean())
    if weights.any():
        result[f"{prefix}hierarchical {main}"]["weights"] = (
            weights / torch.from_numpy(pixels)[:, None]
        ).tolist()
    return result


def dict_of(readings: Iterator[tuple[str, Tensor, Any]]) -> dict[str, tuple[Tensor, Any]]:
    return {name: (logits.float(), maps) for name, logits, maps in readings}


def by_class(maps: Any, label: np.ndarray, k: int) -> Iterator[Tensor]:
    """Sum of each scale's weight over the pixels of each true class."""
    for weight in effective_weights(maps, label.shape).values():
        sums = np.bincount(label.ravel(), weight.float().cpu().numpy().ravel(), minlength=256)
        yield torch.from_numpy(sums)[:k]


def rows() -> dict[Cell, dict[str, Any]]:
    lines = ROWS.read_text().splitlines() if ROWS.is_file() else []
    found = [json.loads(line) for line in lines]
    return {Cell(row["variant"], row["fold"], row["seed"]): row for row in found}


def run_all(plan: Plan, cells: Sequence[Cell], jobs: int, arguments: Sequence[str]) -> None:
    """Each cell in a process of its own, `jobs` at a time."""

    def run(cell: Cell) -> None:
        command = [sys.executable, __file__, *arguments, "--cell", *map(str, cell)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            print(f"{cell.name} failed: {done.stderr[-2000:]}", file=sys.stderr)
            return
        with ROWS.open("a") as file:
            file.write(done.stdout.splitlines()[-1] + "\n")
        print(f"{cell.name} done", file=sys.stderr, flush=True)

    ROWS.parent.mkdir(exist_ok=True)
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(run, cells))


def interval(pairs: list[tuple[np.ndarray, np.ndarray]], draws: int = 1000) -> tuple[float, ...]:
    """Mean difference of mIoU over cells, and its 95 % interval over images, by the bootstrap."""
    generator, differences = np.random.default_rng(0), []

    for _ in range(draws):
        gaps = []
        for one, other in pairs:
            drawn = generator.integers(0, len(one), len(one))
            gaps.append(pooled(one[drawn]).miou() - pooled(other[drawn]).miou())
        differences.append(np.mean(gaps))
    whole = float(np.mean([pooled(one).miou() - pooled(other).miou() for one, other in pairs]))
    return whole, *(float(x) for x in np.quantile(differences, [0.025, 0.975]))


def table(out: Path, base: str) -> dict[str, Any]:
    """mIoU of each variant and reading: mean and spread over cells, and against `base`."""
    found: dict[tuple[str, str], list[Cell]] = {}
    known = rows()
    for cell, row in known.items():
        for reading in row["readings"]:
            found.setdefault((cell.variant, reading), []).append(cell)
    summary: dict[str, Any] = {}
    print(f"{'variant':18} {'reading':34} {'cells':>5} {'mIoU':>6} {'spread':>6}  against {base}")
    for (variant, reading), cells in found.items():
        scores = [100 * known[cell]["readings"][reading]["miou"] for cell in cells]
        line = {"cells": len(cells), "miou": np.mean(scores), "spread": np.std(scores)}
        files = {cell: out / f"{cell.name}.npz" for cell in cells}
        held = [
            np.load(f) for c, f in files.items() if f.is_file() and base in known[c]["readings"]
        ]
        text = ""
        if held and reading != base:
            gap, low, high = interval([(each[reading], each[base]) for each in held])
            line |= {"gap": 100 * gap, "low": 100 * low, "high": 100 * high}
            text = f"{100 * gap:+6.2f} ({100 * low:+.2f} .. {100 * high:+.2f})"
        print(
            f"{variant:18} {reading:34} {len(cells):5} {line['miou']:6.2f} {line['spread']:6.2f}"
            f"  {text}"
        )
        summary.setdefault(variant, {})[reading] = line
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plan", type=Path, default=PLAN)
    parser.add_argument("--out", type=Path, required=True, help="folder for networks")
    parser.add_argument("--data", type=Path, help="folder of the dataset's files")
    parser.add_argument("--jobs", type=int, default=1, help="cells at the same time")
    parser.add_argument("--table", action="store_true", help="only read what was computed")
    parser.add_argument("--base", default="average 0.5,1,2", help="reading to compare with")
    parser.add_argument("--cell", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    plan = Plan(arguments.plan)
    if arguments.cell:
        variant, fold, seed = arguments.cell
        cell = Cell(variant, fold, int(seed))
        print(json.dumps(run_cell(plan, cell, arguments.out, arguments.data)))
        return
    if not arguments.table:
        done = rows()
        cells = [cell for cell in plan.cells() if cell not in done]
        run_all(plan, cells, arguments.jobs, sys.argv[1:])
    print(json.dumps(table(arguments.out, arguments.base)))


if __name__ == "__main__":
    main()
