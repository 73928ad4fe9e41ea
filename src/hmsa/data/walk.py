"""The image files below a folder; linked folders are followed, and what is passed over is said."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path, PurePath

from PIL import features

from ..runs import say_once

_BY_CODEC = {"avif": {".avif"}, "jpg_2000": {".jp2", ".j2k"}}  # if Pillow was built with them
SUFFIXES = {
    ".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".webp", ".ppm", ".pgm", ".gif", ".tga", ".tif",
    ".tiff", *(s for name, those in _BY_CODEC.items() if features.check(name) for s in those),
}  # fmt: skip
# Images and videos too, but nothing here reads them as images
_OTHERS = {
    ".avif", ".jp2", ".j2k", ".heic", ".heif", ".jxl", ".psd", ".svg", ".dng", ".nef", ".cr2",
    ".cr3", ".arw", ".orf", ".raf", ".rw2", ".exr", ".hdr", ".dcm", ".nii", ".npy", ".mat", ".vrt",
    ".img", ".ecw", ".sid", ".nc", ".h5", ".hdf", ".mp4", ".m4v", ".mov", ".mkv", ".avi", ".webm",
    ".mpg", ".mpeg", ".wmv",
}  # fmt: skip

PREVIEW = "dataset.png"  # drawn beside a dataset.yaml, and none of the images


def images_below(folder: Path, suffixes: Collection[str] = SUFFIXES) -> list[Path]:
    """Every file below `folder` with one of the `suffixes`, in sorted order; none if there is no
    such folder. Says how many other images were passed over."""
    files = [f for f in files_below(folder) if f.name[0] != "." and f.name != PREVIEW]
    say_passed_over(folder, files, suffixes)
    return sorted(f for f in files if f.suffix.lower() in suffixes)


def files_below(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Every file below `folder`, also in linked folders, but never in one that it lies in itself.

    above: resolved folders that are being walked already.
    """
    above = (*above, folder.resolve())
    for entry in folder.iterdir() if os.path.isdir(folder) else ():
        if entry.is_file():
            yield entry
        elif entry.is_dir() and (not entry.is_symlink() or entry.resolve() not in above):
            yield from files_below(entry, above)


def say_passed_over(
    where: object, files: Iterable[PurePath], suffixes: Collection[str] = SUFFIXES
) -> None:
    """Name the images among `files` that have none of the `suffixes`, in one line."""
    endings = (file.suffix.lower() for file in files)
    counts = Counter(s for s in endings if s in _OTHERS and s not in suffixes)
    found = ", ".join(f"{n} file{'s' * (n > 1)} with suffix {s}" for s, n in sorted(counts.items()))
    if found:
        say_once(f"{where}: passed over: {found}; convert them, or move them elsewhere")
