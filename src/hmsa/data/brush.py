"""Label Studio's brush masks: run lengths of an RGBA image, packed in bits.

Bits, highest first: 32 for the number of values; 5 for the bits of a value, less 1; 4 times 4 for
the bits of a length, less 1, in each of four sizes. Then pieces until all values are there: 1 bit
for whether it is a run, 2 for the size of its length, the length less 1, and one value for a run,
else one for each place. Values are R, G, B, A of each pixel, row by row; A above 0 is the mask.

Ours rather than `label_studio_sdk.converter.brush`: that package pins NumPy below 2.3, brings forty
others, and takes seconds for a megapixel. Format: rle-pack of thi.ng/umbrella.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_BITS, _SIZES = 8, (3, 4, 8, 16)  # of a value, of a length: as Label Studio writes them
_LONGEST = 1 << _SIZES[-1]


def pack_mask(mask: NDArray[np.bool_]) -> list[int]:
    """Mask `[H,W]` -> bytes; all four channels are 255 where it is set."""
    pixels = mask.ravel()
    starts = np.append(0, np.flatnonzero(np.diff(pixels)) + 1)
    lengths, values = np.diff(starts, append=pixels.size) * 4, pixels[starts] * 255
    pieces = -(-lengths // _LONGEST)  # a run too long for one length is written as several
    last = np.cumsum(pieces) - 1
    values = np.repeat(values, pieces)
    sizes = np.full(values.size, _LONGEST)
    sizes[last] = lengths - (pieces - 1) * _LONGEST
    kind = np.searchsorted(1 << np.array(_SIZES), sizes)
    bits = np.array(_SIZES)[kind]
    # Flag, kind, length and value of each piece as one number of `width` bits
    codes = ((((4 | kind) << bits) | (sizes - 1)) << _BITS) | values
    header = [(mask.size * 4, 32), (_BITS - 1, 5), *((size - 1, 4) for size in _SIZES)]
    numbers = np.concatenate([[number for number, _ in header], codes])
    width = np.concatenate([[size for _, size in header], 3 + bits + _BITS])
    place = np.cumsum(width)
    stream = np.zeros(place[-1], np.uint8)
    for bit in range(int(width.max())):
        there = width > bit
        stream[place[there] - 1 - bit] = numbers[there] >> bit & 1
    return np.packbits(stream).tolist()


def unpack_mask(packed: Sequence[int], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Bytes -> mask of `size`, height and width. Raises ValueError if they are no such mask."""
    try:
        stream = np.unpackbits(np.array(packed, np.uint8))
    except (TypeError, ValueError, OverflowError):
        raise ValueError("its rle is not a list of bytes") from None
    text, at = (stream + 48).tobytes().decode("ascii"), 0

    def number(bits: int) -> int:
        nonlocal at
        at += bits
        if at > len(text):
            raise ValueError("its rle ends too early")
        return int(text[at - bits : at], 2)

    count, bits = number(32), number(5) + 1
    sizes = [number(4) + 1 for _ in range(4)]
    wanted = size[0] * size[1] * 4
    if (count, bits) != (wanted, _BITS):
        raise ValueError(
            f"its rle has {count} values of {bits} bits; {size[1]}x{size[0]} pixels need "
            f"{wanted} of {_BITS}"
        )
    values, done = np.empty(count, np.uint8), 0
    while done < count:
        run, length = number(1), number(sizes[number(2)]) + 1
        if done + length > count:
            raise ValueError("its rle has more values than it declares")
        first = at
        value = number(_BITS if run else _BITS * length)
        values[done : done + length] = value if run else np.packbits(stream[first:at])
        done += length
    return values.reshape(*size, 4)[..., 3] > 0
