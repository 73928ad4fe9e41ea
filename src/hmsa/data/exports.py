"""Whose export a folder or file is; `masks.py` and `drawn.py` read what can be read."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ..runs import InputError
from .drawn import read_coco, read_cvat_xml, read_label_studio, read_labelme
from .masks import Export, read_cvat

_MASKS = "masks as PNG files, and describe them with a dataset.yaml"
# Keys of a JSON file, of its first element, or the tag of an XML file: how to read it, or why not
_KINDS: list[tuple[set[str], Callable[..., Export] | str]] = [
    ({"<annotations>"}, read_cvat_xml),
    ({"images", "annotations", "categories"}, read_coco),
    ({"shapes", "imagePath"}, read_labelme),
    ({"classes", "tags"}, f"of Supervisely; with its app Export as Masks, export {_MASKS}"),
    ({"objects", "size"}, f"of Supervisely; with its app Export as Masks, export {_MASKS}"),
    ({"id", "annotations"}, read_label_studio),
    ({"samples"}, "of FiftyOne; with it export ImageSegmentationDirectory"),
    ({"_via_settings"}, "of the VGG Image Annotator; export COCO"),
    ({"<annotation>"}, f"of Pascal VOC, which holds boxes; export {_MASKS}"),
]
_SPLIT = re.compile("(?<![a-z])(train|val|test)[a-z]*", re.IGNORECASE)  # also valid, train2017

_BRUSH = re.compile(r"task-\d+-annotation-")


class UnknownExport(InputError):
    """The files are not of any tool that is known."""


class NoSuchImages(InputError):
    """The images of an export are somewhere else, or others."""


def read_export(source: Path, ignore: Sequence[str] = ()) -> Export:
    """The export in a folder or file. Raises InputError if it is of no kind that is known."""
    files = [source]
    if source.is_dir():
        files = sorted(path for path in source.rglob("*") if not path.name.startswith("."))
    if {"labelmap.txt", "SegmentationClass"} & {file.name for file in files}:
        return read_cvat(source, ignore)
    contents = {file: content for file in files if (content := _content(file)) is not None}
    found = [(file, kind) for file, content in contents.items() if (kind := _kind(content))]
    if not found:
        if brush := next((file for file in files if _BRUSH.match(file.name)), None):
            raise InputError(f"{brush} does not name its image; in Label Studio, export JSON")
        raise UnknownExport(
            f"{source} is no export of CVAT (Segmentation mask 1.1, CVAT for images 1.1), COCO "
            "(instances, panoptic), labelme or Label Studio (JSON); export one of these, or "
            f"{_MASKS}"
        )
    file, kind = found[0]
    if isinstance(kind, str):
        raise InputError(f"{file} is {kind}")
    root = source if source.is_dir() else source.parent
    try:
        if kind is read_labelme:
            return read_labelme(root, contents, ignore)._replace(images=root)
        if other := next((each for each, of in found[1:] if not kind is of is read_coco), None):
            raise InputError(f"{source} holds {file} and {other}; import each by itself")
        export = _joined({each: kind(each, contents[each], ignore) for each, _ in found})
        return export._replace(images=export.images or root)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        if isinstance(error, InputError):
            raise
        why = f"{type(error).__name__} {error}"
        raise InputError(f"{file} is incomplete or damaged ({why}); export it again") from None


def _joined(exports: dict[Path, Export]) -> Export:
    """One of several, each a split of one dataset, as COCO and Roboflow have them."""
    (first, export), *others = exports.items()
    if not others:
        return export
    masks, notes = [], dict[str, None]()
    for file, other in exports.items():
        if other.labels != export.labels:
            raise InputError(f"{first} and {file} have different classes; import each by itself")
        masks += [mask._replace(split=split_of(file) or file.stem) for mask in other.masks]
        notes |= dict.fromkeys(other.notes)
    same = all(other.images == export.images for _, other in others)
    return Export(export.labels, masks, export.images if same else None, (*notes,))


def split_of(file: Path) -> str | None:
    """train, val or test, if the name of a file or of its folder says so."""
    found = _SPLIT.search(file.stem) or _SPLIT.search(file.parent.name)
    return found[1].lower() if found else None


def _content(file: Path) -> Any:
    """What an XML or JSON file holds; None for others."""
    try:
        if file.suffix.lower() == ".xml":
            return ElementTree.fromstring(file.read_bytes())
        return json.loads(file.read_bytes()) if file.suffix.lower() == ".json" else None
    except (ValueError, OSError, RecursionError, ElementTree.ParseError) as error:
        raise InputError(f"{file} cannot be read ({error}); export it again") from None


def _kind(content: Any) -> Callable[..., Export] | str | None:
    first = content[0] if isinstance(content, list) and content else content
    keys = {*first} if isinstance(first, dict) else set()
    if isinstance(first, ElementTree.Element):
        keys = {f"<{first.tag}>"}
    return next((kind for signs, kind in _KINDS if signs <= keys), None)
