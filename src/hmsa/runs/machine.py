"""The machine: device, precision, processes."""

from __future__ import annotations

import ctypes
import os
import platform
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from lightning_fabric import Fabric

from .errors import InputError

Precision = Literal["auto", "fp32", "bf16", "fp16"]
_FABRIC: Any = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}  # its words


def best_device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def find_device(wanted: torch.device | str | None = None) -> torch.device:
    """The best one, or the one that is asked for; InputError if it is not there."""
    if wanted is None:
        return best_device()
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise InputError(f"device: {wanted!r} is none; give cpu, cuda, cuda:1 or mps") from None
    count = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    there = count.get(device.type, 1)
    if there <= (device.index or 0):
        names = {"cuda": "CUDA device", "mps": "Apple GPU"}
        had = f"there are {there}" if there else f"there is no {names[device.type]} here"
        raise InputError(f"device: {wanted} was asked for, but {had}; give cpu or leave it out")
    return device


def fast_bf16(device: torch.device) -> bool:
    """Whether bf16 arithmetic is in the hardware rather than emulated."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(device.type == "cpu" and torch.cpu._is_avx512_bf16_supported())


def use_bf16(device: torch.device, precision: Precision) -> bool:
    return precision == "bf16" or (precision == "auto" and fast_bf16(device))


def in_use(device: torch.device, precision: Precision) -> str:
    """bf16, fp16 or fp32; "auto" is bf16 or fp32. Raises InputError for fp16 on a CPU."""
    if precision == "fp16" and device.type == "cpu":
        raise InputError("precision: fp16 is for GPUs; use bf16 or fp32 on a CPU")
    return precision if precision == "fp16" else "bf16" if use_bf16(device, precision) else "fp32"


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    used = in_use(device, precision)
    if used == "fp32":
        return nullcontext()
    return torch.autocast(device.type, torch.float16 if used == "fp16" else torch.bfloat16)


def launch(accelerator: str, devices: int | str, precision: Precision) -> Fabric:
    """Lightning Fabric, started: one process per device. accelerator: may name one, as cuda:1."""
    device = find_device(None if accelerator == "auto" else accelerator)
    fabric = Fabric(
        accelerator=device.type,
        devices=devices if device.index is None else [device.index],
        precision=_FABRIC[in_use(device, precision)],
    )
    fabric.launch()
    return fabric


def keep_memory() -> None:
    """Have glibc keep freed memory rather than hand it back and fault it in anew at every step.

    A training step on the CPU frees and asks for the same large tensors over and over; without
    this a sixth of its time goes into page faults. Elsewhere than on glibc nothing happens.
    """
    if platform.libc_ver()[0] == "glibc":
        trim_threshold, top_pad, mmap_max = -1, -2, -4  # malloc.h
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(top_pad, 64 << 20)


def trim_memory() -> None:
    """Have glibc hand back freed memory, before tensors that are too large to fit into it."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def loader_processes(device: torch.device) -> int:
    """Two cores that compute have none to spare for loading; a GPU leaves them free."""
    cores = os.cpu_count() or 1
    return min(8, cores - 1) if device.type != "cpu" else max(0, min(4, cores // 4))


def describe_machine(device: torch.device) -> str:
    """Hardware and versions, to stand beside a measured number."""
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{os.cpu_count()} cores, {_processor()}"
    )
    python = platform.python_version()
    return f"{name}; torch {torch.__version__}, Python {python}, {platform.system()}"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if "model name" in line]
        return names[0]
    except (OSError, IndexError):
        return platform.processor() or platform.machine()
