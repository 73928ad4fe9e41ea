from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch

from hmsa.runs import machine as runtime
from hmsa.runs.errors import InputError
from hmsa.runs.machine import describe_machine, fast_bf16, launch, loader_processes, use_bf16
from hmsa.runs.progress import Progress


def test_meter_speaks_in_lines_where_there_is_no_terminal(capsys, monkeypatch):
    monkeypatch.setattr(runtime, "_LINE_EVERY", 0)
    with Progress("train", 10, done=7) as meter:
        meter.advance("loss 0.5")
        meter.advance()
        meter.advance()
    out, err = capsys.readouterr()
    assert out == "", "stdout is for results"
    lines = err.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("train 8/10  loss 0.5  ")
    assert lines[0].endswith(" left")
    assert lines[-1].startswith("train 10/10")


def test_meter_is_quiet_between_lines_but_not_at_the_end(capsys):
    with Progress("look", 50) as meter:
        for _ in range(50):
            meter.advance()
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_meter_draws_a_bar_on_a_terminal():
    import os
    import pty

    code = (
        "from hmsa.runtime import Progress\n"
        "with Progress('train', 3) as meter:\n"
        "    for _ in range(3): meter.advance('loss 1')\n"
    )
    main, side = pty.openpty()
    subprocess.run([sys.executable, "-c", code], stderr=side, check=True)
    os.close(side)
    drawn = os.read(main, 65536).decode()
    os.close(main)
    assert "train" in drawn
    assert "3/3" in drawn
    assert "loss 1" in drawn
    assert "━" in drawn


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_keep_memory_stops_handing_memory_back():
    """Pages of a large freed array are still there when the next one is asked for."""
    code = (
        "import sys, resource, torch\n"
        "from hmsa.runtime import keep_memory\n"
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
    assert use_bf16(cpu, "bf16")
    assert not use_bf16(cpu, "fp32")
    assert use_bf16(cpu, "auto") == fast_bf16(cpu)


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
