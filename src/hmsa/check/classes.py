"""Names of classes from the file that annotation tools and datasets put beside label files.

A line has a name, and may have a value, a colour or both: classes.txt, label_colors.txt of CamVid,
labelmap.txt of CVAT, _classes.csv of Roboflow, class_dict.csv of Kaggle. Or id2label.json has all.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from ..data.labels import COLOURED, IGNORE
from ..runs import InputError, say
from ..runs.errors import as_input_error

_FILE = re.compile(
    r"_?(class(es)?|labels?|names)([-_ ]?(names|list|map|dict|colou?rs))?\.(txt|csv)"
    r"|id2label\.json",
    re.IGNORECASE,
)
_CVAT = re.compile(r"([^:]*:\d+,\d+,\d+):.*")  # parts and actions follow
_VOID = {"void", "unlabeled", "unlabelled", "ignore", "ignored", "no label"}


class Entry(NamedTuple):
    name: str
    value: int
    colour: tuple[int, ...] | None = None
    given: bool = False  # the value; else it is the place in the file


def named(table: dict[str, Any], root: Path) -> dict[str, Any]:
    """`table` of a description, with the names of the class file in `root`, if there is one.

    Raises InputError where two readings of that file are possible.
    """
    found = {file: entries for file in _class_files(root) if (entries := read_classes(file))}
    if not found:
        return table
    file, entries = next(iter(found.items()))
    if other := next((each for each in found if found[each] != entries), None):
        raise InputError(f"{file} and {other} name the classes differently; remove one of them")
    if by_colour := table["encoding"] in COLOURED:
        held = {tuple(colour) for colour in table["palette"]}
        known: dict[Any, Entry] = {entry.colour: entry for entry in entries if entry.colour}
        if held - known.keys() == {(0, 0, 0)} and known:
            raise InputError(
                f"{file} does not name the colour 0,0,0 of the labels: is it a class or no label? "
                "add the line `background 0 0 0` there for a class, or `void 0 0 0` for no label"
            )
    else:
        held, known = {*table["names"]}, _by_value(entries, [*table["names"]], file)
    if not held <= known.keys():
        say(f"{file} does not name what the labels hold ({len(entries)} names); it is not used")
        return table
    kept = {key: e for key, e in known.items() if e.name.lower().strip("_") not in _VOID}
    palette = [[*entry.colour] for entry in kept.values() if entry.colour]
    void = [[*key] if by_colour else key for key in known if key not in kept]
    names = {key: entry.name for key, entry in kept.items()}
    change: dict[str, Any] = {"names": [*names.values()] if by_colour else names}
    if len(palette) == len(kept) or len(kept) != len(table["names"]):
        change["palette"] = palette
    if void:
        change["ignore"] = void if by_colour else [*void, IGNORE]
    return {key: value for key, value in (table | change).items() if value != []}


def _by_value(entries: list[Entry], held: list[int], file: Path) -> dict[int, Entry]:
    """The entries by the value that they have in label files, which hold the values `held`."""
    if held == [0, 255] and len(entries) in (1, 2):  # of a mask
        first = [Entry("background", 0)] * (len(entries) == 1)
        return dict(zip(held, [*first, *entries], strict=True))
    values, count = {entry.value: entry for entry in entries}, len(entries)
    if any(entry.given or entry.colour for entry in entries) or max(held) != count:
        return values
    if min(held) == 0:
        raise InputError(
            f"{file} names {count} classes, but the labels hold {count + 1} values, 0 to {count}: "
            "is 0 a class or no label? add a first line there: `background` or `void`"
        )
    return {value + 1: entry for value, entry in values.items()}


def _class_files(root: Path) -> list[Path]:
    """Those in the folder itself, or else in the folders in it."""
    for pattern in ("*", "*/*"):
        if found := sorted(f for f in root.glob(pattern) if _FILE.fullmatch(f.name)):
            return found
    return []


def read_classes(file: Path) -> list[Entry]:
    """What a class file lists; a heading and comments are left out."""
    text = file.read_text(encoding="utf-8-sig", errors="replace")
    if file.suffix == ".json":
        with as_input_error(f"{file} is not {{value: name}}"):
            return [
                Entry(str(name), int(n), given=True) for n, name in dict(json.loads(text)).items()
            ]
    lines = [line.strip() for line in text.splitlines()]
    lines = [_CVAT.sub(r"\1", line) for line in lines if line and not line.startswith(("#", "__"))]
    rows = [[f for f in re.split(r"[,;:\s]+", line) if f] for line in lines]
    numbers = [tuple(int(f) for f in fields if f.isdecimal()) for fields in rows]
    names = [" ".join(f for f in fields if not f.isdecimal()) for fields in rows]
    count = Counter(map(len, numbers)).most_common(1)[0][0] if lines else 0
    kept = [(name, n) for name, n in zip(names, numbers, strict=True) if len(n) == count and name]
    if count not in (1, 3, 4) or len({name for name, _ in kept}) < len(kept):  # "class 1"
        return [Entry(line, value) for value, line in enumerate(lines)]
    given = count != 3
    return [
        Entry(name, n[0] if given else place, n[-3:] if count > 1 else None, given)
        for place, (name, n) in enumerate(kept)
    ]
