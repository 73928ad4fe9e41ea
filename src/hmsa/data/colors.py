"""Colour jitter with the very values of torchvision's, in a fraction of its time.

Jitter is most of what augmenting a picture costs, and the shift of hue is most of jitter. Here the
colours lie in planes, not interleaved, and the hue is computed in bands of rows that stay in the
cache, with choices made on bytes instead of floats; brightness and contrast are a table.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

_BAND = 1 << 15  # pixels
_BYTES = torch.arange(256, dtype=torch.uint8)


class ColorJitter(v2.ColorJitter):
    """`v2.ColorJitter` for Images `[3,H,W]` uint8: the same random numbers, the same values."""

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if not isinstance(inpt, tv_tensors.Image):
            return inpt
        image = inpt.as_subclass(Tensor).contiguous()
        steps = (
            (adjust_brightness, params["brightness_factor"]),
            (adjust_contrast, params["contrast_factor"]),
            (F.adjust_saturation, params["saturation_factor"]),
            (adjust_hue, params["hue_factor"]),
        )
        for i in params["fn_idx"]:
            step, factor = steps[i]
            if factor is not None:
                image = step(image, factor)
        return tv_tensors.wrap(image, like=inpt)


def adjust_brightness(image: Tensor, factor: float) -> Tensor:
    """`[3,H,W]` uint8, contiguous -> the same times `factor`."""
    return _mapped(image, _BYTES.mul(factor))


def adjust_contrast(image: Tensor, factor: float) -> Tensor:
    """`[3,H,W]` uint8, contiguous -> the same spread by `factor` about its mean as a grey one."""
    mean = F.rgb_to_grayscale(image).float().mean()
    return _mapped(image, _BYTES.mul(factor).add_(mean, alpha=1 - factor))


def _mapped(image: Tensor, values: Tensor) -> Tensor:
    """What `values` `[256]` says of each byte."""
    table = values.clamp(0, 255).to(torch.uint8).numpy().tobytes()
    content = bytearray(image.numpy()).translate(table)
    return torch.frombuffer(content, dtype=torch.uint8).view(image.shape)


def adjust_hue(image: Tensor, shift: float) -> Tensor:
    """`[3,H,W]` uint8, contiguous -> the same with its hue shifted by -0.5..0.5 of the circle."""
    out = torch.empty_like(image)
    source, target = image.view(3, -1).numpy(), out.view(3, -1).numpy()
    for start in range(0, source.shape[1], _BAND):
        band = slice(start, start + _BAND)
        _shift(source[:, band], np.float32(shift), target[:, band])
    return out


def _shift(rgb: NDArray[np.uint8], shift: np.float32, out: NDArray[np.uint8]) -> None:
    """One band `[3,N]`. Every float operation is torchvision's, in its order, so that every bit is.

    It goes over hue, saturation and value: h = ((X + sector) - Y) / 6, where X and Y are the
    distances to the highest colour of two of the three, by which of them is the highest.
    """
    one, least = np.float32(1), np.float32(0.5 / 255)
    red, green, blue = rgb
    high, low = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    is_red = _mask(high == red)
    is_green = _mask(high == green) & ~is_red
    is_blue = ~(is_red | is_green)
    first = (blue & is_red) | (red & is_green) | (green & is_blue)
    second = (green & is_red) | (blue & is_green) | (red & is_blue)
    sector = (is_green & np.uint8(2)) | (is_blue & np.uint8(4))

    value = _unit(high)
    spread = value - _unit(low)
    # Grey has no spread: any divisor gives it the 0 that it needs, but for 0 itself
    span = np.maximum(spread, least)
    saturation = spread / np.maximum(value, least)
    hue = (value - _unit(first)) / span
    hue += sector
    hue -= (value - _unit(second)) / span
    hue *= np.float32(1 / 6)
    hue += one
    hue -= np.floor(hue)
    hue += shift
    hue -= np.floor(hue)

    hue *= np.float32(6)
    floor = np.floor(hue)
    part = (hue - floor) * saturation
    rest = one - saturation
    scale = np.float32(255.999)
    falling = ((one - part) * value * scale).astype(np.uint8)
    rising = ((part + rest) * value * scale).astype(np.uint8)
    low = (rest * value * scale).astype(np.uint8)
    sector = floor.astype(np.uint8)
    sector[sector == 6] = 0
    odd = _mask((sector & 1) == 1)
    middle = (falling & odd) | (rising & ~odd)
    # Sector by sector: red is v m p p m v, green m v v m p p, blue p p m v v m
    for color, (high_in, middle_in) in zip(
        out, (((0, 5), (1, 4)), ((1, 2), (0, 3)), ((3, 4), (2, 5))), strict=True
    ):
        is_high = _mask((sector == high_in[0]) | (sector == high_in[1]))
        is_middle = _mask((sector == middle_in[0]) | (sector == middle_in[1]))
        np.bitwise_or(high & is_high, middle & is_middle, out=color)
        color |= low & ~(is_high | is_middle)


def _unit(color: NDArray[np.uint8]) -> NDArray[np.float32]:
    """0..255 -> 0..1."""
    return np.multiply(color, np.float32(1 / 255), dtype=np.float32)


def _mask(chosen: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """255 where chosen, 0 elsewhere."""
    mask: NDArray[np.uint8] = np.negative(chosen.view(np.uint8))
    return mask
