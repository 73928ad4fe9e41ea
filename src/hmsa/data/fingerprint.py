"""What a split consists of, as JSON: to know later whether it is still the same, and what changed.

Images count by name and size in bytes; labels (and their confidence) by content; and so do the
class table and the weights of a list.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ..runs import sha256, stamp
from .datasets import Dataset
from .pairs import Pair

_IMAGE = ("image", "label", "weight")  # what the facts of a pair are about
_PLURAL = {"class": "classes"}


def of(dataset: Dataset) -> dict[str, Any]:
    """`digest`: SHA-256 of all the rest, which is `images`, name -> [bytes of the image, short hash
    of the label, weight], `classes`, name -> value in the label files, `ignore`, `encoding`, and
    `range`, the bands that are read and which of their values become 0 and 255."""
    with ThreadPoolExecutor() as pool:
        facts = list(pool.map(_facts, dataset.pairs))
    labels = dataset.labels
    found = {
        "encoding": labels.encoding,
        "range": [*(dataset.stretch.bands or ()), dataset.stretch.text],
        "ignore": [labels.value_name(value) for value in labels.ignored],
        "classes": dict(zip(labels.names, map(labels.value_name, labels.raw), strict=True)),
        "images": dict(zip((pair.name for pair in dataset.pairs), facts, strict=True)),
    }
    return {"digest": hashlib.sha256(json.dumps(found).encode()).hexdigest(), **found}


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """What differs between two results of `of`, such as "image a added; 2 labels changed, such as
    b; class post added"; None if nothing does."""
    if old["digest"] == new["digest"]:
        return None
    found = [*_listed("image", old["images"], new["images"])]
    for place, what in enumerate(_IMAGE):
        before, now = ({n: f[place] for n, f in each["images"].items()} for each in (old, new))
        found += _some(what, "changed", [n for n in now if before.get(n, now[n]) != now[n]])
    found += _listed("class", old["classes"], new["classes"])
    for name, value in new["classes"].items():
        if (before := old["classes"].get(name, value)) != value:
            found.append(f"class {name} {before} -> {value}")
    for key in ("encoding", "range", "ignore"):
        if old[key] != new[key]:
            found.append(f"{key} {old[key]} -> {new[key]}")
    return "; ".join(found)


def _listed(what: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    yield from _some(what, "added", [name for name in new if name not in old])
    yield from _some(what, "removed", [name for name in old if name not in new])
    if [name for name in old if name in new] != [name for name in new if name in old]:
        yield f"another order of the {_PLURAL.get(what, what + 's')}"


def _some(what: str, how: str, names: Sequence[str]) -> Iterator[str]:
    if len(names) == 1:
        yield f"{what} {names[0]} {how}"
    elif names:
        yield f"{len(names)} {_PLURAL.get(what, what + 's')} {how}, such as {names[0]}"


def _facts(pair: Pair) -> list[Any]:
    """One for each of _IMAGE."""
    files = [file for file in (pair.label, pair.confidence) if file]
    hashes = [_hash(*(stamp(file) or [str(file)])) for file in files]
    return [pair.image.stat().st_size, "+".join(hashes), pair.weight]


@functools.cache
def _hash(file: str, *_: int) -> str:
    """Of the content of a file that has this size and time of change."""
    return sha256(Path(file))[:16]
