"""Scale attention for networks that others made: does it help, and what does it cost? CamVid.

    python benchmarks/attend.py --data ../shared/camvid --out runs/attend

Three networks from three libraries learn from scratch (no weights can be downloaded where this was
written), on two of CamVid's three training drives; then `hmsa attend` trains a head for each, the
network frozen, on the same pictures. Judged on 0006R0, a drive that neither has seen, and on val, a
clip out of a drive that they have. Stopped, the same command goes on. The last line is one JSON
object.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.utils import ModelEmaV3
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hmsa.config.options import Compute, HeadTraining
from hmsa.config.recipe import Augment, Joint
from hmsa.data.datasets import Dataset, open_dataset
from hmsa.data.descriptions import describe
from hmsa.data.sampling import TrainingStream, batches
from hmsa.data.transforms import training_transform
from hmsa.evaluation.measure import measure, score
from hmsa.inference.predictor import Predictor
from hmsa.inference.tiles import Gate
from hmsa.model import HMSA, ScaleAttention
from hmsa.model.adapter import logits_of
from hmsa.model.fusion import resize
from hmsa.runs.files import replace
from hmsa.runs.machine import autocast, best_device, describe_machine, keep_memory
from hmsa.runs.progress import Progress
from hmsa.training.attend import HeadJob
from hmsa.training.losses import cross_entropy
from hmsa.training.passes import PASSES
from hmsa.training.trainer import WARMUP, class_weights, make_optimizer, set_learning_rate

LEARNT, UNSEEN = ("0001TP", "0016E5"), "0006R0"
JUDGED = {"unseen": 3, "val": 6}  # split: every so many of its pictures
SCALES = (0.5, 1.0, 2.0)
SHARES = (0.3,)  # of 2x, behind a gate
IMAGES = 160  # that heads are trained on, and stopped by


def segformer(names: list[str]) -> nn.Module:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    named = dict(enumerate(names))
    config = SegformerConfig(id2label=named, label2id={n: k for k, n in named.items()})
    return SegformerForSemanticSegmentation(config)  # as it is by default: B0


def unet(names: list[str]) -> nn.Module:
    import segmentation_models_pytorch as smp

    return smp.Unet("mobilenet_v2", encoder_weights=None, classes=len(names))


def lraspp(names: list[str]) -> nn.Module:
    from torchvision.models import get_model

    return get_model(
        "lraspp_mobilenet_v3_large", weights=None, weights_backbone=None, num_classes=len(names)
    )


# Joint steps that take about as long on one core
NETWORKS: dict[str, tuple[Callable[[list[str]], nn.Module], int]] = {
    "segformer": (segformer, 900), "unet": (unet, 800), "lraspp": (lraspp, 1300),
}  # fmt: skip


def split(data: Path, out: Path) -> Path:
    """The dataset's YAML file, by drives."""
    _, known, _ = describe(Path("camvid"), data)
    content = {"path": str(data.resolve())} | json.loads(
        known.model_dump_json(include={"names", "palette", "ignore"})
    )
    stems = sorted(file.stem for file in (data / "train/images").glob("*.jpg"))
    for name, drives in (("learn", LEARNT), ("unseen", (UNSEEN,))):
        rows = [f"train/images/{s}.jpg,train/labels/{s}.png\n" for s in stems if s[:6] in drives]
        text = "".join(["image,label\n", *rows])
        replace(out / f"{name}.csv", lambda file, t=text: file.write_text(t))
    content["splits"] = {"learn": "learn.csv", "unseen": "unseen.csv", "val": "val"}
    text = yaml.safe_dump(content, sort_keys=False)
    replace(out / "dataset.yaml", lambda file: file.write_text(text))
    return out / "dataset.yaml"


def learn(network: nn.Module, dataset: Dataset, stage: Joint) -> nn.Module:
    """Plain training at one scale, as any of the libraries' users would do it."""
    device = best_device()
    network = network.to(device).to(memory_format=torch.channels_last)
    mean = torch.tensor(IMAGENET_DEFAULT_MEAN, device=device).view(3, 1, 1)
    std = torch.tensor(IMAGENET_DEFAULT_STD, device=device).view(3, 1, 1)
    weight = class_weights(dataset.frequencies(), 0.4).to(device)
    averaged = ModelEmaV3(network, stage.ema, use_warmup=True, **WARMUP)
    optimizer = make_optimizer(network, stage)
    stream = TrainingStream(
        dataset, training_transform(stage.crop, stage.resize, Augment(color=0.4, blur=0.1)), seed=0
    )
    network.train()
    with Progress("learn", stage.steps) as meter:
        for step, (image, label) in enumerate(batches(stream, range(stage.steps), stage.batch, 0)):
            set_learning_rate(optimizer, stage, step)
            label = label.to(device)
            image = (image.to(device) / 255 - mean) / std
            with autocast(device, "auto"):
                logits = logits_of(network(image.contiguous(memory_format=torch.channels_last)))
            loss = cross_entropy(resize(logits.float(), label.shape[-2:]), label, weight)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            averaged.update(network, step + 2)
            meter.advance(f"loss {loss.item():.3f}")
    return averaged.module.eval().cpu()


def keep(name: str, network: Any, out: Path) -> None:
    """As its own library stores it."""
    if name == "lraspp":
        replace(out / f"{name}.pth", lambda file: torch.save(network.state_dict(), file))
    else:
        network.save_pretrained(out / name)


def stored(name: str, out: Path) -> tuple[str, Path]:
    """What `hmsa attend` is told of it, and the file that is there once it is."""
    if name == "lraspp":
        file = out / f"{name}.pth"
        return f"torchvision:lraspp_mobilenet_v3_large@{file}", file
    return str(out / name), out / name / "model.safetensors"


def ways(model: ScaleAttention) -> dict[str, Predictor]:
    """Ways to look that are no fusion of three scales seen whole."""
    return {
        "1": Predictor(model, (1.0,)),
        "1, flip": Predictor(model, (1.0,), flip=True),
        "attention": Predictor(model, SCALES),
        **{f"attention, gate {s:g}": Predictor(model, SCALES, gate=Gate(s)) for s in SHARES},
    }


def work(predictor: Predictor, dataset: Dataset) -> tuple[float, float]:
    """Seconds and GFLOP a picture, of a few; the first is not counted."""
    images = [dataset.read(i)[0] for i in range(0, len(dataset), max(1, len(dataset) // 4))]
    predictor(images[0])
    began = time.perf_counter()
    for image in images:
        predictor(image)
    seconds = (time.perf_counter() - began) / len(images)
    with FlopCounterMode(display=False) as counter:
        for image in images:
            predictor(image)
    return seconds, counter.get_total_flops() / len(images) / 1e9


class Proof:
    """One network: its head trained with several seeds, and everything judged."""

    def __init__(self, source: str, folder: Path, yaml: Path) -> None:
        self.source, self.folder, self.yaml = source, folder, yaml
        self.judged = {s: thinned(open_dataset(yaml, s), n) for s, n in JUDGED.items()}

    def trained(
        self, name: str, seed: int, per_class: bool = False, steps: int = 1200
    ) -> tuple[ScaleAttention, Any]:
        """The head of this name, from its folder if it has been trained before."""
        out, shared = self.folder / name, self.folder / PASSES
        file, record = out / "best.safetensors", out / "found.json"
        if not record.is_file():
            for folder in (out, shared):
                folder.mkdir(parents=True, exist_ok=True)
            if not (out / PASSES).exists():
                (out / PASSES).symlink_to(shared.resolve())  # all heads have the same passes
            options = HeadTraining(
                split="learn", images=IMAGES, seed=seed, per_class=per_class, steps=steps, cache=8
            )
            found = HeadJob(self.source, self.yaml, None, options, Compute()).train(out)
            replace(record, lambda f: f.write_text(json.dumps(found)))
        return HMSA.from_pretrained(file), json.loads(record.read_text())

    def scores(self, model: ScaleAttention, name: str, all_ways: bool) -> dict[str, Any]:
        """mIoU of every fusion on each judged split, and per class."""
        file = self.folder / f"judged-{name}.json"
        if not file.is_file():
            found: dict[str, Any] = {}
            for split, dataset in self.judged.items():
                told = measure(Predictor(model, SCALES), dataset)
                found[split] = {
                    key: {"miou": c.miou(), "iou": c.iou().tolist()}
                    for key, c in told.confusion.items()
                }
                for way, predictor in ways(model).items() if all_ways else ():
                    if way not in found[split]:
                        c = score(predictor, dataset)
                        found[split][way] = {"miou": c.miou(), "iou": c.iou().tolist()}
            replace(file, lambda f: f.write_text(json.dumps(found)))
        return json.loads(file.read_text())


def thinned(dataset: Dataset, every: int) -> Dataset:
    return dataset.only(range(0, len(dataset), every))


def row(name: str, cells: list[str]) -> None:
    print(f"{name:<24}" + "".join(f"{cell:>12}" for cell in cells), flush=True)


def spread(values: list[float]) -> str:
    """Mean of the seeds, and how far apart they are."""
    wide = f" ±{50 * (max(values) - min(values)):.1f}" if len(values) > 1 else ""
    return f"{100 * sum(values) / len(values):.1f}{wide}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/camvid"), help="CamVid")
    parser.add_argument("--out", type=Path, default=Path("runs/attend"), help="run folder")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="of the heads")
    options = parser.parse_args()
    keep_memory()
    options.out.mkdir(parents=True, exist_ok=True)
    yaml_file = split(options.data, options.out)
    dataset = open_dataset(yaml_file, "learn")
    for name in options.networks:
        make, steps = NETWORKS[name]
        _, file = stored(name, options.out)
        if not file.is_file():
            torch.manual_seed(0)
            stage = Joint(
                steps=steps, batch=6, crop=(256, 256), lr=1e-3, weight_decay=0.02, ema=0.99,
                warmup=50,
            )  # fmt: skip
            keep(name, learn(make(list(dataset.labels.names)), dataset, stage), options.out)
    told: dict[str, Any] = {}
    print(describe_machine(best_device()))
    for name in options.networks:
        proof = Proof(stored(name, options.out)[0], options.out / f"head-{name}", yaml_file)
        looked = proof.trained("passes-only", 0, steps=1)[1]["seconds"]
        heads = [proof.trained(str(seed), seed) for seed in options.seeds]
        each_class, _ = proof.trained("class", options.seeds[0], per_class=True)
        found = [proof.scores(m, str(s), s == options.seeds[0])
                 for s, (m, _) in zip(options.seeds, heads, strict=True)]  # fmt: skip
        by_class = proof.scores(each_class, "class", False)
        spent = {w: work(p, proof.judged["val"]) for w, p in ways(heads[0][0]).items()}
        told_of = ", ".join(f"{t['seconds']:.0f} s ({t['steps']} steps)" for _, t in heads)
        print(f"\n{name}: passes {looked:.0f} s, heads {told_of}")
        row("mIoU %", [*proof.judged, "GFLOP", "seconds"])
        for way in ("0.5", "1", "2", "1, flip", "average", "max", *list(spent)[2:]):
            ran = found if way == "attention" else found[:1]  # of that alone seeds differ
            cells = [spread([f[s][way]["miou"] for f in ran]) for s in proof.judged]
            cost = spent.get("attention" if way in ("average", "max") else way)
            row(way, cells + [f"{c:.2f}" for c in (reversed(cost) if cost else ())])
        last = [spread([by_class[s]["attention"]["miou"]]) for s in proof.judged]
        row("attention per class", last)
        told[name] = {
            "looked": looked, "heads": [t for _, t in heads], "seeds": found, "class": by_class,
            "work": {w: {"seconds": s, "gflop": g} for w, (s, g) in spent.items()},
        }  # fmt: skip
    sizes = {s: len(d) for s, d in proof.judged.items()}
    print(json.dumps({
        "machine": describe_machine(best_device()), "scales": SCALES, "pictures": sizes,
        "seeds": options.seeds, "networks": told,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
