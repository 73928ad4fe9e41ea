"""Progress: lines where there is no terminal, a bar on one; never on stdout."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from hmsa.runs import progress
from hmsa.runs.progress import Progress


def test_progress_is_lines_where_there_is_no_terminal(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_LINE_EVERY", 0)
    with Progress("train", 10, done=7) as shown:
        shown.advance("loss 0.5")
        shown.advance()
        shown.advance()
    out, err = capsys.readouterr()
    assert out == "", "stdout is for results"
    lines = err.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("train 8/10  loss 0.5  ")
    assert lines[0].endswith(" left")
    assert lines[-1].startswith("train 10/10")


def test_progress_is_quiet_between_lines_but_not_at_the_end(capsys):
    with Progress("run", 50) as shown:
        for _ in range(50):
            shown.advance()
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_progress_draws_a_bar_on_a_terminal():
    import pty

    code = (
        "from hmsa.runs.progress import Progress\n"
        "with Progress('train', 3) as shown:\n"
        "    for _ in range(3): shown.advance('loss 1')\n"
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
