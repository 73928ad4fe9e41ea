"""Where images come from. An address is a path of this machine or a URI such as s3://bucket/folder,
on any file system that fsspec or pyarrow knows; `*` may stand in its last part.

    FOLDER           all images below it, or else all its .parquet files, or all its .tar files
    NAME.txt         a path or URI in each line, relative to the list; # begins a comment
    NAME.parquet     a column `image`: such paths or URIs, or the bytes of files; then also `name`
    NAME.tar         WebDataset: the first image of each key

Names become paths below OUT, and whoever wrote a Parquet or tar file chose them: names that lead
elsewhere are refused, and so are files larger than `_LARGEST`.
"""

from __future__ import annotations

import os
import tarfile
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

import fsspec
from fsspec.implementations.arrow import ArrowFSWrapper
from pyarrow import ArrowException, parquet
from pyarrow.fs import FileSystem

from ..data.walk import SUFFIXES, files_below, is_left_out, say_passed_over
from ..runs import InputError, first_line

Row = dict[str, Any]  # what is known of one image, by column

_KINDS = {"images": SUFFIXES, "Parquet files": {".parquet"}, "tar files": {".tar"}}
_LARGEST = 1 << 30  # bytes of an image file inside another file


@dataclass(frozen=True)
class Source:
    """The content of an address.

    pieces: what `entries` reads, each on its own. images: name -> address of each image that is a
    file. count: images, None if that is known only when all have been read.
    """

    pieces: list[Row]
    images: dict[str, str] = field(default_factory=dict)
    count: int | None = None


def find(address: str) -> Source:
    """List what is at an address.

    Raises InputError if there is nothing, several kinds of files, or two images of one name.
    """
    if address.endswith(".txt"):
        content = read(address)
        encoding = "utf-16" if content[:2] in (BOM_UTF16_LE, BOM_UTF16_BE) else "utf-8-sig"
        text = content.decode(encoding, "surrogateescape").replace("\\", "/")  # of Windows
        lines = [line for line in map(str.strip, text.splitlines()) if line and line[0] != "#"]
        return _of_images({_beside(address, line): line for line in lines}, address)
    found: dict[str, dict[str, str]] = {}
    below = _below(address)
    paths = [path for path in map(PurePosixPath, sorted(below)) if not is_left_out(path)]
    say_passed_over(address, paths)
    for path in paths:
        for kind, suffixes in _KINDS.items():
            if path.suffix.lower() in suffixes:
                found.setdefault(kind, {})[below[str(path)]] = str(path)
    if len(found) > 1:
        raise InputError(f"{address} has {' and '.join(found)}; name files of one kind")
    if tars := found.get("tar files"):
        return Source([
            {"image": file, "below": path.rpartition(".")[0]} for file, path in tars.items()
        ])  # fmt: skip
    if tables := found.get("Parquet files"):
        return _of_parquet(tables, address)
    return _of_images(found.get("images", {}), address)


def entries(piece: Row) -> Iterator[Row]:
    """The images of one piece: name, image (an address) and, if it was read with others, content.

    A piece that cannot be read gives, in the end, a row with the reason, or one for each name.
    """
    image, names = piece["image"], dict.fromkeys(piece.get("names", ()))
    try:
        if piece.get("group") is not None:
            for row in _read_group(image, piece["group"]):
                names.pop(row["name"], None)
                yield row
        elif image.endswith(".tar"):
            yield from _read_tar(image, piece["below"])
        else:
            yield {"name": piece["name"], "image": image}
    except InputError as error:
        for name in names or [piece.get("below", PurePosixPath(image).stem)]:
            yield {"name": name, "image": image, "reason": str(error)}


def resolve(address: str) -> tuple[Any, str]:
    """The file system of an address, and the path there. Raises InputError if none knows it."""
    scheme, is_uri, path = address.partition("://")
    try:
        return fsspec.core.url_to_fs(address if is_uri else os.path.abspath(address))  # type: ignore[no-any-return]
    except ImportError:  # of the driver; pyarrow has its own of s3 and gs
        return _arrow(f"{scheme}://{path.partition('/')[0]}"), path
    except ValueError as error:
        raise InputError(f"{address}: {error}") from None


@lru_cache
def _arrow(root: str) -> Any:
    return ArrowFSWrapper(FileSystem.from_uri(root)[0])


def read(address: str) -> bytes:
    """The content of a file. Raises InputError if it cannot be read."""
    with _opened(address) as stream:
        return bytes(stream.read())


@contextmanager
def _opened(address: str) -> Iterator[Any]:
    filesystem, path = resolve(address)
    try:
        with filesystem.open(path) as stream:
            yield stream
    except (OSError, EOFError, UnicodeError, tarfile.TarError, ArrowException) as error:
        why = first_line(error)
        raise InputError(f"{address} cannot be read ({why}); replace or remove it") from None


def _below(address: str) -> dict[str, str]:
    """Path below the address -> address of each file; of a file its name."""
    if os.path.isdir(address):
        return {f.relative_to(address).as_posix(): str(f) for f in files_below(Path(address))}
    filesystem, path = resolve(address)
    paths = filesystem.glob(path) if "*" in path else filesystem.find(path)
    parent = path.rpartition("/")[0] if "*" in path or paths == [path] else path.rstrip("/")
    whole = filesystem.unstrip_protocol if "://" in address else str
    return {file[len(parent) + 1 :]: whole(file) for file in paths}


def _beside(address: str, path: str) -> str:
    """The address of a path that the file at `address` names."""
    is_whole = "://" in path or path.startswith("/")
    return path if is_whole else f"{address.rpartition('/')[0] or '.'}/{path}"


def _of_images(paths: Mapping[str, str], where: str) -> Source:
    """paths: address -> path, which without suffix is the name."""
    named: dict[str, str] = {}
    for full, path in paths.items():
        whole = PurePosixPath(path.partition("://")[2] or path)
        parts = (whole.parent / whole.stem).parts
        name = _checked("/".join(part for part in parts if part not in ("/", "..", ".")), where)
        if named.setdefault(name, full) != full:
            raise InputError(f"{named[name]} and {full} have the same name; rename or remove one")
    if not named:
        raise InputError(
            f"no images at {where}; name a folder, a .txt list, or Parquet or tar files with images"
        )
    return Source([{"name": n, "image": a} for n, a in named.items()], named, len(named))


def _checked(name: str, where: str) -> str:
    """The name, if it is a path below a folder. Raises InputError if it is not."""
    path = PurePath(name)
    parts = path.parts
    if path.anchor or not parts or ".." in parts or "\0" in name or max(map(len, parts)) > 200:
        raise InputError(f"{where}: {name[:200]!r} cannot be the name of a result; rename it")
    return name


def _of_parquet(files: Iterable[str], where: str) -> Source:
    paths: dict[str, str] = {}
    names: set[str] = set()
    pieces: list[Row] = []
    for file in files:
        with _opened(file) as stream, parquet.ParquetFile(stream) as table:
            kinds = {field.name: str(field.type) for field in table.schema_arrow}
            if "string" in kinds.get("image", ""):
                written = table.read(["image"])["image"].to_pylist()
                paths |= {_beside(file, path): path for path in written if path}
            elif "binary" in kinds.get("image", "") and "string" in kinds.get("name", ""):
                for group in range(table.num_row_groups):
                    own = table.read_row_group(group, ["name"])["name"].to_pylist()
                    pieces.append({"image": file, "group": group, "names": own})
                    for name in own:
                        if name in names:
                            raise InputError(f"{file}: two images have the name {name!r}")
                        names.add(_checked(name or "", file))
            else:
                raise InputError(
                    f"{file} has columns {', '.join(kinds)}; it needs image (paths or URIs), or "
                    "image (bytes) and name"
                )
    return Source(pieces, count=len(names)) if pieces else _of_images(paths, where)


def _read_group(file: str, group: int) -> Iterator[Row]:
    with _opened(file) as stream, parquet.ParquetFile(stream) as table:
        # One at a time: a small file can hold the same huge image many times
        for row in table.iter_batches(1, row_groups=[group], columns=["name", "image"]):
            name, content = row["name"][0].as_py(), row["image"][0].as_py()
            reason = None if content else f"{name} has no content in {file}"
            yield {"name": name, "image": name, "content": content, "reason": reason}


def _read_tar(file: str, below: str) -> Iterator[Row]:
    keys, last = set[str](), ""
    with _opened(file) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
        for member in tar:
            tar.members = []  # type: ignore[attr-defined]  # else it keeps all
            path = PurePosixPath(below, member.name)
            is_image = path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
            if not (is_image and member.isreg()):
                continue
            key = str(path.with_name(path.name.split(".")[0]))
            if key in keys and key != last:
                raise InputError(f"{file}: two images have the key {key!r}; rename one")
            if key != last:
                row = {"name": _checked(key, file), "image": f"{file}#{key}"}
                if member.size > _LARGEST:
                    reason = f"{row['image']} has {member.size:,} bytes, more than {_LARGEST:,}"
                    yield row | {"reason": reason}
                else:
                    yield row | {"content": tar.extractfile(member).read()}  # type: ignore[union-attr]
            keys.add(key)
            last = key
