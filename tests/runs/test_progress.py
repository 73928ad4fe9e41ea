"""Progress on stderr, and what the command line shows of an outcome."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hmsa.runs import Outcome, Progress, progress


def test_lines_where_there_is_no_terminal(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_LINE_EVERY", -1)
    with Progress("train", 10, done=7) as meter:
        meter.advance("loss 0.5")
        meter.advance()
        meter.advance()
    out, err = capsys.readouterr()
    assert out == "", "stdout is for results"
    lines = err.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("train 8/10, 0:0")
    assert " left  loss 0.5  " in lines[0]
    assert lines[-1].startswith("train 10/10, 0:00:00 left  ")


def test_quiet_between_lines_but_not_at_the_end(capsys):
    with Progress("scan", 50) as meter:
        for _ in range(50):
            meter.advance()
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_an_unknown_total(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_LINE_EVERY", -1)
    with Progress("video", None) as meter:
        meter.advance()
    assert capsys.readouterr().err.startswith("video 1  ")


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_a_bar_on_a_terminal():
    import pty

    code = (
        "from hmsa.runs import Progress\n"
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


def test_the_first_signal_is_noted_and_the_second_raises(capsys):
    before = signal.getsignal(signal.SIGTERM)
    with progress.interruptible() as interrupted:
        assert not interrupted()
        signal.raise_signal(signal.SIGTERM)
        assert interrupted()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before


def test_outcomes(capsys):
    path = Path("made")
    assert Outcome({"miou": 1}, "table", path, notes=["note"]).show() == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == "table"
    assert json.loads(out.splitlines()[-1]) == {"miou": 1}
    assert err == "note\n"
    assert Outcome({"miou": 1}, "table").show(json_alone=True) == 0
    assert capsys.readouterr().out == '{"miou": 1}\n'
    assert Outcome(path=path, problems=["a.png is damaged"]).show() == 3
    assert capsys.readouterr() == ("made\n", "hmsa: a.png is damaged\n")
    assert Outcome(path=path, failure="not the same labels").show() == 1
    assert capsys.readouterr() == ("", "hmsa: not the same labels\n")
