"""Images and labels that metadata pairs, in an image folder of Hugging Face `datasets`.

metadata.csv or metadata.jsonl has a column `file_name` of images and one such as `mask_file_name`,
relative to itself.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..runs import InputError
from ..runs.errors import as_input_error
from .doctor import Group, kinds
from .encodings import PLAIN, guess
from .scan import scan


def examine(root: Path) -> list[Group]:
    """All groups below a folder, as `doctor.examine` finds them; none without such metadata."""
    found: dict[tuple[str, str], Group] = {}
    root = root.resolve()
    for metadata in sorted((*root.rglob("metadata.csv"), *root.rglob("metadata.jsonl"))):
        for image, label in _pairs(metadata, root):
            of_image, of_label = (
                file.parent.relative_to(root).as_posix() for file in (image, label)
            )
            new = Group(of_label, "", candidates=[Group(of_image, "")])
            group = found.setdefault((of_image, of_label), new)
            group.files[image.name] = label
            group.candidates[0].files[image.name] = image
    if not found:
        return []
    groups = [*found.values()]
    scans = scan(root, {file: PLAIN for group in groups for file in group.files.values()})
    for group in groups:
        group.scans = {file: scans[file] for file in group.files.values()}
        group.guess = guess(group.scans, "")
    return [*(group.candidates[0] for group in groups), *groups]


def _pairs(metadata: Path, root: Path) -> Iterator[tuple[Path, Path]]:
    with as_input_error(f"{metadata} cannot be read"):
        lines = [line for line in metadata.read_text("utf-8-sig").splitlines() if line.strip()]
        table = csv.DictReader(lines) if metadata.suffix == ".csv" else map(json.loads, lines)
        rows: list[dict[str, Any]] = [row for row in table if isinstance(row, dict)]
    columns = [name for name in (rows[0] if rows else ()) if str(name).endswith("_file_name")]
    labels = [name for name in columns if "label" in kinds(name)] or columns
    if "file_name" not in (rows or [{}])[0] or not labels:
        return
    if len(labels) > 1:
        raise InputError(
            f"{metadata} has the columns {' and '.join(labels)}; rename those that are no labels"
        )
    for number, row in enumerate(rows, 1):
        image, label = (
            Path(os.path.normpath(metadata.parent / str(row.get(name))))
            for name in ("file_name", labels[0])
        )
        for file in (image, label):
            if not file.is_file() or not file.is_relative_to(root):
                raise InputError(f"{metadata} row {number}: no file {file} in {root}; correct it")
        yield image, label
