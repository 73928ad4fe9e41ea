"""The notebooks of `examples` run from top to bottom, on the smallest settings."""

from __future__ import annotations

import re
import signal
import sys
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="needs the development extra")
nbclient = pytest.importorskip("nbclient", reason="needs the development extra")
pytest.importorskip("ipykernel", reason="needs the development extra")

FOLDER = Path(__file__).parents[1] / "examples" / "notebooks"
SMALL = {  # instead of what the cell with the tag `parameters` says
    "1-predict": {"SCALES": (0.25, 0.5)},
    "2-train": {"STEPS": 2, "ATTENTION_STEPS": 1, "SCALES": [0.25]},
    "3-autolabel": {"SCALES": "0.25"},
}


@pytest.fixture
def handlers():
    """nbclient removes the handlers of signals, which later tests in this process need."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("name", SMALL)
def test_runs(name, tmp_path, monkeypatch):
    book = nbformat.read(FOLDER / f"{name}.ipynb", 4)
    (cell,) = (c for c in book.cells if "parameters" in c.metadata.get("tags", []))
    changes = SMALL[name] | ({"OUT": str(tmp_path)} if "OUT = " in cell.source else {})
    for key, value in changes.items():
        cell.source, found = re.subn(f"(?m)^{key} = .*$", f"{key} = {value!r}", cell.source)
        assert found == 1
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")
    resources = {"metadata": {"path": FOLDER}}
    nbclient.NotebookClient(book, timeout=600, kernel_name="python3", resources=resources).execute()
    for cell in book.cells:
        text = "".join(o.get("text", "") for o in cell.get("outputs", []))
        assert "hmsa: " not in text, "a command failed"


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.ipynb")), ids=lambda file: file.stem)
def test_stored_results_are_whole_and_small(file):
    book = nbformat.read(file, 4)
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    assert file.stat().st_size < 1 << 20
    assert sys.prefix not in file.read_text(), "a path of the machine that ran it"
    assert file.stem in SMALL
