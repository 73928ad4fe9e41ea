"""A finished run as a network that comes with hmsa: rounded to 16 bits, measured, with its card.

    python benchmarks/ship.py runs/aerial aerial --data ../shared/aerial

ship.yaml says of each network what people have to know, and on which splits it is judged: with the
scales of its card, in fp32 by torch. The weights of convolutions are rounded, norms and biases are
not; the original predicts the same images, to show what the rounding changes. Speed is the least of
three passes over some images, in seconds of one thread. The trunk that compares what images look
like is made of the extra `weights`, if it is not there. The last line is one JSON object; hmsa
evaluate, as the card has it, gives the same scores.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import save_file
from torch import nn

from hmsa.checkpoint import shipped
from hmsa.checkpoint.networks import load
from hmsa.data.datasets import Dataset, open_dataset
from hmsa.evaluation.confusion import Confusion
from hmsa.evaluation.measure import read_all
from hmsa.inference.choose import TRUNK, judge, look
from hmsa.inference.predictor import Predictor
from hmsa.model.trunk import Trunk
from hmsa.runs.machine import describe_machine

PLAN = Path(__file__).with_name("ship.yaml")
LARGEST = 12e6  # bytes of a network
ENOUGH = 1 << 20  # pixels, to measure speed with


def rounded(network: nn.Module) -> Any:
    """A copy, the weights of its convolutions in 16 bits."""
    network = copy.deepcopy(network)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            parameter.data = parameter.data.half()
    return network


def make_judge() -> None:
    trunk = rounded(Trunk(TRUNK, pretrained=True, finest=32))
    shipped.JUDGE.parent.mkdir(exist_ok=True)
    save_file(trunk.state_dict(), shipped.JUDGE, {key: str(v) for key, v in trunk.origin.items()})


def compare(dataset: Dataset, one: Predictor, other: Predictor) -> tuple[dict[str, Any], float]:
    """Scores of `one` on a split, and the share of the pixels that `other` labels alike."""
    names, alike, pixels = dataset.labels.names, 0, 0
    scores = [Confusion(len(names)), Confusion(len(names))]
    for _, image, label in read_all(dataset, dataset.split):
        made = [predictor(image).label for predictor in (one, other)]
        for score, predicted in zip(scores, made, strict=True):
            score.add(label, predicted)
        alike, pixels = alike + int((made[0] == made[1]).sum()), pixels + label.size
    iou = [None if math.isnan(value) else value for value in scores[0].iou().tolist()]
    found = {"images": len(dataset), "miou": scores[0].miou(), "without_rounding": scores[1].miou()}
    return found | {"iou": dict(zip(names, iou, strict=True))}, alike / pixels


def speed(predictor: Predictor, dataset: Dataset) -> dict[str, Any]:
    """Seconds of one thread for a megapixel, files not counted."""
    torch.set_num_threads(1)
    images: list[np.ndarray] = []
    while sum(image[..., 0].size for image in images) < ENOUGH:
        images.append(dataset.read(len(images))[0])
    predictor(images[0])
    passes = []
    for _ in range(3):
        begin = time.process_time()
        for image in images:
            predictor(image)
        passes.append(time.process_time() - begin)
    height, width = images[0].shape[:2]
    return {
        "seconds_per_megapixel": min(passes) / sum(image[..., 0].size for image in images) * 1e6,
        "hardware": describe_machine(predictor.device),
        "how": f"scales {', '.join(f'{s:g}' for s in predictor.scales)} in fp32 by torch, one "
        f"thread, least of 3 passes over {len(images)} image(s) such as {width}x{height}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    parser.add_argument("--data", type=Path, required=True, help="folder of the dataset")
    options = parser.parse_args()
    plan = yaml.safe_load(PLAN.read_text("utf-8"))
    texts = plan[options.name]
    original, name, place = load(options.run), Path(texts["dataset"]), shipped.FOLDER / options.name
    small = rounded(original)
    widened = copy.deepcopy(small).float()
    scales, flip = original.card.scales, original.card.flip
    one, other = (
        Predictor(each, scales, "fp32", "cpu", flip, backend="torch")
        for each in (widened, original)
    )
    results, alike = [], []
    for split, note in texts["splits"].items():
        found, share = compare(open_dataset(name, split, options.data), one, other)
        command = f"hmsa evaluate {options.name} {name} --data FOLDER --split {split}"
        found |= {"dataset": str(name), "split": split, "note": note}
        results.append(found | {"command": f"{command} --precision fp32 --backend torch"})
        alike.append(share)
    gaps = [abs(found["miou"] - found.pop("without_rounding")) for found in results]
    about = {key: texts[key].strip() for key in ("license", "terms", "data")}
    about |= {"limits": texts["limits"], "results": results}
    about["rounding"] = (
        f"Rounded to 16 bits, it gives {min(alike):.3%} of the pixels the label that the network "
        f"of 32 bits gives, and mIoU differs by {100 * max(gaps):.3f} points at most."
    )
    first = open_dataset(name, next(iter(texts["splits"])), options.data)
    about["speed"] = speed(one, first)
    if texts.get("default"):
        if not shipped.JUDGE.exists():
            make_judge()
        pairs, trunk = open_dataset(name, "train", options.data).pairs, judge()
        mean = torch.stack([look(trunk, pair.image) for pair in pairs]).mean(0)
        about["look"] = [round(value, 5) for value in mean.tolist()]
    recipe = Path(__file__).parents[1] / texts["recipe"]
    small.card.recipe = yaml.safe_load(recipe.read_text("utf-8"))
    small.card.about = about
    small.save_pretrained(place)
    if "notice" in texts:
        (place / "NOTICE").write_text(texts["notice"], "utf-8")
    size = sum(file.stat().st_size for file in place.iterdir())
    if size > LARGEST:
        raise SystemExit(f"{place} has {size / 1e6:.1f} MB, more than {LARGEST / 1e6:.0f}")
    scores = {found["split"]: found["miou"] for found in results}
    print(json.dumps({"network": options.name, "bytes": size, "miou": scores, "alike": min(alike),
                      "miou_gap": max(gaps), "speed": about["speed"]}))  # fmt: skip


if __name__ == "__main__":
    main()
