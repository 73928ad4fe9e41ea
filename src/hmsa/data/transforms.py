"""Joint augmentation of image and label (torchvision v2): one geometry, labels always nearest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from .labels import IGNORE

# Padding that is zero after normalisation: the ImageNet mean. The official code pads with black,
# which is a colour that images have.
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
    steps: list[v2.Transform] = [RandomScaleCrop(crop, scale, long_edge)]
    steps.append(v2.RandomHorizontalFlip(flip))
    hue = color / 5 if hue is None else hue
    if color or hue:
        steps.append(ColorJitter(color, color, color, hue=hue))
    if blur:
        steps.append(v2.RandomApply([v2.GaussianBlur(7, sigma=(0.15, 1.3))], p=blur))
    return v2.Compose(steps)


class ColorJitter(v2.ColorJitter):
    """torchvision's, on Pillow images: as the official code, and faster than on tensors."""

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if not isinstance(inpt, tv_tensors.Image):
            return inpt
        image = super().transform(F.to_pil_image(inpt), params)
        return tv_tensors.Image(F.pil_to_tensor(image))


class RandomScaleCrop(v2.Transform):
    """Image resized by a random factor (log-uniform), then a random crop, padded where short.

    With KeyPoints `[1,2]`, every crop that holds the point is equally likely. The window is cut out
    of the image before it is resized: the same result for a fraction of the work when images are
    large. long_edge: pixels that the factor is counted from; None: those of the image.
    """

    def __init__(
        self, crop: tuple[int, int], scale: tuple[float, float], long_edge: int | None = None
    ) -> None:
        super().__init__()
        self.crop, self.scale, self.long_edge = crop, scale, long_edge

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        size = F.get_size(flat_inputs[0])
        lo, hi = torch.tensor(self.scale).log()
        factor = float(torch.exp(lo + (hi - lo) * torch.rand(())))
        if self.long_edge:
            factor *= self.long_edge / max(size)
        points = [i[0].flip(0).tolist() for i in flat_inputs if isinstance(i, tv_tensors.KeyPoints)]
        sides = []
        for side, wanted, point in zip(size, self.crop, *(points or [(None, None)]), strict=True):
            taken = min(side, max(1, round(wanted / factor)))
            first, last = 0, side - taken
            if point is not None:
                first, last = max(first, point - taken + 1), min(last, point)
            start = first + _randint(last - first)
            length = wanted if taken < side else min(wanted, max(1, round(side * factor)))
            before = _randint(wanted - length)
            sides.append((start, taken, length, before, wanted - length - before))
        (top, height, rows, above, below), (left, width, cols, before, after) = sides
        return {
            "window": (top, left, height, width),
            "size": [rows, cols],
            "padding": [before, above, after, below],
        }

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        window, size = params["window"], params["size"]
        if isinstance(inpt, tv_tensors.Mask):
            # torchvision's own kernel for masks takes "nearest", which lies half a pixel beside
            # where bilinear puts the image: as much as a thin post is wide.
            nearest = F.InterpolationMode.NEAREST_EXACT
            out = tv_tensors.Mask(F.resized_crop_image(inpt[None], *window, size, nearest)[0])
        else:
            out = self._call_kernel(F.resized_crop, inpt, *window, size, antialias=True)
        return self._call_kernel(F.pad, out, params["padding"], fill=_FILL.get(type(inpt)))


def _randint(most: int) -> int:
    return int(torch.randint(most + 1, ()))


def collate(samples: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Samples -> image `[B,3,H,W]`, uint8 until the model, and label `[B,H,W]` int64."""
    images, labels = zip(*samples, strict=True)
    return torch.stack(images), torch.stack(labels).long()
