"""What a dataset is called, or the folder it lies in -> the YAML file that describes it.

The descriptions in `known/` come with the package. Each is found by its bare name (`cityscapes`),
and by pointing at a folder that holds, or is called, all that its `known_by` lists.
"""

from __future__ import annotations

import difflib
from functools import cache
from pathlib import Path

from ..config.reading import read_yaml
from ..runs.errors import InputError

KNOWN = {file.stem: file for file in sorted((Path(__file__).parent / "known").glob("*.yaml"))}


def locate(path: Path) -> tuple[Path, Path | None]:
    """The YAML file that `path` means, and the folder of its pictures if `path` points at that.

    path: a YAML file, a folder with dataset.yaml, a folder in a known layout, or a known name.
    """
    if path.is_dir():
        if (path / "dataset.yaml").exists():
            return path / "dataset.yaml", None
        name = _recognise(path)
        if name:
            return KNOWN[name], path
    # datasets/NAME.yaml is where descriptions lay before they came with the package
    name = path.stem if path.match("datasets/*.yaml") else str(path)
    if name in KNOWN and not path.is_file():
        return KNOWN[name], None
    if path.is_dir():
        looked_for = "; ".join(f"{name}: {', '.join(_signs(name))}" for name in KNOWN)
        raise InputError(
            f"{path} has no dataset.yaml and is in no known layout (looked for {looked_for}); "
            "write a dataset.yaml there, or name the layout and pass --data FOLDER"
        )
    if not path.exists() and _is_bare(path):
        near = difflib.get_close_matches(path.name, KNOWN, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(KNOWN)}"
        raise InputError(f"no file, folder or known dataset {str(path)!r}; {hint}")
    return path, None


def beside(folder: Path, dataset: str) -> Path:
    """What a recipe in `folder` means by `dataset`: a path from there, or else a bare name."""
    path = folder / dataset
    return Path(dataset) if _is_bare(Path(dataset)) and not path.exists() else path


def _is_bare(path: Path) -> bool:
    return len(path.parts) == 1 and not path.suffix


def _recognise(folder: Path) -> str | None:
    called = folder.resolve().name.lower()
    found = [
        name
        for name in KNOWN
        if all(sign.lower() == called or (folder / sign).exists() for sign in _signs(name))
    ]
    if len(found) > 1:
        raise InputError(
            f"{folder} could be {' or '.join(found)}; name one and pass --data {folder}"
        )
    return found[0] if found else None


@cache
def _signs(name: str) -> list[str]:
    signs: list[str] = read_yaml(KNOWN[name])["known_by"]
    return signs
