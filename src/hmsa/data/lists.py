"""The pairs of a split in a list file, CSV or Parquet, one image a row.

    image,label,weight,source
    day/1.jpg,day/1.png,1,fine
    night/7.jpg,masks/7.png,2.5,drawn by hand

weight (how often it is drawn, against others; 1) and source (any text) may be missing; further
columns are ignored. A .txt file has an image and its label a line, with a space, comma, semicolon
or tab between. Paths are relative to the list, or else to the dataset's folder.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path, PurePath
from typing import Any
from unicodedata import normalize

from pydantic import ConfigDict

from ..config.reading import Strict, validate
from ..config.recipe import Positive
from ..runs import InputError, first_line
from .pairs import Pair
from .walk import SUFFIXES

_SUFFIX = "|".join(suffix[1:] for suffix in sorted(SUFFIXES))
_LINE = re.compile(rf"(.+?\.(?:{_SUFFIX}))\s*[\s,;]\s*(.+\.(?:{_SUFFIX}))", re.IGNORECASE)


class Row(Strict):
    model_config = ConfigDict(extra="ignore", coerce_numbers_to_str=True)

    image: str
    label: str
    weight: Positive = 1.0
    source: str = ""


def read_list(name: str, root: Path, beside: Path, source: str) -> list[Pair]:
    """The pairs of the list `name`, which lies in `root`, with the images, or in `beside`.

    Raises InputError that names the row, or `source` if there is no list.
    """
    file = next((f / name for f in (root, beside) if os.path.isfile(f / name)), None)
    if not file:
        raise InputError(f"{source}: no list {name} in {root} or {beside}")
    pairs: dict[str, Pair] = {}
    for where, cells in _lines(file) if file.suffix.lower() == ".txt" else _rows(file):
        row = validate(Row, {k: v for k, v in cells.items() if v not in (None, "")}, where)
        path = PurePath(normalize("NFC", row.image.replace("\\", "/")))
        stem = path.parent / path.stem
        name = "/".join(part for part in stem.parts if part not in (stem.anchor, ".."))
        if name in pairs:
            raise InputError(
                f"{where}: {row.image} has the name of {pairs[name].image}; list an image once (a "
                "weight says how often it is drawn)"
            )
        image, label = (_find(path, (file.parent, root), where) for path in (row.image, row.label))
        pairs[name] = Pair(name, image, label, weight=row.weight, source=row.source)
    if not pairs:
        raise InputError(f"{source}: {file} lists no images; the split is empty")
    return list(pairs.values())


def list_text(rows: Iterable[Sequence[object]]) -> str:
    """The text of a CSV list of (image, label)."""
    lines = io.StringIO()
    csv.writer(lines, lineterminator="\n").writerows([("image", "label"), *rows])
    return lines.getvalue()


def _lines(file: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Place and columns of each line of a .txt file."""
    text = file.read_bytes().decode(_encoding(file), "replace")
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        if not (found := _LINE.fullmatch(line.strip())):
            raise InputError(
                f"{file} line {number}: {line.strip()[:80]!r} is not an image and its label; "
                "write two files, such as images/a.jpg labels/a.png"
            )
        yield f"{file} line {number}", {"image": found[1], "label": found[2]}


def _rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place and columns of each row of a CSV or Parquet file."""
    import pyarrow as pa
    from pyarrow import csv as tables
    from pyarrow import parquet

    try:
        if file.suffix.lower() == ".parquet":
            table = parquet.read_table(file)
        else:
            types = pa.schema([(key, pa.string()) for key in Row.model_fields])
            encoding = _encoding(file)
            with file.open(encoding=encoding, errors="replace") as lines:
                heading = lines.readline(1000)
            table = tables.read_csv(
                file,
                tables.ReadOptions(use_threads=False, encoding=encoding.removesuffix("-sig")),
                tables.ParseOptions(delimiter=max(",;\t", key=heading.count)),
                tables.ConvertOptions(column_types=types, strings_can_be_null=True),
            )
        columns, rows = table.column_names, table.to_pylist()
    except (OSError, UnicodeError, pa.ArrowException) as error:
        why = first_line(error)
        mend = "; save it as UTF-8" if "utf" in why.lower() else ""
        raise InputError(f"{file} cannot be read as a list: {why}{mend}") from None
    if not {"image", "label"} <= {*columns}:
        raise InputError(
            f"{file} has the columns {', '.join(columns)}; its first line must name the "
            "columns, and image and label be among them"
        )
    for number, cells in enumerate(rows, 1):
        yield f"{file} row {number}", cells


def _encoding(file: Path) -> str:
    with file.open("rb") as opened:
        return "utf-16" if opened.read(2) in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"


def _find(path: str, folders: Sequence[Path], where: str) -> Path:
    """The file, also if it is written with backslashes or in the other form of Unicode."""
    path = path.strip()
    for folder, written in product(folders, (path, path.replace("\\", "/"))):
        for form in (written, normalize("NFC", written), normalize("NFD", written)):
            if os.path.isfile(folder / form):  # unlike Path, also of names too long
                return folder / form
    raise InputError(f"{where}: no file {path} in {' or '.join(map(str, folders))}; correct it")
