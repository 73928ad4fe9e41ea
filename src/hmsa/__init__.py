"""Hierarchical multi-scale attention for semantic segmentation."""

__version__ = "0.1.0"

from .errors import InputError
from .model import HMSA, ScaleAttention, fuse
from .predictor import Predictor
from .segmentation import Segmentation

__all__ = [
    "HMSA", "InputError", "Predictor", "ScaleAttention", "Segmentation", "__version__", "fuse",
]  # fmt: skip
