"""Leaks: what one split has in common with another, so that scores on either flatter."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path

from .duplicates import Clip, Copy, clips, near_copies, prints
from .findings import Findings, Near, Part
from .scan import File, Seen


class _View:
    """The readable images of a split, ready to be compared."""

    def __init__(self, part: Part, seen: Mapping[Path, Seen]) -> None:
        images = {n: f.path for n, f in part.images.items() if not seen[f.path].broken}
        self.split, self.names, self.paths = part.name, list(images), list(images.values())
        self.prints = prints([seen[path].thumb for path in self.paths])

    def __len__(self) -> int:
        return len(self.paths)


def find_leaks(found: Findings, seen: Mapping[Path, Seen]) -> None:
    """Adds to `found` the files, near-copies and recordings that splits share."""
    views = [_View(part, seen) for part in found.parts.values()]
    for view, part in zip(views, found.parts.values(), strict=True):
        copies = near_copies(view.prints)
        part.copies = len(copies)
        if copies:
            _within(found, view, copies)
    for pair in combinations(views, 2):
        small, large = sorted(pair, key=len)
        shared = [path for path in small.paths if path in set(large.paths)]
        if shared:  # such as a part of train, made a split of its own
            told = (
                f"{len(shared)} image(s) are in both; do not learn from one of the two splits "
                "and judge by the other"
            )
            found.add("warning", "shared files", f"{large.split}, {small.split}", told, shared)
            continue
        if copies := near_copies(large.prints, small.prints):
            _copies(found, large, small, copies)
        for clip in clips(large.prints, large.names, small.prints, small.names):
            _clip(found, large, small, clip)


def _within(found: Findings, view: _View, copies: list[Copy]) -> None:
    pairs = [
        (view.paths[copy.first], view.paths[copy.second])
        for copy in sorted(copies, key=lambda copy: -copy.likeness)
    ]
    told = (
        f"{len(pairs)} of {len(view)} images have a near-copy in this split, such as "
        f"{pairs[0][1]} of {pairs[0][0]}; it says less than its size"
    )
    found.add(
        "note",
        "near-copies within",
        view.split,
        told,
        (second for _, second in pairs),
        [tuple(map(File, pairs[0]))],
    )


def _copies(found: Findings, large: _View, small: _View, copies: list[Copy]) -> None:
    splits = (large.split, small.split)
    near = [
        Near("copy", splits, (large.paths[c.first], small.paths[c.second]), c.likeness)
        for c in sorted(copies, key=lambda copy: -copy.likeness)
    ]
    found.near += near
    first, second = near[0].images
    told = (
        f"{len(near)} of {len(small)} images of {small.split} are near-copies of images of "
        f"{large.split}, such as {second} of {first}: scores on either flatter"
    )
    found.add(
        "warning",
        "near-copies",
        ", ".join(splits),
        told,
        (one.images[1] for one in near),
        (tuple(map(File, one.images)) for one in near),
    )


def _clip(found: Findings, large: _View, small: _View, clip: Clip) -> None:
    splits = (large.split, small.split)
    borders = [(large.paths[a], small.paths[b]) for a, b, _ in clip.borders]
    apart, count = clip.borders[0][2], len(clip.pictures)
    found.near.append(Near("clip", splits, borders[0], clip.likeness, count, clip.recording, apart))
    first, second = borders[0]
    told = (
        f"{count} of {len(small)} images of {small.split} are cut out of a recording that "
        f"{large.split} has too ({clip.recording}*), the nearest {apart} numbers away: {second} "
        f"and {first}; scores on either flatter"
    )
    found.add(
        "warning",
        "clip of a recording",
        ", ".join(splits),
        told,
        (small.paths[i] for i in clip.pictures),
        (tuple(map(File, border)) for border in borders),
    )
