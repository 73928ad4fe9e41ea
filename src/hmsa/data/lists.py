"""A list of images -> pairs of files. CSV or Parquet, one image a row:

    image,label,weight,source
    day/1.jpg,day/1.png,1,fine
    night/7.jpg,masks/7.png,2.5,drawn by hand

weight (how often it is drawn, against others; 1) and source (any text) may be missing; further
columns are ignored. Paths are relative to the list, or else to the dataset's folder.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from pydantic import ConfigDict

from ..config.reading import Strict, validate
from ..config.recipe import Positive
from ..runs import InputError, first_line

SUFFIXES = {".csv", ".parquet"}


@dataclass(frozen=True)
class Pair:
    name: str  # path below the image folder, or in the list, without suffix
    image: Path
    label: Path
    confidence: Path | None = None  # 8 bits, floor(255 p) that the label is right
    instances: Path | None = None  # 16 bits; above 1000: class and number of an instance
    weight: float = 1.0  # how often it is drawn, against others
    source: str = ""  # where it is from, as a list file says


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
    file = next((f / name for f in (root, beside) if (f / name).is_file()), None)
    if not file:
        raise InputError(f"{source}: no list {name} in {root} or {beside}")
    pairs: dict[str, Pair] = {}
    for number, cells in enumerate(_cells(file), 1):
        where = f"{file} row {number}"
        row = validate(Row, {k: v for k, v in cells.items() if v not in (None, "")}, where)
        stem = PurePath(row.image).with_suffix("")
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


def _cells(file: Path) -> list[dict[str, Any]]:
    """Column name -> cell, for each row."""
    import pyarrow as pa
    from pyarrow import csv, parquet

    try:
        if file.suffix.lower() == ".parquet":
            table = parquet.read_table(file)
        else:
            types = pa.schema([(key, pa.string()) for key in Row.model_fields])
            texts = csv.ConvertOptions(column_types=types, strings_can_be_null=True)
            table = csv.read_csv(file, csv.ReadOptions(use_threads=False), convert_options=texts)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{file} cannot be read as a list: {first_line(error)}") from None
    return table.to_pylist()  # type: ignore[no-any-return]


def _find(path: str, folders: tuple[Path, ...], where: str) -> Path:
    for folder in folders:
        if (folder / path.strip()).is_file():
            return folder / path.strip()
    raise InputError(f"{where}: no file {path} in {' or '.join(map(str, folders))}; correct it")
