"""Exports of annotation tools -> a folder of ours: images/, labels/, lists of splits, dataset.yaml.

CVAT, "Segmentation mask 1.1": a zip, or the folder in it, with labelmap.txt (a line per class,
`name:red,green,blue:parts:actions`), SegmentationClass/*.png in those colours, ImageSets/ and
perhaps JPEGImages/. COCO panoptic: a JSON file beside the folder of its name, whose PNGs hold
segment ids as R + 256 G + 65536 B. Labels become 8-bit palette PNGs of class indices, 255 = none.

Read here rather than by datumaro: that needs pandas 2, Pillow 12 and OpenCV beside ours, wants both
exports in layouts of its own, and leaves to us what most of this file is: which images have no
label, which segments nobody described, pairs of two sizes.
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
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..config.recipe import validate
from ..runs import InputError
from .descriptions import Description, description_text, label_set
from .images import images_below, open_pillow, read_size
from .labels import IGNORE, LabelSet, pack

_SPLITS = {"validation": "val", "training": "train"}  # as annotators call them: as recipes do
_LABELMAP = re.compile(r"(.*):(\d+),(\d+),(\d+):[^:]*:[^:]*")


class Imported(NamedTuple):
    description: Path
    images: dict[str, int]  # of each split
    unlabelled: int  # images that have no mask


@dataclass(frozen=True)
class Mask:
    name: str  # path without suffix, with / between folders
    file: Path
    read: Callable[[], NDArray[np.uint8]]  # -> [H,W] class indices, 255 = none
    split: str | None = None


class Export(NamedTuple):
    labels: LabelSet
    masks: list[Mask]
    images: Path | None = None  # their folder, which need not be there


def import_masks(
    source: Path, out: Path, images: Path | None, ignore: Sequence[str], split: str
) -> Imported:
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
        splits, unlabelled = _write(export, _by_name(files), target, split)
        if out.exists():
            out.rmdir()
        target.rename(out)
    return Imported(out / "dataset.yaml", splits, unlabelled)


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
    colors: dict[str, list[int]] = {}
    for line in _lines(maps[0]):
        if not line.startswith("#"):
            if not (found := _LABELMAP.fullmatch(line)):
                raise InputError(f"{maps[0]}: {line!r} is not name:red,green,blue:parts:actions")
            colors[found[1].strip()] = [int(value) for value in found.groups()[1:]]
    labels = _label_set(colors, ignore, maps[0], "rgb")
    ids = [labels.names.index(name) if name in labels.names else IGNORE for name in colors]

    def read(file: Path) -> NDArray[np.uint8]:
        with open_pillow(file) as image:  # CVAT: 3 channels of colour, or 1 of indices
            values = np.asarray(image)
            if image.mode in ("1", "L") and values.max() < len(ids):
                label: NDArray[np.uint8] = np.array(ids, np.uint8)[values.astype(int)]
                return label
        return labels.read(file)

    splits = {
        name: None if file.stem.lower() == "default" else file.stem.lower()
        for file in sorted((root / "ImageSets" / "Segmentation").glob("*.txt"))
        for name in _lines(file)
    }
    masks = [
        Mask(name, file, partial(read, file), splits.get(name))
        for name, file in _by_name(root / "SegmentationClass").items()
    ]
    return Export(labels, masks, root / "JPEGImages")


def _read_coco(file: Path, ignore: Sequence[str]) -> Export:
    masks = []
    try:
        content = json.loads(file.read_bytes())
        categories = sorted(content["categories"], key=lambda category: category["id"])
        ids = {category["name"]: category["id"] for category in categories}
        if len(ids) < len(categories):
            raise ValueError("two categories have one name")
        labels = _label_set({c["name"]: c.get("color") for c in categories}, ignore, file)
        train_ids = dict.fromkeys(ids.values(), IGNORE)
        train_ids |= {ids[name]: k for k, name in enumerate(labels.names)}
        images = {image["id"]: image["file_name"] for image in content["images"]}
        for annotation in content["annotations"]:
            known = {s["id"]: train_ids[s["category_id"]] for s in annotation["segments_info"]}
            image, mask = images[annotation["image_id"]], annotation["file_name"]
            if any(p.anchor or ".." in p.parts for p in map(PureWindowsPath, (image, mask))):
                raise InputError(f"{file}: {image} or {mask} leads out of its folder")
            name, path = Path(image).with_suffix("").as_posix(), file.with_suffix("") / mask
            masks.append(Mask(name, path, partial(_read_segments, path, known)))
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{file} is not COCO panoptic ({type(error).__name__} {error}); of COCO instances or "
            "Label Studio, export panoptic, or PNG masks and describe those with a dataset.yaml"
        ) from None
    return Export(labels, masks)


def _read_segments(file: Path, known: dict[int, int]) -> NDArray[np.uint8]:
    """Segment ids as class indices; known: segment id -> class index; id 0 is nothing."""
    with open_pillow(file) as image:
        ids = pack(np.asarray(image.convert("RGB"))[..., ::-1])
    segments, where = np.unique(ids, return_inverse=True)
    if unknown := set(segments.tolist()) - known.keys() - {0}:
        raise InputError(
            f"{file}: segment {min(unknown)} ({len(unknown)} unknown in all) is not in its "
            "segments_info; do the JSON file and the folder belong together?"
        )
    classes = [known.get(segment, IGNORE) for segment in segments.tolist()]
    return np.array(classes, np.uint8)[where].reshape(ids.shape)


def _label_set(
    colors: dict[str, Any], ignore: Sequence[str], source: Path, encoding: str = "index"
) -> LabelSet:
    """The class table of all names in `colors` that are not in `ignore`."""
    if unknown := [name for name in ignore if name not in colors]:
        known = ", ".join(colors)
        raise InputError(f"{source} has no class {unknown[0]!r} to ignore, only {known}")
    kept = {name: color for name, color in colors.items() if name not in ignore}
    table: dict[str, Any] = {
        "splits": {},
        "names": list(kept),
        "palette": list(kept.values()) if all(kept.values()) else None,
        "encoding": encoding,
        "ignore": [colors[name] for name in ignore] if encoding == "rgb" else IGNORE,
    }
    return label_set(validate(Description, table, source), source)


def _by_name(folder: Path) -> dict[str, Path]:
    return {f.relative_to(folder).with_suffix("").as_posix(): f for f in images_below(folder)}


def _lines(file: Path) -> list[str]:
    lines = file.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    return [line.strip() for line in lines if line.strip()]


def _write(
    export: Export, images: dict[str, Path], target: Path, split: str
) -> tuple[dict[str, int], int]:
    """Fill the folder `target`; returns images of each split, and how many have no mask."""
    labels = replace(export.labels, raw=tuple(range(len(export.labels.names))), encoding="index")
    palette = np.ravel(labels.palette).astype(np.uint8).tobytes().ljust(768, b"\0")

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
    text = description_text(labels, {name: f"{name}.csv" for name in splits})
    (target / "dataset.yaml").write_text(text, encoding="utf-8")
    counts = {name: len(rows) for name, rows in splits.items()}
    return counts, len(images) - len(export.masks)
