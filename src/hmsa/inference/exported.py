"""A network frozen with its chain of scales in one file, ONNX or torch: written, and run again.

Graph: `image` uint8 [1,3,H,W] RGB -> `label` uint8 [1,H,W], `confidence` uint8 [1,H,W], which is
floor(255 * softmax maximum). Normalisation, scales, fusion and flip are inside. The file also
carries the card (classes, palette, scales) and the size that it takes.
"""

from __future__ import annotations

import io
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from ..checkpoint.files import Card
from ..data.images import Picture
from ..model import HMSA, ordered
from ..model.fusion import resize
from ..runs.errors import InputError, as_input_error, first_line
from ..runs.machine import Precision
from .result import Prediction, as_array

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
LEAST = 32  # pixels of a side, below which a graph of any size is not held to agree
_TRACED = (75, 131)  # whatever is no multiple of a stride: every resize and pad gets into the graph

Size = tuple[int, int]  # height, width
Run = Callable[[NDArray[np.uint8]], Sequence[NDArray[np.uint8]]]


class Opened(NamedTuple):
    """A file of one of the two kinds, ready to run."""

    run: Run
    card: str  # JSON
    size: str  # 512x1024 or dynamic


class Exported:
    """What an exported file sees in a picture; to be called like a `Predictor`.

    card: as of the checkpoint, with the scales and the flip that are in the graph. size: the only
    height and width that it takes, None for any.
    """

    def __init__(self, file: Path, kind: str) -> None:
        self.file = file
        self._run, card, size = _OPEN[kind](file)
        self.card = Card.model_validate_json(card)
        self.size = None if size == "dynamic" else parse_size(size)
        self.scales, self.flip = self.card.scales, self.card.flip

    @classmethod
    def load(
        cls,
        source: Path | str,
        scales: Sequence[float] | None = None,
        precision: Precision = "auto",
        flip: bool | None = None,
        **further: Any,
    ) -> Exported:
        """source: a .onnx or .pt2 file of `hmsa export`. The rest is in the graph already: anything
        given that is not what it was made with raises InputError.
        """
        source = Path(source)
        if not source.is_file():
            raise InputError(f"no file {source}; hmsa export makes one of a checkpoint")
        kind = next(kind for kind, suffix in SUFFIXES.items() if suffix == source.suffix)
        made = cls(source, kind)
        with as_input_error():
            chain = ordered(scales) if scales else made.scales
        wanted: list[tuple[str, Any, Any]] = [
            ("scales", chain, made.scales),
            ("flip", made.flip if flip is None else flip, made.flip),
            ("precision", "fp32" if precision == "auto" else precision, "fp32"),
            *((name, given, None) for name, given in further.items() if given != "auto"),
        ]
        for what, asked, has in wanted:
            if asked != has:
                raise InputError(
                    f"{source} was exported with {what} {has}, not {asked}; export it anew"
                )
        return made

    @property
    def settings(self) -> dict[str, Any]:
        """All that a result depends on but the file, as JSON has it."""
        return {"scales": self.scales, "flip": self.flip, "precision": "fp32"}

    def __call__(
        self,
        image: Path | str | Image.Image | NDArray[np.uint8] | Picture,
        detail: bool = False,
        probabilities: bool = False,
        entropy: bool = False,
    ) -> Prediction:
        """image: a file, a Pillow image, or `[H,W,3]` uint8 RGB. InputError for a size that the
        graph does not take, and for detail, probabilities and entropy, which are not in it.
        """
        if detail or probabilities or entropy:
            raise InputError(
                f"{self.file} tells label and confidence alone; ask the checkpoint for what each "
                "scale saw, for probabilities and for entropy"
            )
        image = as_array(image)
        height, width = image.shape[:2]
        if self.size and self.size != (height, width):
            raise InputError(
                f"{self.file} takes pictures of {show_size(self.size)} (height x width), this one "
                f"is {height}x{width}; export with --size dynamic, or resize the picture"
            )
        if not self.size and min(height, width) < LEAST:
            raise InputError(
                f"{self.file} takes pictures from {LEAST}x{LEAST} up, this one is {height}x{width}"
            )
        label, confidence = self._run(np.ascontiguousarray(image.transpose(2, 0, 1)[None]))
        return Prediction(label[0], confidence[0])


class Frozen(nn.Module):
    """`Predictor` as a graph: `[1,3,H,W]` uint8 -> label and confidence, both `[1,H,W]` uint8."""

    def __init__(
        self, model: HMSA, scales: Sequence[float], flip: bool, long_edge: int | None
    ) -> None:
        super().__init__()
        self.model, self.scales, self.flip, self.long_edge = model, scales, flip, long_edge

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        size = image.shape[-2:]
        if self.long_edge:
            factor = self.long_edge / max(size)
            grid = [max(1, round(side * factor)) for side in size]
            image = F.interpolate(image.float() / 255, grid, mode="bilinear", antialias=True)
        logits = resize(self.model(image, self.scales).logits, size)
        if self.flip:
            mirrored = self.model(image.flip(-1), self.scales).logits
            logits = (logits + resize(mirrored, size).flip(-1)) / 2
        confidence, label = logits.softmax(1).max(1)
        return label.to(torch.uint8), (confidence * 255).floor().to(torch.uint8)


def freeze(frozen: Frozen, size: Size | None) -> torch.export.ExportedProgram:
    """The program of `frozen` for pictures of `size`, or of any; InputError where torch cannot."""
    image = torch.zeros(1, 3, *(size or _TRACED), dtype=torch.uint8)
    free = {2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    with _refusing(size):
        program = torch.export.export(
            frozen.eval(), (image,), dynamic_shapes=None if size else {"image": free}
        )
        held = program.graph_signature.user_inputs
        given = next(n for n in program.graph.nodes if n.name == held[0]).meta["val"].shape
    if not size and any(isinstance(side, int) for side in given[2:]):
        raise InputError(
            "this trunk cannot be exported for pictures of any size; name one: --size HxW"
        )
    return program


def write(
    file: Path, kind: str, program: torch.export.ExportedProgram, card: Card, size: Size | None
) -> None:
    """Write `program` to `file` as "onnx" or "torch", with all that `Exported` needs beside it."""
    header = {"hmsa": card.model_dump_json(), "size": show_size(size)}
    if kind == "torch":
        for node in program.graph.nodes:
            if node.target is math.floor:  # which cannot be stored; of a size it is the same
                node.target = math.trunc
        with _refusing(size), file.open("wb") as stream:  # by name, it would insist on a suffix
            torch.export.save(program, stream, extra_files=header)
        return
    need("onnxscript")
    with _refusing(size):
        made = torch.onnx.export(
            program, input_names=["image"], output_names=["label", "confidence"], verbose=False
        )
        assert made is not None
        if not size:
            graph: Any = made.model.graph
            sides = ("height", "width")
            made.rename_axes(dict(zip(graph.inputs[0].shape[2:], sides, strict=True)))
            for output in graph.outputs:  # as computed, they are long formulas
                output.shape = type(output.shape)([1, *sides])
        made.model.metadata_props.update(header)
        made.save(file, external_data=False)


def need(name: str) -> Any:
    """The module `name`; InputError that says how to get it."""
    try:
        return __import__(name)
    except ImportError:
        raise InputError(
            f'ONNX needs {name}, which is missing: pip install "hmsa[export]"'
        ) from None


def show_size(size: Size | None) -> str:
    return f"{size[0]}x{size[1]}" if size else "dynamic"


def parse_size(text: str) -> Size:
    height, width = (int(part) for part in text.split("x"))
    return height, width


def _open_onnx(file: Path) -> Opened:
    runtime = need("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = runtime.InferenceSession(
            file, options, providers=runtime.get_available_providers()
        )
        header = session.get_modelmeta().custom_metadata_map
        card, size = header["hmsa"], header["size"]
    except KeyError:
        raise InputError(f"{file} was not written by hmsa export: no classes in it") from None
    except Exception as error:  # its own classes, of no common base
        raise InputError(f"{file} cannot be run by onnxruntime ({first_line(error)})") from None
    return Opened(lambda image: session.run(["label", "confidence"], {"image": image}), card, size)


def _open_torch(file: Path) -> Opened:
    header = {"hmsa": "", "size": ""}
    try:
        with _quiet(), file.open("rb") as stream:
            # The guards of a dynamic program hold where it was traced; parity is what counts
            module = torch.export.load(stream, extra_files=header).module(check_guards=False)
    except Exception as error:  # zip, JSON, pickle or schema
        raise InputError(
            f"{file} cannot be loaded by torch {torch.__version__} ({first_line(error)}); "
            "export it with this version"
        ) from None
    if not header["hmsa"]:
        raise InputError(f"{file} was not written by hmsa export: no classes in it")

    def run(image: NDArray[np.uint8]) -> Sequence[NDArray[np.uint8]]:
        with torch.inference_mode():
            return [each.numpy() for each in module(torch.from_numpy(image))]

    return Opened(run, header["hmsa"], header["size"])


_OPEN: dict[str, Callable[[Path], Opened]] = {"onnx": _open_onnx, "torch": _open_torch}


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporters talk much, of their own affairs."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            redirect_stdout(io.StringIO()),
            redirect_stderr(io.StringIO()),
        ):
            yield
    finally:
        logging.disable(before)


@contextmanager
def _refusing(size: Size | None) -> Iterator[None]:
    try:
        with _quiet(), torch.no_grad():
            yield
    except Exception as error:  # an exporter may raise anything
        way = "try --to torch, or another trunk" if size else "name a size: --size HxW"
        raise InputError(
            f"torch cannot export this network for {show_size(size)} size ({first_line(error)}); "
            f"{way}"
        ) from None
