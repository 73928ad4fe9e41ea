"""The network: trunk -> head -> logits and attention per scale, folded by `fuse`.

Knows no config, data or loss, so that it can be lifted out.
"""

from .hmsa import HMSA, Encoded, Maps, Output, average, chain, effective_weights, fuse

__all__ = ["HMSA", "Encoded", "Maps", "Output", "average", "chain", "effective_weights", "fuse"]
