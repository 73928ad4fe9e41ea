"""Networks that others made: where they are found, what is known of them, how they are called.

Anything that maps `[B,3,h,w]` to logits will do: a tensor, a dictionary with `out`, or an object
with `.logits`. Three libraries are known by their names and imported only if one is asked for:

    transformers:NAME            a folder of save_pretrained, or an id on the Hugging Face hub
    smp:NAME                     the same, of segmentation_models.pytorch
    torchvision:NAME[@FILE]      with torchvision's weights, or a state_dict that was saved
    FOLDER                       of save_pretrained, by either of the first two
    MODULE:FUNCTION              your own: Python that is importable here; FUNCTION() returns it

What a network of one's own does not say by its attributes counts as it is here: `multiple` = 32
(pixels that height and width must be a multiple of), `mean` and `std` = ImageNet's (of RGB in
0..1), `names` = unknown (of its classes).
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..runs.errors import InputError, first_line

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
ALLOWED = "HMSA_NETWORK"  # variable of the environment: the MODULE:FUNCTION that may be imported
_EXTRA = {"transformers": "transformers", "smp": "segmentation_models_pytorch"}


@dataclass(frozen=True)
class Known:
    """What there is to know of a network beside how to call it."""

    module: nn.Module
    made: Mapping[str, Any]  # JSON from which `rebuild` makes it again, without its weights
    multiple: int = 32
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD
    names: tuple[str, ...] | None = None  # of its classes


def find(source: str) -> Known:
    """The network that `source` names, with its weights, ready to look; forms: see above."""
    library, _, name = source.partition(":")
    if library in _FIND and name:
        return _FIND[library](name)
    if Path(source).is_dir():
        config = Path(source) / "config.json"
        try:
            told = json.loads(config.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise InputError(
                f"{source} has no readable config.json; give a folder of save_pretrained, of "
                "transformers or segmentation_models.pytorch"
            ) from None
        return _FIND["smp" if "_model_class" in told else "transformers"](source)
    if name:
        return _own(source)
    raise InputError(
        f"no network {source}; give a checkpoint of ours, transformers:NAME, smp:NAME, "
        "torchvision:NAME[@FILE], a folder of save_pretrained, or MODULE:FUNCTION of your own"
    )


def known(module: nn.Module) -> Known:
    """What a network says of itself, or its class does."""
    library = type(module).__module__.partition(".")[0]
    if library in _KNOWN:
        return _KNOWN[library](module)
    told = {
        key: getattr(module, key) for key in ("multiple", "mean", "std") if hasattr(module, key)
    }
    names = getattr(module, "names", None)
    return Known(module, {"library": "own"}, **told, names=tuple(names) if names else None)


def rebuild(made: Mapping[str, Any]) -> nn.Module:
    """The network of `Known.made`, with any weights. InputError: only its owner has the code."""
    library = made.get("library")
    if library == "own":
        if source := made.get("source"):
            return _own(source).module
        raise InputError(
            "the network in this checkpoint is code of its owner's, which no file can bring along; "
            "give it to HMSA.from_pretrained(.., network=)"
        )
    if library not in _REBUILD:
        raise InputError(f"a network of {library!r} is none of {', '.join(_REBUILD)}, own")
    try:
        return _REBUILD[library](made)
    except InputError:
        raise
    except Exception as error:  # another version of that library may raise anything
        raise InputError(
            f"this version of {library} cannot build it ({first_line(error)})"
        ) from None


def logits_of(output: Any) -> Tensor:
    """`[B,K,h,w]` of what a network returned; InputError says what came instead."""
    found = output
    if isinstance(output, Mapping) and "out" in output:
        found = output["out"]
    elif hasattr(output, "logits"):
        found = output.logits
    if isinstance(found, Tensor) and found.ndim == 4:
        return found
    if isinstance(output, Tensor):
        came = f"a tensor {list(output.shape)}"
    elif isinstance(output, Mapping):
        came = f"{type(output).__name__} with {', '.join(map(str, output))}"
    elif isinstance(output, Sequence):
        came = f"{type(output).__name__} of {len(output)}"
    else:
        came = type(output).__name__
    raise InputError(
        f"the network returns {came}; it must be logits [B,K,h,w]: a tensor, a dictionary with "
        "out, or an object with .logits"
    )


def _need(library: str) -> Any:
    """A library that is not there unless asked for."""
    name = _EXTRA[library]
    try:
        return importlib.import_module(name)
    except ImportError:
        raise InputError(f'{library} networks need {name}: pip install "hmsa[networks]"') from None


def allow(source: str) -> None:
    """Let the code MODULE:FUNCTION be run, by this process and those that it starts.

    Without that no checkpoint, which may be anybody's, can have a module imported by naming it.
    """
    os.environ[ALLOWED] = source


def _own(source: str) -> Known:
    if os.environ.get(ALLOWED) != source:
        raise InputError(
            f"the network in this checkpoint is code of its owner's, {source}; if that may be run "
            f"here, set {ALLOWED}={source}, or give the network to "
            "HMSA.from_pretrained(.., network=)"
        )
    place, _, name = source.partition(":")
    try:
        make: Callable[[], Any] = getattr(importlib.import_module(place), name)
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"{source}: {error}; MODULE must be importable from here (PYTHONPATH) and FUNCTION in "
            "it return the network"
        ) from None
    module = make()
    if not isinstance(module, nn.Module):
        raise InputError(f"{source}() returned {type(module).__name__}, not a torch.nn.Module")
    found = known(module)
    if found.made.get("library") == "own":
        return Known(**vars(found) | {"made": {"library": "own", "source": source}})
    return found


def _load(library: str, name: str, load: Callable[[], nn.Module]) -> nn.Module:
    try:
        return load().eval()
    except InputError:
        raise
    except Exception as error:  # of files, of the hub, of configurations: of many kinds
        raise InputError(f"{library}:{name} cannot be loaded ({first_line(error)})") from None


def _find_transformers(name: str) -> Known:
    library = _need("transformers")
    module = _load(
        "transformers", name, lambda: library.AutoModelForSemanticSegmentation.from_pretrained(name)
    )
    found = _known_transformers(module)
    try:
        processor = library.AutoImageProcessor.from_pretrained(name)
        mean, std = processor.image_mean, processor.image_std
    except (OSError, ValueError, AttributeError):  # none was stored: ImageNet's, as they all have
        return found
    return Known(**vars(found) | {"mean": tuple(mean), "std": tuple(std)})


def _known_transformers(module: nn.Module) -> Known:
    config: Any = module.config
    names = tuple(config.id2label[k] for k in sorted(config.id2label))
    told = json.loads(json.dumps(config.to_dict()))
    return Known(
        module,
        {"library": "transformers", "config": told},
        names=None if names[0].startswith("LABEL_") else names,
    )


def _rebuild_transformers(made: Mapping[str, Any]) -> nn.Module:
    library, told = _need("transformers"), dict(made["config"])
    config = library.AutoConfig.for_model(told.pop("model_type"), **told)
    module: nn.Module = library.AutoModelForSemanticSegmentation.from_config(config)
    return module


def _find_smp(name: str) -> Known:
    library = _need("smp")
    found = _known_smp(_load("smp", name, lambda: library.from_pretrained(name)))
    told: Any = found.made["arguments"]
    if not told.get("encoder_weights"):
        return found
    try:  # what its encoder was first trained with
        first = library.encoders.get_preprocessing_params(
            told["encoder_name"], told["encoder_weights"]
        )
    except Exception as error:  # of the hub, mostly
        raise InputError(
            f"smp:{name}: what its encoder's pictures are normalised by cannot be found "
            f"({first_line(error)})"
        ) from None
    if first["input_space"] != "RGB":
        raise InputError(f"smp:{name} wants {first['input_space']} pictures; RGB alone will do")
    most = first["input_range"][1]
    mean, std = (tuple(v / most for v in first[key]) for key in ("mean", "std"))
    return Known(**vars(found) | {"mean": mean, "std": std})


def _known_smp(module: Any) -> Known:
    told = json.loads(json.dumps({k: v for k, v in module.config.items() if k[0] != "_"}))
    if told.get("activation"):
        raise InputError(
            f"the network ends in {told['activation']}; scale attention fuses logits: give "
            "activation=None"
        )
    multiple = max(32, module.encoder.output_stride)
    made = {"library": "smp", "class": type(module).__name__, "arguments": told}
    return Known(module, made, multiple)


def _rebuild_smp(made: Mapping[str, Any]) -> nn.Module:
    arguments = dict(made["arguments"]) | {"encoder_weights": None}
    module: nn.Module = getattr(_need("smp"), made["class"])(**arguments)
    return module


class _Torchvision(nn.Module):
    """A segmentation network of torchvision's without its last resizing, which is ours as well."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.backbone, self.classifier = network.backbone, network.classifier
        self.train(network.training)

    def forward(self, image: Tensor) -> Tensor:
        levels = self.backbone(image)
        logits: Tensor = self.classifier(levels if "high" in levels else levels["out"])
        return logits


def _torchvision(name: str, classes: int | None, weights: Any = None) -> Any:
    from torchvision.models import get_model

    told: dict[str, Any] = {"weights": weights}
    if weights is None:
        told |= {"weights_backbone": None, "num_classes": classes}
    return get_model(name, **told)


def _segmenters() -> list[str]:
    from torchvision.models import list_models, segmentation

    names: list[str] = list_models(module=segmentation)
    return names


def _find_torchvision(name: str) -> Known:
    name, _, file = name.partition("@")
    if name not in _segmenters():
        raise InputError(f"torchvision:{name} is none of {', '.join(_segmenters())}")
    if not file:
        module = _load("torchvision", name, lambda: _torchvision(name, None, "DEFAULT"))
        from torchvision.models import get_model_weights

        found = _known_torchvision(module, name)
        names = get_model_weights(name).DEFAULT.meta["categories"]
        return Known(**vars(found) | {"names": tuple(names)})
    if not Path(file).is_file():
        raise InputError(
            f"torchvision:{name}: no file {file}; torch.save(network.state_dict(), ..)"
        )

    def load() -> nn.Module:
        tensors = torch.load(file, map_location="cpu", weights_only=True)
        last = next(t for n, t in reversed(tensors.items()) if n.startswith("classifier.")
                    and n.endswith("bias"))  # fmt: skip
        network: nn.Module = _torchvision(name, len(last))
        network.load_state_dict(
            {n: t for n, t in tensors.items() if not n.startswith("aux_classifier.")}
        )
        return network

    return _known_torchvision(_load("torchvision", f"{name}@{file}", load), name)


def _known_torchvision(module: nn.Module, name: str | None = None) -> Known:
    if not hasattr(module, "backbone") or not hasattr(module, "classifier"):
        raise InputError(f"{type(module).__name__} is no segmentation network of torchvision's")
    wrapped = _Torchvision(module)
    shapes = {key: tensor.shape for key, tensor in wrapped.state_dict().items()}
    classes = next(len(t) for n, t in reversed(wrapped.classifier.state_dict().items())
                   if n.endswith("bias"))  # fmt: skip
    for each in [name] if name else _segmenters():
        with torch.device("meta"):
            other = _Torchvision(_torchvision(each, classes))
        if shapes == {key: tensor.shape for key, tensor in other.state_dict().items()}:
            return Known(wrapped, {"library": "torchvision", "name": each, "classes": classes}, 16)
    return Known(wrapped, {"library": "own"}, 16)  # made of its parts by hand


def _rebuild_torchvision(made: Mapping[str, Any]) -> nn.Module:
    return _Torchvision(_torchvision(made["name"], made["classes"]))


_FIND: dict[str, Callable[[str], Known]] = {
    "transformers": _find_transformers,
    "smp": _find_smp,
    "torchvision": _find_torchvision,
}
_KNOWN: dict[str, Callable[[Any], Known]] = {
    "transformers": _known_transformers,
    "segmentation_models_pytorch": _known_smp,
    "torchvision": _known_torchvision,
}
_REBUILD: dict[str, Callable[[Mapping[str, Any]], nn.Module]] = {
    "transformers": _rebuild_transformers,
    "smp": _rebuild_smp,
    "torchvision": _rebuild_torchvision,
}
