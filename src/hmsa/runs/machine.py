"""The machine: device, precision, processes."""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from lightning_fabric import Fabric
from lightning_fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, distributed

from .errors import InputError, first_line

Precision = Literal["auto", "fp32", "bf16", "fp16"]
_FABRIC: Any = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}  # its words


def best_device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def find_device(wanted: torch.device | str | None = None) -> torch.device:
    """`wanted`, or else the best one. Raises InputError if this machine does not have it."""
    if wanted is None:
        return best_device()
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise InputError(f"unknown device {wanted!r}; use cpu, cuda, cuda:1 or mps") from None
    count = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (found := count.get(device.type, 1)) <= (device.index or 0):
        raise InputError(f"device {wanted}: this machine has {found} of {device.type}; use cpu")
    return device


def fast_bf16(device: torch.device) -> bool:
    """Whether bf16 arithmetic is in the hardware rather than emulated."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(device.type == "cpu" and torch.cpu._is_avx512_bf16_supported())


def in_use(device: torch.device, precision: Precision) -> str:
    """bf16, fp16 or fp32; "auto" is bf16 or fp32. Raises InputError for fp16 on a CPU."""
    if precision == "fp16" and device.type == "cpu":
        raise InputError("precision: fp16 is for GPUs; use bf16 or fp32 on a CPU")
    if precision == "auto":
        return "bf16" if fast_bf16(device) else "fp32"
    return precision


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    used = in_use(device, precision)
    if used == "fp32":
        return nullcontext()
    return torch.autocast(device.type, torch.float16 if used == "fp16" else torch.bfloat16)


def is_first() -> bool:
    """Whether this process is the only or the first one of its training."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK"))


def processes(accelerator: str, devices: int | str) -> int:
    """Of a training: as many as torchrun started, or else one for each of its devices."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return int(os.environ["WORLD_SIZE"])
    if isinstance(devices, int):
        return devices
    cuda = find_device(None if accelerator == "auto" else accelerator).type == "cuda"
    return torch.cuda.device_count() if cuda else 1


def launch(accelerator: str, processes: int, precision: Precision) -> Fabric:
    """Lightning Fabric, started: one process per device. accelerator: may name one, as cuda:1."""
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # no "Using bfloat16 .."
    device = find_device(None if accelerator == "auto" else accelerator)
    here = processes
    if processes > 1 and "TORCHELASTIC_RUN_ID" in os.environ:
        here = int(os.environ["LOCAL_WORLD_SIZE"])
    try:
        fabric = Fabric(
            accelerator=device.type,
            devices=here if device.index is None else [device.index],
            num_nodes=processes // here,
            precision=_FABRIC[in_use(device, precision)],
        )
    except (MisconfigurationException, ValueError) as error:
        raise InputError(f"devices {here}: {first_line(error)}") from None
    fabric.launch()
    return fabric


def total(own: Tensor) -> Tensor:
    """The sum of a tensor over all processes of a training, on each of them."""
    if distributed.is_initialized():
        distributed.all_reduce(own := own.clone())
    return own


def gathered(own: Tensor) -> Tensor:
    """`[N]` of each process of a training, one after the other."""
    if not distributed.is_initialized():
        return own
    parts = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, own)
    return torch.cat(parts)


@contextmanager
def together() -> Iterator[None]:
    """Say it in one line where work ends because another process of the training has ended."""
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, distributed.DistError) or "gloo" in str(error)):
            raise
        raise RuntimeError(
            f"another process of this training has ended, which may have said why; --resume "
            f"continues from what was saved ({first_line(error)})"
        ) from error


def keep_memory() -> None:
    """Have glibc keep freed memory instead of returning it to the system.

    A training step on the CPU allocates the same large tensors over and over; without this, a sixth
    of its time goes into page faults. Nothing happens where there is no glibc.
    """
    if platform.libc_ver()[0] == "glibc":
        trim_threshold, top_pad, mmap_max = -1, -2, -4  # malloc.h
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(top_pad, 64 << 20)


def trim_memory() -> None:
    """Have glibc return freed memory, before tensors that are too large to fit into it."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def loader_processes(device: torch.device) -> int:
    """Processes that load data: none on two cores, which compute; more beside a GPU."""
    cores = os.cpu_count() or 1
    return min(8, cores - 1) if device.type != "cpu" else max(0, min(4, cores // 4))


def describe_machine(device: torch.device) -> str:
    """Hardware and versions, for a report."""
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{os.cpu_count()} cores, {_processor()}"
    )
    python = platform.python_version()
    return f"{name}; torch {torch.__version__}, Python {python}, {platform.system()}"


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", file.read_text() if file.is_file() else "")
    return found[1] if found else platform.processor() or platform.machine()
