"""Joint augmentation of image and label (torchvision v2): one geometry, labels always nearest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from .colors import ColorJitter
from .labels import IGNORE

# Padding that the network sees as nothing: the ImageNet mean, zero after normalisation. The
# official code pads with black, which is a colour that pictures have.
_FILL: dict[Any, Any] = {tv_tensors.Image: (124, 116, 104), tv_tensors.Mask: IGNORE}


def training_transform(
    crop: tuple[int, int],
    scale: tuple[float, float],
    flip: float,
    color: float,
    blur: float,
    hue: float | None = None,
    long_edge: int | None = None,
) -> v2.Transform:
    """(Image `[3,H,W]` uint8, Mask `[H,W]`) -> the same, `crop` (height, width) pixels large.

    KeyPoints `[1,2]` as third input, the x and y of a pixel, will be in the crop and come back as
    where they then are; without them the crop is anywhere. The steps and their order are the
    paper's: size, crop, flip, colours, blur.
    """
    steps: list[v2.Transform] = [
        RandomScaleCrop(crop, scale, long_edge), v2.RandomHorizontalFlip(flip)
    ]  # fmt: skip
    hue = color / 5 if hue is None else hue
    if color or hue:
        steps.append(ColorJitter(color, color, color, hue=hue))
    if blur:
        steps.append(v2.RandomApply([v2.GaussianBlur(7, sigma=(0.15, 1.3))], p=blur))
    return v2.Compose(steps)


class RandomScaleCrop(v2.Transform):
    """Picture resized by a random factor (log-uniform), then a random crop, padded where short.

    Given KeyPoints `[1,2]`, every crop that holds the point is as likely as any other. The window
    is cut out of the picture before it is resized: the same result for a fraction of the work when
    pictures are large. long_edge: pixels that the factor is counted from; None: those it has.
    """

    def __init__(
        self, crop: tuple[int, int], scale: tuple[float, float], long_edge: int | None = None
    ) -> None:
        super().__init__()
        self.crop, self.scale, self.long_edge = crop, scale, long_edge

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        lo, hi = torch.tensor(self.scale).log()
        factor = float(torch.exp(lo + (hi - lo) * torch.rand(())))
        if self.long_edge:
            factor *= self.long_edge / max(F.get_size(flat_inputs[0]))
        held = next(
            (i[0].flip(0).tolist() for i in flat_inputs if isinstance(i, tv_tensors.KeyPoints)),
            (None, None),
        )
        window, resized, padding = [], [], []
        for side, wanted, at in zip(F.get_size(flat_inputs[0]), self.crop, held, strict=True):
            taken = min(side, max(1, round(wanted / factor)))
            first, last = 0, side - taken
            if at is not None:
                first, last = max(first, at - taken + 1), min(last, at)
            start = first + _randint(last - first)
            length = wanted if taken < side else min(wanted, max(1, round(side * factor)))
            before = _randint(wanted - length)
            window.append((start, taken))
            resized.append(length)
            padding.append((before, wanted - length - before))
        (top, height), (left, width) = window
        (above, below), (before, after) = padding
        return {
            "window": (top, left, height, width),
            "size": resized,
            "padding": [before, above, after, below],
        }

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        out = self._call_kernel(F.crop, inpt, *params["window"])
        if isinstance(out, tv_tensors.Mask):
            # torchvision's own kernel for masks takes "nearest", which lies half a pixel beside
            # where bilinear puts the picture: as much as a thin post is wide.
            nearest = F.InterpolationMode.NEAREST_EXACT
            out = tv_tensors.Mask(F.resize_image(out[None], params["size"], nearest)[0])
        else:
            out = self._call_kernel(F.resize, out, params["size"], antialias=True)
        if not any(params["padding"]):
            return out
        fill = _FILL.get(type(inpt))
        return self._call_kernel(F.pad, out, params["padding"], fill=fill)


def _randint(most: int) -> int:
    return int(torch.randint(most + 1, ()))


def collate(samples: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Samples -> image `[B,3,H,W]`, uint8 until the model, and label `[B,H,W]` int64."""
    images, labels = zip(*samples, strict=True)
    return torch.stack(images), torch.stack(labels).long()
