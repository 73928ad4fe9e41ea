"""`hmsa data`: make and look at data."""

from __future__ import annotations

from pathlib import Path

from ..data.scenes import write_scenes
from ..errors import InputError


def scenes(folder: Path, counts: dict[str, int], size: tuple[int, int], seed: int = 0) -> Path:
    """Write generated street scenes to an empty `folder`; returns its dataset.yaml."""
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty; name a new folder for the scenes")
    if min(size) < 64:
        raise InputError(f"size {size[0]}x{size[1]}: scenes need at least 64 pixels a side")
    return write_scenes(folder, counts, size, seed)
