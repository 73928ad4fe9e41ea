"""What is wrong with a dataset, all of it at once, before hours are wasted on it.

`plan` lists the files, `scan` looks at them, `judge` says what it means for each split, and
`find_leaks` for one against another. Lenient where `open_dataset` is strict: no problem hides
another, and one bad file stops nothing.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from ..data.datasets import Pair, list_files, read_list, sizes_differ
from ..data.descriptions import Split, describe, find_split, folders, label_set
from ..data.labels import IGNORE, unpack
from ..runs.errors import InputError
from .findings import Findings, Part, Unknown
from .scan import File, Seen

_MOST_VALUES = 20  # unknown values listed of a split, the commonest
_MOST_NAMES = 12  # of classes in one line
_MOSTLY = 0.5  # share of a picture without label from which on it is noted


def plan(path: Path, splits: Sequence[str] = (), data: Path | None = None) -> Findings:
    """The files of all splits, or of those named, and what their names alone tell.

    path, data: as for `open_dataset`. InputError only where there is nothing to check.
    """
    file, description, root = describe(path, data)
    root = root.resolve()
    found = Findings(path, root, label_set(description, file))
    classes = len(found.labels.names)
    for name in splits or description.splits:
        known = len(found.problems)
        files_of = _listed(found, name, find_split(description, name, path), file)
        if files_of is None:
            continue
        images, labels = files_of
        complete = len(found.problems) == known
        for files in (*images.values(), *labels.values()):
            if len(files) > 1:
                told = f"{files[0]} and {files[1]} share one name; which is it? keep one"
                found.add("error", "two files of one name", name, told, files)
        part = Part(
            name,
            {stem: File(files[0]) for stem, files in images.items()},
            {stem: File(files[0], found.labels) for stem, files in labels.items()},
            np.zeros(classes, np.int64),
            np.zeros(classes, np.int64),
        )
        found.parts[name] = part
        if complete:
            _partners(found, part)
    if not found.parts:
        raise InputError(f"{path}: nothing to check; {found.problems[0].message}; pass --data?")
    return found


Files = dict[str, list[Path]]


def _listed(
    found: Findings, name: str, split: Split | str, file: Path
) -> tuple[Files, Files] | None:
    """Images and labels of a split by name; None, and why, where there is nothing to look at."""
    if isinstance(split, str):
        try:
            rows = read_list(split, found.root, file.parent, f"{file}, split {name}")
        except InputError as error:
            found.add("error", "no list", name, str(error))
            return None
        return {row.name: [row.image] for row in rows}, {row.name: [row.label] for row in rows}
    places = [*folders(found.root, split.images), *folders(found.root, split.labels)]
    absent = [str(place) for place in places if not place.is_dir()]
    if absent:
        wholly = len(absent) == len(places)
        told = f"no folder {' and no '.join(absent)}"
        found.add("warning" if wholly else "error", "no folder", name, told)
        if wholly:
            return None
    images, labels = list_files(found.root, split)
    if not absent and not images and not labels:
        told = f"no pictures in {places[0]}; the split is empty"
        found.add("error", "empty split", name, told)
    return images, labels


def _partners(found: Findings, part: Part) -> None:
    for have, lack, one, other in (
        (part.images, part.labels, "image", "label"),
        (part.labels, part.images, "label", "image"),
    ):
        alone = [file for stem, file in have.items() if stem not in lack]
        if alone:
            found.add(
                "error",
                f"{one} without {other}",
                part.name,
                f"{len(alone)} {one}(s) without {other}, such as {alone[0].path}; add the "
                f"{other}s or exclude the files",
                (file.path for file in alone),
                ((file,) for file in alone),
            )


def judge(found: Findings, seen: Mapping[Path, Seen]) -> Findings:
    """Adds to `found` what a look at all its files told."""
    for part in found.parts.values():
        _broken(found, part, seen)
        _images(found, part, seen)
        _labels(found, part, seen)
        _void(found, part, seen)
    usual = {p.name: p.sizes.most_common(1)[0][0] for p in found.parts.values() if p.sizes}
    if len(set(usual.values())) > 1:
        told = ", ".join(f"{name} {width}x{height}" for name, (height, width) in usual.items())
        found.add("note", "mixed sizes", ", ".join(usual), f"sizes differ between splits: {told}")
    return found


def _broken(found: Findings, part: Part, seen: Mapping[Path, Seen]) -> None:
    files = (*part.images.values(), *part.labels.values())
    broken = [file.path for file in files if seen[file.path].broken]
    part.unread = len(broken)
    if broken:
        told = f"{len(broken)} file(s) that cannot be read, such as: {seen[broken[0]].broken}"
        found.add("error", "cannot be read", part.name, told, broken)
    differ = [
        Pair("", image.path, label.path)
        for image, label in part.pairs
        if not (seen[image.path].broken or seen[label.path].broken)
        and seen[image.path].size != seen[label.path].size
    ]
    if differ:
        first = differ[0]
        sizes = seen[first.image].size, seen[first.label].size
        found.add(
            "error",
            "sizes differ",
            part.name,
            f"{len(differ)} pair(s) of two sizes, such as: {sizes_differ(first, *sizes)}",
            (pair.image for pair in differ),
            ((File(pair.image), File(pair.label, found.labels)) for pair in differ),
        )


def _images(found: Findings, part: Part, seen: Mapping[Path, Seen]) -> None:
    looks = {f.path: s for f in part.images.values() if not (s := seen[f.path]).broken}
    if not looks:
        return
    part.sizes.update(s.size for s in looks.values())
    part.modes.update(s.mode for s in looks.values())
    pixels = sum(height * width for height, width in part.sizes.elements())
    mean = np.array([s.sums for s in looks.values()], float).sum(0) / pixels
    squares = np.array([s.squares for s in looks.values()], float).sum(0) / pixels
    part.mean = [round(float(v), 5) for v in mean / 255]
    part.std = [round(float(v), 5) for v in np.sqrt(np.maximum(0, squares - mean**2)) / 255]
    if len(part.sizes) > 1:
        (small, _), (large, _) = (f(part.sizes.items(), key=_area) for f in (min, max))
        told = (
            f"{len(part.sizes)} sizes in {len(looks)} images, from {small[1]}x{small[0]} to "
            f"{large[1]}x{large[0]} (width x height)"
        )
        found.add("note", "mixed sizes", part.name, told)
    for mode, count in part.modes.items():
        if mode not in ("RGB", "RGBA"):
            files = [path for path, s in looks.items() if s.mode == mode]
            told = f"{count} image(s) are {_mode(mode)}, such as {files[0]}; they are read as RGB"
            found.add("note", "mode", part.name, told, files, ((File(f),) for f in files))


def _area(item: tuple[tuple[int, int], int]) -> int:
    return item[0][0] * item[0][1]


def _mode(mode: str) -> str:
    known = {"L": "gray", "1": "black and white", "P": "palette pictures", "LA": "gray with alpha"}
    return known.get(mode, "of 16 bits or more" if mode[0] in "IF" else mode)


def _labels(found: Findings, part: Part, seen: Mapping[Path, Seen]) -> None:
    """Values of the labels: classes, ignored ones, and what should not be there."""
    table, known = found.labels, found.labels.train_ids()
    looks = {f.path: s for f in part.labels.values() if not (s := seen[f.path]).broken}
    foreign = [path for path, s in looks.items() if s.foreign]
    part.unread += len(foreign)
    if foreign:
        reason = looks[foreign[0]].foreign
        told = f"{len(foreign)} label(s) of another encoding, such as: {reason}"
        found.add("error", "another encoding", part.name, told, foreign, _pairs(part, foreign))
        found.unknown += _unknown(
            part.name, {path: looks[path].values for path in foreign}, _color_name, reason
        )
    strange = {}
    for path, s in looks.items():
        if s.foreign:
            continue
        part.values.update(s.values)
        part.pictures[sorted({known[v] for v in s.values if v in known} - {IGNORE})] += 1
        if not s.values.keys() <= known.keys():
            strange[path] = s.values
    for value, count in part.values.items():
        train_id = known.get(value)
        if train_id is None:
            part.unknown += count
        elif train_id == IGNORE:
            part.void += count
        else:
            part.pixels[train_id] += count
    if strange:
        # The values of all such files together tell more than those of one
        values = Counter[int]()
        for each in strange.values():
            values.update(each)
        told = f"{len(strange)} label(s), such as {next(iter(strange))}: {table.diagnose(values)}"
        found.add("error", "unknown values", part.name, told, strange, _pairs(part, strange))
        others = {
            path: {v: n for v, n in each.items() if v not in known}
            for path, each in strange.items()
        }
        found.unknown += _unknown(part.name, others, table.value_name, table.guess(values))
    elif _is_mask(found, part):  # nothing is unknown, and yet every object is passed over
        told = f"the labels hold 0 and 255 only, and 255 is ignored: {table.guess({0, 255})}"
        found.add("error", "0/255 masks", part.name, told, looks)
    lossy = [path for path, s in looks.items() if s.lossy]
    if lossy:
        told = (
            f"{len(lossy)} label(s) are JPEG, which changes values near edges, such as "
            f"{lossy[0]}; export them as PNG"
        )
        found.add("warning", "lossy labels", part.name, told, lossy)


def _is_mask(found: Findings, part: Part) -> bool:
    table = found.labels
    ignored = table.encoding == "index" and 255 in table.ignored
    return ignored and len(table.names) > 1 and part.values.keys() == {0, 255}


def _pairs(part: Part, labels: Iterable[Path]) -> Iterator[tuple[File, ...]]:
    """Labels with their images, those that have one."""
    names = {file.path: name for name, file in part.labels.items()}
    for name in (names[label] for label in labels):
        yield tuple(files[name] for files in (part.images, part.labels) if name in files)


def _color_name(value: int) -> str:
    return "{},{},{}".format(*unpack(value))


def _unknown(
    split: str,
    files: Mapping[Path, Mapping[int, int]],
    name: Callable[[int], str],
    diagnosis: str,
) -> list[Unknown]:
    """files: the values (and their pixels) in each that are unknown."""
    pixels, where = Counter[int](), defaultdict[int, list[Path]](list)
    for path, values in files.items():
        pixels.update(values)
        for value in values:
            where[value].append(path)
    return [
        Unknown(split, name(value), count, tuple(where[value]), diagnosis)
        for value, count in pixels.most_common(_MOST_VALUES)
    ]


def _void(found: Findings, part: Part, seen: Mapping[Path, Seen]) -> None:
    """What the labels lack: classes never seen, pictures with little label or none."""
    known = found.labels.train_ids()
    shares = {}
    for file in part.labels.values():
        values = seen[file.path].values
        if values and not seen[file.path].foreign:
            void = sum(n for v, n in values.items() if known.get(v) == IGNORE)
            shares[file.path] = void / sum(values.values())
    if not shares:
        return
    worst = sorted(shares, key=lambda path: -shares[path])
    wholly = [path for path in worst if shares[path] == 1]
    mostly = [path for path in worst if _MOSTLY <= shares[path] < 1]
    if len(wholly) == len(shares):
        told = "every pixel of every label is ignored; is `ignore` right?"
        found.add("error", "nothing labelled", part.name, told, wholly, _pairs(part, wholly))
        return
    if wholly:
        told = f"{len(wholly)} picture(s) without any label, such as {wholly[0]}; exclude them"
        found.add("warning", "wholly void", part.name, told, wholly, _pairs(part, wholly))
    if part.void:
        first = worst[len(wholly)]
        told = (
            f"{part.void / part.total:.2%} of the pixels without label, {'else ' * bool(wholly)}"
            f"most in {first} ({shares[first]:.0%})"
        )
        told += f"; {len(mostly)} picture(s) at least half" if mostly else ""
        found.add("note", "void", part.name, told, mostly, _pairs(part, [first]))
    never = [found.labels.names[k] for k in np.flatnonzero(part.pixels == 0)]
    if never:
        more = f" and {len(never) - _MOST_NAMES} more" if len(never) > _MOST_NAMES else ""
        told = f"{len(never)} class(es) never seen: {', '.join(never[:_MOST_NAMES])}{more}"
        found.add("warning", "class never seen", part.name, told)
