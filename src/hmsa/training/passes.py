"""What a frozen network says of pictures at every scale, looked at once and kept on disk.

One file a picture, whole or not there at all: a run that was stopped goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..data.datasets import Dataset
from ..model import ScaleAttention
from ..model.hmsa import Encoded
from ..runs.files import replace
from ..runs.machine import Precision, autocast
from ..runs.progress import Progress

_KEPT = torch.float16
_SETTINGS = "settings.json"


@dataclass(frozen=True)
class Passes:
    """Pictures `order` of a dataset, as `model` sees them at `scales`, in `folder`.

    Logits finer than the grid of attention are kept on that grid: in training alone, and as means.
    """

    folder: Path
    model: ScaleAttention
    dataset: Dataset
    scales: list[float]
    order: list[int]

    def look(self, most: int, precision: Precision, settings: Mapping[str, Any]) -> Passes:
        """Look at what is not there yet; of fewer pictures if all would need over `most` bytes.

        settings: all that the passes depend on. What was made with others goes.
        """
        text, file = json.dumps(settings, sort_keys=True), self.folder / _SETTINGS
        if not file.is_file() or file.read_text() != text:
            shutil.rmtree(self.folder, ignore_errors=True)
            replace(file, lambda temporary: temporary.write_text(text))
        order, spent = list(self.order), 0
        done: list[int] = []
        with Progress("look once", len(order)) as meter:
            for index in order:
                if spent and spent * (len(done) + 1) / len(done) > most:
                    break
                if not self._file(index).is_file():
                    self._look(index, precision)
                spent += self._file(index).stat().st_size
                done.append(index)
                meter.advance()
        return Passes(self.folder, self.model, self.dataset, self.scales, done)

    def read(self, index: int, device: torch.device) -> tuple[dict[float, Encoded], Tensor]:
        """As `HMSA.encode` gives it, and the label `[1,H,W]`."""
        with safe_open(self._file(index), framework="pt") as file:
            named = {name: file.get_tensor(name).to(device) for name in file.keys()}  # noqa: SIM118
        encoded = {}
        for at, scale in enumerate(self.scales):
            features = named.get(f"{at}.features")
            sizes = named[f"{at}.sizes"].tolist()
            encoded[scale] = Encoded(
                None if features is None else features.float(), named[f"{at}.logits"].float(), None,
                (sizes[0], sizes[1]), (sizes[2], sizes[3]),
            )  # fmt: skip
        return encoded, named["label"].long()

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, index: int) -> Path:
        name = hashlib.sha256(self.dataset.pairs[index].name.encode()).hexdigest()[:16]
        return self.folder / f"{name}.safetensors"

    @torch.inference_mode()
    def _look(self, index: int, precision: Precision) -> None:
        model = self.model
        image, label = self.dataset.read(index)
        pixels = torch.from_numpy(image.copy()).to(model.mean.device).permute(2, 0, 1)[None]
        with autocast(model.mean.device, precision):
            encoded = model.encode(pixels, self.scales)
        tensors = {"label": torch.from_numpy(label)[None]}
        for at, one in enumerate(encoded.values()):
            logits = F.avg_pool2d(one.logits.float(), model.trunk.pooled[1])
            tensors[f"{at}.logits"] = logits.to(_KEPT)
            if one.features is not None:
                tensors[f"{at}.features"] = one.features.to(_KEPT)
            tensors[f"{at}.sizes"] = torch.tensor([*one.padded, *one.size])
        tensors = {name: t.cpu().contiguous() for name, t in tensors.items()}
        replace(self._file(index), lambda temporary: save_file(tensors, temporary))


def spread_over(count: int, most: int) -> list[int]:
    """At most `most` of `count` things, evenly out of all of them, in such an order that the first
    few are evenly out of all of them, too: by the largest power of 2 that divides their place."""
    n = min(count, most)
    places = sorted(range(n), key=lambda i: -(i & -i or 2 * n))
    return [i * count // n for i in places]
