"""The front door of every verb: a folder of images and labels without dataset.yaml gets one.

Its classes, splits and encoding are shown as a table, and as a picture beside the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console, Group
from rich.text import Text

from ..data.descriptions import locate
from ..data.exports import NoSuchImages, UnknownExport
from ..data.imports import import_masks
from ..data.schema import read_description
from ..data.walk import PREVIEW
from ..report.tables import terminal
from ..runs import CannotWrite, InputError, replace, say
from . import doctor, listed, show
from .check import Findings, check

FILE = "dataset.yaml"
_BLACK = "black is a class; if it means no label, add to dataset.yaml: ignore: ['#000000']"


class Described(NamedTuple):
    """found: None where nothing can be read; problems of files are in it."""

    file: Path  # the description, written
    groups: Sequence[doctor.Group]
    content: dict[str, Any] | None
    found: Findings | None


def described(path: Path) -> Path:
    """`path`, or the dataset.yaml that is written for a folder without one, which is then shown.

    Raises InputError where the folder cannot be understood, or files of it cannot be used.
    """
    if not lacks_description(path):
        return path
    kept, whole = _elsewhere(path), str(path.resolve())
    if kept.is_file() and read_description(kept).path == whole:
        say(f"{path} is described in {kept}")
        return kept
    made = describe_folder(path)
    if not made.found:
        return imported(made)
    Console(stderr=True).print(summary(made))
    for problem in made.found.of("warning"):
        say(f"warning {made.found.short(problem.message)}")
    if errors := made.found.of("error"):
        mend = f"mend the files, or correct {made.file}; hmsa data check {made.file} shows all"
        raise InputError(f"{path}: {made.found.short(errors[0].message)}; {mend}")
    return made.file


def imported(nothing: Described) -> Path:
    """The folder that is made, once, of the export of an annotation tool, or of Parquet files.

    nothing: what was found in the folder as it is. Raises UnknownExport if it is none.
    """
    path = nothing.file.parent
    made = path.resolve().with_name(f"{path.resolve().name}-labels")
    if (made / FILE).is_file():
        say(f"{path} was made into {made} before; to make it anew, remove that")
        return made
    try:
        outcome = import_masks(path, made)
    except UnknownExport as error:
        if not nothing.groups:
            what = f"{path}: no image files; name a folder of images and labels"
            raise UnknownExport(what) from None
        raise UnknownExport(
            f"{path}: no labels that can be read have the names of images, hmsa data check {path} "
            f"lists what is there; as an export: {error}"
        ) from None
    except NoSuchImages as error:
        command = f"hmsa data import {path} {made} --images FOLDER"
        raise InputError(f"{error}; its command: {command}") from None
    for note in (*outcome.notes, f"made of the export in {path}: {made}"):
        say(note)
    if not (made / FILE).is_file():
        describe_folder(made)
    return made


def lacks_description(path: Path) -> bool:
    """Whether `path` is a folder that has no dataset.yaml and is in no known layout."""
    try:
        locate(path)
    except InputError:
        return path.is_dir()
    return False


def describe_folder(path: Path, image: str | None = None, label: str | None = None) -> Described:
    """Examine a folder, write its dataset.yaml, check that, and draw some of it.

    image, label: the folder or pattern of the only files to take as such. Raises InputError where
    two readings are possible.
    """
    groups = [] if image or label else listed.examine(path)
    groups = groups or doctor.examine(path, image, label)
    draft = doctor.draft(path, groups)
    if not draft:
        return Described(path / FILE, groups, None, None)
    black = [_BLACK] * ("#000000" in draft.content["names"])
    for note in [*draft.notes, *black]:
        say(f"{path}: {note}")
    try:
        file = _write(path, draft)
    except CannotWrite as error:
        file = _write(_elsewhere(path).parent, draft, path.resolve())
        say(f"{error}; meanwhile what belongs there is in {file.parent}")
    found = check(file)
    sheet = show.sheet(found)
    replace(file.with_name(PREVIEW), lambda temporary: sheet.save(temporary, format="PNG"))
    return Described(file, groups, draft.content, found)


def _write(place: Path, draft: doctor.Draft, root: Path | None = None) -> Path:
    content = draft.content | ({"path": str(root)} if root else {})
    for name, text in {**draft.lists, FILE: doctor.text(content)}.items():
        replace(place / name, text)
    return place / FILE


def summary(made: Described) -> Group:
    """What was understood, for the terminal."""
    assert made.found
    what = ", ".join({group.guess.what: None for group in made.groups if group.guess.table})
    text = (
        f"Labels: {what}; encoding {made.found.classes.encoding}. Written: {made.file}\n"
        f"Look at {made.file.with_name(PREVIEW)}, and correct names, splits or colours."
    )
    return Group(terminal(show.table(made.found), str(made.file.parent)), Text(text))


def _elsewhere(path: Path) -> Path:
    """The description of a folder that cannot be written to."""
    return Path("runs") / f"data-{path.resolve().name}" / FILE
