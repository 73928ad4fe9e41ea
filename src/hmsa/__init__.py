"""Hierarchical multi-scale attention for semantic segmentation."""

from typing import TYPE_CHECKING, Any

__version__ = "0.2.0.dev0"

__all__ = [
    "HMSA",
    "InputError",
    "Prediction",
    "Predictor",
    "ScaleAttention",
    "__version__",
    "fuse",
]

if TYPE_CHECKING:
    from .inference.predictor import Predictor
    from .inference.result import Prediction
    from .model import HMSA, ScaleAttention, fuse
    from .runs import InputError

_PLACES = {
    "HMSA": "checkpoint.networks",  # which lets it rebuild networks of other libraries
    "InputError": "runs",
    "Predictor": "inference.predictor",
    "ScaleAttention": "checkpoint.networks",
    "Prediction": "inference.result",
    "fuse": "model",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562): `import hmsa` alone loads no torch."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
