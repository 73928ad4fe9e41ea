"""Hierarchical multi-scale attention for semantic segmentation."""

__version__ = "0.1.0"

from .errors import InputError
from .model import HMSA, fuse
from .predictor import Predictor
from .segmentation import Segmentation

__all__ = ["HMSA", "InputError", "Predictor", "Segmentation", "__version__", "fuse"]
