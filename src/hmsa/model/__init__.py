"""The network: trunk -> head -> logits and attention per scale, folded by `fuse`.

Knows no config, data or loss, so that it can be lifted out.
"""

from .adapter import PairScaleAttention, ScaleAttention
from .baselines import FUSIONS, average, build, maximum
from .hmsa import HMSA, Encoded, Output, ScaleOutput, chain, effective_weights, fuse

__all__ = [
    "FUSIONS",
    "HMSA",
    "Encoded",
    "Output",
    "PairScaleAttention",
    "ScaleAttention",
    "ScaleOutput",
    "average",
    "build",
    "chain",
    "effective_weights",
    "fuse",
    "maximum",
]
