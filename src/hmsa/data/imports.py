"""Exports of annotation tools -> a folder of ours: images/, labels/, lists of splits, dataset.yaml.

CVAT, "Segmentation mask 1.1": a zip, or the folder in it, with labelmap.txt (a line per class,
`name:red,green,blue:parts:actions`), SegmentationClass/*.png in those colours, ImageSets/ and
perhaps JPEGImages/. COCO panoptic: a JSON file beside the folder of its name, whose PNGs hold
segment ids as R + 256 G + 65536 B. Labels become 8-bit palette PNGs of class indices, 255 = none.

Read here rather than by datumaro, which needs older Pillow, pandas and pyarrow than we do, and
would leave to us what most of this file is: splits, ignored classes, files that do not match.
"""

from __future__ import annotations

import csv
import json
import re
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..runs import InputError, Outcome
from .descriptions import Color, description_text
from .images import open_pillow, read_size
from .labels import IGNORE, LabelSet, pack, spread
from .walk import images_below

_SPLITS = {"validation": "val", "training": "train"}  # as annotators call them: as recipes do
_LABELMAP = re.compile(r"(.*):(\d+),(\d+),(\d+):[^:]*:[^:]*")


class Mask(NamedTuple):
    name: str  # path without suffix, with / between folders
    file: Path
    read: Callable[[], NDArray[np.uint8]]  # -> [H,W] class indices, 255 = none
    split: str | None = None


class Export(NamedTuple):
    labels: LabelSet
    masks: list[Mask]
    images: Path | None = None  # their folder, which need not be there


def import_masks(
    source: Path,
    out: Path,
    images: Path | None = None,
    ignore: Sequence[str] = (),
    split: str = "train",
) -> Outcome:
    """Make the folder `out` from the export `source`, whole or not at all.

    images: folder of the images, if they are not in the export; they stay there. ignore: classes
    that mean "no label". split: what to call a split that the export does not name.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is not empty; name a new folder for the import")
    out.parent.mkdir(parents=True, exist_ok=True)
    read = _read_coco if source.suffix.lower() == ".json" else read_cvat
    with (
        tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as made,
        unpacked(source, out.parent) as folder,
    ):
        export, target = read(folder, ignore), Path(made) / "import"
        files = images or export.images
        if not files or not files.is_dir():
            raise InputError(f"{source}: no folder {files or 'of images'}; name it with --images")
        target.mkdir()
        if not images and folder != source:  # unpacked here
            files = files.rename(target / "images")
        note = _write(export, _by_name(files), target, split)
        if out.exists():
            out.rmdir()
        target.rename(out)
    return Outcome(path=out / "dataset.yaml", notes=[note])


@contextmanager
def unpacked(source: Path, beside: Path) -> Iterator[Path]:
    """`source`, or the folder in `beside` where it is unpacked for the time being if it is a zip.

    An InputError in the block that names that folder is raised naming the zip.
    """
    if not source.exists():
        raise InputError(f"no file or folder {source}")
    if source.suffix.lower() != ".zip":
        yield source
        return
    with tempfile.TemporaryDirectory(prefix=f".{source.stem}.", dir=beside) as folder:
        try:
            with zipfile.ZipFile(source) as archive:
                archive.extractall(folder)  # no name in it can lead out of the folder
        except (OSError, zipfile.BadZipFile, zlib.error, RuntimeError, EOFError) as error:
            raise InputError(f"{source} cannot be unpacked: {error}") from None
        try:
            yield Path(folder)
        except InputError as error:
            raise InputError(str(error).replace(folder, str(source))) from None


def read_cvat(folder: Path, ignore: Sequence[str] = ()) -> Export:
    """The classes and masks of a CVAT export, whose files are read when `Mask.read` is called."""
    maps = sorted(folder.rglob("labelmap.txt"))
    root = maps[0].parent if maps else folder
    if len(maps) != 1 or not (root / "SegmentationClass").is_dir():
        raise InputError(
            f"{folder} is not one CVAT export 'Segmentation mask 1.1' (a zip or folder with "
            "labelmap.txt and SegmentationClass), nor the JSON file of COCO panoptic"
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
    labels, ids = _label_set(colors, ignore, maps[0])

    def read(file: Path) -> NDArray[np.uint8]:
        with open_pillow(file) as image:  # CVAT: 3 channels of colour, or 1 of indices
            if image.mode in ("1", "L"):
                return _classes(np.asarray(image), dict(enumerate(ids.values())), file)
            classes = {color: ids[name] for color, name in known.items()}
            return _classes(pack(np.asarray(image.convert("RGB"))), classes, file)

    splits = {
        name: None if file.stem.lower() == "default" else file.stem.lower()
        for file in sorted((root / "ImageSets" / "Segmentation").glob("*.txt"))
        for name in _lines(file)
    }
    files = _by_name(root / "SegmentationClass")
    masks = [
        Mask(name, file, partial(read, file), splits.get(name)) for name, file in files.items()
    ]
    return Export(labels, masks, root / "JPEGImages")


def _read_coco(file: Path, ignore: Sequence[str]) -> Export:
    def read(mask: Path, segments: dict[int, int]) -> NDArray[np.uint8]:
        with open_pillow(mask) as image:
            return _classes(pack(np.asarray(image.convert("RGB"))[..., ::-1]), segments, mask)

    masks = []
    try:
        content = json.loads(file.read_bytes())
        categories = sorted(content["categories"], key=lambda category: category["id"])
        colors = {category["name"]: category.get("color") for category in categories}
        labels, ids = _label_set(colors, ignore, file)
        classes = {category["id"]: ids[category["name"]] for category in categories}
        images = {image["id"]: image["file_name"] for image in content["images"]}
        for annotation in content["annotations"]:
            image, mask = images[annotation["image_id"]], annotation["file_name"]
            if any(p.anchor or ".." in p.parts for p in map(PureWindowsPath, (image, mask))):
                raise InputError(f"{file}: {image} or {mask} leads out of its folder")
            name, path = Path(image).with_suffix("").as_posix(), file.with_suffix("") / mask
            segments = {s["id"]: classes[s["category_id"]] for s in annotation["segments_info"]}
            masks.append(Mask(name, path, partial(read, path, {0: IGNORE} | segments)))
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{file} is not COCO panoptic ({type(error).__name__} {error}); of COCO instances or "
            "Label Studio, export panoptic, or PNG masks and describe those with a dataset.yaml"
        ) from None
    return Export(labels, masks)


def _label_set(
    colors: dict[str, Color | None], ignore: Sequence[str], source: Path
) -> tuple[LabelSet, dict[str, int]]:
    """The class table of the names in `colors` but for those to `ignore`, and the id of each."""
    if unknown := [name for name in ignore if name not in colors]:
        known = ", ".join(colors)
        raise InputError(f"{source} has no class {unknown[0]!r} to ignore, only {known}")
    names = tuple(name for name in colors if name not in ignore)
    spare = spread(len(names))
    palette = tuple(colors[name] or spare[k] for k, name in enumerate(names))
    ids = dict.fromkeys(colors, IGNORE) | {name: k for k, name in enumerate(names)}
    return LabelSet(names, palette, tuple(range(len(names)))), ids


def _classes(values: NDArray[np.integer], known: dict[int, int], file: Path) -> NDArray[np.uint8]:
    """Values `[H,W]` as class indices. Raises InputError for one that is not `known`."""
    found, where = np.unique(values, return_inverse=True)
    if unknown := set(found.tolist()) - known.keys():
        raise InputError(
            f"{file}: {len(unknown)} value(s), such as {min(unknown):#08x}, are not listed in the "
            "export; do its files belong together?"
        )
    return np.array([known[v] for v in found.tolist()], np.uint8)[where].reshape(values.shape)


def _by_name(folder: Path) -> dict[str, Path]:
    return {f.relative_to(folder).with_suffix("").as_posix(): f for f in images_below(folder)}


def _lines(file: Path) -> list[str]:
    lines = file.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    return [line.strip() for line in lines if line.strip()]


def _write(export: Export, images: dict[str, Path], target: Path, split: str) -> str:
    """Fill the folder `target`; returns what is in it, for people."""
    palette = np.ravel(export.labels.palette).astype(np.uint8).tobytes().ljust(768, b"\0")

    def write(mask: Mask) -> tuple[str, str]:
        image, label = images.get(mask.name), mask.read()
        if not image or read_size(image) != label.shape:
            why = f"{image} has another size" if image else f"there is no image {mask.name}.*"
            raise InputError(f"{mask.file}: {why}; do they belong together? see --images")
        file = target / "labels" / f"{mask.name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        painted = Image.fromarray(label)
        painted.putpalette(palette)
        painted.save(file)
        inside = image.is_relative_to(target)
        image = image.relative_to(target) if inside else image.resolve()
        return image.as_posix(), file.relative_to(target).as_posix()

    splits: dict[str, list[tuple[str, str]]] = {}
    with ThreadPoolExecutor() as pool:
        for mask, row in zip(export.masks, pool.map(write, export.masks), strict=True):
            name = mask.split or split
            splits.setdefault(_SPLITS.get(name, name), []).append(row)
    if not splits:
        raise InputError("the export holds no masks; export once something is labelled")
    for name, rows in splits.items():
        with (target / f"{name}.csv").open("w", encoding="utf-8", newline="") as lines:
            csv.writer(lines).writerows([("image", "label"), *rows])
    text = description_text(export.labels, {name: f"{name}.csv" for name in splits})
    (target / "dataset.yaml").write_text(text, encoding="utf-8")
    counts = ", ".join(f"{len(rows)} in {name}" for name, rows in splits.items())
    return f"labelled images: {counts}; {len(images) - len(export.masks)} have no label yet"
