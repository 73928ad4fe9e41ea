"""A list of pictures -> its rows. CSV or Parquet, one picture a row:

    image,label,weight,source
    day/1.jpg,day/1.png,1,fine
    night/7.jpg,masks/7.png,2.5,drawn by hand

weight (how often, against others; 1) and source (any text) may be missing; further columns are left
alone. Paths are relative to the list, or else to the dataset's folder.
"""

from __future__ import annotations

import csv
import difflib
import math
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from ..runs.errors import InputError

SUFFIXES = {".csv", ".parquet"}
_NEEDED, _OPTIONAL = ("image", "label"), ("weight", "source")


class Row(NamedTuple):
    name: str  # the image's path as the list has it, without suffix, root and ..
    image: Path
    label: Path
    weight: float
    source: str


def read_list(name: str, root: Path, beside: Path, source: str) -> list[Row]:
    """The rows of the list `name`, which lies in `root`, with the pictures, or in `beside`.

    InputError names the line, or `source` where there is no list.
    """
    file = next((f / name for f in (root, beside) if (f / name).is_file()), None)
    if not file:
        places = " or ".join(str(folder) for folder in dict.fromkeys((root, beside)))
        raise InputError(f"{source}: no list {name} in {places}")
    rows: list[Row] = []
    seen: dict[str, str] = {}
    for where, cells in _parquet(file) if file.suffix.lower() == ".parquet" else _csv(file):
        image, label = (_path(where, cells, key, file.parent, root) for key in _NEEDED)
        stem = PurePath(cells["image"]).with_suffix("")
        name = "/".join(part for part in stem.parts if part not in (stem.anchor, ".."))
        first = seen.setdefault(name, where)
        if first is not where:
            raise InputError(
                f"{where}: {cells['image']} shares its name with {first}; list a picture once "
                "(a weight says how often it counts)"
            )
        rows.append(Row(name, image, label, _weight(where, cells), str(cells.get("source") or "")))
    if not rows:
        raise InputError(f"{source}: {file} lists no pictures; the split is empty")
    return rows


def _csv(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines, restkey="", skipinitialspace=True, strict=True)
            _check_columns(file, list(reader.fieldnames or []))
            for cells in reader:
                where = f"{file} line {reader.line_num}"
                if "" in cells:
                    raise InputError(
                        f"{where} has more cells than columns; quote a cell with commas"
                    )
                yield where, cells
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{file} is not readable CSV in UTF-8: {error}") from None


def _parquet(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow.parquet as parquet
    from pyarrow import ArrowException

    try:
        names = parquet.read_schema(file).names
        _check_columns(file, names)
        wanted = [name for name in names if name in _NEEDED + _OPTIONAL]
        rows = parquet.read_table(file, columns=wanted).to_pylist()
    except (OSError, ArrowException) as error:
        told = " ".join(str(error).split())
        raise InputError(f"{file} is not readable Parquet: {told}") from None
    for number, cells in enumerate(rows, 1):
        yield f"{file} row {number}", cells


def _check_columns(file: Path, columns: list[str]) -> None:
    for key in _NEEDED + _OPTIONAL:
        near = difflib.get_close_matches(key, columns, n=1, cutoff=0.7)
        if key not in columns and (near or key in _NEEDED):
            hint = f"did you mean that by {near[0]!r}?" if near else "needed are image and label"
            raise InputError(f"{file} has no column {key!r}, only {', '.join(columns)}; {hint}")


def _path(where: str, cells: dict[str, Any], key: str, *folders: Path) -> Path:
    if not cells[key]:
        raise InputError(f"{where} has no {key}; fill it in or remove the line")
    tried = list(dict.fromkeys(folder / str(cells[key]) for folder in folders))
    for path in tried:
        if path.is_file():
            return path
    raise InputError(f"{where}: no file {' or '.join(map(str, tried))}; mend the {key}")


def _weight(where: str, cells: dict[str, Any]) -> float:
    given = cells.get("weight")
    if given is None or given == "":
        return 1.0
    try:
        weight = float(given)
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise InputError(f"{where}: weight {given!r} is not a number above 0; to skip a picture, "
                         "remove the line")  # fmt: skip
    return weight
