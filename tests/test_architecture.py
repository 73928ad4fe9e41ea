"""The house: imports only point down, and the rooms keep to themselves."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import hmsa

SOURCE = Path(hmsa.__file__).parent
FLOORS = {
    "cli": 5, "__main__": 6, "commands": 4, "evaluation": 3.5, "outputs": 3.5, "exported": 3.5,
    "autolabel": 3.5, "review": 3.7, "predictor": 3,
    "checkpoint": 0.5, "networks": 0.5, "losses": 2, "optim": 2, "passes": 2, "record": 2,
    "official": 1, "report": 2, "rmi": 1, "datasheet": 2, "rounds": 2, "selftraining": 2, "page": 1,
    "model": 1, "data": 1, "metrics": 1, "config": 1, "runtime": 1, "pictures": 1, "pipeline": 1,
    "memory": 0, "segmentation": 2,
    "files": 0, "errors": 0, "__init__": 0,
}  # fmt: skip
# Beside each other on one floor, but only one way round
SIDEWAYS = {("data", "config"), ("metrics", "data"), ("report", "pictures")}
NEVER = {
    "model": {"config", "data", "losses"},
    "data": {"model"},
    "report": {"model", "predictor"},
    "datasheet": {"model", "predictor", "report"},
    "review": {"model", "predictor"},
    "rounds": {"model", "predictor", "report"},
    "predictor": {"pictures"},
}


def room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Rooms of this package that a file names, wherever in it."""
    found = set()
    depth = len(path.relative_to(SOURCE).parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            module = node.module.split(".")[0] if node.module else None
            if node.level == depth:
                found |= {module} if module else {a.name for a in node.names}
    known = {name if name in FLOORS else "__init__" for name in found}
    return known - {room(path)}


FILES = sorted(SOURCE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(SOURCE).as_posix())
def test_imports_point_down(path):
    if path == SOURCE / "__init__.py":
        return  # the public face names what is on every floor
    here = room(path)
    for other in imports(path):
        allowed = FLOORS[other] < FLOORS[here] or (here, other) in SIDEWAYS
        assert allowed, f"{here} (floor {FLOORS[here]}) imports {other} (floor {FLOORS[other]})"
        assert other not in NEVER.get(here, ()), f"{here} must not know {other}"


def test_no_verb_imports_another_but_evaluate():
    for path in (SOURCE / "commands").glob("*.py"):
        if path.name in ("demo.py", "selftrain.py"):
            continue  # the demo is all the verbs in a row; self-training three of them, in rounds
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == 1:
                assert node.module == "evaluate"


def test_files_stay_small():
    long = {p.name: n for p in FILES if (n := len(p.read_text().splitlines())) > 350}
    assert not long


def test_public_names():
    assert sorted(hmsa.__all__) == sorted(
        ["HMSA", "InputError", "Predictor", "ScaleAttention", "Segmentation", "__version__", "fuse"]
    )
    assert all(hasattr(hmsa, name) for name in hmsa.__all__)
