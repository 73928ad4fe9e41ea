"""`hmsa export`: a checkpoint becomes one ONNX or torch file, if it then sees the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from ..data.scenes import scene
from ..runs.errors import InputError
from ..runs.files import replace
from .exported import SUFFIXES, Exported, Frozen, Size, freeze, need, show_size, write
from .predictor import Predictor
from .result import Prediction

AGREEMENT = 0.999  # share of pixels, in every picture: the rest may be ties
STEPS = 2  # of 255, that a confidence may be off
SIZES = ((75, 131), (64, 192), (160, 96), (33, 97), (192, 256))  # pictures of a dynamic graph


class Parity(NamedTuple):
    """One picture, seen by the file and by the network."""

    picture: str
    size: Size
    classes: int  # that the network saw: were it one alone, equal labels would tell little
    agreement: float  # share of pixels with the same label, 0..1
    confidence: int  # largest difference, of 255

    @property
    def holds(self) -> bool:
        return self.agreement >= AGREEMENT and self.confidence <= STEPS


def export(
    source: Path,
    out: Path,
    to: str | None = None,
    scales: Sequence[float] | None = None,
    size: Size | None = None,
    flip: bool | None = None,
) -> tuple[Table, str | None]:
    """Write `out` from checkpoint `source`; scales and flip: those it was trained for.

    to: "onnx" or "torch", else by the suffix of `out`. size: height and width, None for any.
    Returns the table of what the file saw and, if that is not what the network sees, why nothing
    was written.
    """
    kind = _kind(out, to)
    predictor = Predictor.load(source, scales, "fp32", flip)
    if predictor.long_edge and not size:
        raise InputError(
            f"{source} brings pictures to a long edge of {predictor.long_edge}, which a graph of "
            "any size cannot; name one: --size HxW"
        )
    rounded = [s for s in predictor.scales if s != float(np.float32(s))]
    if kind == "onnx" and not size and rounded:
        raise InputError(
            f"scale {rounded[0]:g} is not exact in the 32 bits that ONNX has for sizes; name one "
            "(--size HxW), take scales such as 0.5 or 0.75, or use --to torch"
        )
    model, chain, flips = predictor.model.cpu(), predictor.scales, predictor.flip
    eager = Predictor(model, chain, "fp32", "cpu", flip=flips, long_edge=predictor.long_edge)
    program = freeze(Frozen(model, tuple(chain), flips, predictor.long_edge), size)
    card = model.card.model_copy(update={"scales": chain, "flip": flips})
    seen: list[Parity] = []

    def checked(temporary: Path) -> None:
        write(temporary, kind, program, card, size)
        seen.extend(compare(eager, Exported(temporary, kind), (size,) if size else SIZES))
        if not all(each.holds for each in seen):
            raise _Disagrees

    problem = None
    try:
        replace(out, checked)
    except _Disagrees:
        problem = (
            f"{out} was not written: the exported graph does not see what {source} sees (labels "
            f"must agree in {AGREEMENT:.1%} of pixels, confidence within {STEPS} of 255)"
        )
    return parity_table(f"{out.name}, {show_size(size)}", seen), problem


class _Disagrees(Exception):
    pass


def _kind(out: Path, to: str | None) -> str:
    kind = to or next((k for k, suffix in SUFFIXES.items() if suffix == out.suffix), "")
    if SUFFIXES.get(kind) != out.suffix:
        raise InputError(
            f"{out} has to end in {SUFFIXES.get(kind, ' or '.join(SUFFIXES.values()))}"
            + (f" to be exported to {kind}" if kind else "")
        )
    if kind == "onnx":
        for name in ("onnx", "onnxscript", "onnxruntime"):
            need(name)
    return kind


def compare(eager: Predictor, file: Exported, sizes: Sequence[Size]) -> list[Parity]:
    """Both on generated streets and on noise of these sizes."""
    rows = []
    for index, size in enumerate(sizes):
        noise = np.random.default_rng(index).integers(0, 256, (*size, 3), np.uint8)
        pictures: dict[str, NDArray[np.uint8]] = {"street": scene(index, size)[0], "noise": noise}
        for name, image in pictures.items():
            rows.append(_parity(name, size, eager(image), file(image)))
    return rows


def _parity(name: str, size: Size, one: Prediction, other: Prediction) -> Parity:
    off = np.abs(one.confidence.astype(int) - other.confidence.astype(int))
    agreement = float((one.label == other.label).mean())
    return Parity(name, size, len(np.unique(one.label)), agreement, int(off.max()))


def parity_table(title: str, rows: Sequence[Parity]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in ("picture", "size", "classes seen", "labels agree", "confidence off by", ""):
        table.add_column(column)
    for row in rows:
        table.add_row(
            row.picture,
            show_size(row.size),
            str(row.classes),
            f"{row.agreement:.3%}",
            f"{row.confidence} of 255",
            "" if row.holds else "[bold]too much[/]",
        )
    return table
