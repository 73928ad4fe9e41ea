"""What is installed here: versions, devices, arithmetic, extras."""

from __future__ import annotations

import os
import platform
from importlib import metadata

import torch
from packaging.requirements import Requirement

from ..runs import cache_folder
from ..runs.machine import best_device, describe_machine, in_use
from ..runs.memory import free_memory

ADDS = {
    "weights": "ImageNet weights to begin training from, without a download",
    "app": "hmsa app: a web page and an HTTP API",
    "openvino": "the fastest prediction on CPUs",
    "onnxruntime": "fast prediction on CPUs",
    "export": "hmsa export: one ONNX file of network and scales",
    "video": "prediction of videos",
    "geo": "GeoTIFF, and large TIFFs read by windows",
    "coco": "masks as COCO run lengths, --save rle",
    "networks": "attention for networks of transformers and segmentation_models.pytorch",
    "wandb": "training also logs to W&B: --set loggers=[wandb]",
    "mlflow": "training also logs to MLflow: --set loggers=[mlflow]",
    "cluster": "auto-labelling in several processes or on many machines, by Ray",
}


def machine() -> dict[str, str]:
    """Versions, devices and arithmetic, by what they are."""
    device = best_device()
    names = ("hmsa", "torch", "torchvision", "timm", "numpy", "pillow")
    return {
        "versions": ", ".join(f"{name} {metadata.version(name)}" for name in names),
        "system": f"{platform.platform()}, Python {platform.python_version()}",
        "device": f"{device}: {describe_machine(device).split(';')[0]}",
        "free memory": f"{free_memory(device) / 2**30:.1f} GiB",
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()} cores",
        "arithmetic": f"{in_use(device, 'auto')} with --precision auto",
        "cache": str(cache_folder()),
    }


def missing(extra: str) -> list[str]:
    """What an extra needs and is not installed, or in another version."""
    found = []
    for needed in map(Requirement, metadata.requires("hmsa") or ()):
        if not needed.marker or not needed.marker.evaluate({"extra": extra}):
            continue
        if needed.name == "hmsa":
            found += [each for other in needed.extras for each in missing(other)]
            continue
        try:
            version = metadata.version(needed.name)
            if not needed.specifier.contains(version, prereleases=True):
                found.append(f"{needed.name}{needed.specifier}, not {version}")
        except metadata.PackageNotFoundError:
            found.append(needed.name)
    return found
