"""What should attention learn from, where should it begin, and what should choose? CamVid, aerial.

    python benchmarks/attention.py camvid --data ../shared/camvid --out runs/attention
    python benchmarks/attention.py aerial --data ../shared/aerial --out runs/attention

Three networks learn jointly: `all` from two parts of the training images, `one` and `other` from
one part each; parts are drives or tiles. Their attention heads then learn from images that the
network has seen, from these with strong augmentation, from the part that it has not seen, or
cross-fitted: from what each of `one` and `other` says of the part that it has not seen, by
confidence alone, as features mean something else in another network. They begin as the joint stage
left them ("joint"), at random, at averaging, or at the constant attention that is best on val (with
all layers but the last as the joint stage left them; "fresh": with new ones).
Images are first made smaller by --factor, as this ran beside other work on two cores.
Validated on val (not seen by any stage), on the last fifth of the head's own source, and on the
judged part; "calibrated" is the last head, with the multiple of its output and the prior that are
best on val. Stopped, the same command goes on. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from PIL import Image
from torch import Tensor, nn

from hmsa.config.reading import read
from hmsa.config.recipe import Attention, Augment, Recipe
from hmsa.data.datasets import Dataset, open_dataset
from hmsa.data.descriptions import describe
from hmsa.data.sampling import TrainingStream
from hmsa.data.transforms import training_transform
from hmsa.evaluation.confusion import Confusion
from hmsa.model import HMSA, Encoded
from hmsa.model.adapter import confidence_of
from hmsa.model.fusion import average, maximum
from hmsa.model.heads import predictor
from hmsa.runs.files import replace
from hmsa.runs.machine import best_device, describe_machine, keep_memory, launch
from hmsa.training.attend import split_evenly
from hmsa.training.passes import SHARES, Passes, begin_at, constant_weights, prior_of
from hmsa.training.train import train
from hmsa.training.trainer import Trainer, Validation, Work, class_weights

SCALES = (0.5, 1.0, 2.0)
AVERAGE = (1 / 3, 1 / 2)  # attention at 0.5 and 1
AUGMENT = {
    "plain": Augment(flip=0, color=0),
    "seen": Augment(color=0.4),
    "strong": Augment(color=0.8, hue=0.3, blur=1.0),
}
DATA: dict[str, dict[str, Any]] = {
    "camvid": {
        "one": ("train", ["0016E5_*"]), "other": ("train", ["0006R0_*"]),
        "all": ("train", ["0016E5_*", "0006R0_*"]), "val": ("val", ["*"]),
        "judged": ("train", ["0001TP_*"]),
    },
    "aerial": {
        "one": ("train", ["tile1_*", "tile4_*"]), "other": ("train", ["tile5_*", "tile6_*"]),
        "all": ("train", ["tile1_*", "tile4_*", "tile5_*", "tile6_*"]),
        "val": ("train", ["tile7_*"]), "judged": ("val", ["*"]),
    },
}  # fmt: skip
PARTS = ("all", "one", "other", "val", "judged")


class Head(NamedTuple):
    """One head: the network that it is judged with, what it learns from, how it begins."""

    network: str
    sources: tuple[tuple[str, str, str], ...]  # network, part, augmentation
    start: str
    inputs: str = "features"
    seed: int = 0

    @property
    def name(self) -> str:
        source = "+".join(f"{n}.{part}.{how}" for n, part, how in self.sources)
        return f"{self.network}-{source}-{self.start}-{self.inputs}-{self.seed}"


SEEN, STRONG = (("all", "all", "seen"),), (("all", "all", "strong"),)
VAL = (("all", "val", "seen"),)
CROSSED = (("one", "other", "seen"), ("other", "one", "seen"))
HEADS = [
    *(Head("all", SEEN, start) for start in ("best", "joint", "average", "random", "fresh")),
    Head("all", STRONG, "best"),
    *(Head("one", (("one", part, "seen"),), "best") for part in ("one", "other")),
    *(Head("other", (("other", part, "seen"),), "best") for part in ("other", "one")),
    Head("all", SEEN, "best", "confidence"),
    Head("all", CROSSED, "best", "confidence"),
    Head("all", VAL, "best"),
    *(Head("all", source, "best", seed=1) for source in (SEEN, STRONG)),
]


class Sure(Passes):
    """Passes whose features are the confidence of the scale alone."""

    def read(self, numbers: Sequence[int]) -> tuple[dict[float, Encoded], Tensor]:
        encoded, label = super().read(numbers)
        for scale, one in encoded.items():
            if one.features is not None:
                encoded[scale] = one._replace(features=confidence_of(one.logits))
        return encoded, label


class Study:
    """Networks, passes and heads of one dataset, in the folder `out`."""

    def __init__(self, name: str, data: Path, out: Path, options: argparse.Namespace) -> None:
        self.about, self.out, self.options = DATA[name], out / name, options
        self.fabric = launch("auto", 1, "fp32")
        self.file = self.out / "dataset.yaml"
        _, known, _ = describe(Path(name), data)
        content = json.loads(known.model_dump_json(include={"names", "palette", "ignore"}))
        content["splits"] = {
            part: {"images": f"{where}/images", "labels": f"{where}/labels", "include": which}
            for part, (where, which) in ((part, self.about[part]) for part in PARTS)
        }
        if not self.file.is_file():
            shrink(data, self.out, options.factor)
        replace(self.file, lambda file: file.write_text(yaml.safe_dump(content)))

    def network(self, part: str) -> HMSA:
        """Trained jointly on this part."""
        o, crop = self.options, self.options.crop
        changes = {
            "data.dataset": "dataset.yaml", "data.train": part, "data.val": "val",
            "model.trunk": "tf_efficientnet_lite0", "model.pretrained": True, "model.width": 96,
            "augment.color": 0.4, "sampling.class_uniform": 0.5, "sampling.tile": 256,
            "class_balance": 0.3, "precision": "fp32", "attention.steps": 0,
            "joint.steps": o.joint, "joint.batch": 6, "joint.crop": [crop, crop],
            "joint.weight_decay": 0.02, "joint.ema": 0.99, "joint.warmup": o.joint // 10,
            "joint.validate_every": o.joint,
        }  # fmt: skip
        recipe = read(Recipe, None, [f"{k}={json.dumps(v)}" for k, v in changes.items()])
        folder = self.out / f"joint-{part}"
        best = train(recipe, folder, self.file, resume=True, near=self.out)
        return HMSA.from_pretrained(best).to(memory_format=torch.channels_last)

    def images(self, part: str) -> tuple[Dataset, Dataset]:
        """Most images of a part, and the last fifth."""
        dataset = open_dataset(self.file, part)
        fit, held = split_evenly(len(dataset), len(dataset))
        return dataset.only(fit), dataset.only(held)

    def passes(
        self, network: str, part: str, dataset: Dataset, how: str, inputs: str, count: int = 0
    ) -> tuple[Passes, range]:
        """What a network says of `count` crops of images, or of all of them whole."""
        crop = self.options.crop_of_head
        transform = training_transform((crop[0], crop[1]), (1.0, 1.0), AUGMENT[how])
        stream = TrainingStream(dataset, transform, seed=0)

        def load(number: int) -> tuple[Tensor, Tensor]:
            if count:
                return stream[number]
            image, label = dataset.read(number)
            return torch.from_numpy(image.copy()).permute(2, 0, 1), torch.from_numpy(label)

        numbers = range(count or len(dataset))
        folder = self.out / "passes" / f"{network}-{part}-{len(dataset)}-{how}-{len(numbers)}"
        kind = Passes if inputs == "features" else Sure
        found = kind(folder, self.fabric, self.networks[network], SCALES, load)
        for _ in found.compute(numbers):
            pass
        return found, numbers

    def judges(self, network: str, inputs: str = "features") -> dict[str, tuple[Passes, range]]:
        """What a network says of val and of the judged part."""
        val, judged = (open_dataset(self.file, part) for part in ("val", "judged"))
        few = self.options.pictures // 4
        return {
            "val": self.passes(network, "val", val, "plain", inputs, few),
            "judged": self.passes(network, "judged", judged, "plain", inputs),
        }

    def head(self, head: Head) -> dict[str, Any]:
        """mIoU of the validations of one head, from its file if it has been trained before."""
        file, o = self.out / f"head-{head.name}.json", self.options
        if file.is_file():
            return json.loads(file.read_text())
        model = copy.deepcopy(self.networks[head.network])
        torch.manual_seed(head.seed)
        if head.inputs == "confidence":
            model.attention = nn.Sequential(nn.BatchNorm2d(3), predictor(3, 64, 1))
        elif head.start in ("random", "fresh"):
            model.attention = predictor(model.head.features, 96, 1)
        judges = self.judges(head.network, head.inputs)
        learn = []
        for network, part, how in head.sources:
            fit, held = self.images(part)
            count = o.pictures // len(head.sources)
            learn.append(self.passes(network, part, fit, how, head.inputs, count))
            own = self.passes(network, part, held, "plain", head.inputs, o.pictures // 4)
            judges.setdefault("own", own)

        ways: dict[str, Callable[[Passes, Sequence[int]], Sequence[float]]]
        ways = {"clear": Passes.best_constant, "average": lambda *_: prior_of(AVERAGE, SCALES)}
        ways |= {"best": plainly_best, "fresh": plainly_best}

        def begin() -> None:
            if head.start in ways:
                begin_at(model, ways[head.start](*judges["val"]))

        found: list[dict[str, float]] = []

        def validate(network: HMSA) -> Validation:
            seen = {name: confusion(network, *judge) for name, judge in judges.items()}
            found.append({name: each.miou() for name, each in seen.items()})
            return Validation(seen["val"])

        stage = Attention(steps=o.steps, batch=1, validate_every=o.steps // 3)

        def outputs(network: Any, start: int) -> Iterator[Any]:
            parts = [
                passes.outputs(stage, numbers, [head.seed], network, start)
                for passes, numbers in learn
            ]
            for step in range(start, stage.steps):
                yield next(parts[step % len(parts)])

        trained = model.attention
        assert trained is not None
        weight = class_weights(open_dataset(self.file, "all").frequencies(), 0.3)
        folder = self.out / "heads" / head.name
        work = Work("attention", stage, trained, list(SCALES), outputs, validate, begin=begin)
        Trainer(self.fabric, model, folder, weight).run(work)
        calibrate(model, *judges["val"])
        found.append({name: miou(model, *judge) for name, judge in judges.items()})
        replace(file, lambda to: to.write_text(json.dumps(found)))
        return found

    def constants(self, network: str) -> dict[str, float]:
        """mIoU on the judged part without attention: scales, poolings, best constants."""
        file = self.out / f"constants-{network}.json"
        if file.is_file():
            return json.loads(file.read_text())
        fit, _ = self.images(network)
        seen = self.passes(network, network, fit, "seen", "features", self.options.pictures)
        fitted = self.judges(network) | {"seen": seen}
        judged, numbers = fitted["judged"]
        model = copy.deepcopy(self.networks[network])
        found = {"joint": miou(model, judged, numbers)}
        for name, (passes, which) in fitted.items():
            prior = plainly_best(passes, which)
            begin_at(model, prior)
            found[f"constant of {name}"] = miou(model, judged, numbers)
            found[f"weights of {name}"] = [round(w, 3) for w in constant_weights(prior, SCALES)]
        begin_at(model, prior_of(AVERAGE, SCALES))
        found["average"] = miou(model, judged, numbers)
        for name, fold in (("0.5", 0), ("1", 1), ("2", 2)):
            found[name] = miou(model, judged, numbers, fold)
        found["max"] = miou(model, judged, numbers, maximum)
        replace(file, lambda to: to.write_text(json.dumps(found)))
        return found


def plainly_best(passes: Passes, numbers: Sequence[int]) -> Sequence[float]:
    """The constant of the highest mean IoU, by however little."""
    priors, counts = passes.try_constants(numbers)
    hit, union = np.moveaxis(counts.sum(0), 1, 0)
    return priors[int(np.nanmean(hit / np.where(union > 0, union, np.nan), -1).argmax())]


def shrink(data: Path, out: Path, factor: float) -> None:
    """Write images and labels, smaller, into `out`."""
    for place in ("train", "val"):
        for kind, way in (("images", Image.Resampling.BOX), ("labels", Image.Resampling.NEAREST)):
            (out / place / kind).mkdir(parents=True, exist_ok=True)
            for file in sorted((data / place / kind).iterdir()):
                image = Image.open(file)
                size = (round(image.width * factor), round(image.height * factor))
                image.resize(size, way).save(out / place / kind / f"{file.stem}.png")


@torch.inference_mode()
def miou(model: HMSA, passes: Passes, numbers: Sequence[int], fold: Any = None) -> float:
    return confusion(model, passes, numbers, fold).miou()


def confusion(model: HMSA, passes: Passes, numbers: Sequence[int], fold: Any = None) -> Confusion:
    """fold: a scale's number, or a fusion; default: the network's own."""
    found = Confusion(model.classes)
    model.eval()
    for number in numbers:
        encoded, label = passes.read([number])
        output = model.attend(encoded, label.shape[-2:])
        logits = output.logits
        if fold is not None:
            maps = output.maps
            if isinstance(fold, int):
                maps = {SCALES[fold]: maps[SCALES[fold]]}
            logits = (average if isinstance(fold, int) else fold)(maps, label.shape[-2:])
        found.add(label[0], logits.argmax(1)[0])
    return found


@torch.inference_mode()
def calibrate(model: HMSA, passes: Passes, numbers: Sequence[int]) -> None:
    """Set the multiple of the head's output, and the prior, that are best on these images.

    Maps meet on every fourth pixel, which is the chain but for the order of resizing.
    """
    last = model.attention[-1] if len(model.attention) > 2 else model.attention[-1][-1]
    every = (..., slice(None, None, 4), slice(None, None, 4))
    choices = [(factor, prior_of(shares, SCALES)) for factor in (0.5, 1.0)
               for shares in product(SHARES, repeat=2)]  # fmt: skip
    found = [Confusion(model.classes) for _ in choices]
    model.eval()
    for number in numbers:
        encoded, label = passes.read([number])
        size = label.shape[1], label.shape[2]
        logits = [e.grid(e.logits).pixels(size=size)[every] for e in encoded.values()]
        trust = {s: model.attention(e.features) for s, e in encoded.items() if s < SCALES[-1]}
        wide = {s: encoded[s].grid(t).pixels(size=size)[every] for s, t in trust.items()}
        for (factor, prior), confusion in zip(choices, found, strict=True):
            fused = logits[-1]
            for scale, lo in zip(SCALES[-2::-1], logits[-2::-1], strict=True):
                attention = (factor * wide[scale] + prior[0] + prior[1] * np.log2(scale)).sigmoid()
                fused = attention * lo + (1 - attention) * fused
            confusion.add(label[every], fused.argmax(1))
    best = max(range(len(choices)), key=lambda n: found[n].miou())
    factor, prior = choices[best]
    model.prior.copy_(torch.tensor(prior))
    for parameter in last.parameters():
        parameter.mul_(factor)
    print(f"calibrated: factor {factor}, prior {prior}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=DATA)
    parser.add_argument("--data", type=Path, required=True, help="folder of the dataset's files")
    parser.add_argument("--out", type=Path, required=True, help="run folder")
    parser.add_argument("--factor", type=float, default=2 / 3, help="of the images' size")
    parser.add_argument("--joint", type=int, default=400, help="joint steps")
    parser.add_argument("--crop", type=int, default=192, help="side of the joint stage's crops")
    parser.add_argument(
        "--crop-of-head", type=int, nargs=2, default=(240, 320), help="height and width of a head's"
    )
    parser.add_argument("--steps", type=int, default=240, help="of a head")
    parser.add_argument("--pictures", type=int, default=96, help="of a source")
    options = parser.parse_args()
    keep_memory()
    study = Study(options.name, options.data, options.out, options)
    study.networks = {part: study.network(part) for part in ("all", "one", "other")}
    found: dict[str, Any] = {"machine": describe_machine(best_device())}
    print(found["machine"])
    for part in study.networks:
        found[part] = study.constants(part)
        print(part, json.dumps(found[part]), flush=True)
    for head in HEADS:
        found[head.name] = rows = study.head(head)
        line = "  ".join(f"{100 * row['judged']:.2f}" for row in rows)
        chosen = max(rows[:-1], key=lambda row: row["val"])
        print(f"{head.name:60} {line}  by val {100 * chosen['judged']:.2f}", flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
