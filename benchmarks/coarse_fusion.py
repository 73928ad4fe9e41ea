"""What fusing on the trunk's grid, and enlarging once, would save and cost.

    python benchmarks/coarse_fusion.py RUN DATASET --split heldout [--data FOLDER] [--first 60]

The network runs once for an image; its maps are fused at each pixel, as always, and on the grid of
the trunk at 1x, from which the fused logits are brought to pixels. CPU seconds of the process, of
fusion with arg-max and of the network; mIoU and boundary F1 of both; labels that stay the same.
The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from hmsa import Predictor
from hmsa.data.datasets import open_dataset
from hmsa.evaluation.boundary import Boundary
from hmsa.evaluation.confusion import Confusion
from hmsa.inference.fold import Decision, Pass, decide
from hmsa.inference.tiles import Runner
from hmsa.model.fusion import resize


def coarse(one: Pass, size: tuple[int, int]) -> np.ndarray:
    """The label of an image whose maps are fused on the trunk's grid."""
    stride, decision = one.model.strides[0], Decision()
    grid = tuple(-(-side // stride) for side in size)
    for classes in one.groups(one.model.classes):
        decision.add(resize(one.fused(classes, grid), size))
    return decision.label[0].numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--split", default="val")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--first", type=int, default=60, help="images, evenly")
    parser.add_argument("--scales", default="0.5,1,2")
    options = parser.parse_args()
    scales = [float(scale) for scale in options.scales.split(",")]
    predictor = Predictor.load(options.checkpoint, scales, "fp32", device="cpu", tile=None)
    dataset = open_dataset(options.dataset, options.split, options.data)
    k, run = len(dataset.labels.names), predictor._network().run
    chosen = np.linspace(0, len(dataset) - 1, min(options.first, len(dataset))).astype(int)
    scores = {way: (Confusion(k), Boundary(k)) for way in ("pixels", "grid")}
    used, same = Counter(), []
    for image, truth in map(dataset.read, chosen.tolist()):
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
        with torch.inference_mode():
            clock = [time.process_time()]
            one = Runner(run, pixels).run(scales)
            clock.append(time.process_time())
            labels = {"pixels": decide([one], truth.shape)["label"][0].numpy()}
            clock.append(time.process_time())
            labels["grid"] = coarse(one, truth.shape)
            clock.append(time.process_time())
        for name, seconds in zip(("network", *labels), np.diff(clock), strict=True):
            used[name] += seconds / len(chosen)
        same.append((labels["pixels"] == labels["grid"]).mean())
        for name, label in labels.items():
            scores[name][0].add(truth, label)
            scores[name][1].add(truth, label)
    rows = {
        name: {"cpu": used[name], "miou": confusion.miou(), "f1": float(boundary.f1().nanmean())}
        for name, (confusion, boundary) in scores.items()
    }
    print(f"{options.checkpoint} on {options.dataset}, {options.split}, {len(chosen)} images, "
          f"{predictor.backend_in_use}, fp32, {torch.get_num_threads()} threads")  # fmt: skip
    print(f"{'fused on':10}{'CPU s':>8}{'mIoU':>8}{'F1':>8}   network {used['network']:.3f} s")
    for name, row in rows.items():
        print(f"{name:10}{row['cpu']:8.3f}{row['miou']:8.2%}{row['f1']:8.2%}")
    print(f"labels that are the same: {np.mean(same):.3%}")
    print(json.dumps({"network": used["network"], "same": float(np.mean(same)), **rows}))


if __name__ == "__main__":
    main()
