"""The rule behind the golden data: weights, pictures and labels from a name or a seed."""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

_GAIN = {
    "ocr.aux_head.2.weight": 0.3,
    "ocr.ocr_distri_head.object_context_block.f_pixel.2.weight": 0.4,
    "bot_aspp.weight": 5.0,
    "bot_fine.weight": 2.0,
}


def _generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def weight(key: str, shape: tuple[int, ...]) -> NDArray[np.generic]:
    """The tensor of an official name (without `module.`): float32, or int64 for a counter."""
    if key.endswith("num_batches_tracked"):
        return np.zeros((), np.int64)
    z = _generator(zlib.crc32(key.encode())).standard_normal(shape)
    if key.endswith((".running_mean", ".bias")):
        value = 0.1 * z
    elif key.endswith(".running_var"):
        value = 1 + 0.1 * np.abs(z)
    elif z.ndim == 1:
        last = key.endswith(".bn3.weight") or ".fuse_layers." in key
        last = last or (".branches." in key and key.endswith(".bn2.weight"))
        value = (0.5 if last else 1.0) * (1 + 0.1 * z)
    else:
        centred = z - z.mean((1, 2, 3), keepdims=True)
        value = _GAIN.get(key, 1.0) * np.sqrt(2 / np.prod(shape[1:])) * centred
    return value.astype(np.float32)


def image(shape: tuple[int, ...], seed: int) -> NDArray[np.float32]:
    return _generator(seed).standard_normal(shape).astype(np.float32)


def blocky_labels(
    n: int, h: int, w: int, classes: int, block: int, seed: int, p_ignore: float, ignore: int
) -> NDArray[np.int64]:
    """`[n,h,w]`: a class for each block x block square, some of them ignored."""
    draw = _generator(seed)
    squares = (n, -(-h // block), -(-w // block))
    label = draw.integers(0, classes, size=squares)
    label[draw.random(squares) < p_ignore] = ignore
    return label.repeat(block, 1).repeat(block, 2)[:, :h, :w].astype(np.int64)
