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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn
from torch.optim.swa_utils import AveragedModel

from hmsa.config import Joint
from hmsa.data.datasets import Dataset, open_dataset
from hmsa.data.descriptions import describe
from hmsa.data.sampling import TrainingStream, batches
from hmsa.data.transforms import training_transform
from hmsa.files import replace
from hmsa.losses import cross_entropy
from hmsa.model.heads import resize
from hmsa.networks import IMAGENET_MEAN, IMAGENET_STD, logits_of
from hmsa.optim import Schedule, class_weights, make_optimizer, moving_average
from hmsa.runtime import Meter, autocast, best_device, keep_memory

LEARNT, UNSEEN = ("0001TP", "0016E5"), "0006R0"


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
    mean = torch.tensor(IMAGENET_MEAN, device=device).view(3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=device).view(3, 1, 1)
    weight = class_weights(dataset.frequencies(), 0.4).to(device)
    averaged = AveragedModel(network, multi_avg_fn=moving_average(stage.ema), use_buffers=True)
    optimizer, schedule = make_optimizer(network, stage), Schedule(stage)
    stream = TrainingStream(
        dataset, training_transform(stage.crop, stage.resize, 0.5, 0.4, 0.1), seed=0
    )
    network.train()
    with Meter("learn", stage.steps) as meter:
        for step, (image, label) in enumerate(batches(stream, range(stage.steps), stage.batch, 0)):
            schedule(optimizer, step)
            label = label.to(device)
            image = (image.to(device) / 255 - mean) / std
            with autocast(device, "auto"):
                logits = logits_of(network(image.contiguous(memory_format=torch.channels_last)))
            loss = cross_entropy(resize(logits.float(), label.shape[-2:]), label, weight)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            averaged.update_parameters(network)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/camvid"), help="CamVid")
    parser.add_argument("--out", type=Path, default=Path("runs/attend"), help="run folder")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    options = parser.parse_args()
    keep_memory()
    options.out.mkdir(parents=True, exist_ok=True)
    dataset = open_dataset(split(options.data, options.out), "learn")
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


if __name__ == "__main__":
    main()
