"""What is known of one image: its row, and rows together."""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from numpy.typing import NDArray
from pyarrow import parquet

from ..runs.errors import InputError

Row = dict[str, Any]

PERSON = "person"  # `source` of a row whose label a person gave; a network's has none

THRESHOLDS = [percent / 100 for percent in range(50, 100, 5)]  # of the manifest's column `kept`
LOOK = {"scales": [float], "flip": bool}  # settings that the manifest repeats
_TABLE: dict[str, Any] = {
    "image": str, "label": str, "confidence": str, "height": int, "width": int, "sha256": str,
    "teacher": str, **LOOK, "pixels": [int], "mean_confidence": [float], "kept": [float],
    "agreement": str, "mean_agreement": float, "coarse_sha256": str, "coarse_pixels": int,
    "seconds": float, "status": str, "reason": str, "source": str,
}  # fmt: skip
_TYPES = {
    str: pyarrow.string, int: pyarrow.int64, float: pyarrow.float64, bool: pyarrow.bool_,
    bytes: pyarrow.binary,
}  # fmt: skip
_AT_ONCE = 4096  # rows in memory while the manifest is written


def sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def tally(
    label: NDArray[np.uint8], confidence: NDArray[np.uint8], classes: int
) -> NDArray[np.int64]:
    """`[K,256]`: pixels of one image by class and stored confidence; 255 is no class."""
    known = label < classes
    places = label[known].astype(np.int64) << 8 | confidence[known]
    return np.bincount(places, minlength=classes << 8).reshape(classes, 256)


def figures(counts: NDArray[np.int64]) -> Row:
    """What a row says of pixels `[K,256]` by class and stored confidence."""
    value = np.arange(256)
    pixels, sums = counts.sum(1).tolist(), (counts @ value).tolist()
    return {
        "pixels": pixels,
        "mean_confidence": [s / 255 / n if n else None for s, n in zip(sums, pixels, strict=True)],
        "kept": [float(counts[:, value / 255 >= t].sum() / counts.sum()) for t in THRESHOLDS],
        "counts": base64.b64encode(zlib.compress(counts.astype("<u4").tobytes(), 1)).decode(),
    }


def is_done(row: Row) -> bool:
    """Whether there are labels; else `reason` says why there cannot be."""
    return bool(row["status"] == "done")


def total(rows: Iterable[Row], classes: int) -> NDArray[np.int64]:
    """`[K,256]`: pixels of all rows together by class and stored confidence."""
    counts = np.zeros((classes, 256), np.int64)
    for row in rows:
        if is_done(row):
            packed = zlib.decompress(base64.b64decode(row["counts"]))
            counts += np.frombuffer(packed, "<u4").reshape(classes, 256)
    return counts


def rows_below(out: Path) -> Iterator[tuple[str, Row]]:
    """All rows of OUT by the name of their image, in the order in which a run does them.

    InputError: one of them is damaged.
    """
    found = []
    for file in (out / "rows").rglob("*.json"):
        if not file.name.startswith("."):
            name = file.relative_to(out / "rows").as_posix().removesuffix(".json")
            try:
                found.append((name, json.loads(file.read_bytes())))
            except ValueError:
                raise InputError(f"{file} is damaged; run the same hmsa autolabel again") from None
    yield from sorted(found, key=lambda each: Path(each[1]["image"]))


def schema_of(classes: Sequence[str], more: Row | None = None) -> pyarrow.Schema:
    """Columns of the manifest and `more`; what they count by is JSON in its metadata."""
    about = {"classes": list(classes), "thresholds": THRESHOLDS}
    return pyarrow.schema(
        [(name, _kind(of)) for name, of in (_TABLE | (more or {})).items()],
        metadata={key: json.dumps(value) for key, value in about.items()},
    )


def table_of(rows: Iterable[Row], schema: pyarrow.Schema) -> pyarrow.Table:
    told = [{name: row.get(name) for name in schema.names} for row in rows]
    return pyarrow.Table.from_pylist(told, schema)


def write_manifest(file: Path, rows: Iterable[Row], settings: Row) -> None:
    """All rows in one Parquet file, with the settings that concern all of them."""
    same = {key: settings[key] for key in ("teacher", *LOOK)}
    schema, told = schema_of([*settings["classes"]]), (row | same for row in rows)
    with parquet.ParquetWriter(file, schema) as writer:
        while some := list(islice(told, _AT_ONCE)):
            writer.write_table(table_of(some, schema))


def _kind(of: Any) -> Any:
    return pyarrow.list_(_TYPES[of[0]]()) if isinstance(of, list) else _TYPES[of]()
