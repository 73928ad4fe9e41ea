"""The house: imports only point down, and the rooms keep to themselves."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import hmsa

SOURCE = Path(hmsa.__file__).parent
FLOORS = {
    "__main__": 8,
    "labelling": 7,
    "training": 6,
    "evaluation": 5,
    "inference": 4, "check": 4,
    "report": 3, "checkpoint": 3,
    "data": 2,
    "config": 1,
    "model": 0, "runs": 0,
}  # fmt: skip
FILES = sorted(SOURCE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Rooms of this package that a file names, wherever in it, under TYPE_CHECKING too."""
    found = set()
    depth = len(path.relative_to(SOURCE).parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == depth:
            names = [node.module] if node.module else [alias.name for alias in node.names]
            found |= {name.split(".")[0] for name in names}
    return (found & set(FLOORS)) - {room(path)}


def test_rooms():
    entries = {p.name for p in SOURCE.iterdir() if p.name != "__pycache__"}
    assert {name.removesuffix(".py") for name in entries} == {*FLOORS, "__init__", "py.typed"}
    assert len(entries) <= 14


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(SOURCE).as_posix())
def test_imports_point_down(path):
    if path == SOURCE / "__init__.py":
        return  # the public face names what is on every floor, lazily
    here = room(path)
    for other in imports(path):
        assert FLOORS[other] < FLOORS[here], (
            f"{here} (floor {FLOORS[here]}) imports {other} (floor {FLOORS[other]})"
        )


def test_no_circles_inside_a_room():
    """Files of a room import each other one way round, those under TYPE_CHECKING counted."""
    edges: dict[Path, set[Path]] = {}
    for path in FILES:
        edges[path] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == 1 and path.parent != SOURCE:
                names = [node.module] if node.module else [alias.name for alias in node.names]
                files = {path.parent / f"{name.split('.')[0]}.py" for name in names}
                edges[path] |= files & set(FILES)

    def reaches(start: Path, goal: Path, seen: set[Path]) -> bool:
        return any(
            after == goal or (after not in seen and reaches(after, goal, seen | {after}))
            for after in edges[start]
        )

    assert not [path for path in FILES if reaches(path, path, {path})]


def test_files_stay_small():
    long = {p.name: n for p in FILES if (n := len(p.read_text().splitlines())) > 350}
    assert not long


def test_public_names():
    assert sorted(hmsa.__all__) == sorted(
        ["HMSA", "InputError", "Predictor", "ScaleAttention", "Prediction", "__version__", "fuse"]
    )
    assert all(hasattr(hmsa, name) for name in hmsa.__all__)
