"""Many pictures, wherever they are: a folder, a list, Parquet or tar shards, on any file system.

An address is a path of this machine or a URI such as s3://bucket/folder: what pyarrow or fsspec
know. A `*` in its last part stands for several files.

    FOLDER           all pictures below it, or else all its .parquet files, or all its .tar files
    NAME.txt         a path or URI a line, relative to the list; # begins a comment
    NAME.parquet     a column `image`: paths or URIs, or the bytes of the files; then also `name`
    NAME.tar         WebDataset: the first picture of each key
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any, Literal

import pyarrow
from pyarrow import fs, parquet

from ..data.images import SUFFIXES
from ..runs.errors import InputError

Kind = Literal["pictures", "parquet", "tar"]


@dataclass(frozen=True)
class Source:
    """What an address was found to hold.

    pictures: name -> address. files: addresses of Parquet files or tar shards.
    """

    kind: Kind
    pictures: dict[str, str] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    count: int | None = None  # pictures, where that can be known beforehand


def find(address: str) -> Source:
    """InputError: there is nothing, several kinds of things, or two pictures of one name."""
    if address.endswith(".txt"):
        return _named(_listed(address))
    found = dict(_below(address))
    if not found:
        raise InputError(f"nothing at {address}; give a folder, a .txt list, Parquet or tar files")
    kinds: dict[Kind, dict[str, str]] = {"pictures": {}, "parquet": {}, "tar": {}}
    for path, full in sorted(found.items()):
        suffix = PurePosixPath(path).suffix.lower()
        hidden = PurePosixPath(path).name.startswith((".", "_"))
        kind: Kind = "pictures" if suffix in SUFFIXES else "tar" if suffix == ".tar" else "parquet"
        if not hidden and (kind != "parquet" or suffix == ".parquet"):
            kinds[kind][path] = full
    there = [kind for kind, files in kinds.items() if files]
    if len(there) != 1:
        has = " and ".join(there) or "neither pictures nor Parquet nor tar files"
        raise InputError(f"{address} holds {has}; give what holds one of them")
    files = kinds[there[0]]
    if there == ["pictures"]:
        return _named({full: path for path, full in files.items()})
    count = None
    if there == ["parquet"]:
        count = sum(_rows_of(file) for file in files.values())
    return Source(there[0], files=list(files.values()), count=count)


@lru_cache(maxsize=64)
def _opened(root: str) -> tuple[fs.FileSystem, str]:
    try:
        return fs.FileSystem.from_uri(root)  # type: ignore[no-any-return]
    except pyarrow.ArrowInvalid:
        import fsspec

        try:
            filesystem, path = fsspec.core.url_to_fs(root)
        except (ImportError, ValueError) as error:
            raise InputError(f"{root}: {error}") from None
        return fs.PyFileSystem(fs.FSSpecHandler(filesystem)), path


def resolve(address: str) -> tuple[fs.FileSystem, str]:
    """The file system of an address, and its path there."""
    scheme, there, rest = address.partition("://")
    if not there:
        return fs.LocalFileSystem(), os.path.abspath(address)
    rest, options, query = rest.partition("?")
    host, slash, path = rest.partition("/")
    filesystem, base = _opened(f"{scheme}://{host or '/'}{options}{query}")
    return filesystem, base.rstrip("/") + slash + path


def read(address: str) -> bytes:
    """InputError: it cannot be read."""
    filesystem, path = resolve(address)
    try:
        with filesystem.open_input_stream(path) as stream:
            return bytes(stream.read())
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"{address} cannot be read ({_line(error)})") from None


def read_tar(address: str) -> Iterator[tuple[str, bytes]]:
    """Name, with that of the shard before its key, and content of each picture.

    InputError: the shard is broken, after what is whole of it was given.
    """
    filesystem, path = resolve(address)
    shard, last = PurePosixPath(path).stem, None
    try:
        with filesystem.open_input_stream(path) as stream, tarfile.open(
            fileobj=stream, mode="r|*"
        ) as tar:  # fmt: skip
            for member in tar:
                folder, _, file = member.name.rpartition("/")
                key = f"{shard}/{folder}{'/' * bool(folder)}{file.partition('.')[0]}"
                if member.isreg() and PurePosixPath(file).suffix.lower() in SUFFIXES:
                    content = tar.extractfile(member)
                    if content and key != last:
                        yield key, content.read()
                        last = key
    except (OSError, tarfile.TarError, pyarrow.ArrowException, EOFError) as error:
        raise InputError(f"{address} is broken ({_line(error)}); replace or remove it") from None


def _below(address: str) -> Iterator[tuple[str, str]]:
    """Path below the address, and address, of each file; of a file its name."""
    filesystem, path = resolve(address)
    folder, _, pattern = path.rpartition("/")
    several = "*" in pattern
    try:
        info = filesystem.get_file_info(folder if several else path)
        if info.type == fs.FileType.File:
            yield pattern, address
            return
        base = folder if several else path
        files = filesystem.get_file_info(fs.FileSelector(base, recursive=not several))
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"{address} cannot be listed ({_line(error)})") from None
    scheme, there, rest = address.partition("://")
    options = f"?{rest.partition('?')[2]}" if there and "?" in rest else ""
    before = rest.partition("?")[0] if there else base
    before = before.rpartition("/")[0] if there and several else before.rstrip("/")
    for file in files:
        below = file.path[len(base.rstrip("/")) :].lstrip("/")
        if file.type == fs.FileType.File and (not several or fnmatchcase(below, pattern)):
            yield below, f"{scheme}://{before}/{below}{options}" if there else file.path


def _listed(address: str) -> dict[str, str]:
    """Full address -> line of a list."""
    try:
        lines = read(address).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{address} is not a readable list in UTF-8: {error}") from None
    folder = address.rpartition("/")[0] or "."
    entries = [line for line in map(str.strip, lines) if line and not line.startswith("#")]
    if not entries:
        raise InputError(f"{address} lists no pictures")
    return {e if "://" in e or e.startswith("/") else f"{folder}/{e}": e for e in entries}


def _named(paths: dict[str, str]) -> Source:
    """The pictures by name, of full address -> path."""
    named: dict[str, str] = {}
    for full, path in paths.items():
        parts = PurePosixPath(path.partition("://")[2] or path).with_suffix("").parts
        name = "/".join(part for part in parts if part not in ("/", "..", "."))
        if named.setdefault(name, full) != full:
            raise InputError(f"{named[name]} and {full} share one name; which is it? keep one")
    return Source("pictures", pictures=named, count=len(named))


def _rows_of(address: str) -> int:
    """InputError: not Parquet, or without the columns that are needed."""
    filesystem, path = resolve(address)
    try:
        with parquet.ParquetFile(path, filesystem=filesystem) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"{address} is not readable Parquet ({_line(error)})") from None
    needed = ["image"] if "image" in schema.names and _is_text(schema) else ["image", "name"]
    if any(name not in schema.names for name in needed):
        raise InputError(
            f"{address} has columns {', '.join(schema.names)}; needed are image (paths or URIs), "
            "or image (bytes) and name"
        )
    return int(rows)


def columns(address: str) -> list[str]:
    """Those that are needed of a Parquet file."""
    filesystem, path = resolve(address)
    schema = parquet.read_schema(path, filesystem=filesystem)
    return ["image"] if _is_text(schema) else ["image", "name"]


def _is_text(schema: Any) -> bool:
    kind = schema.field("image").type
    return bool(pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind))


def name_of(address: str) -> str:
    """The name of a picture that is told by its address alone."""
    (name,) = _named({address: address}).pictures
    return name


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
