"""Whose export a folder or file is; `masks.py` and `drawn.py` read what can be read."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ..runs import InputError
from .drawn import read_coco, read_cvat_xml, read_labelme
from .masks import Export, read_cvat

_MASKS = "masks as PNG files, and describe them with a dataset.yaml"
# Keys of a JSON file, of its first element, or the tag of an XML file: how to read it, or why not
_KINDS: list[tuple[set[str], Callable[..., Export] | str]] = [
    ({"<annotations>"}, read_cvat_xml),
    ({"images", "annotations"}, read_coco),
    ({"shapes", "imagePath"}, read_labelme),
    ({"classes", "tags"}, f"of Supervisely; with its app Export as Masks, export {_MASKS}"),
    ({"objects", "size"}, f"of Supervisely; with its app Export as Masks, export {_MASKS}"),
    ({"id", "annotations"}, f"of Label Studio; export polygons as COCO, brush labels as {_MASKS}"),
    ({"_via_settings"}, "of the VGG Image Annotator; export COCO"),
    ({"<annotation>"}, f"of Pascal VOC, which holds boxes; export {_MASKS}"),
]


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
        raise InputError(
            f"{source} is no export of CVAT (Segmentation mask 1.1, CVAT for images 1.1), COCO "
            f"(instances, panoptic) or labelme; export one of these, or {_MASKS}"
        )
    file, kind = found[0]
    if isinstance(kind, str):
        raise InputError(f"{file} is {kind}")
    try:
        if kind is read_labelme:
            return read_labelme(source if source.is_dir() else source.parent, contents, ignore)
        if len(found) > 1:
            raise InputError(f"{source} holds {file} and {found[1][0]}; import each by itself")
        return kind(file, contents[file], ignore)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        if isinstance(error, InputError):
            raise
        why = f"{type(error).__name__} {error}"
        raise InputError(f"{file} is incomplete or damaged ({why}); export it again") from None


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
