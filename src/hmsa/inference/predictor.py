"""Predictor: uint8 picture -> uint8 label and confidence. The one inference path.

Knows nothing of datasets, palettes, metrics or pages.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..checkpoint.networks import load
from ..data.images import OpenImage, open_image
from ..data.labels import spread
from ..model import HMSA, average, maximum
from ..model.bands import Resized, Size, bands
from ..model.baselines import Folded
from ..model.gate import Gate
from ..model.hmsa import ordered
from ..model.look import Look
from ..model.tiles import Held, Mirrored, Source, Tiling
from ..runs.errors import InputError
from ..runs.machine import Precision, autocast, find_device, in_use
from ..runs.memory import free_memory, peak_of
from ..runs.progress import say
from .result import Filling, Prediction, as_array

ROWS = 64  # of a band, in pixels of the picture
_AT_ONCE = 1 << 26  # pixels of a picture, above which only windows of it go to the device
_LARGEST = 2048  # side of a tile that is chosen for the memory there is


Pixels = Path | str | Image.Image | NDArray[np.uint8] | Tensor | OpenImage


class Predictor:
    """A network with a chain of scales, a device and a precision.

    scales: any positive numbers. flip: also look at the mirrored picture, and average the logits.
    long_edge: bring a picture to this many pixels first; labels come back at its own size.
    precision: "auto" is bf16 where the device is fast at it.
    tile: pixels of a side that the network sees at once, at each scale; "auto" cuts a
    picture only if it would not fit into half of the free memory; None never. halo: see `Tiling`.
    gate: leave out finer scales where they would not count.
    """

    def __init__(
        self,
        model: HMSA,
        scales: Sequence[float],
        precision: Precision = "auto",
        device: torch.device | str | None = None,
        flip: bool = False,
        long_edge: int | None = None,
        tile: int | Literal["auto"] | None = "auto",
        halo: int = 128,
        gate: Gate | None = None,
    ) -> None:
        self.scales, self.flip, self.long_edge = ordered(scales), flip, long_edge
        self.device = find_device(device)
        self.precision, self.tile, self.halo, self.gate = precision, tile, halo, gate
        if isinstance(tile, int):
            Tiling(tile, halo)  # refuses what cannot be
        self.model = model.to(self.device).to(memory_format=torch.channels_last).eval()
        k = self.model.classes
        self._palette = [*self.model.card.palette] or list(spread(k))
        self._per_pixel: float | None = None  # bytes that the network needs
        self._fits: int | None = None  # side of a tile, after memory ran out

    @classmethod
    def load(
        cls,
        source: Path | str,
        scales: Sequence[float] | None = None,
        precision: Precision = "auto",
        flip: bool | None = None,
        *,
        budget: float | None = None,
        gate: Gate | float | None = None,
        **further: Any,
    ) -> Predictor:
        """source: as `HMSA.from_pretrained` takes it; scales and flip: those it was made for.

        budget: run scales above 1 in this share of an image only; gate: or where their mean
        weight is at least this. further: device, tile, halo.
        """
        model = load(source)
        card = model.card
        if budget is not None or isinstance(gate, float):
            gate = Gate(budget, gate)  # type: ignore[arg-type]
        flip = card.flip if flip is None else flip
        return cls(
            model, scales or card.scales, precision, flip=flip, long_edge=card.long_edge,
            gate=gate, **further,
        )  # fmt: skip

    @property
    def settings(self) -> dict[str, Any]:
        """All that a result depends on but the weights, as JSON has it."""
        further: dict[str, Any] = {}
        if self.gate:
            names = ("share", "threshold", "cell", "halo")
            further["gate"] = {name: getattr(self.gate, name) for name in names}
        if self.tile != "auto":
            further |= {"tile": self.tile, "halo": self.halo}
        return further | {
            "scales": self.scales, "flip": self.flip, "long_edge": self.long_edge,
            "precision": in_use(self.device, self.precision),
        }  # fmt: skip

    @overload
    def __call__(self, image: Pixels, detail: bool = ..., probabilities: bool = ...,
                 entropy: bool = ...) -> Prediction: ...  # fmt: skip

    # fmt: off
    @overload
    def __call__(self, image: list[Pixels] | tuple[Pixels, ...], detail: bool = ...,
                 probabilities: bool = ..., entropy: bool = ...) -> list[Prediction]: ...
    # fmt: on

    @torch.inference_mode()
    def __call__(
        self,
        image: Pixels | list[Pixels] | tuple[Pixels, ...],
        detail: bool = False,
        probabilities: bool = False,
        entropy: bool = False,
    ) -> Prediction | list[Prediction]:
        """image: a file, a Pillow image, `[H,W,3]` uint8 RGB, a tensor `[3,H,W]`, uint8 or float in
        0..1, or an `OpenImage`; any size. A list of these, or a tensor `[B,3,H,W]`, gives a list;
        all of one size are looked at together.
        """
        wanted = (detail, probabilities, entropy)
        if isinstance(image, Path | str):
            with open_image(Path(image)) as picture:
                return self._see(self._source(picture), *wanted)[0]
        if isinstance(image, Tensor) and image.ndim == 4:
            return self._see(self._held(image), *wanted)
        if isinstance(image, list | tuple):
            sources = [self._source(each) for each in image]
            alike = {(type(each), each.size) for each in sources}
            one = sources[0] if len(alike) == 1 and not self.gate else None
            if isinstance(one, Held) and not self._tiling(one.size, len(sources)):
                stacked = Held(torch.cat([each.image for each in sources]))  # type: ignore[attr-defined]
                return self._see(stacked, *wanted)
            return [self._see(each, *wanted)[0] for each in sources]
        return self._see(self._source(image), *wanted)[0]  # type: ignore[arg-type]

    def _source(self, image: Pixels) -> Source:
        if isinstance(image, Tensor):
            return self._held(image[None])
        if not isinstance(image, Path | str | Image.Image | np.ndarray):
            height, width = image.size
            if height * width > _AT_ONCE:
                return _Windows(image, self.device)
        image = as_array(image)
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise InputError(
                f"image: an array {list(image.shape)} of {image.dtype}; it must be [H,W,3], uint8, "
                "RGB"
            )
        return self._held(_upload(image, self.device))

    def _held(self, image: Tensor) -> Held:
        if image.ndim != 4 or image.shape[1] != 3 or not image.numel():
            raise InputError(
                f"image: a tensor {list(image.shape)}; it must be [3,H,W] or [B,3,H,W], not empty"
            )
        if image.dtype != torch.uint8 and not image.is_floating_point():
            raise InputError(f"image: a tensor of {image.dtype}; give uint8, or float in 0..1")
        return Held(image.to(self.device))

    def _see(
        self, source: Source, detail: bool, probabilities: bool, entropy: bool
    ) -> list[Prediction]:
        size = source.size
        if self.long_edge:
            factor = self.long_edge / max(size)
            grid = [max(1, round(side * factor)) for side in size]
            pixels = source.read(slice(None), slice(None))
            pixels = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels
            source = Held(F.interpolate(pixels, grid, mode="bilinear", antialias=True))
        while True:
            tiling = self._tiling(source.size)
            try:
                return self._look(source, size, tiling, detail, probabilities, entropy)
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not _out_of_memory(error):
                    raise
            self._smaller(source.size, tiling)

    def _look(
        self, source: Source, size: Size, tiling: Tiling | None,
        detail: bool, probabilities: bool, entropy: bool,
    ) -> list[Prediction]:  # fmt: skip
        """Logits of a few rows at a time; those of the whole picture never exist."""
        with autocast(self.device, self.precision):
            sources = [source, Mirrored(source)] if self.flip else [source]
            looks = [self.model.look(each, self.scales, tiling, self.gate) for each in sources]
            fused, results = [look.fused(size) for look in looks], None
            for start, stop in bands(size[0], ROWS):
                rows = range(start, stop)
                passes = [node.rows(start, stop) for node in fused]
                logits = _mean(passes)
                if results is None:
                    results = [Filling(size) for _ in logits]
                found = dict(_decided(logits, probabilities, entropy))
                if detail:
                    found |= dict(self._detail(looks, passes, size, rows))
                for index, result in enumerate(results):
                    result.put(rows, {name: part[index] for name, part in found.items()})
        assert results is not None
        behind = [s for s, one in looks[0].seen.items() if one.share is not None]
        behind += [s for s in self.scales if s not in looks[0].seen]
        computed = {
            s: sum(look.seen[s].computed if s in look.seen else 0.0 for look in looks) / len(looks)
            for s in behind
        }
        cost = sum(look.cost for look in looks) / len(looks)
        return [result.segmentation(computed, cost, self._palette) for result in results]

    def _detail(
        self, looks: list[Look], passes: list[Tensor], size: Size, rows: range
    ) -> Iterator[tuple[tuple[str, Any], Tensor]]:
        """What each scale, pooling and each flip says of these rows; what each scale weighs."""
        band = rows.start, rows.stop
        if len(passes) > 1:
            yield ("flips", "plain"), _to_uint8(passes[0].argmax(1))
            yield ("flips", "mirrored"), _to_uint8(passes[1].flip(-1).argmax(1))
        for scale in self.scales:
            # What a gate left out altogether is as the next coarser scale has it
            alone = _mean(
                look.alone(max(s for s in look.seen if s <= scale or s == min(look.seen)), size)
                .rows(*band) for look in looks
            )  # fmt: skip
            yield ("single", scale), _to_uint8(alone.argmax(1))
        for name, fold in (("average", average), ("max", maximum)):
            pooled = _mean(
                Resized(Folded(look.seen, look.size, fold), size).rows(*band) for look in looks
            )
            yield ("pooled", name), _to_uint8(pooled.argmax(1))
        if self.model.fold is maximum:
            return
        weights = [look.weights(size).rows(*band) for look in looks]
        for scale in self.scales:
            each = [
                weight[:, [list(look.seen).index(scale)]] if scale in look.seen
                else torch.zeros_like(weight[:, :1])
                for look, weight in zip(looks, weights, strict=True)
            ]  # fmt: skip
            yield ("weights", scale), _mean(each)[:, 0].float()

    def _tiling(self, size: Size, batch: int = 1) -> Tiling | None:
        if self._fits:
            return Tiling(self._fits, min(self.halo, self._fits // 4))
        if isinstance(self.tile, int):
            return Tiling(self.tile, self.halo)
        if self.tile is None or not self.model.tiles:
            return None
        room = free_memory(self.device) / 2
        pixels = [math.prod(size) * scale**2 for scale in self.scales]
        kept = sum(pixels) / self.model.strides[0] ** 2 * 4 * (self.model.classes + 2)
        if batch * (self._need() * max(pixels) + kept) <= room:
            return None
        side = min(_LARGEST, math.isqrt(int(room / self._need())))
        return Tiling(max(side // 64 * 64, 3 * self.halo), self.halo)

    def _need(self) -> float:
        """Bytes a pixel that the network needs while it looks."""
        if self._per_pixel is None:
            sides = (256, 512)
            small, large = (
                peak_of(self.model, lambda model, n=side: model.see(
                    model.mean.new_zeros(1, 3, n, n)))  # type: ignore[misc]
                for side in sides
            )  # fmt: skip
            self._per_pixel = (large - small) / (sides[1] ** 2 - sides[0] ** 2)
        return self._per_pixel

    def _smaller(self, size: Size, tiling: Tiling | None) -> None:
        """Memory ran out: tiles of half the side, from now on. InputError if there is no half."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        side = tiling.tile if tiling else round(max(size) * max(self.scales))
        half = side // 2 // 64 * 64
        if half < 256 or self.tile is None or not self.model.tiles:
            raise InputError(
                f"not enough memory on {self.device} for a picture of {size[0]}x{size[1]} at scale "
                f"{max(self.scales):g}; leave out the finest scale, or free some"
            )
        say(f"memory ran out; going on in tiles of {half} pixels")
        self._fits = half


@dataclass(frozen=True)
class _Windows:
    """A picture of which only what is looked at goes to the device."""

    picture: OpenImage
    device: torch.device

    @property
    def size(self) -> Size:
        return self.picture.size

    def read(self, rows: slice, cols: slice) -> Tensor:
        (height, width) = self.size
        window = self.picture.read(
            slice(*rows.indices(height)[:2]), slice(*cols.indices(width)[:2])
        )
        return _upload(window, self.device)


def _upload(image: NDArray[np.uint8], device: torch.device) -> Tensor:
    """`[H,W,3]` -> `[1,3,H,W]`."""
    own = image if image.flags.writeable and image.flags.c_contiguous else image.copy("C")
    return torch.from_numpy(own).to(device).permute(2, 0, 1)[None]


def _mean(passes: Iterable[Tensor]) -> Tensor:
    """Of a picture's maps, or of those and its mirror image's."""
    first, *mirrored = passes
    return (first + mirrored[0].flip(-1)) / 2 if mirrored else first


def _decided(
    logits: Tensor, probabilities: bool, entropy: bool
) -> Iterator[tuple[tuple[str, str], Tensor]]:
    share = logits.softmax(1)
    confidence, label = share.max(1)
    yield ("map", "label"), _to_uint8(label)
    yield ("map", "confidence"), _to_uint8((confidence * 255).floor())
    if probabilities:
        yield ("map", "probabilities"), share.to(torch.float16)
    if entropy:
        most = math.log(max(2, share.shape[1]))
        spread = torch.special.entr(share).sum(1) / most
        yield ("map", "entropy"), _to_uint8((spread.clamp(0, 1) * 255).floor())


def _to_uint8(maps: Tensor) -> Tensor:
    return maps.to(torch.uint8)


def _out_of_memory(error: BaseException) -> bool:
    """torch says it of the CPU in a plain RuntimeError."""
    told = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return told or "can't allocate memory" in str(error)
