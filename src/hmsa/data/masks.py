"""Exports whose labels are masks, image files: CVAT's and those of COCO panoptic.

CVAT, "Segmentation mask 1.1": labelmap.txt (a line per class, `name:red,green,blue:parts:actions`),
SegmentationClass/*.png in those colours, ImageSets/ and perhaps JPEGImages/. COCO panoptic: a JSON
file beside the folder of its name, whose PNGs hold segment ids as R + 256 G + 65536 B.

Read here rather than by datumaro, which needs older Pillow, pandas and pyarrow than we do, and
would leave to us what most of this is: splits, ignored classes, files that do not match.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray

from ..runs import InputError
from .images import open_pillow
from .labels import IGNORE, LabelSet, pack, spread, unpack
from .schema import Color
from .walk import images_below

BACKGROUND = "background"
Label = NDArray[np.uint8]  # [H,W] class indices, 255 = none
_LABELMAP = re.compile(r"(.*):(\d+),(\d+),(\d+):[^:]*:[^:]*")


class Mask(NamedTuple):
    name: str  # path without suffix, with / between folders
    file: Path
    read: Callable[[], Label]
    split: str | None = None
    size: tuple[int, int] | None = None  # height and width, if they are known without reading


class Export(NamedTuple):
    labels: LabelSet
    masks: list[Mask]
    images: Path | None = None  # their folder, which need not be there
    notes: tuple[str, ...] = ()  # for people


def read_cvat(folder: Path, ignore: Sequence[str] = ()) -> Export:
    """The classes and masks of a CVAT export, whose files are read when `Mask.read` is called."""
    maps = sorted(folder.rglob("labelmap.txt"))
    root = maps[0].parent if maps else folder
    if len(maps) != 1 or not (root / "SegmentationClass").is_dir():
        raise InputError(
            f"{folder} is not one CVAT export 'Segmentation mask 1.1', a zip or folder with "
            "labelmap.txt and SegmentationClass"
        )
    colors: dict[str, Color | None] = {}
    known: dict[int, str] = {}
    for line in _lines(maps[0]):
        if line.startswith("#"):
            continue
        if not (found := _LABELMAP.fullmatch(line)):
            raise InputError(f"{maps[0]}: {line!r} is not name:red,green,blue:parts:actions")
        red, green, blue = map(int, found.groups()[1:])
        colors[found[1].strip()] = red, green, blue
        known[red << 16 | green << 8 | blue] = found[1].strip()
    if len(known) < len(colors):
        raise InputError(f"{maps[0]}: two classes have one colour; give each its own")
    if BACKGROUND in ignore and BACKGROUND not in colors and 0 not in known:
        colors[BACKGROUND], known[0] = (0, 0, 0), BACKGROUND
    labels, ids = class_table(colors, ignore, maps[0])

    def read(file: Path) -> Label:
        with open_pillow(file) as image:  # CVAT: 3 channels of colour, or 1 of indices
            if image.mode in ("1", "L"):
                return _classes(np.asarray(image), dict(enumerate(ids.values())), file)
            classes = {color: ids[name] for color, name in known.items()}
            return _classes(pack(np.asarray(image.convert("RGB"))), classes, file)

    splits = {
        normalize("NFC", name): split_name(file.stem)
        for file in sorted((root / "ImageSets" / "Segmentation").glob("*.txt"))
        for name in _lines(file)
    }
    masks = []
    for name, files in by_name(root / "SegmentationClass").items():
        masks += [Mask(name, file, partial(read, file), splits.get(name)) for file in files]
    return Export(labels, masks, root / "JPEGImages")


def read_panoptic(file: Path, content: dict[str, Any], ignore: Sequence[str]) -> Export:
    """content: of the JSON file."""

    def read(mask: Path, segments: dict[int, int]) -> Label:
        with open_pillow(mask) as image:
            return _classes(pack(np.asarray(image.convert("RGB"))[..., ::-1]), segments, mask)

    categories = sorted(content["categories"], key=lambda category: int(category["id"]))
    colors = {category["name"]: category.get("color") for category in categories}
    labels, ids = class_table(colors, ignore, file)
    classes = {category["id"]: ids[category["name"]] for category in categories}
    images = {image["id"]: name_of(image["file_name"], file) for image in content["images"]}
    masks = []
    for annotation in content["annotations"]:
        name_of(annotation["file_name"], file)  # raises InputError if it leads elsewhere
        path = file.with_suffix("") / annotation["file_name"]
        segments = {s["id"]: classes[s["category_id"]] for s in annotation["segments_info"]}
        reader = partial(read, path, {0: IGNORE} | segments)
        masks.append(Mask(images[annotation["image_id"]], path, reader))
    return Export(labels, masks)


def class_table(
    colors: dict[str, Color | None], ignore: Sequence[str], source: Path
) -> tuple[LabelSet, dict[str, int]]:
    """The class table of the names in `colors` but for those to `ignore`, and the id of each."""
    if unknown := [name for name in ignore if name not in colors]:
        known = ", ".join(colors)
        raise InputError(f"{source} has no class {unknown[0]!r} to ignore, only {known}")
    names = tuple(name for name in colors if name not in ignore)
    if not 1 <= len(names) < IGNORE:
        raise InputError(f"{source} has {len(names)} classes; a label file holds 1 to {IGNORE - 1}")
    for name, color in colors.items():
        three = color is None or (len(color) == 3 and all(type(n) is int for n in color))
        if not (isinstance(name, str) and three and all(0 <= n <= 255 for n in color or ())):
            raise InputError(
                f"{source}: class {name!r} has the colour {color!r}; a text and three numbers of "
                "0 to 255 are needed"
            )
    spare = spread(len(names))
    palette = tuple(colors[name] or spare[k] for k, name in enumerate(names))
    ids = dict.fromkeys(colors, IGNORE) | {name: k for k, name in enumerate(names)}
    return LabelSet(names, palette, tuple(range(len(names)))), ids


def _classes(values: NDArray[np.integer], known: dict[int, int], file: Path) -> Label:
    """Values `[H,W]` as class indices. Raises InputError for one that is not `known`."""
    found, where = np.unique(values, return_inverse=True)
    if unknown := set(found.tolist()) - known.keys():
        least = min(unknown)
        shown = least if values.dtype == np.uint8 else "{},{},{}".format(*unpack(least))
        mend = "do its files belong together?"
        if shown == "0,0,0":
            mend = (
                "if that is the background, add the line background:0,0,0:: to labelmap.txt, or "
                "import with --ignore background"
            )
        count = f"{len(unknown)} value(s), such as {shown},"
        raise InputError(f"{file}: {count} are not listed in the export; {mend}")
    return np.array([known[v] for v in found.tolist()], np.uint8)[where].reshape(values.shape)


def by_name(folder: Path) -> dict[str, list[Path]]:
    """Image files by their path below `folder` without suffix, in one form of Unicode."""
    found: dict[str, list[Path]] = {}
    for file in images_below(folder):
        found.setdefault(name_of(file.relative_to(folder).as_posix(), folder), []).append(file)
    return found


def name_of(path: str, source: object) -> str:
    """The name of an image by its path. Raises InputError if that leads out of its folder."""
    parts = PureWindowsPath(path)  # it knows both kinds of slashes
    if parts.anchor or ".." in parts.parts or not parts.name:
        raise InputError(f"{source}: {path!r} leads out of its folder")
    return normalize("NFC", parts.with_suffix("").as_posix())


def split_name(text: str) -> str | None:
    return None if text.lower() == "default" else text


def _lines(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    except OSError as error:  # a folder of that name
        raise InputError(f"{file} cannot be read: {error.strerror}") from None
    return [line.strip() for line in lines if line.strip()]
