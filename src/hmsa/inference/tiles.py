"""The network over an image: each scale whole, in tiles, or only where a gate chooses.

Tiles lie on the grid of the image at one scale, at multiples of the trunk's coarsest stride. Each
is computed with a halo: the outer half of it is thrown away, over the inner half neighbours are
blended. A network whose receptive field fits half the halo gives the same result as on the whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..model import HMSA
from ..model.fusion import resize, wide
from ..model.heads import interpolation
from ..model.hmsa import Encoded, Grid, Size
from ..runs.errors import InputError
from .fold import Decision, Pass

Range = tuple[int, int]  # start, stop
Patch = tuple[Range, Range]  # rows, columns of pixels
Tiling = tuple[int, int]  # pixels of a side that a tile is kept for, and of the halo around it


def doubt(coarser: Pass, size: Size) -> Tensor:
    """Entropy of the fused result of these scales, in 0..1, `[1,1,*size]`."""
    decision = Decision()
    for classes in coarser.groups(coarser.model.classes):
        decision.add(coarser.fused(classes, size), entropy=True)
    return decision.entropy()[:, None]


def worth(coarser: Pass, size: Size) -> Tensor:
    """Known weight times doubt: a finer scale changes labels only where both are high."""
    return coarser.known_weight(size) * doubt(coarser, size)


@dataclass(frozen=True)
class Gate:
    """Scales above 1 are computed only in a share (0..1) of an image: in those cells where the
    mean of `judge` is highest.

    cell, halo: pixels of a cell's side, and around it, at the scale that is computed. A finer scale
    is computed only inside what was computed of the coarser one. Where the cells and their halos
    would cost as much as the whole image, the whole image is computed.
    """

    share: float
    cell: int = 256
    halo: int = 32
    judge: Callable[[Pass, Size], Tensor] = worth

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise InputError(f"budget: {self.share} is not a share of the image, 0..1")

    def choose(self, coarser: Pass, size: Size, cell: int) -> Tensor:
        """`[h,w]` bool: which cells of the image, `size` at this scale, to compute."""
        samples = max(1, cell // 8)  # of a cell's side
        sampled = math.ceil(size[0] * samples / cell), math.ceil(size[1] * samples / cell)
        value, weight = (
            F.avg_pool2d(judge(coarser, sampled), samples, ceil_mode=True)[0, 0].double().cpu()
            for judge in (self.judge, Pass.known_weight)
        )
        counts = weight > 0  # elsewhere the finer scale would have no weight
        area = torch.outer(*((n - torch.arange(0, n, cell)).clamp(max=cell) for n in size))
        order = value.where(counts, -1).flatten().argsort(descending=True, stable=True)
        affordable = area.flatten()[order].cumsum(0) <= self.share * area.sum() + 0.5
        chosen = torch.zeros_like(counts)
        chosen.view(-1)[order[affordable]] = True
        return counts & chosen


def tiling(model: HMSA, tile: int, halo: int) -> Tiling:
    """tile: pixels of a side, halo included, which is at most a quarter of it.

    Raises InputError where too little would be kept.
    """
    align = alignment(model)
    halo = min(_up(halo, align), max(align, tile // 4 // align * align))
    side = (tile - 2 * halo) // align * align
    if side < align:
        raise InputError(f"tile: {tile} pixels are too few for this network; give {3 * align}")
    return side, halo


def alignment(model: HMSA) -> int:
    """Pixels of which sides and halos of tiles are a multiple."""
    return math.lcm(model.multiple, model.strides[1])


def _up(pixels: int, align: int) -> int:
    return -(-pixels // align) * align


def cells(chosen: Tensor, side: int, padded: Size) -> list[Patch]:
    """The chosen cells `[h,w]`, of `side` pixels or what is left of them at the end of an axis."""
    return [
        ((top * side, min((top + 1) * side, padded[0])),
         (left * side, min((left + 1) * side, padded[1])))
        for top, left in chosen.nonzero().tolist()
    ]  # fmt: skip


def blend(
    whole: Tensor, patches: Sequence[Patch], make: Callable[[Patch], Tensor], padded: Size,
    stride: int, halo: int, side: int = 0,
) -> int:  # fmt: skip
    """Add patches to `whole`, the grid `[B,C,h,w]` of an image of `padded` pixels.

    make: a patch with its halo -> its maps. side: of each of them, if it is there, so that all have
    one size, which runtimes are fastest at. Returns the number of pixels computed.
    """
    pixels = 0
    for patch in patches:
        axes = list(zip(patch, padded, strict=True))
        rows, columns = (_around(kept, n, halo, side) for kept, n in axes)
        grid = [range(a // stride, math.ceil(b / stride)) for a, b in (rows, columns)]
        down, across = (
            _ramp(each, *axis, stride, halo) for each, axis in zip(grid, axes, strict=True)
        )
        part = whole[..., grid[0].start : grid[0].stop, grid[1].start : grid[1].stop]
        part += make((rows, columns)) * torch.outer(down, across).to(whole)
        pixels += (rows[1] - rows[0]) * (columns[1] - columns[0])
    return pixels


def _around(kept: Range, length: int, halo: int, side: int) -> Range:
    """What to compute of an axis of `length` pixels: what is kept, a halo, more up to `side`."""
    start = max(0, kept[0] - halo)
    stop = min(length, max(kept[1] + halo, start + side))
    step = math.gcd(halo, side) or 1  # a multiple of the trunk's strides, on which windows begin
    return max(0, start - max(0, start + side - stop) // step * step), stop


def _ramp(cells: range, kept: Range, side: int, stride: int, halo: int) -> Tensor:
    """A patch's weight along one axis of `side` pixels. Those of neighbours of any size sum to 1:
    each is a box of half a halo, run over the cells that the patch is kept for."""
    width, middle = 2 * (halo // 2 // stride), torch.tensor(cells, dtype=torch.float64) + 0.5
    ramp = torch.ones_like(middle)
    if kept[0]:
        ramp *= ((middle - kept[0] // stride) / width + 0.5).clamp(0, 1)
    if kept[1] < side:
        ramp *= ((math.ceil(kept[1] / stride) - middle) / width + 0.5).clamp(0, 1)
    return ramp


def window(model: HMSA, image: Tensor, scale: float, at: Patch) -> Tensor:
    """Pixels of an image at one scale, `[B,3,h,w]`, normalised; beyond it its edge goes on."""
    (height, width), _ = model.frame(image.shape[-2:], scale)
    (top, bottom), (left, right) = at
    beyond = (0, max(0, right - width), 0, max(0, bottom - height))
    if (top, left) == (0, 0) and bottom >= height and right >= width:
        pixels = resize(model.normalise(image), (height, width))
    else:
        rows, down = interpolation(image.shape[2], height, top, min(bottom, height))
        columns, across = interpolation(image.shape[3], width, left, min(right, width))
        pixels = across(down(model.normalise(image[..., rows, columns]), -2), -1)
    return F.pad(pixels, beyond, "replicate") if any(beyond) else pixels


@dataclass
class Runner:
    """Runs `model` over images `[B,3,H,W]`, coarse scales before fine ones.

    known: what a contextual head knows of a larger image that this is a part of.
    """

    model: HMSA
    image: Tensor
    tiling: Tiling | None = None
    gate: Gate | None = None
    known: Tensor | None = None
    context: Tensor | None = None  # of the finest scale that was computed whole
    pixels: int = 0  # that were computed
    all: int = 0  # of all scales in full
    resized: tuple[float, Tensor] | None = None  # the image at a scale, normalised and padded

    def run(self, scales: Sequence[float]) -> Pass:
        """scales ascending. Raises InputError for tiles or a gate where the network has none."""
        model, size = self.model, (self.image.shape[2], self.image.shape[3])
        known = model.tiles and model.attention is not None
        if (self.tiling and not model.tiles) or (self.gate and not known):
            raise InputError(
                f"{model.fusion} fusion takes no gate{'' if model.tiles else ' and no tiles'}; "
                "use a network with hierarchical attention"
            )
        if not model.tiles:
            encoded = model.encode(self.image, scales)
            logits = {scale: one.grid(wide(one.logits)) for scale, one in encoded.items()}
            return Pass(model, size, logits, model.attention_grids(encoded))
        found, attended = Pass(model, size, {}, {}), model.attended(list(scales))
        for scale in scales:
            found = self._with(found, scale, scale in attended)
        return replace(found, cost=self.pixels / self.all, context=self.context)

    def _with(self, found: Pass, scale: float, attended: bool) -> Pass:
        """`found`, and one scale more: whole, in tiles, or where the gate chooses."""
        model, (size, padded) = self.model, self.model.frame(found.size, scale)
        chosen, cell, halo = self._cells(found, scale, size, padded)
        gated = not bool(chosen.all())
        patches = cells(chosen, cell, padded)
        channels = (model.classes, attended * model.maps, 1)
        if len(patches) == 1 and not gated:
            maps, self.context = self._maps(scale, patches[0], attended, self.known)
            self.pixels += math.prod(padded)
        else:
            grid, context = (math.ceil(n / model.strides[0]) for n in padded), self._context()
            maps = model.mean.new_zeros(len(self.image), sum(channels), *grid)

            def make(at: Patch) -> Tensor:
                return self._maps(scale, at, attended, context)[0]

            side = cell + 2 * halo if gated else 0
            self.pixels += blend(maps, patches, make, padded, model.strides[0], halo, side)
        self.all += math.prod(padded)
        parts = maps.split(channels, 1)
        logits, attention, share = (Grid(part.contiguous(), padded, size) for part in parts)
        if gated:
            found, logits, attention = _completed(found, logits, attention, share)
            area = sum((b - a) * (d - c) for (a, b), (c, d) in patches) / math.prod(padded)
            found = replace(found, computed={**found.computed, scale: area})
        more = {scale: attention} if attended else {}
        return replace(
            found, logits={**found.logits, scale: logits}, attention={**found.attention, **more}
        )

    def _cells(
        self, found: Pass, scale: float, size: Size, padded: Size
    ) -> tuple[Tensor, int, int]:
        """Which cells to compute of one scale, `[h,w]` bool; pixels of their side and halo."""
        align = alignment(self.model)
        if self.gate and scale > 1 and found.logits:
            cell, halo = _up(self.gate.cell, align), _up(self.gate.halo, align)
            chosen = self.gate.choose(found, size, cell)
            windows = chosen.sum() * math.prod(min(n, cell + 2 * halo) for n in padded)
            if windows < math.prod(padded):
                return chosen, cell, halo
        side, halo = self.tiling or (max(padded), 0)
        return torch.ones([-(-n // side) for n in padded], dtype=torch.bool), side, halo

    def _maps(
        self, scale: float, at: Patch, attended: bool, context: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Logits, attention where it is needed, and ones, of a part of the image; the context."""
        reading = self.model.see(self._window(scale, at), attended, context)
        one = Encoded(reading.features if attended else None, reading.logits, None, (0, 0), (0, 0))
        attention = self.model.attention_grids({scale: one}).values()
        maps = [wide(reading.logits), *(wide(grid.maps) for grid in attention)]
        return torch.cat([*maps, torch.ones_like(maps[0][:, :1])], 1), reading.context

    def _window(self, scale: float, at: Patch) -> Tensor:
        """As `window`; behind a gate the image is resized once for all patches of a scale."""
        if self.tiling or not self.gate:
            return window(self.model, self.image, scale, at)
        if self.resized is None or self.resized[0] != scale:
            height, width = self.model.frame(self.image.shape[-2:], scale)[1]
            whole = window(self.model, self.image, scale, ((0, height), (0, width)))
            self.resized = scale, whole
        return self.resized[1][..., slice(*at[0]), slice(*at[1])]

    def _context(self) -> Tensor | None:
        """What the head knows of the whole image; if none was computed whole, from a low scale."""
        self.context = self.known if self.context is None else self.context
        if self.context is None and self.model.head.contextual:
            assert self.tiling is not None
            scale = (self.tiling[0] + 2 * self.tiling[1]) / max(self.image.shape[-2:])
            _, (height, width) = self.model.frame(self.image.shape[-2:], scale)
            self.context = self._maps(scale, ((0, height), (0, width)), False, None)[1]
        return self.context


def _completed(found: Pass, logits: Grid, attention: Grid, share: Grid) -> tuple[Pass, Grid, Grid]:
    """A finer scale that was computed in part, and the coarser one stands in for the rest of it.

    There the coarser scale is trusted fully. share: of each cell that was computed, 0..1.
    """
    last = max(found.logits)
    there, rest = share.maps > 0, found.logits[last].onto(logits)
    logits = logits._replace(maps=torch.where(there, logits.maps / share.maps, rest))
    attention = attention._replace(maps=torch.where(there, attention.maps / share.maps, 1))
    before = found.attention[last]
    trust = before._replace(maps=1 - (1 - before.maps) * share.onto(before))
    return replace(found, attention={**found.attention, last: trust}), logits, attention
