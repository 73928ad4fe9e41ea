"""Networks, our own and those of other libraries, found by name and rebuilt from checkpoints.

A network to put scale attention around is one of

    transformers:NAME        a folder of save_pretrained, or an id on the Hugging Face hub
    smp:NAME                 the same, of segmentation_models.pytorch
    torchvision:NAME[@FILE]  with torchvision's weights, or with a saved state_dict
    FOLDER                   of save_pretrained, of one of the first two
    MODULE:FUNCTION          your own: Python that is importable here; FUNCTION() returns it
    CHECKPOINT               of hmsa: a file, a run folder, a folder of save_pretrained, or the name
                             of one that comes with it

Importing this module lets `ScaleAttention` describe and rebuild all of them, and `HMSA` find the
last by name.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..model import HMSA, ScaleAttention, build
from ..model.adapter import NetworkInfo
from ..model.adapter import describe as describe_own
from ..model.pretrained import CONFIG
from ..model.state_dicts import fitted, read_state_dict, require_finite
from ..model.weights import hashed
from ..runs.errors import InputError, as_input_error, first_line
from .shipped import locate

# Environment variable: the MODULE:FUNCTION that may be imported. A checkpoint, which may be
# anybody's, can name code but not have it run without this permission
ALLOWED = "HMSA_NETWORK"


class Library(NamedTuple):
    """How to work with the networks of one library."""

    find: Callable[[str], Any]  # name -> the network, with weights, and mean and std as attributes
    describe: Callable[[Any], NetworkInfo]
    rebuild: Callable[[Mapping[str, Any]], Any]  # `NetworkInfo.made` -> the network, any weights


def load(source: str | Path) -> HMSA:
    """`HMSA.from_pretrained` for the command line: raises InputError."""
    with as_input_error():
        return HMSA.from_pretrained(source)


def find(source: str | Path) -> NetworkInfo:
    """The network that `source` names, with its weights, in eval mode. Raises InputError."""
    info = _find(source)
    with as_input_error():
        require_finite(info.module.state_dict(), source)
    return info


def _find(source: str | Path) -> NetworkInfo:
    source = locate(source)
    library, _, name = str(source).partition(":")
    with _as_input_error(f"{source} cannot be loaded"):
        if (config := Path(source) / CONFIG).is_file():
            keys = json.loads(config.read_text(encoding="utf-8"))
            name, kinds = str(source), {"_model_class": "smp", "model_type": "transformers"}
            library = next((kinds[key] for key in keys if key in kinds), "")
        if name and library in LIBRARIES:
            return describe(LIBRARIES[library].find(name).eval())
        if Path(source).exists() or Path(source).suffix == ".safetensors":
            return describe(load(source))
    if name:
        return _own(str(source))
    raise InputError(f"no network {source}; hmsa attend --help lists what can be given")


def describe(network: nn.Module | Mapping[str, Any]) -> NetworkInfo:
    """What a network says of itself; or the network of `NetworkInfo.made`, with any weights."""
    if not isinstance(network, nn.Module):
        return _rebuild(network)
    if isinstance(network, HMSA):
        inner, made = LogitsOnly(network), {"library": "hmsa", "network": network.card.network}
        if isinstance(network, ScaleAttention):
            inner, made = network.trunk.module, network.card.network["network"]
        mean, std = (tuple(each.flatten().tolist()) for each in (network.mean, network.std))
        return replace(describe(inner), made=made, mean=mean, std=std, names=network.card.names)
    module = type(network).__module__.partition(".")[0]
    module = "smp" if module == "segmentation_models_pytorch" else module
    return LIBRARIES[module].describe(network) if module in LIBRARIES else describe_own(network)


def _rebuild(made: Mapping[str, Any]) -> NetworkInfo:
    library = str(made.get("library"))
    if reference := made.get("reference"):
        info = find(reference)
        if hashed(info.module.state_dict()) != made["sha256"]:
            raise InputError(f"{reference} has changed since this attention was trained for it")
    elif library == "hmsa":
        info = describe(build(**made["network"] | {"pretrained": False}).eval())
    elif library == "own":
        info = _own(made.get("source", ""))
    else:
        with _as_input_error(f"this version of {library} cannot rebuild its network"):
            info = describe(LIBRARIES[library].rebuild(made).eval())
    return replace(info, made=made)


class LogitsOnly(nn.Module):
    """A network of hmsa at one scale, as a foreign network."""

    def __init__(self, model: HMSA) -> None:
        super().__init__()
        self.model, self.multiple = model, math.lcm(model.multiple, *model.strides)
        self.train(model.training)

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.model.see(image, attended=False).logits
        return logits


def allow(source: str) -> None:
    """Permit this process, and those that it starts, to import and call MODULE:FUNCTION."""
    os.environ[ALLOWED] = source


def _own(source: str) -> NetworkInfo:
    if not source or os.environ.get(ALLOWED) != source:
        way = f"set {ALLOWED}={source} to run it, or " * bool(source)
        raise InputError(
            f"the checkpoint needs its owner's code; {way}use HMSA.from_pretrained(.., network=)"
        )
    place, _, name = source.partition(":")
    try:
        module = getattr(importlib.import_module(place), name)()
    except (ImportError, AttributeError) as error:
        raise InputError(f"{source}: {error}; is its folder in PYTHONPATH?") from None
    if not isinstance(module, nn.Module):
        raise InputError(f"{source}() returned {type(module).__name__}, not a torch.nn.Module")
    info, made = describe(module), {"library": "own", "source": source}
    return replace(info, made=made) if info.made.get("library") == "own" else info


@contextmanager
def _as_input_error(message: str) -> Iterator[None]:
    """Other libraries, and files and hubs through them, may raise anything."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        way = '; pip install "hmsa[networks]"' if isinstance(error, ImportError) else ""
        raise InputError(f"{message} ({first_line(error)}){way}") from None


def _find_transformers(name: str) -> Any:
    from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

    # Never code that a folder or a hub brings along, nor a question whether to run it
    network = AutoModelForSemanticSegmentation.from_pretrained(name, trust_remote_code=False)
    with suppress(OSError, ValueError, AttributeError):  # not stored: ImageNet's
        processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
        network.mean, network.std = processor.image_mean, processor.image_std
    return network


def _describe_transformers(network: Any) -> NetworkInfo:
    config = json.loads(network.config.to_json_string(use_diff=False))
    info = replace(describe_own(network), made={"library": "transformers", "config": config})
    names = [name for _, name in sorted(network.config.id2label.items())]
    return info if names[0].startswith("LABEL_") else replace(info, names=names)


def _rebuild_transformers(made: Mapping[str, Any]) -> Any:
    from transformers import AutoConfig, AutoModelForSemanticSegmentation

    config = AutoConfig.for_model(**made["config"])
    return AutoModelForSemanticSegmentation.from_config(config, trust_remote_code=False)


def _find_smp(name: str) -> Any:
    import segmentation_models_pytorch as smp

    network = smp.from_pretrained(name)
    if weights := network.config.get("encoder_weights"):
        # Images are normalised as when the encoder was first trained
        first = smp.encoders.get_preprocessing_params(network.config["encoder_name"], weights)
        if first["input_space"] != "RGB":
            raise InputError(f"smp:{name} takes {first['input_space']} images; RGB is supported")
        for key in ("mean", "std"):
            setattr(network, key, [value / first["input_range"][1] for value in first[key]])
    return network


def _describe_smp(network: Any) -> NetworkInfo:
    arguments = {k: v for k, v in network.config.items() if k[0] != "_"}
    if activation := arguments.get("activation"):
        raise InputError(f"the network ends in {activation}, not logits: give activation=None")
    made = {"library": "smp", "class": type(network).__name__, "arguments": arguments}
    multiple = max(32, network.encoder.output_stride)
    return replace(describe_own(network), multiple=multiple, made=json.loads(json.dumps(made)))


def _rebuild_smp(made: Mapping[str, Any]) -> Any:
    import segmentation_models_pytorch as smp

    kind = getattr(smp, made["class"])
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):  # a card may name anything
        raise InputError(f"{made['class']} is not a network of smp")
    return kind(**made["arguments"] | {"encoder_weights": None})


class TorchvisionLogits(nn.Module):
    """A segmentation network of torchvision without its last resizing to the image's size."""

    multiple = 16

    def __init__(self, name: str, classes: int | None = None) -> None:
        """classes: of a network with any weights; None for the published weights."""
        from torchvision.models import get_model_weights, list_models, segmentation

        super().__init__()
        if name not in list_models(segmentation):
            raise InputError(f"{name} is not one of {', '.join(list_models(segmentation))}")
        make, self.names = getattr(segmentation, name), None
        if classes is None:
            network = make(weights="DEFAULT")
            self.names = get_model_weights(name).DEFAULT.meta["categories"]
            classes = len(self.names)
        else:
            network = make(weights=None, weights_backbone=None, num_classes=classes)
        self.backbone, self.classifier = network.backbone, network.classifier
        self.made = {"library": "torchvision", "name": name, "classes": classes}

    def forward(self, image: Tensor) -> Tensor:
        levels = self.backbone(image)
        logits: Tensor = self.classifier(levels if "high" in levels else levels["out"])
        return logits


def _find_torchvision(name: str) -> nn.Module:
    name, _, file = name.partition("@")
    if not file:
        return TorchvisionLogits(name)
    with as_input_error():
        tensors, _ = read_state_dict(Path(file))
        tensors = {n: tensor for n, tensor in tensors.items() if "aux_classifier." not in n}
        biases = [n for n in tensors if re.search(r"(^|\.)classifier\..*bias$", n)]
        network = TorchvisionLogits(name, len(tensors[biases[-1]]) if biases else 1)
        network.load_state_dict(fitted(tensors, network.state_dict(), file, f"torchvision:{name}"))
    return network


LIBRARIES = {
    "transformers": Library(_find_transformers, _describe_transformers, _rebuild_transformers),
    "smp": Library(_find_smp, _describe_smp, _rebuild_smp),
    "torchvision": Library(
        _find_torchvision,
        describe_own,
        lambda made: TorchvisionLogits(made["name"], made["classes"]),
    ),
}
ScaleAttention.describe = staticmethod(describe)
HMSA.locate = staticmethod(locate)
