"""The image files that paths lead to. Linked folders are followed; what is passed over is said."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path, PurePath

from PIL import features

from ..runs import InputError, say_once
from ..runs.errors import as_input_error

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
SHEETS = "validation-sheets"  # folder in the folder of a run, of what training draws


def find_images(
    paths: Iterable[str],
    suffixes: Collection[str] = SUFFIXES,
    leave_out: Callable[[Path], bool] = lambda file: False,
) -> dict[str, Path]:
    """Images by name: the path below the folder, or as in the list, without suffix.

    paths: files, folders, globs and .txt lists of files. leave_out: of what a folder or glob holds.
    Raises InputError if a path leads to no image, or if two would have the same name.
    """
    named: dict[str, Path] = {}
    for text in paths:
        for path, file in _matches(text, suffixes, leave_out):
            name = path.with_suffix("").as_posix()
            if named.setdefault(name, file) != file:
                raise InputError(f"{named[name]} and {file} have the same name; run them apart")
    return named


def are_many(path: Path) -> bool:
    """Whether it is a folder, a glob or a list rather than one image."""
    return not path.is_file() or path.suffix.lower() == ".txt"


def _matches(
    text: str, suffixes: Collection[str], leave_out: Callable[[Path], bool]
) -> Iterable[tuple[PurePath, Path]]:
    path = Path(text)
    if not are_many(path):
        return [(Path(path.name), path)]
    if path.is_file():
        return _listed(path)
    below = images_below(path, suffixes) if path.is_dir() else _glob(text, suffixes)
    images = [file for file in below if not leave_out(file)]
    if not images:
        some = ", ".join(sorted(suffixes))
        raise InputError(f"no image matches {text!r}; give files, folders or a glob of {some}")
    return [(f.relative_to(path) if path.is_dir() else Path(f.name), f) for f in images]


def _glob(text: str, suffixes: Collection[str]) -> list[Path]:
    files = [file for file in map(Path, glob.glob(text, recursive=True)) if file.is_file()]
    say_passed_over(text, files, suffixes)
    return sorted(f for f in files if f.suffix.lower() in suffixes and not is_left_out(f))


def is_left_out(file: PurePath) -> bool:
    """Whether a file is none of the images of its folder: hidden, or drawn by hmsa."""
    return file.name.startswith(".") or file.name == PREVIEW or file.parent.name == SHEETS


def _listed(file: Path) -> Iterator[tuple[PurePath, Path]]:
    """The images of a list: one path a line, relative to the list; # begins a comment."""
    with as_input_error(f"{file} is not a readable list in UTF-8"):
        lines = file.read_text("utf-8-sig").splitlines()
    for number, line in enumerate(map(str.strip, lines), 1):
        if line and not line.startswith("#"):
            path = PurePath(line)
            if not (file.parent / path).is_file():
                raise InputError(f"{file} line {number}: no file {line}; mend the path")
            parts = [part for part in path.parts if part not in (path.anchor, "..")]
            yield PurePath(*parts), file.parent / path


def images_below(folder: Path, suffixes: Collection[str] = SUFFIXES) -> list[Path]:
    """Every file below `folder` with one of the `suffixes`, in sorted order; none if there is no
    such folder. Says how many other images were passed over."""
    files = [f for f in files_below(folder) if not is_left_out(f)]
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
