"""What happens to images on the machines of a cluster: fetched, labelled, stored in shards."""

from __future__ import annotations

import hashlib
import io
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import torch
from numpy.typing import NDArray
from PIL import Image
from pyarrow import parquet

from ..data.coarse import Coarse
from ..data.images import read_image
from ..data.labels import LabelSet
from ..inference.predictor import Predictor
from ..runs.errors import InputError
from ..runs.files import replace
from ..runs.machine import keep_memory
from . import sources
from .look import look
from .out import FOLDER_OF
from .rows import Row, sha256, table_of

SHARDS = "shards"
MORE: Row = {
    "name": str, "key": str, "counts": str, "label_png": bytes, "confidence_png": bytes,
    "agreement_png": bytes,
}  # fmt: skip
AT_ONCE = 16  # images in one call of the teacher; of a listing four times that many in a block
_CONTENT = pyarrow.schema([
    ("name", pyarrow.string()), ("image", pyarrow.string()), ("content", pyarrow.large_binary()),
    ("reason", pyarrow.string()),
])  # fmt: skip


@dataclass(frozen=True)
class Job:
    """What a teacher is told."""

    load: Callable[[], Predictor]
    threads: int
    labels: LabelSet
    schema: Any  # of a shard
    key: str  # of the settings
    same: Row  # what all rows say
    images: str  # the folder of the images as seen from OUT
    folder: Path  # the same
    files: Path | None  # OUT, where label and confidence are files of their own
    coarse: Coarse | None = None  # whose files every machine sees
    agreement: bool = False


class Teacher:
    """Lives in a process of its own, on a GPU where Ray gave it one."""

    def __init__(self, job: Job) -> None:
        keep_memory()
        torch.set_num_threads(job.threads)
        self.job, self.predictor = job, job.load()

    def __call__(self, batch: Any) -> Any:
        return table_of(map(self._row, batch.to_pylist()), self.job.schema)

    def _row(self, given: Row) -> Row:
        began = time.monotonic()
        name, content, job = given["name"], given["content"], self.job
        row: Row = job.same | {"name": name, "key": job.key, "image": given["image"]}
        row |= {"status": "failed", "reason": given["reason"] or ""}
        if job.files:
            row["image"] = f"{job.images}/{Path(given['image']).relative_to(job.folder).as_posix()}"
        if content is not None:
            row["sha256"] = hashlib.sha256(content).hexdigest()
            try:
                pixels, people = _decode(given["image"], content), None
                place = job.coarse.find(Path(given["image"]), name) if job.coarse else None
                if job.coarse and place is not None:
                    row["coarse_sha256"] = sha256(job.coarse.dataset.pairs[place].label)
                    people = job.coarse.read(place, given["image"], pixels.shape[:2])
                pictures, told = look(self.predictor, pixels, job.labels, people, job.agreement)
            except (InputError, OSError) as error:
                row["reason"] = " ".join(str(error).split())
            else:
                row |= told
                for kind, picture in pictures.items():
                    self._keep(row, kind, picture)
        return row | {"seconds": round(time.monotonic() - began, 4)}

    def _keep(self, row: Row, kind: str, picture: Image.Image) -> None:
        if self.job.files:
            row[kind] = f"{FOLDER_OF[kind]}/{row['name']}.png"
            replace(self.job.files / row[kind], lambda file: picture.save(file, format="PNG"))
        else:
            content = io.BytesIO()
            picture.save(content, format="PNG")
            row[f"{kind}_png"] = content.getvalue()


def _decode(image: str, content: bytes) -> NDArray[np.uint8]:
    try:
        return read_image(image, content)
    except InputError:
        raise
    except Exception as error:  # whatever a decoder may raise must not stop the others
        raise InputError(f"{image} cannot be decoded ({error}); replace or remove it") from None


def fetch(batch: Any, kind: str, base: str, done: list[Any]) -> Iterator[Any]:
    """Content of the images that a batch of the listing names, or why there is none."""
    import ray

    known = ray.get(done[0])
    some: list[Row] = []
    for row in batch.to_pylist():
        for name, image, content in _content(row, kind, base, known):
            given = {"name": name, "image": image}
            try:
                some.append(given | {"content": content()})
            except InputError as error:
                some.append(given | {"reason": str(error)})
            if len(some) == AT_ONCE:
                yield pyarrow.Table.from_pylist(some, _CONTENT)
                some = []
    yield pyarrow.Table.from_pylist(some, _CONTENT)


def _content(
    row: Row, kind: str, base: str, known: NDArray[np.uint64]
) -> Iterator[tuple[str, str, Callable[[], bytes | None]]]:
    """Name, address and what reads it, of each image of a row that is not known as done."""
    image = row["image"]
    if kind == "tar":
        try:
            for name, content in sources.read_tar(image):
                if not is_in(known, name):
                    yield name, f"{image}#{name}", lambda content=content: content  # type: ignore[misc]
        except InputError as error:
            yield Path(image).stem, image, partial(_fail, str(error))
        return
    if isinstance(image, str) and "://" not in image and not image.startswith("/"):
        image = f"{base}/{image}"
    name = row["name"] if row.get("name") else sources.name_of(image)
    if is_in(known, name):
        return
    if isinstance(image, str):
        yield name, image, lambda: sources.read(image)
    elif image is None:
        yield name, name, partial(_fail, f"{name} has no content")
    else:
        yield name, name, lambda: image


def _fail(reason: str) -> bytes:
    raise InputError(reason)


def store(batch: Any, out: str, schema: Any) -> Any:
    """Write one shard, named after its images: if it is made again it takes its own place."""
    if batch.num_rows:
        names = hashlib.sha256("\n".join(batch["name"].to_pylist()).encode()).hexdigest()
        content = pyarrow.BufferOutputStream()
        parquet.write_table(batch.select(schema.names).cast(schema), content)
        put(join(out, f"{SHARDS}/{names[:16]}.parquet"), content.getvalue())
    return pyarrow.table({"images": [batch.num_rows]})


def put(address: str, content: Any) -> None:
    filesystem, path = sources.resolve(address)
    if filesystem.type_name == "local":
        replace(Path(path), lambda file: file.write_bytes(content))
        return
    if filesystem.type_name not in ("s3", "gcs", "abfs"):
        filesystem.create_dir(path.rpartition("/")[0])
    with filesystem.open_output_stream(path) as stream:  # an object is there once this is closed
        stream.write(content)


def join(out: str, below: str) -> str:
    place, mark, options = out.partition("?") if "://" in out else (out, "", "")
    return f"{place.rstrip('/')}/{below}{mark}{options}"


def folder_of(address: str) -> str:
    place = address if "://" in address else os.path.abspath(address)
    return place.rpartition("/")[0] if place.endswith(".parquet") else place


def digest(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest())


def is_in(done: NDArray[np.uint64], name: str) -> bool:
    wanted = np.uint64(digest(name))
    place = int(np.searchsorted(done, wanted))
    return place < len(done) and bool(done[place] == wanted)
