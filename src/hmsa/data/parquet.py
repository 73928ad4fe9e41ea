"""Datasets as `datasets` of Hugging Face has them: image and label files inside Parquet files.

A row has an image and a label, {bytes, path} each. A file is named after its split, as is
data/train-00000-of-00001.parquet, or lies in a folder of that name, as do the Arrow files of
`save_to_disk`. id2label.json names the classes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import parquet

from ..runs import InputError, Outcome, first_line
from ..runs.files import new_folder
from .datasets import Dataset, open_dataset
from .descriptions import describe
from .exports import split_of
from .images import open_pillow
from .masks import name_of
from .walk import SUFFIXES

NAMES = "id2label.json"
_LABEL = ("label", "mask", "annot", "seg", "gt")  # in names of columns
_FILE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_ROWS = 32  # that are in memory at once
_FEATURES = {name: {"_type": "Image"} for name in ("image", "label")}
_SCHEMA = pa.schema(
    [(name, _FILE) for name in _FEATURES],
    {"huggingface": json.dumps({"info": {"features": _FEATURES}})},
)


def find(folder: Path) -> list[Path]:
    """The Parquet and Arrow files of a dataset below a folder."""
    if folder.is_file():
        return [folder] if folder.suffix in (".parquet", ".arrow") else []
    files = (f for suffix in ("parquet", "arrow") for f in folder.rglob(f"*.{suffix}"))
    return sorted(file for file in files if not file.name.startswith("cache-"))


def unpack(files: list[Path], root: Path, target: Path) -> str:
    """Write images/SPLIT and labels/SPLIT into the folder `target`; returns what there is.

    root: the folder of the files. Images and labels are written as they are.
    """
    counts: dict[str, int] = {}
    names = set[tuple[str, str]]()
    for file in files:
        split = split_of(file) or "train"
        for row in _rows(file):
            number = counts[split] = counts.get(split, 0) + 1
            where = f"{file}, image {number} of {split}"
            name = name_of(row[0]["path"] or f"{number:06}", where)
            name = f"{name}-{number}" if (split, name) in names else name
            names.add((split, name))
            for kind, each in zip(("images", "labels"), row, strict=True):
                _write(target / kind / split / name, each, where)
    for classes in sorted(root.rglob(NAMES))[:1]:
        (target / NAMES).write_bytes(classes.read_bytes())
    return ", ".join(f"{number} in {split}" for split, number in counts.items())


def export(path: Path, out: Path, splits: Sequence[str] = ()) -> Outcome:
    """Make the folder `out`, which `datasets.load_dataset` reads, whole or not at all.

    path: a dataset. splits: default: all but those that need not be there.
    """
    _, description, _ = describe(path)
    chosen = splits or [name for name in description.splits if name not in description.optional]
    opened = [open_dataset(path, name) for name in chosen]
    with new_folder(out) as target:
        (target / "data").mkdir()
        for dataset in opened:
            name = re.sub(r"\W", "_", dataset.split)
            pack(dataset, target / "data" / f"{name}-00000-of-00001.parquet")
        names = json.dumps(dict(enumerate(opened[0].labels.names)), indent=1)
        (target / NAMES).write_text(names, encoding="utf-8")
    counts = ", ".join(f"{len(dataset)} in {dataset.split}" for dataset in opened)
    return Outcome(path=out, notes=[f"labelled images: {counts}"])


def pack(dataset: Dataset, file: Path) -> None:
    """Write a split: image files as they are, labels as PNGs of class indices, 255 = no label."""
    palette = np.array(dataset.labels.palette, np.uint8).tobytes().ljust(768, b"\0")
    with parquet.ParquetWriter(file, _SCHEMA) as writer:
        for start in range(0, len(dataset), _ROWS):
            rows = []
            for index in range(start, min(start + _ROWS, len(dataset))):
                image, name, png = dataset.pairs[index].image, dataset.pairs[index].name, BytesIO()
                label = Image.fromarray(dataset.read_label(index))
                label.putpalette(palette)
                label.save(png, "PNG")
                content = {"bytes": image.read_bytes(), "path": f"{name}{image.suffix}"}
                label_file = {"bytes": png.getvalue(), "path": f"{name}.png"}
                rows.append({"image": content, "label": label_file})
            writer.write_table(pa.Table.from_pylist(rows, _SCHEMA))


def _rows(file: Path) -> Iterator[list[dict[str, Any]]]:
    """Image and label of each row."""
    try:
        with file.open("rb") as stream:
            if file.suffix == ".arrow":
                batches = pa.ipc.open_stream(stream)
                columns = _columns(batches.schema, file)
            else:
                table = parquet.ParquetFile(stream)
                columns = _columns(table.schema_arrow, file)
                batches = table.iter_batches(_ROWS, columns=columns)
            for batch in batches:
                for row in batch.select(columns).to_pylist():
                    yield [row[name] or {"bytes": None, "path": None} for name in columns]
    except (OSError, pa.ArrowException) as error:
        raise InputError(
            f"{file} cannot be read ({first_line(error)}); download it again"
        ) from None


def _columns(schema: Any, file: Path) -> list[str]:
    """The columns of image and label."""
    structs = {f.name: {part.name for part in f.type} for f in schema if pa.types.is_struct(f.type)}
    files = [name for name, parts in structs.items() if parts == {"bytes", "path"}]
    labels = [name for name in files if any(word in name.lower() for word in _LABEL)]
    images = [name for name in files if name not in labels]
    chosen = [*(["image"] if "image" in images else images), *labels]
    if len(chosen) != 2 or not labels:
        raise InputError(
            f"{file} has the columns {', '.join(schema.names)}; it needs one of images and one of "
            "label images, {bytes, path} each, such as image and label"
        )
    return chosen


def _write(path: Path, file: dict[str, Any], where: str) -> None:
    """path: without suffix; file: bytes and path."""
    if not file["bytes"]:
        raise InputError(f"{where}: a file is not inside; save it with datasets' to_parquet")
    suffix = PurePosixPath(file["path"] or "").suffix.lower()
    with open_pillow(where, file["bytes"]) as image:
        suffix = suffix if suffix in SUFFIXES else f".{image.format}".lower()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(path.name + suffix).write_bytes(file["bytes"])
