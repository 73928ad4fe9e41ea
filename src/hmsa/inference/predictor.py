"""Predictor: uint8 image -> uint8 label and confidence. The one inference path.

Knows nothing of datasets, metrics or pages.
"""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, TypedDict, Unpack, cast, overload

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils._pytree import tree_map

from ..checkpoint.networks import load
from ..config.options import Backend
from ..data.images import open_image
from ..data.labels import IGNORE, spread
from ..data.rasters import OpenImage
from ..data.stretch import stretch_of
from ..data.walk import are_many, find_images
from ..model import HMSA, ordered
from ..runs.errors import InputError, as_input_error
from ..runs.machine import Precision, autocast, find_device, in_use, trim_memory
from ..runs.memory import free_memory, peak_of
from ..runs.progress import say
from .backends import Network, checked
from .fold import Pass, decide
from .result import Prediction, as_array
from .runtimes import RUNTIMES
from .tiles import Gate, Runner, tiling

_IN_MEMORY = 1 << 28  # bytes of a map, above which it lies in a file
_LARGEST = 2048  # side of a tile that is chosen for the free memory
_LEAST, _BLOCK = 1024, 4608  # sides of the blocks that larger images are predicted in

Pixels = Path | str | Image.Image | NDArray[np.uint8] | Tensor | OpenImage


class Wanted(TypedDict, total=False):
    """What a `Prediction` shall hold beside label and confidence."""

    detail: bool  # the label of each scale, pooling and flip, and the weight of each scale
    probabilities: bool
    entropy: bool


class Predictor:
    """A network with a chain of scales, a device and a precision.

    scales: any positive numbers. flip: also run the mirrored image, and average the logits.
    long_edge: pixels that an image's longer side is brought to first; labels have its own size.
    precision: "auto" is bf16 where the device is fast at it.
    tile: pixels of a side that go through the network at once, at each scale; "auto": tiles only
    where an image would not fit into half of the free memory; None: never. halo: see `tiling`.
    gate: leave out finer scales where they would not count.
    backend: what runs the network; "auto": on CPUs the fastest that is installed and agrees.
    stretch: values of wider types that become 0 and 255, as [(0, 3000)]; default: as in the card.
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
        stretch: Sequence[tuple[float, float]] | None = None,
        backend: Backend = "auto",
    ) -> None:
        if model.classes > IGNORE:
            raise InputError(f"labels have 8 bits: {model.classes} classes, at most {IGNORE} fit")
        with as_input_error():
            self.scales, self.flip, self.long_edge = ordered(scales), flip, long_edge
        self.device, self.backend = find_device(device), backend
        self.precision = checked(backend, self.device, precision)
        self.tile, self.halo, self.gate = tile, halo, gate
        self.stretch = stretch_of(model.card, stretch)
        self.model = model.to(self.device).to(memory_format=torch.channels_last).eval()
        if isinstance(tile, int):
            tiling(self.model, tile, halo)  # raises what there is to raise
        self._built: Network | None = None

    @classmethod
    def load(
        cls,
        source: Path | str,
        scales: Sequence[float] | None = None,
        precision: Precision = "auto",
        flip: bool | None = None,
        *,
        budget: float | None = None,
        **options: Any,
    ) -> Predictor:
        """source: as `HMSA.from_pretrained` takes it; scales, flip: default from its card.

        budget: run scales above 1 in this share of an image only. options: device, tile, halo.
        """
        model = load(source)
        options |= {"flip": model.card.flip if flip is None else flip}
        options |= {"gate": None if budget is None else Gate(budget)}
        edge = model.card.long_edge
        return cls(model, scales or model.card.scales, precision, long_edge=edge, **options)

    @property
    def backend_in_use(self) -> Backend:
        """What runs the network. No part of `settings`, as each backend is proven against torch."""
        return cast(Backend, self._network().backend)

    @property
    def settings(self) -> dict[str, Any]:
        """All that a result depends on but the weights, as JSON has it."""
        self._network()  # refuses a backend that cannot be, before anything is written
        settings = {name: getattr(self, name) for name in ("scales", "flip", "long_edge")}
        settings["precision"] = in_use(self.device, self.precision)
        if self.gate:
            settings["gate"] = {n: getattr(self.gate, n) for n in ("share", "cell", "halo")}
        if self.tile != "auto":
            settings |= {"tile": self.tile, "halo": self.halo}
        if self.stretch.ranges != stretch_of(self.model.card).ranges:
            settings["stretch"] = [[*ends] for ends in self.stretch.ranges]
        return settings

    @overload
    def __call__(self, image: Pixels, **wanted: Unpack[Wanted]) -> Prediction: ...

    @overload
    def __call__(
        self, image: list[Pixels] | tuple[Pixels, ...], **wanted: Unpack[Wanted]
    ) -> list[Prediction]: ...

    @torch.inference_mode()
    def __call__(
        self, image: Pixels | list[Pixels] | tuple[Pixels, ...], **wanted: Unpack[Wanted]
    ) -> Prediction | list[Prediction]:
        """image: a file, a Pillow image, `[H,W,3]` uint8 RGB, a tensor `[3,H,W]`, uint8 or float in
        0..1, or an `OpenImage`; any size. A list of these, a tensor `[B,3,H,W]`, a folder, a glob
        or a .txt list of files gives a list.
        """
        if isinstance(image, Tensor) and image.ndim == 4:
            image = list(image)
        if isinstance(image, Path | str) and are_many(Path(image)):
            image = [*find_images([str(image)]).values()]
        if isinstance(image, list | tuple):
            return [self(each, **wanted) for each in image]
        with self._opened(image) as opened:
            made = self._predict(_pixels(opened, self.model.channels), **wanted)
        return made if isinstance(image, Tensor | OpenImage) else replace(made, image=image)

    def _opened(self, image: Pixels) -> AbstractContextManager[Any]:
        if isinstance(image, Path | str):
            return open_image(Path(image), self.stretch)
        return nullcontext(image)

    def _predict(self, image: Tensor | OpenImage, **wanted: Unpack[Wanted]) -> Prediction:
        """image: `[1,3,H,W]`, or a very large one, which is predicted block by block."""
        size = image.size if isinstance(image, OpenImage) else (image.shape[2], image.shape[3])
        blocks = list(itertools.product(*map(self._blocks, size)))
        context = self._context(image, size) if len(blocks) > 1 else None
        whole: dict[str, Any] = {}
        passes: list[Pass] = []
        for block in blocks:
            kept, around, inner = zip(*block, strict=True)
            maps, found = self._maps(_window(image, *around).to(self.device), context, **wanted)
            parts = tree_map(lambda each: each[0].cpu().numpy(), maps)
            whole = whole or tree_map(partial(_room, size), parts)
            tree_map(partial(_paste, kept, inner), whole, parts)
            passes += found
        gated = sorted({scale for one in passes for scale in one.computed})
        return Prediction(
            **whole,
            computed={s: fmean(one.computed.get(s, 1.0) for one in passes) for s in gated},
            cost=fmean(one.cost for one in passes),
            palette=[*self.model.card.palette] or list(spread(self.model.classes)),
            names=self.model.card.names,
        )

    def _context(self, image: Tensor | OpenImage, size: tuple[int, int]) -> Tensor | None:
        """What a contextual head knows of a very large image, from every n-th pixel of it."""
        if not self.model.head.contextual:
            return None
        small = thinned(image, math.ceil(max(size) / 1024))
        with autocast(self.device, self.precision):
            return Runner(self._network().run, small.to(self.device)).run([1.0]).context

    def _network(self) -> Network:
        """The network in its backend, with the weights that it has now."""
        if self._built is None or self._built.outdated:
            self._built = Network(self.model, self.backend, self.device, self.precision)
        return self._built

    def _maps(
        self, image: Tensor, context: Tensor | None, **wanted: Unpack[Wanted]
    ) -> tuple[dict[str, Any], list[Pass]]:
        """Of an image `[1,3,H,W]` whose results fit into memory; what its passes cost.

        Where memory runs out, tiles of half the side are tried, for this image alone.
        """
        size = image.shape[-2:]
        image = with_long_edge(image, self.long_edge)
        network, tile = self._network(), self._tile_of(image.shape[2] * image.shape[3])
        image = image if network.backend == "torch" else image.contiguous()  # as runtimes need it
        views = [image, image.flip(-1)] if self.flip else [image]
        while True:
            try:
                with autocast(self.device, self.precision), as_input_error():
                    tiles = tiling(self.model, tile, self.halo) if tile else None
                    runners = [Runner(network.run, v, tiles, self.gate, context) for v in views]
                    passes = [runner.run(self.scales) for runner in runners]
                if math.prod(size) > _BLOCK**2 // 4:
                    trim_memory()  # the network's tensors are small, those of the fold are large
                maps = decide(passes, size, **wanted)
                return maps, [replace(each, logits={}, attention={}) for each in passes]
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                # a plain RuntimeError on the CPU
                memory = isinstance(error, torch.OutOfMemoryError | MemoryError)
                if not memory and "can't allocate memory" not in str(error):
                    raise
            tile = self._half(tile, max(image.shape))

    def _blocks(self, length: int) -> Iterator[tuple[slice, slice, slice]]:
        """Along one axis of an image: what is kept of a block, the block with a margin around it,
        and what is kept of that."""
        side = length
        if self.tile is not None and self.model.tiles and not self.long_edge:
            side = min(_BLOCK, math.isqrt(int(free_memory(self.device) / 4 / self._kept)))
            side = 256 * math.ceil(length / math.ceil(length / max(side, _LEAST)) / 256)
        margin = 256 * math.ceil(self.halo / min(1, *self.scales) / 256)
        for start in range(0, length, side):
            stop, first = min(length, start + side), max(0, start - margin)
            last = min(length, stop + margin)
            yield slice(start, stop), slice(first, last), slice(start - first, stop - first)

    def _tile_of(self, pixels: int) -> int | None:
        """Side of the tiles for an image of so many pixels, if it needs any."""
        if self.tile != "auto" or not self.model.tiles:
            return None if self.tile == "auto" else self.tile
        room, runtime = free_memory(self.device) / 2, RUNTIMES.get(self._network().backend)
        need = self._need * (runtime.memory if runtime else 1)
        if pixels * (need * max(self.scales) ** 2 + self._kept) <= room:
            return None
        return max(min(_LARGEST, math.isqrt(int(room / need))) // 64 * 64, 4 * self.halo)

    @cached_property
    def _need(self) -> float:
        """Bytes that the network needs for a pixel while it runs."""
        small, large = (
            peak_of(self.model, lambda m, n=n: m.see(m.mean.new_zeros(1, m.channels, n, n)))  # type: ignore
            for n in (256, 512)
        )
        return (large - small) / (512**2 - 256**2)

    @property
    def _kept(self) -> float:
        """Bytes that are kept of a pixel, on the trunk's grids and while it is fused."""
        cells = sum(scale**2 for scale in self.scales) / self.model.strides[0] ** 2
        return 4 * cells * (self.model.classes + self.model.maps) * (1 + self.flip) + 64

    def _half(self, tile: int | None, side: int) -> int:
        """The next smaller tile for an image of `side` pixels. InputError if there is none."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        half = (tile or round(side * max(self.scales))) // 2 // 64 * 64
        if half < 256 or self.tile is None or not self.model.tiles:
            raise InputError(
                f"not enough memory on {self.device} for an image of {side} pixels at scale "
                f"{max(self.scales):g}; leave out the finest scale, or free some"
            )
        say(f"memory ran out; going on in tiles of {half} pixels")
        return half


def with_long_edge(image: Tensor, pixels: int | None) -> Tensor:
    """Images `[B,3,H,W]` resized until their longer side has so many pixels; None: as they are."""
    if not pixels:
        return image
    height, width = image.shape[-2:]
    grid = [max(1, round(side * pixels / max(height, width))) for side in (height, width)]
    image = image.float() / 255 if image.dtype == torch.uint8 else image
    return F.interpolate(image, grid, mode="bilinear", antialias=True)


def _pixels(image: Pixels, channels: int) -> Tensor | OpenImage:
    """`[1,C,H,W]`, uint8 or float; a very large `OpenImage` is read later, part by part."""
    if isinstance(image, OpenImage) and math.prod(image.size) > _BLOCK**2:
        return image
    array = image if isinstance(image, Tensor) else as_array(image)
    kind, axis = str(array.dtype).removeprefix("torch."), 0 if isinstance(array, Tensor) else 2
    kinds = ("uint8", "float16", "bfloat16", "float32", "float64") if axis == 0 else ("uint8",)
    if array.ndim != 3 or array.shape[axis] != channels or 0 in array.shape or kind not in kinds:
        c, rgb = channels, " RGB" if channels == 3 else ""
        raise InputError(
            f"image: {list(array.shape)} of {kind}; give an array [H,W,{c}] of uint8{rgb}, or a "
            f"tensor [{c},H,W] or [B,{c},H,W] of uint8 or of floats in 0..1; not empty"
        )
    return array[None] if isinstance(array, Tensor) else _tensor(array)


def _tensor(array: NDArray[np.uint8]) -> Tensor:
    """`[H,W,3]` -> `[1,3,H,W]`."""
    own = array if array.flags.writeable and array.flags.c_contiguous else array.copy("C")
    return torch.from_numpy(own).permute(2, 0, 1)[None]


def _window(image: Tensor | OpenImage, rows: slice, columns: slice) -> Tensor:
    """A part of an image, `[B,3,h,w]`."""
    if isinstance(image, Tensor):
        return image[..., rows, columns]
    return _tensor(image.read(rows, columns))


def thinned(image: Tensor | OpenImage, step: int) -> Tensor:
    """Every `step`-th pixel of an image that need not fit into memory, `[B,3,h,w]`."""
    height = image.size[0] if isinstance(image, OpenImage) else image.shape[2]
    rows = (slice(top, top + 1) for top in range(0, height, step))
    return torch.cat([_window(image, row, slice(None))[..., ::step] for row in rows], 2)


def _room(size: tuple[int, int], like: NDArray[Any]) -> NDArray[Any]:
    """An empty array for a map of the whole image; a large one in a file that nobody else sees."""
    shape = (*like.shape[:-2], *size)
    if math.prod(shape) * like.itemsize <= _IN_MEMORY:
        return np.empty(shape, like.dtype)
    with tempfile.TemporaryFile() as file:  # the map holds it open
        return np.memmap(file, like.dtype, "w+", shape=shape)


def _paste(kept: Any, inner: Any, whole: NDArray[Any], part: NDArray[Any]) -> None:
    whole[..., *kept] = part[..., *inner]
