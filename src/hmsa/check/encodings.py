"""What label files without a description hold, by their values and palettes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ..data.descriptions import KNOWN
from ..data.images import open_pillow
from ..data.labels import LabelSet, unpack
from .scan import FileScan

MOST = 64  # colours; with more it is no palette
PLAIN = LabelSet((), (), ())  # values as they are
_BINARY = {0: "background", 255: "foreground"}
Scans = Mapping[Path, FileScan]


class Guess(NamedTuple):
    what: str
    evidence: str
    table: dict[str, Any] | None = None  # names, encoding, .. of a description that reads them


def guess(scans: Scans, ending: str) -> Guess:
    """What label files hold that belong together; scans: of all, read as `PLAIN`; ending: of their
    names."""
    good = {file: facts for file, facts in scans.items() if facts.values}
    of = f"in {len(good)} of {len(scans)} files"
    if not good:
        return Guess("unreadable", next(iter(scans.values())).broken)
    pixels, coloured = Counter[int](), any(facts.foreign for facts in good.values())
    for facts in good.values():
        gray = coloured and not facts.foreign
        pixels.update({value * 0x10101 if gray else value: n for value, n in facts.values.items()})
    if _is_blurred(pixels, coloured) and not any(facts.mode == "P" for facts in good.values()):
        evidence = f"values near 0 and 255 {of}; from 128 on, they count as 255"
        return Guess("blurred 0/255 masks", evidence, {"names": _BINARY, "encoding": "binary"})
    if any(facts.lossy for facts in good.values()):
        return Guess("JPEG masks", "JPEG changes values near edges; export them as PNG")
    if coloured and any(facts.mode in ("1", "L", "P") for facts in good.values()):
        return Guess("values and colours", "some files hold colours, others not; export all alike")
    if coloured:
        return _colours("rgb", pixels, of)
    if all(facts.mode == "P" for facts in good.values()):
        return _palettes(good, pixels, of)
    return _values(pixels, ending.lower(), of)


def _is_blurred(pixels: Counter[int], coloured: bool) -> bool:
    """Whether values, or packed colours, are those of a 0/255 mask after JPEG or smoothing."""
    grays = Counter[int]()
    for value, n in pixels.items():
        channels = unpack(value) if coloured else (value,)
        if not 0 <= min(channels) <= max(channels) <= min(255, min(channels) + 48):
            return False
        grays[sum(channels) // len(channels)] += n
    low, high = (sum(grays[v] for v in ends) for ends in (range(32), range(224, 256)))
    ends = grays[0] + grays[255] if len(grays) > 8 else grays.total()  # smoothing keeps surfaces
    enough = low + high >= 0.9 * grays.total() and ends >= 0.5 * grays.total()
    return enough and min(low, high) >= 0.001 * grays.total() and any(224 <= v < 255 for v in grays)


def _colours(encoding: str, pixels: Counter[int], of: str) -> Guess:
    """pixels: of each packed colour."""
    colours = [unpack(value) for value, _ in pixels.most_common()]
    evidence = f"{len(colours)} colours {of}"
    if len(colours) > MOST:
        return Guess("blended colours", f"{evidence}; export again without smoothing")
    names, palette = [f"#{bytes(c).hex()}" for c in colours], [list(c) for c in colours]
    if len(colours) == 2 and (0, 0, 0) in colours:
        names = ["foreground" if any(c) else "background" for c in colours]
    found = {"names": names, "palette": palette, "encoding": encoding}
    return Guess("colours" if encoding == "rgb" else "colours of palettes", evidence, found)


def _palettes(files: Scans, pixels: Counter[int], of: str) -> Guess:
    """Of palette images, whose values are the classes if all files have one palette."""
    colours, by_value = Counter[int](), defaultdict[int, set[int]](set)
    for file, facts in files.items():
        with open_pillow(file) as image:
            flat = bytes(image.getpalette() or ()).ljust(768, b"\0")
        for value, n in facts.values.items():
            colour = int.from_bytes(flat[3 * value : 3 * value + 3])
            colours[colour] += n
            by_value[value].add(colour)
    if any(len(each) > 1 for each in by_value.values()):
        return _colours("palette", colours, of)
    what, evidence, found = _values(pixels, "", of)
    if not found or all(each == {value * 0x10101} for value, each in by_value.items()):
        return Guess(what, evidence, found)  # a palette of grays names no colours
    palette = [list(unpack(min(by_value[value], default=0))) for value in found["names"]]
    return Guess(f"{what} with palette", evidence, found | {"palette": palette})


def _values(pixels: Counter[int], ending: str, of: str) -> Guess:
    """pixels: of each value."""
    values = sorted(pixels)
    steps = {after - value for value, after in pairwise(values)}
    # 255 means no label, unless only a background is left or all are equally far apart
    spread = pixels.keys() <= {0, 255} or (len(values) > 2 and len(steps) == 1 and min(steps) > 1)
    classes = [value for value in values if value != 255 or spread]
    evidence = f"values {_ranges(values)} {of}"
    if values[-1] > 255 or values[0] < 0:
        return Guess("values beyond 255", f"{evidence}; of instances or distances?")
    if len(values) > 200:
        return Guess("gray levels", f"{evidence}; export again without smoothing")
    if classes in ([0, 255], [255]):
        return Guess("0/255 masks", evidence, {"names": _BINARY, "encoding": "index"})
    streets = yaml.safe_load(KNOWN["cityscapes"].read_text(encoding="utf-8"))
    if ending.endswith("labelids") and {*classes} <= {*streets["names"], *streets["ignore"]}:
        keys = ("names", "palette", "encoding", "ignore")
        return Guess("ids of Cityscapes", evidence, {key: streets[key] for key in keys})
    if ending.endswith("labeltrainids") and classes[-1] < len(streets["names"]):
        found = {"names": [*streets["names"].values()], "palette": streets["palette"]}
        return Guess("train ids of Cityscapes", evidence, found)
    names = {value: f"class_{value}" for value in classes}
    if classes == [0, 1]:
        names = {0: "background", 1: "foreground"}
    if 255 in values and not spread:
        evidence += ", 255 = no label"
    return Guess("class values", evidence, {"names": names, "encoding": "index"})


def _ranges(values: Sequence[int]) -> str:
    """1, 2, 3, 7 -> "1..3, 7"."""
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    shown = [str(low) if low == high else f"{low}..{high}" for low, high in runs]
    return ", ".join(shown[:8] + ["..."] * (len(shown) > 8))
