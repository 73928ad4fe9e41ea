"""Scores of a whole split, each read off a tensor of counts that grows by one picture at a time.

Every score here is made by `add`, once per picture, and holds plain tensors of counts: to pool
processes, sum them (int64, so exactly). Plain tensors in, no dataset, model or file: the package
can be lifted out.
"""

from .boundary import BoundaryF1, BoundaryIoU
from .calibration import Calibration, Reliability, RiskCoverage
from .confusion import Confusion
from .instances import InstanceConfusion
from .thresholds import precise, surest

__all__ = [
    "BoundaryF1",
    "BoundaryIoU",
    "Calibration",
    "Confusion",
    "InstanceConfusion",
    "Reliability",
    "RiskCoverage",
    "precise",
    "surest",
]
