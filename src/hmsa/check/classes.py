"""Names of classes from the file that annotation tools and datasets put beside label files.

A line has a name, and may have a value, a colour or both: classes.txt, label_colors.txt of CamVid,
labelmap.txt of CVAT, _classes.csv of Roboflow, class_dict.csv of Kaggle.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from ..runs import InputError, say

_FILE = re.compile(
    r"_?(class(es)?|labels?|names)([-_ ]?(names|list|map|dict|colou?rs))?\.(txt|csv)", re.IGNORECASE
)
_CVAT = re.compile(r"([^:]*:\d+,\d+,\d+):.*")  # parts and actions follow
_VOID = {"void", "unlabeled", "unlabelled", "ignore", "ignored", "no label"}
_FROM_MINUS_ONE = "__ignore__"  # first line of labelme's label file, whose value is 255
Color = tuple[int, ...]


class Entry(NamedTuple):
    name: str
    value: int
    colour: Color | None = None
    given: bool = False  # the value; else it is the place in the file

    @property
    def void(self) -> bool:
        return self.name.lower().strip("_") in _VOID


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
    colours = [tuple(colour) for colour in table.get("palette", ())]
    if table["encoding"] == "rgb" or table["encoding"] == "palette":
        change = _by_colour(entries, colours, file)
    else:
        change = _by_value(entries, [*table["names"]], colours, file)
    if not change:
        say(f"{file} does not name what the labels hold ({len(entries)} names); it is not used")
    return {key: value for key, value in (table | change).items() if value is not None}


def _by_colour(entries: list[Entry], colours: list[Color], file: Path) -> dict[str, Any]:
    """What changes in a description of labels with these colours; nothing if the file does not fit.

    Raises InputError where two readings are possible.
    """
    known = {entry.colour: entry for entry in entries if entry.colour}
    unknown = {*colours} - known.keys()
    if unknown == {(0, 0, 0)} and known:
        raise InputError(
            f"{file} does not name the colour 0,0,0 of the labels: is it a class or no label? add "
            "the line `background 0 0 0` there for a class, or `void 0 0 0` for no label"
        )
    kept = {colour: entry.name for colour, entry in known.items() if not entry.void}
    found = {"names": [*kept.values()], "palette": [[*colour] for colour in kept]}
    void = [[*colour] for colour in known if colour not in kept]
    return {} if unknown else found | ({"ignore": void} if void else {})


def _by_value(
    entries: list[Entry], found: list[int], colours: list[Color], file: Path
) -> dict[str, Any]:
    """The same for labels with the values `found`, whose palette, if any, has these colours."""
    values, known = _values(entries, found, file), {entry.colour: entry for entry in entries}
    if colours and {*colours} <= known.keys():  # palettes are right beyond doubt
        values = {value: known[colour] for value, colour in zip(found, colours, strict=True)}
    kept = {value: entry for value, entry in values.items() if not entry.void}
    if not {*found} <= values.keys():
        return {}
    change: dict[str, Any] = {"names": {value: entry.name for value, entry in kept.items()}}
    own = [[*entry.colour] for entry in kept.values() if entry.colour]
    if len(own) == len(kept) or len(colours) != len(kept):
        change["palette"] = own if len(own) == len(kept) else None
    void = [value for value in values if value not in kept]
    return change | ({"ignore": [*void, 255]} if void else {})


def _values(entries: list[Entry], found: list[int], file: Path) -> dict[int, Entry]:
    """The entries by the value that they have in label files, which hold the values `found`."""
    if found == [0, 255] and len(entries) in (1, 2):  # of a mask
        first = [Entry("background", 0)] * (len(entries) == 1)
        return dict(zip(found, [*first, *entries], strict=True))
    values = {entry.value: entry for entry in entries}
    count = len(entries)
    if any(entry.given or entry.colour for entry in entries) or max(found) != count:
        return values
    if min(found) == 0:
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
    lines = [line.strip() for line in text.splitlines()]
    lines = [_CVAT.sub(r"\1", line) for line in lines if line and not line.startswith("#")]
    fields = [[f for f in re.split(r"[,;:\s]+", line) if f] for line in lines]
    numbers = [[int(f) for f in parts if f.isdecimal()] for parts in fields]
    names = [" ".join(f for f in parts if not f.isdecimal()) for parts in fields]
    count = Counter(map(len, numbers)).most_common(1)[0][0] if lines else 0
    kept = [n for n, each in enumerate(numbers) if len(each) == count and names[n]]
    if count not in (1, 3, 4) or len({names[n] for n in kept}) < len(kept):  # "class 1"
        first = -1 if lines and lines[0] == _FROM_MINUS_ONE else 0
        listed = enumerate(lines, first)
        return [Entry(line, value) for value, line in listed if value >= 0]
    return [
        Entry(
            names[n],
            numbers[n][0] if count in (1, 4) else order,
            tuple(numbers[n][-3:]) if count > 1 else None,
            count in (1, 4),
        )
        for order, n in enumerate(kept)
    ]
