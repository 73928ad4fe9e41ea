"""Labels at a URI such as s3://bucket/folder, where many machines write and none can hold a lock.

    OUT/autolabel.json         settings that the labels depend on
    OUT/shards/HASH.parquet    rows of some hundred images: those of `folder`, and name, key (of the
                               settings), label_png, confidence_png, agreement_png
    OUT/thresholds.json        exists when all images are done

An image is known by its name: it is not labelled again under the same settings, even if the file
has changed. One that could not be read is tried again; of two rows the labelled one counts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

import pyarrow
from pyarrow import dataset

from ..runs import InputError
from . import folder
from .folder import NAME, is_done
from .sources import Row, resolve

_MORE = [pyarrow.field(name, pyarrow.string()) for name in ("name", "counts", "key")] + [
    pyarrow.field(f"{kind}_png", pyarrow.binary()) for kind in folder.FOLDER_OF
]


class Shards:
    """The shards at `out`; is sent to other machines, where `write` writes them.

    overwrite: with other settings remove what is there.
    Raises InputError if they were begun with other settings, or `out` holds something else.
    """

    def __init__(self, out: str, settings: Row, overwrite: bool = False) -> None:
        self.out, self.settings = out.rstrip("/"), settings
        self.dataset = f"{self.out}/shards"
        text = json.dumps(settings, indent=1).encode()
        self.key = hashlib.sha256(text).hexdigest()
        filesystem, path = resolve(self.out)
        change = folder.changed(f"{self.out}/{NAME}.json", settings)
        if change and not overwrite:
            raise InputError(f"{out}: begun with other settings, {change}; {folder.MEND}")
        if filesystem.exists(f"{path}/shards") and not filesystem.exists(f"{path}/{NAME}.json"):
            raise InputError(f"{out} holds labels of something else; name another OUT")
        outdated = filesystem.find(f"{path}/shards") if change else []
        for file in [*outdated, f"{path}/{folder.THRESHOLD_FILE}"]:
            if filesystem.exists(file):
                filesystem.rm_file(file)
        _write(f"{self.out}/{NAME}.json", text)

    def write(self, rows: list[Row]) -> list[Row]:
        """Write one shard, named after its images: written again it replaces itself."""
        if rows:
            own = ({"key": self.key} | row for row in rows)
            table = folder.table_of(own, self.settings, _MORE)
            names = hashlib.sha256("\n".join(table["name"].to_pylist()).encode()).hexdigest()
            _write(f"{self.dataset}/{names[:16]}.parquet", folder.as_parquet(table))
        return [{"name": row["name"]} for row in rows]

    def store(self, row: Row) -> None:
        """Nothing: `write` has written it."""

    def known(self) -> set[str]:
        """The names of all labelled images."""
        return {row["name"] for row in self._read(["name", "status"]) if is_done(row)}

    def rows(self) -> Iterator[Row]:
        """The row of each image, from shard to shard."""
        labelled, found = self.known(), set()
        for row in self._read([*folder.SCHEMA.names, "name", "counts"]):
            name = row["name"]
            if name not in found and (is_done(row) or name not in labelled):
                found.add(name)
                yield row

    def finish(self, thresholds: str) -> None:
        """Write the thresholds, JSON."""
        _write(f"{self.out}/{folder.THRESHOLD_FILE}", thresholds.encode())

    def _read(self, columns: list[str]) -> Iterator[Row]:
        filesystem, path = resolve(self.dataset)
        filesystem.invalidate_cache()  # other machines have written
        if files := [file for file in filesystem.find(path) if file.endswith(".parquet")]:
            # A killed process may have left a file invalid where the file system is local
            shards = dataset.dataset(files, filesystem=filesystem, exclude_invalid_files=True)
            own = dataset.field("key") == self.key
            for batch in shards.to_batches(columns=columns, filter=own):
                yield from batch.to_pylist()


def _write(address: str, content: bytes) -> None:
    """Write a file, whole or not at all if the file system can."""
    filesystem, path = resolve(address)
    filesystem.makedirs(path.rpartition("/")[0], exist_ok=True)
    with filesystem.transaction:
        filesystem.pipe_file(path, content)
