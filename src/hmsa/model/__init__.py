"""The network: trunk -> head -> logits and attention per scale, folded into one by `fusion`.

Knows no config, data or loss, so that it can be lifted out.
"""

from .adapter import PairScaleAttention, ScaleAttention
from .fusion import ScaleOutput, average, chain, effective_weights, fuse, maximum, ordered
from .hmsa import HMSA, Encoded, Output
from .variants import FUSIONS, build

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
    "ordered",
]
