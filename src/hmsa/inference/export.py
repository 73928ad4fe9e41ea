"""Exported files: a network and its chain of scales as one graph, ONNX or torch.

Graph: `image` uint8 [1,3,H,W] RGB -> `label` uint8 [1,H,W] and `confidence` uint8 [1,H,W], which is
floor(255 * softmax maximum). Normalisation, scales, fusion and flip are inside. The file also
carries the card (classes, palette, scales) and the image size that it takes.
"""

from __future__ import annotations

import importlib
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace as replace_fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from ..config.options import Chain, height_width
from ..data.rasters import OpenImage
from ..data.stretch import stretch_of
from ..model.fusion import ordered, resize
from ..model.pretrained import Card
from ..runs import Outcome, replace
from ..runs.errors import InputError, as_input_error, first_line
from .predictor import Predictor, with_long_edge
from .result import Prediction, as_array
from .runtimes import quiet

AGREEMENT = 0.999  # share of pixels of every image with equal labels: the rest may be ties
STEPS = 2  # of 255, that a confidence may differ by
SIZES = ((75, 131), (64, 192), (160, 96), (33, 97), (192, 256))  # compared where any size is taken
LEAST = 32  # pixels of a side that such a graph needs; smaller images are padded

Size = tuple[int, int]  # height, width
Run = Callable[[NDArray[np.uint8]], Sequence[NDArray[np.uint8]]]  # [H,W,3] -> two maps [H,W]


def export(source: Path, out: Path, size: Size | None = None, chain: Chain = Chain()) -> Outcome:
    """Write `out`, .onnx or .pt2, from the checkpoint `source`, for images of `size` or of any.

    Nothing is written if its predictions differ from the network's. Raises InputError for what
    cannot be exported.
    """
    if out.suffix not in OPEN:
        raise InputError(f"{out} has to end in {' or '.join(OPEN)}")
    eager = Predictor.load(source, chain.scales, "fp32", chain.flip, device="cpu", backend="torch")
    rounded = [f"{s:g}" for s in eager.scales if s != float(np.float32(s))]
    if not size and eager.long_edge:
        raise InputError(f"{source} has a long edge of {eager.long_edge}: give --size HxW")
    if not size and rounded and out.suffix == ".onnx":
        raise InputError(
            f"scale {rounded[0]} is not exact in the 32 bits that ONNX has for sizes; give --size "
            "HxW, use scales such as 0.5 or 0.75, or write a .pt2 file"
        )
    card = replace_fields(eager.model.card, scales=eager.scales, flip=eager.flip)
    with TemporaryDirectory() as folder:
        file = Path(folder) / f"network{out.suffix}"
        write(file, freeze(eager, size), card, size)
        with quiet(f"{out} cannot be compared with the network"):
            run, _ = OPEN[out.suffix](file)
        share, steps = compare(eager, run, [size] if size else SIZES)
        found = f"{share:.3%} of the labels are equal, confidence differs by {steps} of 255"
        if share < AGREEMENT or steps > STEPS:
            return Outcome(failure=f"{out} was not written: it differs from {source}: {found}")
        replace(out, lambda temporary: shutil.copyfile(file, temporary))
    return Outcome(path=out, notes=[f"{out.name}, {show_size(size)}: {found}"])


class Frozen(nn.Module):
    """`Predictor` as a graph: `[1,3,H,W]` uint8 -> label and confidence, both `[1,H,W]` uint8."""

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self.model, self.scales = predictor.model.eval(), predictor.scales
        self.flip, self.long_edge = predictor.flip, predictor.long_edge

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        size = image.shape[-2:]
        image = with_long_edge(image, self.long_edge)
        logits = resize(self.model(image, self.scales).logits, size)
        if self.flip:
            mirrored = self.model(image.flip(-1), self.scales).logits
            logits = (logits + resize(mirrored, size).flip(-1)) / 2
        confidence, label = logits.softmax(1).max(1)
        return label.to(torch.uint8), (confidence * 255).floor().to(torch.uint8)


def freeze(predictor: Predictor, size: Size | None) -> torch.export.ExportedProgram:
    """The program of `Frozen` for images of `size`, or of any. Raises InputError."""
    # Traced with sides that are no multiple of a stride: so each resize and pad is in the graph
    channels = predictor.model.channels
    image = torch.zeros(1, channels, *(size or (75, 131)), dtype=torch.uint8)
    any_size = {"image": {2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}}
    with quiet(f"torch cannot export this network for {show_size(size)} size"), torch.no_grad():
        program = torch.export.export(
            Frozen(predictor), (image,), dynamic_shapes=None if size else any_size
        )
    (name,) = program.graph_signature.user_inputs
    shape = next(node for node in program.graph.nodes if node.name == name).meta["val"].shape
    if not size and any(isinstance(side, int) for side in shape[2:]):
        raise InputError("this trunk cannot be exported for any size; give one: --size HxW")
    return program


def write(file: Path, program: torch.export.ExportedProgram, card: Card, size: Size | None) -> None:
    """Write `program` to the .onnx or .pt2 `file`, with the header that `Exported` reads."""
    header = {"hmsa": card.to_json(), "size": show_size(size)}
    with quiet(f"this network cannot be written as {file.suffix}"):
        if file.suffix == ".onnx":
            made = torch.onnx.export(
                program, input_names=["image"], output_names=["label", "confidence"], verbose=False
            )
            assert made is not None
            made.model.metadata_props.update(header)
            return made.save(file, external_data=False)
        for node in program.graph.nodes:
            if node.target is math.floor:  # cannot be stored; equal for sizes
                node.target = math.trunc
        torch.export.save(program, file, extra_files=header)


def compare(eager: Predictor, run: Run, sizes: Sequence[Size]) -> tuple[float, int]:
    """The least share of equal labels, and the largest difference of confidences, of 255, in any
    of some images of noise, in spots of 16 pixels and of one."""
    shares, steps = list[float](), list[int]()
    for index, size in enumerate(sizes):
        channels = eager.model.channels
        fine = np.random.default_rng(index).integers(0, 256, (*size, channels), np.uint8)
        spots = np.kron(fine[::16, ::16], np.ones((16, 16, 1), np.uint8))[: size[0], : size[1]]
        for image in (spots, fine):
            one, (label, confidence) = eager(image), run(image)
            shares.append(float((one.label == label).mean()))
            steps.append(int(np.abs(one.confidence8.astype(int) - confidence).max()))
    return min(shares), max(steps)


class Exported:
    """An .onnx file of `hmsa export`, to be called like a `Predictor`.

    card: as in the checkpoint, with the scales and the flip that are in the graph. size: the only
    height and width that it takes, None for any. options: of `Predictor.load`; they are in the
    graph already. Raises InputError for another kind of file, and for an option that differs.
    """

    def __init__(self, file: Path, **options: Any) -> None:
        if file.suffix == ".pt2":  # `torch.export.load` unpickles parts of it, which may run code
            raise InputError(
                f"{file}: a .pt2 file can run code of whoever made it; export to .onnx"
            )
        self.file = file
        with quiet(f"{file} cannot be loaded"):
            self._run, header = _open_onnx(file)
        if not header.get("hmsa"):
            raise InputError(f"{file} was not written by hmsa export: it does not name its classes")
        with as_input_error(file):
            self.card = Card.from_json(header["hmsa"], "its header")
            size = header.get("size", show_size(None))
            self.size = None if size == show_size(None) else height_width(size)
        self.channels = self.card.network.get("in_channels", 3)
        if (backend := options.pop("backend", "auto")) not in ("auto", "onnxruntime"):
            raise InputError(f"{file} runs in onnxruntime, not in {backend}; use the checkpoint")
        self._ranges = options.pop("stretch", None)  # of what is read, not of the graph
        self.stretch = stretch_of(self.card, self._ranges)
        for name, value in options.items():
            wanted = ordered(value) if name == "scales" and value else value
            made = self.settings.get(name)
            if wanted not in (None, "auto", made):
                raise InputError(f"{file} was exported with {name} {made}, not {wanted}")

    @property
    def settings(self) -> dict[str, Any]:
        """Everything but the file that a result depends on, as JSON."""
        settings = {"scales": self.card.scales, "flip": self.card.flip, "precision": "fp32"}
        return settings | ({"stretch": [[*e] for e in self.stretch.ranges]} if self._ranges else {})

    def __call__(
        self, image: Path | str | Image.Image | NDArray[np.uint8] | OpenImage, **outputs: bool
    ) -> Prediction:
        """image: a file, a Pillow image, or `[H,W,3]` uint8 RGB. outputs: those of `Predictor`.

        Raises InputError for a size that the graph does not take, and for any of the outputs.
        """
        if any(outputs.values()):
            raise InputError(f"{self.file} has label and confidence only; use the checkpoint")
        image = as_array(image, self.stretch)
        height, width = size = image.shape[:2]
        if image.shape[2] != self.channels:
            raise InputError(
                f"{self.file} takes images of {self.channels} bands, not {image.shape[2]}"
            )
        if self.size and size != self.size:
            raise InputError(
                f"{self.file} takes images of {show_size(self.size)} (height x width), this one is "
                f"{show_size(size)}; export without --size, or resize the image"
            )
        beyond = [(0, 0 if self.size else max(0, LEAST - side)) for side in size]
        try:
            maps = self._run(np.pad(image, (*beyond, (0, 0)), "edge"))
            label, confidence = (each[:height, :width] for each in maps)
        except Exception as error:  # a file may be anybody's
            raise InputError(f"{self.file} fails on this image ({first_line(error)})") from None
        right = all(map_.shape == size and map_.dtype == np.uint8 for map_ in (label, confidence))
        if not right or label.max() >= len(self.card.names):
            raise InputError(f"{self.file} returns something else than labels of its classes")
        return Prediction(label, confidence, palette=self.card.palette, names=self.card.names)


def _open_onnx(file: Path) -> tuple[Run, Mapping[str, str]]:
    runtime: Any = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = torch.get_num_threads()
    # As bytes: its name may be no UTF-8, and it cannot make the runtime read other files
    content, providers = file.read_bytes(), runtime.get_available_providers()
    session = runtime.InferenceSession(content, options, providers=providers)

    def run(image: NDArray[np.uint8]) -> Sequence[NDArray[np.uint8]]:
        pixels = np.ascontiguousarray(image.transpose(2, 0, 1)[None])
        return [each[0] for each in session.run(["label", "confidence"], {"image": pixels})]

    return run, session.get_modelmeta().custom_metadata_map


def _open_torch(file: Path) -> tuple[Run, Mapping[str, str]]:
    """Only for a file that this process has made: torch unpickles parts of it."""
    header: dict[str, str] = {"hmsa": "", "size": ""}
    # The guards of a dynamic program hold for the traced image; `compare` tries others
    module = torch.export.load(file, extra_files=header).module(check_guards=False)

    def run(image: NDArray[np.uint8]) -> Sequence[NDArray[np.uint8]]:
        pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None]
        with torch.inference_mode():
            return [each[0].numpy() for each in module(pixels.contiguous())]

    return run, header


OPEN = {".onnx": _open_onnx, ".pt2": _open_torch}


def show_size(size: Size | None) -> str:
    return f"{size[0]}x{size[1]}" if size else "dynamic"
