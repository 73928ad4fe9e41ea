"""Small changes of valid files that keep them nearly valid: bytes, fields, keys, members."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pyarrow as pa
import yaml
from hypothesis import strategies as st
from pyarrow import parquet

Draw = Callable[[st.SearchStrategy[Any]], Any]
Mutation = Callable[[Draw, bytes], bytes]

_FIELDS = [0, 1, 2, 7, 255, 256, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]
OUTSIDE, ESCAPE = "../../../outside", "/tmp/hmsa-fuzz-escape"  # where nothing may be written
_ODD = [
    None, True, 0, -1, 1, 255, 256, 10**6, 10**30, 0.5, 1e300, float("nan"), float("inf"), "", "a",
    "é\0\n", OUTSIDE, ESCAPE, "0", "nan", "x" * 5000, [], {}, [[]], [None], [0, 0, 0],
    {"a": 1}, [-1, 2], ["a", "a"],
]  # fmt: skip


def raw(draw: Draw, content: bytes) -> bytes:
    """Bits turned, numbers made extreme, pieces cut out, doubled or exchanged, or the end lost."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        end = draw(st.sampled_from([64, len(data)]))  # headers are where it matters
        at = draw(st.integers(0, max(0, min(end, len(data)) - 1)))
        size = draw(st.sampled_from([1, 2, 4, 8, 100]))
        kind = draw(st.sampled_from(["bit", "field", "field", "cut", "twice", "zero", "end"]))
        if kind == "bit" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "field":
            order, number = draw(st.sampled_from("<>")), draw(st.sampled_from(_FIELDS))
            data[at : at + 4] = struct.pack(f"{order}I", number)
        elif kind == "cut":
            del data[at : at + size]
        elif kind == "twice":
            data[at:at] = data[at : at + size]
        elif kind == "zero":
            data[at : at + size] = bytes(min(size, len(data) - at))
        elif kind == "end":
            del data[at:]
    return bytes(data)


def png(draw: Draw, content: bytes) -> bytes:
    """A chunk of a PNG changed, with its checksum made right again."""
    chunks, at = [], 8
    while at < len(content):
        (size,) = struct.unpack(">I", content[at : at + 4])
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + size]))
        at += 12 + size
    place = draw(st.integers(0, len(chunks) - 1))
    chunks[place] = chunks[place][0], raw(draw, chunks[place][1])
    return content[:8] + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def tree(draw: Draw, value: Any) -> Any:
    """One or two places in nested lists and dictionaries are changed, lost, renamed or moved."""
    top = {"": value}  # so that the whole, too, can be replaced
    for _ in range(draw(st.integers(1, 2))):
        places = list(_places(top))
        holder, key = draw(st.sampled_from(places))
        kind = draw(st.sampled_from(["odd", "odd", "lost", "renamed", "moved", "nested"]))
        if kind == "lost" and holder is not top:
            del holder[key]
        elif kind == "renamed" and isinstance(holder, dict) and holder is not top:
            holder[draw(st.sampled_from([f"{key}s", "", 3, None, "path", "name"]))] = holder.pop(
                key
            )
        elif kind == "moved":
            other, from_there = draw(st.sampled_from(places))
            holder[key] = deepcopy(other[from_there])
        elif kind == "nested":
            for _ in range(draw(st.sampled_from([1, 40]))):
                holder[key] = [holder[key]]
        else:
            holder[key] = deepcopy(draw(st.sampled_from(_ODD)))
    return top[""]


def _places(value: Any) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, part in [*items]:
        yield value, key
        if isinstance(part, (dict, list)):
            yield from _places(part)


def as_json(draw: Draw, content: bytes) -> bytes:
    return json.dumps(tree(draw, json.loads(content))).encode("utf-8", "surrogatepass")


def as_yaml(draw: Draw, content: bytes) -> bytes:
    return yaml.safe_dump(tree(draw, yaml.safe_load(content)), sort_keys=False).encode()


def lines(draw: Draw, content: bytes) -> bytes:
    """Lines and cells of a text changed, in one of several encodings and with other separators."""
    rows = [line.split(",") for line in content.decode().splitlines()]
    rows = tree(draw, rows)
    if not isinstance(rows, list):
        return str(rows).encode("utf-8", "replace")
    cut, end = (
        draw(st.sampled_from([",", ",", ";", "\t", " "])),
        draw(st.sampled_from(["\n", "\r"])),
    )
    text = end.join(cut.join(map(str, r)) if isinstance(r, list) else str(r) for r in rows)
    return text.encode(
        draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "latin-1"])), "replace"
    )


def zipped(member: Mutation) -> Mutation:
    """A member of a zip changed by `member`, renamed, lost or there twice."""

    def mutate(draw: Draw, content: bytes) -> bytes:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = [(name, archive.read(name)) for name in archive.namelist()]
        stream = io.BytesIO()
        with (
            warnings.catch_warnings(action="ignore"),  # of two members with one name
            zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive,
        ):
            for name, data in _members(draw, members, member):
                archive.writestr(name.encode("utf-8", "replace").decode() or "-", data)
        return stream.getvalue()

    return mutate


def tarred(member: Mutation) -> Mutation:
    def mutate(draw: Draw, content: bytes) -> bytes:
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            members = [(m.name, archive.extractfile(m).read()) for m in archive]  # type: ignore[union-attr]
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as archive:
            for name, data in _members(draw, members, member):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        return stream.getvalue()

    return mutate


def _members(
    draw: Draw, members: list[tuple[str, bytes]], member: Mutation
) -> list[tuple[str, bytes]]:
    at = draw(st.integers(0, len(members) - 1))
    name, data = members[at]
    kind = draw(st.sampled_from(["changed", "changed", "renamed", "lost", "twice"]))
    names = ["", f"{OUTSIDE}.png", f"{ESCAPE}.png", "a/", f"{name}/x", "é\udc80.png", "a" * 300]
    members[at : at + 1] = {
        "changed": [(name, member(draw, data) if data else data)],
        "renamed": [(draw(st.sampled_from(names)), data)],
        "lost": [],
        "twice": [(name, data), (name, data)],
    }[kind]
    return members


def table(draw: Draw, content: bytes) -> bytes:
    """Columns of a Parquet file renamed, lost, emptied, of another type; few rows in a group."""
    found = parquet.read_table(io.BytesIO(content))
    columns = {name: found[name].to_pylist() for name in found.column_names}
    name = draw(st.sampled_from(list(columns)))
    kind = draw(st.sampled_from(["renamed", "lost", "null", "number", "text", "binary", "some"]))
    values = columns.pop(name)
    texts = ["", "a", "b", f"{OUTSIDE}.png", f"{ESCAPE}.png", "\0", f"x/{OUTSIDE}.png", "é.png"]
    changed = {
        "null": [None] * len(values),
        "number": [*range(len(values))],
        "text": [draw(st.sampled_from(texts)), *["b"] * (len(values) - 1)],
        "binary": [draw(st.sampled_from([b"", b"x", b"\x89PNG"]))] * len(values),
        "some": [None, *values[1:]],
    }
    if kind != "lost":
        columns["other" if kind == "renamed" else name] = changed.get(kind, values)
    stream = io.BytesIO()
    parquet.write_table(pa.table(columns or {"a": []}), stream, row_group_size=2)
    return stream.getvalue()


def safetensors(draw: Draw, content: bytes) -> bytes:
    """The header of a checkpoint changed, or the card in it."""
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    if draw(st.booleans()):
        card = as_json(draw, header["__metadata__"]["hmsa"].encode())
        header["__metadata__"]["hmsa"] = card.decode()
    else:
        header = tree(draw, header)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + size :]


def png_or_raw(draw: Draw, content: bytes) -> bytes:
    return (png if content.startswith(b"\x89PNG") else raw)(draw, content)


def png_or_lines(draw: Draw, content: bytes) -> bytes:
    return (png if content.startswith(b"\x89PNG") else lines)(draw, content)
