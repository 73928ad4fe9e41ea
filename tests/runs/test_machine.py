from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch

from hmsa.runs import machine
from hmsa.runs.errors import InputError
from hmsa.runs.machine import (
    describe_machine,
    fast_bf16,
    find_device,
    in_use,
    launch,
    loader_processes,
    processes,
)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_keep_memory_stops_handing_memory_back():
    """Pages of a large freed array are still there when the next one is asked for."""
    code = (
        "import sys, resource, torch\n"
        "from hmsa.runs.machine import keep_memory\n"
        "if sys.argv[1] == 'keep': keep_memory()\n"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "torch.ones(12_000_000)\n"
        "before = faults()\n"
        "for _ in range(30): torch.ones(12_000_000)\n"
        "print(faults() - before)"
    )
    faults = {
        how: int(subprocess.check_output([sys.executable, "-c", code, how]))
        for how in ("keep", "leave")
    }
    assert faults["keep"] < 0.5 * faults["leave"], faults


def test_precision():
    cpu = torch.device("cpu")
    assert in_use(cpu, "bf16") == "bf16"
    assert in_use(cpu, "fp32") == "fp32"
    assert in_use(cpu, "auto") == ("bf16" if fast_bf16(cpu) else "fp32")
    with pytest.raises(InputError, match="fp16 is for GPUs"):
        in_use(cpu, "fp16")


def test_a_number_names_its_machine():
    line = describe_machine(torch.device("cpu"))
    assert torch.__version__ in line
    assert "cores" in line


def test_two_cores_have_none_to_spare_for_loading(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert loader_processes(torch.device("cpu")) == 0
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    assert loader_processes(torch.device("cuda")) == 8


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_absent_device():
    with pytest.raises(InputError, match="cuda"):
        launch("cuda", 1, "auto")


def test_device_that_is_not_there():
    assert find_device("cpu") == torch.device("cpu")
    with pytest.raises(InputError, match="unknown device 'gpu'; use cpu"):
        find_device("gpu")
    with pytest.raises(InputError, match="device cuda:63: this machine has"):
        find_device("cuda:63")


def test_the_environment_counts_the_processes(monkeypatch):
    assert processes("cpu", 3) == 3
    assert processes("cpu", "auto") == 1
    monkeypatch.setattr(machine, "find_device", torch.device)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    assert processes("cuda", "auto") == 4
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "8"}.items():
        monkeypatch.setenv(name, value)
    assert processes("cpu", 1) == 8


def test_more_devices_than_there_are(monkeypatch):
    def refuse(**_):
        raise machine.MisconfigurationException("You requested gpu: [0, 1]\nBut there is one")

    monkeypatch.setattr(machine, "Fabric", refuse)
    with pytest.raises(InputError, match=r"^devices 2: You requested gpu: \[0, 1\]$"):
        launch("cpu", 2, "fp32")
