"""What computing 2x only in places saves and costs, against other choices at equal work.

    python benchmarks/gate.py RUN DATA --data FOLDER --split val --picture a.png --plot b.png

Scales 0.5, 1, 2. A share of the tiles of 2x is computed for real, each with its halo: those where
its known weight (1 - a_0.5)(1 - a_1) is highest ("weight"), where the fused result of the coarser
scales is least sure ("entropy"), where the product of both is highest ("both", what a gate does
by default), or anywhere ("random", seeded). Share 0 leaves 2x out, 1 computes everything. `work` is
the pixels that went through the network, halos included, to those of everything; seconds are CPU
seconds of the whole call, all ways taking turns on each picture. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hmsa.data.datasets import open_dataset
from hmsa.evaluation.confusion import Confusion
from hmsa.inference.fold import Pass
from hmsa.inference.predictor import Predictor
from hmsa.inference.tiles import Gate, doubt, worth
from hmsa.model.hmsa import Size
from hmsa.report.pictures import colorize, heat, panel
from hmsa.runs.machine import describe_machine, keep_memory
from hmsa.runs.progress import Progress

SHARES = (0.1, 0.2, 0.3, 0.5)


class Chance:
    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, coarser: Pass, size: Size) -> Tensor:
        return torch.rand(1, 1, *size, generator=self.generator)


def ways(cell: int, halo: int) -> dict[tuple[str, float], Gate | None]:
    judges = {"both": worth, "weight": Pass.known_weight, "entropy": doubt, "random": Chance()}
    found: dict[tuple[str, float], Gate | None] = {("left out", 0.0): Gate(0.0)}
    for share in SHARES:
        for name, judge in judges.items():
            found[name, share] = Gate(share, cell, halo, judge)
    return found | {("everything", 1.0): None}


def sheet(predictor: Predictor, pictures: list[np.ndarray], share: float, options) -> Image.Image:
    palette = np.array(predictor.model.card.palette, np.uint8)
    rows = []
    for image in pictures:
        predictor.gate = None
        whole = predictor(image, detail=True)
        predictor.gate = Gate(share, options.cell, options.halo)
        gated = predictor(image, detail=True)
        computed = gated.weights[predictor.scales[-1]] > 0
        shown = np.where(computed[..., None], image, image // 4 + 24)
        rows.append([
            (f"2x computed in {gated.computed[2.0]:.0%}, {gated.cost:.0%} of the work", shown),
            ("weight of 2x, everything computed", heat(whole.weights[2.0])),
            ("gated", colorize(gated.label, palette)),
            ("everything", colorize(whole.label, palette)),
        ])  # fmt: skip
    return panel(rows)


def plot(file: Path, rows: list[dict]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6, 4), dpi=150)
    ends = [r for r in rows if r["by"] in ("left out", "everything")]
    for by, colour in (
        ("both", "#b3261e"),
        ("weight", "#e0912f"),
        ("entropy", "#2f6690"),
        ("random", "#888888"),
    ):
        line = sorted([*ends, *(r for r in rows if r["by"] == by)], key=lambda r: r["work"])
        axis.plot([r["work"] for r in line], [100 * r["miou"] for r in line], "o-", ms=4,
                  color=colour, label={"both": "weight x entropy"}.get(by, by))  # fmt: skip
    axis.set_xlabel("work, to everything computed")
    axis.set_ylabel("mIoU, %")
    axis.axvline(0.5, color="#cccccc", lw=1)
    axis.grid(alpha=0.25)
    axis.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--split", default="val")
    parser.add_argument("--first", type=int, help="so many pictures alone")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--cell", type=int, default=Gate.cell)
    parser.add_argument("--halo", type=int, default=Gate.halo)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    keep_memory()
    predictor = Predictor.load(options.checkpoint, (0.5, 1, 2), options.precision)
    dataset = open_dataset(options.dataset, options.split, options.data)
    count = min(options.first or len(dataset), len(dataset))
    gates = ways(options.cell, options.halo)
    names = dataset.labels.names
    confusion = {way: Confusion(len(names)) for way in gates}
    seconds, work, agreed = (dict.fromkeys(gates, 0.0) for _ in range(3))
    pixels = 0
    first, _ = dataset.read(0)
    for predictor.gate in gates.values():
        predictor(first)  # so that graphs of every size are there
    with Progress("gate", count) as meter:
        for index in range(count):
            image, label = dataset.read(index)
            pixels += label.size
            found = {}
            for way, gate in gates.items():
                predictor.gate = gate
                start = time.process_time()
                made = predictor(image)
                seconds[way] += time.process_time() - start
                found[way] = made.label
                work[way] += made.cost / count
                confusion[way].add(torch.from_numpy(label), torch.from_numpy(found[way]))
            for way, one in found.items():
                agreed[way] += float((one == found["everything", 1.0]).sum())
            meter.advance()
    whole = "everything", 1.0
    rows = [
        {
            "by": way[0], "share": way[1], "work": work[way],
            "seconds": seconds[way] / count, "time": seconds[way] / seconds[whole],
            "miou": confusion[way].miou(), "agreement": agreed[way] / pixels,
        }
        for way in gates
    ]  # fmt: skip
    card = predictor.model.card
    print(
        f"{card.network['trunk']}, {card.network.get('head', 'plain')} head, {count} pictures of "
        f"{dataset.source.name}, {options.split}, scales 0.5, 1, 2, tiles of {options.cell} with a "
        f"halo of {options.halo}, {describe_machine(predictor.device)}, seed 0"
    )
    print(f"{'share of 2x':>12}{'by':>12}{'work':>8}{'time':>8}{'mIoU':>8}{'labels':>9}")
    for row in rows:
        print(f"{row['share']:12.0%}{row['by']:>12}{row['work']:8.3f}{row['time']:8.3f}"
              f"{row['miou']:8.2%}{row['agreement']:9.2%}")  # fmt: skip
    if options.plot:
        plot(options.plot, rows)
    if options.picture:
        chosen = [dataset.read(i)[0] for i in np.linspace(0, count - 1, 3).astype(int)]
        sheet(predictor, chosen, 0.2, options).save(options.picture)
    print(json.dumps({"cell": options.cell, "halo": options.halo, "pictures": count, "rows": rows}))


if __name__ == "__main__":
    main()
