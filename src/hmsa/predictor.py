"""Predictor: uint8 picture -> uint8 label and confidence. The one inference path.

Knows nothing of files (but for the checkpoint that `load` takes), palettes, metrics or pages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import checkpoint
from .model import HMSA, Maps, average, effective_weights
from .model.heads import resize
from .model.hmsa import ordered
from .runtime import Precision, autocast, best_device


@dataclass(frozen=True)
class Segmentation:
    """What was seen. With `detail`, also what each scale saw by itself and how far it counted."""

    label: NDArray[np.uint8]  # [H,W] class indices
    confidence: NDArray[np.uint8]  # [H,W] floor(255 * softmax maximum)
    single: dict[float, NDArray[np.uint8]] = field(default_factory=dict)  # scale -> label
    average: NDArray[np.uint8] | None = None  # label by average pooling over the same scales
    weights: dict[float, NDArray[np.float32]] = field(default_factory=dict)  # scale -> [H,W], 0..1


class Predictor:
    """A network with a chain of scales, a device and a precision.

    scales: any positive numbers. precision: "auto" is bf16 where the device is fast at it.
    """

    def __init__(
        self,
        model: HMSA,
        scales: Sequence[float],
        precision: Precision = "auto",
        device: torch.device | str | None = None,
    ) -> None:
        self.scales = ordered(scales)
        self.device = torch.device(device) if device else best_device()
        self.precision = precision
        self.model = model.to(self.device).to(memory_format=torch.channels_last).eval()

    @classmethod
    def load(
        cls, path: Path | str, scales: Sequence[float] | None = None, precision: Precision = "auto"
    ) -> Predictor:
        """From a checkpoint file or run folder; scales: the ones it was trained for last."""
        model, card = checkpoint.load(Path(path))
        return cls(model, scales or card.scales, precision)

    @torch.inference_mode()
    def __call__(self, image: NDArray[np.uint8], detail: bool = False) -> Segmentation:
        """image `[H,W,3]` uint8 RGB, any size."""
        pixels = torch.from_numpy(image).to(self.device).permute(2, 0, 1)[None]
        with autocast(self.device, self.precision):
            logits, maps = self.model(pixels, self.scales)
        confidence, label = logits.softmax(1).max(1)
        seen = Segmentation(_to_uint8(label), _to_uint8((confidence * 255).floor()))
        return self._with_detail(seen, maps) if detail else seen

    def _with_detail(self, seen: Segmentation, maps: dict[float, Maps]) -> Segmentation:
        size = seen.label.shape[-2:]
        weights = effective_weights(maps, size)
        return Segmentation(
            seen.label,
            seen.confidence,
            single={s: _to_uint8(resize(m.logits, size).argmax(1)) for s, m in maps.items()},
            average=_to_uint8(average(maps, size).argmax(1)),
            weights={s: w[0, 0].float().cpu().numpy() for s, w in weights.items()},
        )


def _to_uint8(maps: Tensor) -> NDArray[np.uint8]:
    return maps[0].to(torch.uint8).cpu().numpy()  # type: ignore[no-any-return]
