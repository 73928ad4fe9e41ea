"""Does learned attention hold? Each drive held out in turn, every fusion of the network judged.

    python benchmarks/study.py --out runs/study --data ../shared/camvid
    python benchmarks/study.py --table

study.yaml says what is trained: variants of one recipe, seeds, and folds of CamVid's drives, which
camvid-drives.yaml describes. A cell is one variant, fold and seed. Its network is trained jointly,
judged, then its attention alone is trained on all scales, and it is judged again. Each finished
cell is a row of results/study.jsonl next to this file, and is not computed again. Stopped, the same
command goes on. Readings of one network are compared by the bootstrap over images, variants by the
spread of their paired cells. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from scipy import stats
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from hmsa.config.reading import read
from hmsa.config.recipe import Recipe
from hmsa.data.datasets import Dataset, open_dataset
from hmsa.evaluation.boundary import Boundary
from hmsa.evaluation.confusion import Confusion
from hmsa.inference.backends import Network
from hmsa.model import HMSA
from hmsa.model.fusion import ScaleOutput, average, effective_weights, maximum, resize
from hmsa.runs.machine import autocast, best_device, describe_machine, keep_memory
from hmsa.training.train import train

PLAN = Path(__file__).with_name("study.yaml")
DRIVES = Path(__file__).with_name("camvid-drives.yaml")
ROWS = Path(__file__).parent / "results" / "study.jsonl"
CHAINS = ((0.5, 1.0), (0.5, 1.0, 2.0), (0.25, 0.5, 1.0, 2.0))
SCALES = CHAINS[-1]
MAIN = CHAINS[1]
BASES = ("1", "average 0.5,1,2")  # readings that the others of a network are compared with
BEST = "staged hierarchical 0.5,1,2"
COLOURS = ("#1b4965", "#62b6cb", "#f4a259")  # of the scales of MAIN
DRAWS = 1000  # of the bootstrap
THIN = ("Pole", "SignSymbol", "Pedestrian", "Bicyclist")


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
        own = {"data.dataset": str(DRIVES), "data.train": fold["fit"]}
        own |= {"data.val": fold["choose"], "seed": cell.seed}
        return read(
            Recipe, None, [f"{k}={json.dumps(v)}" for k, v in (flat | own).items()] + list(changes)
        )


def run_cell(plan: Plan, cell: Cell, out: Path, data: Path | None) -> dict[str, Any]:
    """Train and judge one cell; returns its row."""
    keep_memory()
    fold, about = plan.content["folds"][cell.fold], plan.content["variants"][cell.variant]
    first = cell._replace(variant=about.get("from", cell.variant))
    recipe, began = plan.recipe(first, "attention.steps=0"), time.monotonic()
    best = train(recipe, out / first.name / "joint", DRIVES, pictures=data, resume=True)
    seconds, judged = {"joint": time.monotonic() - began}, open_dataset(DRIVES, fold["judge"], data)
    most = about.get("judged", len(judged))
    judged = judged.only(np.linspace(0, len(judged) - 1, most).astype(int).tolist())
    readings = judge(HMSA.from_pretrained(best), judged, "")
    whole = plan.recipe(cell, "joint.steps=0", f"start={json.dumps(str(best.resolve()))}")
    if whole.model.fusion == "hierarchical" and whole.attention.steps:
        began = time.monotonic()
        best = train(whole, out / cell.name / "attention", DRIVES, pictures=data, resume=True)
        seconds["attention"] = time.monotonic() - began
        readings |= judge(HMSA.from_pretrained(best), judged, "staged ")
    scores = {name: score(found) for name, found in readings.items()}
    for base in (each for each in BASES if each in readings):
        gaps = bootstrap({n: found["matrices"] for n, found in readings.items()}, base)
        for name, gap in gaps.items():
            scores[name].setdefault("against", {})[base] = gap
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
    model = Network(model, "auto", device, "auto").run
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


def bootstrap(matrices: dict[str, np.ndarray], base: str) -> dict[str, list[float]]:
    """By reading: its mIoU minus that of `base`, and the standard deviation of that over images."""
    generator, k = np.random.default_rng(0), matrices[base].shape[-1]
    count = len(matrices[base])
    times = generator.multinomial(count, np.full(count, 1 / count), DRAWS)
    drawn = np.concatenate([np.ones_like(times[:1]), times])  # first the images as they are
    mious = {
        name: [pooled((d @ each.reshape(len(each), -1)).reshape(1, k, k)).miou() for d in drawn]
        for name, each in matrices.items()
    }
    gaps = {name: np.subtract(each, mious[base]) for name, each in mious.items() if name != base}
    return {n: [round(float(g[0]), 5), round(float(g[1:].std()), 5)] for n, g in gaps.items()}


def over_images(
    done: dict[Cell, Any], cells: Sequence[Cell], reading: str, base: str
) -> dict[str, Any] | None:
    """Gap to `base` in the same network, in points: mean over cells, half its 95 % interval, and
    the mean of each fold.

    Seeds of one fold are judged on the same images, so they do not make the interval narrower.
    """
    folds: dict[str, list[list[float]]] = {}
    for cell in cells:
        gap = done[cell]["readings"][reading].get("against", {}).get(base)
        if gap:
            folds.setdefault(cell.fold, []).append(gap)
    if not folds:
        return None
    means, deviations = 100 * np.array([np.mean(gaps, 0) for gaps in folds.values()]).T
    return {
        "gap": means.mean(), "half": 1.96 * np.sqrt((deviations**2).sum()) / len(folds),
        "folds": dict(zip(folds, means.tolist(), strict=True)),
    }  # fmt: skip


def over_cells(one: dict[Cell, float], other: dict[Cell, float]) -> dict[str, Any] | None:
    """The same between two variants, over the cells that both have; Student's interval."""
    pairs = {cell._replace(variant=""): miou for cell, miou in other.items()}
    folds: dict[str, list[float]] = {}
    for cell, miou in one.items():
        if (match := pairs.get(cell._replace(variant=""))) is not None:
            folds.setdefault(cell.fold, []).append(miou - match)
    gaps = np.array([gap for fold in folds.values() for gap in fold])
    if len(gaps) < 3:
        return None
    half = stats.t.ppf(0.975, len(gaps) - 1) * gaps.std(ddof=1) / len(gaps) ** 0.5
    means = {fold: float(np.mean(each)) for fold, each in folds.items()}
    return {"gap": gaps.mean(), "half": half, "folds": means}


def shown(gap: dict[str, Any] | None) -> str:
    folds = ", ".join(f"{f} {each:+.1f}" for f, each in gap["folds"].items()) if gap else ""
    return f"{gap['gap']:+.2f} +- {gap['half']:.2f} ({folds})" if gap else "-"


def table(reference: str) -> dict[str, Any]:
    """Of each variant and reading, means over cells: mIoU, its spread, mIoU of thin and of wide
    classes, boundary F1; gaps to the base readings of the same networks, and to the same reading
    of the variant `reference`."""
    done = rows()
    found: dict[tuple[str, str], list[Cell]] = {}
    for cell, row in done.items():
        for reading in row["readings"]:
            found.setdefault((cell.variant, reading), []).append(cell)
    summary: dict[str, Any] = {}
    print(f"{'variant':14} {'reading':33} cells  mIoU spread  thin  wide  edges  "
          f"against {BASES} | {reference}")  # fmt: skip
    for (variant, reading), cells in found.items():
        scores = {cell: 100 * done[cell]["readings"][reading]["miou"] for cell in cells}
        gaps = {base: over_images(done, cells, reading, base) for base in BASES}
        # Variants without attention of their own are compared with that of the reference
        name = reading if (reference, reading) in found else BEST
        if variant != reference and (reference, name) in found:
            same = {c: 100 * done[c]["readings"][name]["miou"] for c in found[reference, name]}
            gaps[f"{name} of {reference}"] = over_cells(scores, same)
        line = {"cells": len(cells), "miou": np.mean([*scores.values()])}
        line |= {"spread": np.std([*scores.values()]), "against": gaps}
        for key, of in PARTS.items():
            line[key] = np.mean([of(done[cell], done[cell]["readings"][reading]) for cell in cells])
        print(
            f"{variant:14} {reading:33} {len(cells):5} {line['miou']:5.2f} {line['spread']:6.2f} "
            f"{line['thin']:5.1f} {line['wide']:5.1f} {line['edges']:6.1f}  "
            + "  ".join(map(shown, gaps.values()))
        )
        summary.setdefault(variant, {})[reading] = line
    return summary


def iou_of(thin: bool, row: dict[str, Any], reading: dict[str, Any]) -> float:
    """Mean IoU of the thin classes, or of all others, in %."""
    pairs = zip(row["classes"], reading["iou"], strict=True)
    return 100 * float(np.nanmean([iou for name, iou in pairs if (name in THIN) == thin]))


PARTS = {  # of a row's reading
    "thin": partial(iou_of, True),
    "wide": partial(iou_of, False),
    "edges": lambda row, reading: 100 * reading.get("boundary_f1", float("nan")),
}


def draw_weights(variant: str, file: Path) -> None:
    """The mean weight of each scale on the pixels of each true class, mean over cells, as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cells = [row for cell, row in rows().items() if cell.variant == variant]
    mean = np.mean([row["readings"][BEST]["weights"] for row in cells], 0)
    order = np.argsort(mean[:, -1])
    figure, axes = pyplot.subplots(figsize=(7, 3.6), layout="constrained")
    left = np.zeros(len(mean))
    for column, (scale, colour) in enumerate(zip(MAIN, COLOURS, strict=True)):
        share = 100 * mean[order, column]
        axes.barh(range(len(mean)), share, left=left, color=colour, label=f"{scale:g}x")
        left += share
    axes.set_yticks(range(len(mean)), [cells[0]["classes"][k] for k in order])
    axes.set(xlabel="mean weight of the scale on the pixels of the class, %", xlim=(0, 100))
    axes.legend(ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1), frameon=False)
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plan", type=Path, default=PLAN)
    parser.add_argument("--out", type=Path, default=Path("runs/study"), help="folder for networks")
    parser.add_argument("--data", type=Path, help="folder of the dataset's files")
    parser.add_argument("--jobs", type=int, default=1, help="cells at the same time")
    parser.add_argument("--table", action="store_true", help="only read what was computed")
    parser.add_argument("--reference", default="short", help="variant to compare with")
    parser.add_argument("--figure", type=Path, help="PNG file: weights by class")
    parser.add_argument("--cell", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    plan = Plan(arguments.plan)
    if arguments.cell:
        variant, fold, seed = arguments.cell
        cell = Cell(variant, fold, int(seed))
        print(json.dumps(run_cell(plan, cell, arguments.out, arguments.data)))
        return
    if arguments.figure:
        draw_weights(arguments.reference, arguments.figure)
        return
    if not arguments.table:
        done = rows()
        cells = [cell for cell in plan.cells() if cell not in done]
        run_all(plan, cells, arguments.jobs, sys.argv[1:])
    print(json.dumps(table(arguments.reference)))


if __name__ == "__main__":
    main()
