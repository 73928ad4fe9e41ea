"""Joint augmentation of image and label (torchvision v2): one geometry, labels always nearest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from ..config.recipe import Augment
from .labels import IGNORE

# Padding that is zero after normalisation: the ImageNet mean. The official code pads with black,
# which is a colour that images have.
_MEAN = (124, 116, 104)


def training_transform(
    crop: tuple[int, int],
    scale: tuple[float, float],
    augment: Augment,
    long_edge: int | None = None,
) -> v2.Transform:
    """(Image `[C,H,W]` uint8, Mask `[H,W]`) -> the same, `crop` (height, width) pixels large.

    KeyPoints `[1,2]` as third input, the x and y of a pixel, will be in the crop and come back as
    where they then are; without them the crop is anywhere. The steps and their order are the
    paper's: size, crop, flip, colours, blur.
    """
    color = augment.color
    hue = color / 5 if augment.hue is None else augment.hue
    steps: list[v2.Transform] = [RandomScaleCrop(crop, scale, long_edge)]
    steps.append(v2.RandomHorizontalFlip(augment.flip))
    if color or hue:
        steps.append(ColorJitter(color, color, color, hue=hue))
    if augment.blur:
        steps.append(v2.RandomApply([v2.GaussianBlur(7, sigma=(0.15, 1.3))], p=augment.blur))
    return v2.Compose(steps)


class ColorJitter(v2.ColorJitter):
    """torchvision's, on Pillow images: as the official code, and faster than on tensors.

    Where channels are not RGB, each is a gray image: its brightness and contrast change.
    """

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if not isinstance(inpt, tv_tensors.Image):
            return inpt
        if len(inpt) != 3:
            gray = tv_tensors.Image(inpt[:, None])
            return tv_tensors.Image(super().transform(gray, params)[:, 0])
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
        nearest = F.InterpolationMode.NEAREST_EXACT
        if isinstance(inpt, tv_tensors.Mask):
            # torchvision's own kernel for masks takes "nearest", which lies half a pixel beside
            # where bilinear puts the image: as much as a thin post is wide.
            out = tv_tensors.Mask(F.resized_crop_image(inpt[None], *window, size, nearest)[0])
        else:
            # torch 2.15 fails where bilinear resizing makes a single pixel of 8 bits
            way = nearest if size == [1, 1] else F.InterpolationMode.BILINEAR
            out = self._call_kernel(
                F.resized_crop, inpt, *window, size, interpolation=way, antialias=True
            )
        fill: Any = IGNORE if isinstance(inpt, tv_tensors.Mask) else None
        if isinstance(inpt, tv_tensors.Image):
            fill = [_MEAN[channel % 3] for channel in range(len(inpt))]
        return self._call_kernel(F.pad, out, params["padding"], fill=fill)


def _randint(most: int) -> int:
    return int(torch.randint(most + 1, ()))


def collate(samples: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Samples -> image `[B,C,H,W]`, uint8 until the model, and label `[B,H,W]` int64."""
    images, labels = zip(*samples, strict=True)
    return torch.stack(images), torch.stack(labels).long()
