"""Runtimes of ONNX graphs on a processor, and graphs that are proven to compute what torch does."""

from __future__ import annotations

import importlib
import io
import logging
import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, Protocol
from warnings import catch_warnings

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..model.weights import hashed
from ..runs import CannotWrite, cache_folder, replace
from ..runs.errors import InputError, first_line
from ..runs.machine import autocast, trim_memory

Arrays = Sequence[NDArray[Any]]
Inputs = tuple[Tensor, ...]
Shapes = tuple[tuple[int, ...], ...]  # of all inputs
_SMALL = 1 << 16  # pixels that a size needs for a graph of its own; or one for each kB of weights
_LARGE = 1 << 20  # pixels, from which on a graph's memory counts
_OPSET = 18
_FAR = 1e-3  # of the largest value: how far a graph in fp32 may be from torch
_SAME = 0.999  # of the labels of such a graph, at least: the rest may be ties
_ONE_SIZE = "it takes one size of images only"
_ROUGH = 4.0  # times the mean error of torch in bf16: how far a graph in bf16 may be from fp32


class Session(Protocol):
    """A graph in memory."""

    def run(self, arrays: Arrays) -> Arrays: ...


class Runtime(NamedTuple):
    """A library that runs ONNX."""

    open: Callable[[Callable[[], bytes], str], Session]  # reads the file's content; precision
    precisions: tuple[str, ...]
    memory: float  # measured, of what torch needs for the same network


@cache
def _core() -> Any:
    """OpenVINO, never freed: freed in another thread than it was made in, it leaves the latter
    without a stack for signals, and the next signal ends the process (seen with 2026.4)."""
    return importlib.import_module("openvino").Core()


class _OpenVINO:
    """A graph for images of any size, and one for the largest size that came.

    A graph for one size needs half the memory of one for any size, as its layers share it, and a
    tenth less time. But it holds the weights once more, which small images are not worth. A graph
    keeps its memory for the next image, or tile, but of large graphs only one at a time does.
    """

    _held: Callable[[], Any] = lambda: None  # the large graph that ran last

    def __init__(self, read: Callable[[], bytes], precision: str) -> None:
        self._read, self._graphs = read, dict[Shapes | None, Any]()
        self._settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        }
        self._graph(None)

    def run(self, arrays: Arrays) -> Arrays:
        shapes = tuple(each.shape for each in arrays)
        largest = max(map(_pixels, [*self._graphs]), default=0)
        larger = _pixels(shapes) >= max(_SMALL, self._weights, largest + 1)
        graph = self._graph(shapes if larger or shapes in self._graphs else None)
        if _pixels(shapes) >= _LARGE:
            before, _OpenVINO._held = _OpenVINO._held(), weakref.ref(graph)
            with suppress(RuntimeError):  # another thread runs it
                if before not in (None, graph):
                    before.release_memory()
        # A request of its own for each call: several threads may share a predictor
        return [*graph.create_infer_request().infer([*arrays], share_inputs=True).values()]

    def _graph(self, shapes: Shapes | None) -> Any:
        """The graph for inputs of these shapes, or of any. A new one for some replaces all."""
        graph = self._graphs.get(shapes)
        if graph is None:
            core, content = _core(), self._read()
            model, self._weights = core.read_model(content), len(content) >> 10  # kB
            if shapes:
                model.reshape(dict(enumerate(shapes)))
                self._graphs.clear()  # before memory for the new one is taken
            self._graphs[shapes] = graph = core.compile_model(model, "CPU", self._settings)
            del model, content
            trim_memory()  # of what the compilation took
        return graph


def _pixels(shapes: Shapes | None) -> int:
    """Of the first input."""
    return math.prod(shapes[0]) // shapes[0][1] if shapes else 0


class _ONNXRuntime:
    def __init__(self, read: Callable[[], bytes], precision: str) -> None:
        library: Any = importlib.import_module("onnxruntime")
        options = library.SessionOptions()
        options.log_severity_level = 3  # errors
        options.intra_op_num_threads = torch.get_num_threads()
        options.enable_cpu_mem_arena = False  # it would keep what the largest image needed
        self._session = library.InferenceSession(
            read(), options, providers=["CPUExecutionProvider"]
        )
        self._names = [each.name for each in self._session.get_inputs()]

    def run(self, arrays: Arrays) -> Arrays:
        inputs = dict(zip(self._names, arrays, strict=True))
        return self._session.run(None, inputs)  # type: ignore[no-any-return]


RUNTIMES = {  # fastest first, on CPUs
    "openvino": Runtime(_OpenVINO, ("fp32", "bf16"), 1.5),
    "onnxruntime": Runtime(_ONNXRuntime, ("fp32",), 1.0),
}


class Graph:
    """A module, which takes and returns tensors, as a graph in a runtime.

    inputs: to trace it with; others: of another batch, height and width, to compare it with, which
    is done whenever it is loaded. about: what the weights do not tell of it. Raises InputError if
    it cannot be exported, or differs.
    """

    def __init__(
        self, module: nn.Module, inputs: Inputs, others: Inputs, about: str, backend: str,
        precision: str,
    ) -> None:  # fmt: skip
        text = f"{about} {len(inputs)} {_OPSET} {torch.__version__}"
        file = cache_folder() / "graphs" / f"{hashed(module.state_dict(), text)[:32]}.onnx"
        # Whatever is in force around: it is traced in fp32
        with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
            with suppress(OSError, InputError):  # none yet, or not what torch computes now
                self._load(file.read_bytes, backend, precision)
                return self._compare(module, others, precision)
            _require_any_size(module, inputs, others)
            content = _exported(module, inputs)
            read = file.read_bytes
            try:
                replace(file, content)
            except CannotWrite:
                read = partial(bytes, content)
            self._load(read, backend, precision)
            self._compare(module, others, precision)

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        try:
            arrays = [each.float().contiguous().numpy() for each in inputs]
            return [torch.from_numpy(each) for each in self._session.run(arrays)]
        except OSError as error:
            raise InputError(
                f"{error.filename}, which was there when work began, cannot be read "
                f"({error.strerror}); run the command again"
            ) from None
        except Exception as error:  # each library has its own where memory runs out
            if "alloc" in str(error):
                raise MemoryError(first_line(error)) from None
            raise

    def _load(self, read: Callable[[], bytes], backend: str, precision: str) -> None:
        with quiet(f"{backend} cannot load this network"):
            self._session = RUNTIMES[backend].open(read, precision)

    def _compare(self, module: nn.Module, inputs: Inputs, precision: str) -> None:
        """Raises InputError where the graph is further from torch than rounding explains."""
        with quiet(_ONE_SIZE):
            found = self(*inputs)
        rough = exact = module(*inputs)
        if precision == "bf16":
            with autocast(torch.device("cpu"), "bf16"):
                rough = module(*inputs)
        for index, (one, plain, bf16) in enumerate(zip(found, exact, rough, strict=True)):
            if one.shape != plain.shape:
                raise InputError(_ONE_SIZE)
            far = (one - plain).abs()
            if precision == "bf16":
                fine = far.mean() <= _ROUGH * (bf16.float() - plain).abs().mean() + 1e-6
            else:
                same = (one.argmax(1) == plain.argmax(1)).double().mean()  # of the logits
                fine = far.max() <= _FAR * plain.abs().max() and (index or same >= _SAME)
            if not fine:
                raise InputError(f"its results differ from torch's by up to {far.max():.2g}")


def _require_any_size(module: nn.Module, inputs: Inputs, others: Inputs) -> None:
    """Raise InputError if the sizes of `inputs` stay in a trace of the module: OpenVINO may read
    beyond the end of such constants, and end the process."""
    with quiet("it cannot be exported"):
        traced = torch.jit.trace(module, inputs, check_trace=False)
    with quiet(_ONE_SIZE):
        for one, other in zip(traced(*others), module(*others), strict=True):
            least = _FAR * other.abs().max().item()
            torch.testing.assert_close(one, other, rtol=0, atol=least)


def _exported(module: nn.Module, inputs: Inputs) -> bytes:
    """The module as ONNX, for any batch and, of the first input, any height and width."""
    names = [f"input{index}" for index in range(len(inputs))]
    axes = {name: {0: "batch"} for name in names}
    axes[names[0]] |= {2: "height", 3: "width"}
    with quiet("it cannot be exported"), TemporaryDirectory() as folder:
        file = Path(folder) / "graph.onnx"
        # The older exporter: the newer one takes minutes where padding depends on the size
        torch.onnx.export(
            module, inputs, file, dynamo=False, opset_version=_OPSET, input_names=names,
            dynamic_axes=axes,
        )  # fmt: skip
        return file.read_bytes()


@contextmanager
def quiet(failure: str) -> Iterator[None]:
    """Silence what exporters print and log, and raise what they raise, which may be anything, as
    InputError."""
    sink = io.StringIO()
    logging.disable(logging.CRITICAL)
    try:
        with catch_warnings(action="ignore"), redirect_stdout(sink), redirect_stderr(sink):
            yield
    except Exception as error:
        way = '; pip install "hmsa[export]"' if isinstance(error, ImportError) else ""
        raise InputError(f"{failure} ({first_line(error)}){way}") from None
    finally:
        logging.disable(logging.NOTSET)
