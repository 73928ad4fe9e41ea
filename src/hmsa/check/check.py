"""What is wrong with a dataset, all of it at once, before hours are wasted on it.

Lenient where `open_dataset` is strict: no problem hides another, and one bad file stops nothing.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from ..data.datasets import list_files
from ..data.descriptions import Split, describe, find_split, folders, label_set
from ..data.labels import IGNORE, unpack
from ..data.lists import read_list
from ..runs import InputError
from .alike import Hashes, Match, clips, near_copies
from .findings import MOST, Findings, Part, some
from .scan import scan


def check(
    path: Path, splits: Sequence[str] = (), data: Path | None = None, compare: bool = True
) -> Findings:
    """Scan every file of all splits, or of those named, and find what is wrong.

    path, data: as for `open_dataset`; compare: also images with each other.
    Raises InputError only where there is nothing to check.
    """
    found = list_splits(path, splits, data)
    found.scans = scan(found.root, found.files())
    for part in found.parts:
        _check_files(found, part)
        _check_images(found, part)
        _check_labels(found, part)
    if compare:
        _compare(found)
    return found


def list_splits(path: Path, splits: Sequence[str] = (), data: Path | None = None) -> Findings:
    """The files of all splits, or of those named, and the problems that their names alone show."""
    file, description, root = describe(path, data)
    found = Findings(path, root.resolve(), label_set(description, file))
    for name in splits or description.splits:
        split = find_split(description, name, path)
        if isinstance(split, Split):
            _list_folders(found, name, split)
            continue
        try:
            rows = read_list(split, found.root, file.parent, f"{file}, split {name}")
        except InputError as error:
            found.add("no list", name, reason=error)
        else:
            images = {row.name: row.image for row in rows}
            found.parts.append(Part(name, images, {row.name: row.label for row in rows}))
    if not found.parts:
        raise InputError(f"{path}: nothing to check; {found.problems[0].message}; pass --data?")
    return found


def _list_folders(found: Findings, name: str, split: Split) -> None:
    places = [*folders(found.root, split.images), *folders(found.root, split.labels)]
    absent = [place for place in places if not place.is_dir()]
    if absent:
        kind = "absent split" if absent == places else "no folder"
        found.add(kind, name, folders=" and no ".join(map(str, absent)))
    if absent == places:
        return
    listed = list_files(found.root, split)
    for files in (files for kind in listed for files in kind.values() if len(files) > 1):
        found.add("two files of one name", name, files)
    images, labels = ({stem: files[0] for stem, files in kind.items()} for kind in listed)
    found.parts.append(Part(name, images, labels))
    if not images and not labels:
        found.add("empty split", name, folder=places[0])
    elif not absent:
        alone = [path for stem, path in images.items() if stem not in labels]
        found.add("image without label", name, alone)
        alone = [path for stem, path in labels.items() if stem not in images]
        found.add("label without image", name, alone)


def _check_files(found: Findings, part: Part) -> None:
    scans, files = found.scans, [*part.images.values(), *part.labels.values()]
    for kind, field in {
        "cannot be read": "broken",
        "another encoding": "foreign",
        "lossy labels": "lossy",
    }.items():
        found.add(kind, part.name, [path for path in files if getattr(scans[path], field)])
    whole = [pair for pair in part.pairs if not any(scans[path].broken for path in pair)]
    differ = [pair for pair in whole if scans[pair[0]].size != scans[pair[1]].size]
    sizes = [scans[path].width_x_height for pair in differ[:1] for path in pair]
    found.add("sizes differ", part.name, [image for image, _ in differ], differ, sizes=sizes)
    counts = {"images": part.images, "labels": part.labels, "pairs": part.pairs}
    part.numbers["pairs"] = {kind: len(each) for kind, each in counts.items()}


def _check_images(found: Findings, part: Part) -> None:
    scans = {path: scan for path in part.images.values() if (scan := found.scans[path]).sums}
    pixels = max(1, sum(scan.size[0] * scan.size[1] for scan in scans.values()))
    mean = np.array([scan.sums for scan in scans.values()]).sum(0) / pixels / 255
    square = np.array([scan.squares for scan in scans.values()]).sum(0) / pixels / 255**2
    sizes = Counter(scan.width_x_height for scan in scans.values()).most_common()
    part.numbers |= {
        "sizes": dict(sizes),
        "modes": Counter(scan.mode for scan in scans.values()),
        "mean": mean.round(5).tolist() if scans else [],
        "std": np.sqrt(np.maximum(0, square - mean**2)).round(5).tolist() if scans else [],
    }
    if len(sizes) > 1:
        found.add("mixed sizes", part.name, sizes=len(sizes), common=sizes[0][0])
    others = [path for path, scan in scans.items() if scan.mode not in ("RGB", "RGBA")]
    modes = ", ".join(sorted({scans[path].mode for path in others}))
    found.add("mode", part.name, others, modes=modes)


def _check_labels(found: Findings, part: Part) -> None:
    """Values of the labels: classes, ignored ones, and what should not be there."""
    classes, known, name = found.classes, found.classes.train_ids(), part.name
    scans = {path: scan for path in part.labels.values() if (scan := found.scans[path]).values}
    plain = {path: scan.values for path, scan in scans.items() if not scan.foreign}
    values, holders = Counter[int](), Counter[int]()
    for each in plain.values():
        values.update(each)
        holders.update(each.keys())

    def share(*raw: int) -> dict[str, Any]:
        pixels = sum(values[value] for value in raw)
        return {"pixels": pixels, "share": round(pixels / max(1, values.total()), 8)}

    ignored = {value for value in values if known.get(value) == IGNORE}
    part.numbers |= {
        "frequencies": {
            title: share(raw) | {"pictures": holders[raw]}
            for title, raw in zip(classes.names, classes.raw, strict=True)
        },
        "void": share(*ignored),
        "unknown": share(*(values.keys() - known.keys())),
        "values": {classes.value_name(value): n for value, n in sorted(values.items())},
    }
    if foreign := [path for path in scans if path not in plain]:
        _list_unknown(found, name, foreign, scans[foreign[0]].foreign)
    if strange := [path for path, each in plain.items() if not each.keys() <= known.keys()]:
        # The values of all such files together tell more than those of one
        together = sum((Counter(plain[path]) for path in strange), Counter[int]())
        found.add("unknown values", name, strange, diagnosis=classes.diagnose(together))
        _list_unknown(found, name, strange, classes.guess(together))
    elif set(values) == {0, 255} and ignored == {255} and len(classes.names) > 1:
        # Nothing is unknown, and yet every object is ignored
        found.add("0/255 masks", name, list(plain), diagnosis=classes.guess(values))
    void = {
        path: sum(each.get(value, 0) for value in ignored) / sum(each.values())
        for path, each in plain.items()
    }
    wholly = [path for path in void if void[path] == 1]
    found.add("nothing labelled" if len(wholly) == len(void) else "wholly void", name, wholly)
    found.add("mostly void", name, [path for path in void if 0.5 <= void[path] < 1])
    never = [
        title for title, raw in zip(classes.names, classes.raw, strict=True) if not values[raw]
    ]
    if never and len(wholly) < len(void):
        found.add("class never seen", name, classes=len(never), names=", ".join(never))


def _list_unknown(found: Findings, split: str, files: list[Path], diagnosis: str) -> None:
    """Add the values of label `files` that are unknown; in another encoding, all are."""
    known, name_of = found.classes.train_ids(), found.classes.value_name
    pixels, holders = Counter[str](), defaultdict[str, list[Path]](list)
    for path in files:
        foreign = found.scans[path].foreign
        for value, n in found.scans[path].values.items():
            if foreign or value not in known:
                name = "{},{},{}".format(*unpack(value)) if foreign else name_of(value)
                pixels[name] += n
                holders[name].append(path)
    for name, n in pixels.most_common(MOST):
        row = {"split": split, "value": name, "pixels": n, "diagnosis": diagnosis}
        found.unknown.append(row | some(holders[name]))


def _compare(found: Findings) -> None:
    """Find the images, near-copies and recordings that splits share."""
    hashes = {
        part.name: {n: text for n, path in part.images.items() if (text := found.scans[path].hash)}
        for part in found.parts
    }
    for part in found.parts:
        matches = near_copies(hashes[part.name], hashes[part.name])
        part.numbers["near_duplicates_within"] = len(matches)
        pairs = [(part.images[match.original], part.images[match.copy]) for match in matches]
        copies = [copy for _, copy in pairs]
        found.add("near-copies within", part.name, copies, pairs[:1], images=len(part.images))
    for two in combinations(found.parts, 2):
        small, large = sorted(two, key=lambda part: len(part.images))
        originals = set(large.images.values())
        shared = [path for path in small.images.values() if path in originals]
        found.add("shared files", f"{large.name}, {small.name}", shared)
        if not shared:  # else one is a part of the other, made a split of its own
            _compare_two(found, large, small, hashes[large.name], hashes[small.name])


def _compare_two(found: Findings, large: Part, small: Part, first: Hashes, second: Hashes) -> None:
    where, splits = f"{large.name}, {small.name}", [large.name, small.name]
    shown = {"large": large.name, "small": small.name, "images": len(small.images)}

    def paths(match: Match) -> tuple[Path, Path]:
        return large.images[match.original], small.images[match.copy]

    def row(kind: str, match: Match, pictures: int = 1, **more: object) -> dict[str, Any]:
        images, likeness = [str(path) for path in paths(match)], round(match.likeness, 4)
        about = {"kind": kind, "splits": splits, "images": images, "likeness": likeness}
        return about | {"pictures": pictures} | more

    copies = near_copies(first, second)
    found.near += [row("copy", match) for match in copies]
    pairs = [paths(match) for match in copies]
    found.add("near-copies", where, [copy for _, copy in pairs], pairs, **shown)
    for clip in clips(first, second):
        more = {"recording": clip.recording, "apart": clip.apart}
        found.near.append(row("clip", clip.borders[0], len(clip.names), **more))
        files, pairs = [small.images[n] for n in clip.names], [paths(m) for m in clip.borders]
        found.add("clip of a recording", where, files, pairs, **shown, **more)
