"""What annotation tools export -> a folder of ours: images/, labels/, a list a split, dataset.yaml.

CVAT, "Segmentation mask 1.1": a zip, or the folder in it, with labelmap.txt (a line a class,
`name:red,green,blue:parts:actions`), SegmentationClass/*.png in those colours, ImageSets/ and
perhaps JPEGImages/. COCO panoptic: a JSON file beside the folder of its name, whose PNGs hold
segment ids as R + 256 G + 65536 B. Labels become 8-bit palette PNGs of class indices, 255 = none.
"""

from __future__ import annotations

import csv
import json
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image

from ..config.reading import validate
from ..runs.errors import InputError
from .descriptions import Color, Description, label_set
from .images import open_picture, pictures_below, read_size
from .labels import IGNORE, LabelSet, pack

_SPLITS = {"validation": "val", "training": "train"}  # as annotators call them: as recipes do


class Imported(NamedTuple):
    description: Path
    pictures: dict[str, int]  # of each split
    unlabelled: int  # pictures that the export names but has no mask for


@dataclass(frozen=True)
class Mask:
    name: str  # path without suffix, with / between folders
    split: str
    file: Path
    read: Callable[[], NDArray[np.uint8]]  # -> [H,W] class indices, 255 = none


class Export(NamedTuple):
    """What a reader finds in an export."""

    labels: LabelSet
    masks: list[Mask]
    images: dict[str, Path]
    unlabelled: int = 0


def import_masks(
    source: Path,
    out: Path,
    images: Path | None = None,
    ignore: Sequence[str] = (),
    split: str = "train",
) -> Imported:
    """Make the folder `out` from the export `source`, whole or not at all.

    images: folder of the pictures, if they are not in the export; they stay there. ignore: classes
    that mean "no label". split: what to call a split that the export does not name.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is not empty; name a new folder for the import")
    if images and not images.is_dir():
        raise InputError(f"no folder {images}; --images is the folder of the pictures")
    if not source.exists():
        raise InputError(f"no file or folder {source}")
    out.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as made,
        opened(source, out.parent) as folder,
    ):
        try:
            if source.suffix.lower() == ".json":
                export = _coco(source, images, ignore, split)
            else:
                export = _cvat(folder, images, ignore, split)
            target = Path(made) / "import"
            counts = _write(export, target, folder if folder != source else None)
        except InputError as error:  # files of an archive are known by the archive's name
            raise InputError(str(error).replace(str(folder), str(source))) from None
        if out.exists():
            out.rmdir()
        target.rename(out)
    return Imported(out / "dataset.yaml", counts, export.unlabelled)


@contextmanager
def opened(source: Path, beside: Path) -> Iterator[Path]:
    """The folder to read: `source`, or where an archive is unpacked for the time being."""
    if source.suffix.lower() != ".zip":
        yield source
        return
    with tempfile.TemporaryDirectory(prefix=f".{source.stem}.", dir=beside) as folder:
        member = ""
        try:
            with zipfile.ZipFile(source) as archive:
                for info in archive.infolist():
                    member = info.filename
                    _check_inside(member, source)
                needed = sum(info.file_size for info in archive.infolist())
                if needed > shutil.disk_usage(folder).free:
                    raise InputError(f"{source} needs {needed >> 20} MiB beside the new folder")
                for info in archive.infolist():
                    member = info.filename
                    archive.extract(info, folder)
        except (OSError, zipfile.BadZipFile, zlib.error, RuntimeError, EOFError) as error:
            raise InputError(f"{source} {member} cannot be unpacked: {error}") from None
        yield Path(folder)


def _cvat(folder: Path, images: Path | None, ignore: Sequence[str], split: str) -> Export:
    export, root = read_cvat(folder, ignore, split)
    pictures = images or root / "JPEGImages"
    if not pictures.is_dir():
        raise InputError(f"{root} has no pictures; export with images, or pass --images FOLDER")
    return export._replace(images=_by_name(pictures))


def read_cvat(
    folder: Path, ignore: Sequence[str] = (), split: str = "train"
) -> tuple[Export, Path]:
    """Masks of a CVAT export, which may have no pictures, and the folder of its labelmap.txt."""
    maps = sorted(folder.rglob("labelmap.txt")) if folder.is_dir() else []
    if len(maps) != 1:
        many = f"{len(maps)} files labelmap.txt" if maps else "no labelmap.txt"
        raise InputError(
            f"{folder} has {many}; wanted is one CVAT export 'Segmentation mask 1.1' (a zip), or "
            "the JSON file of COCO panoptic"
        )
    root = maps[0].parent
    names, palette = _labelmap(maps[0])
    keep = _kept(names, ignore, maps[0])
    by_color = label_set(
        Description(
            splits={},
            names=[names[i] for i in keep],
            palette=[palette[i] for i in keep],
            encoding="rgb",
            ignore=[palette[i] for i in range(len(names)) if i not in keep],
        ),
        maps[0],
    )
    ignored = tuple(i for i in range(len(names)) if i not in keep)
    by_index = LabelSet(by_color.names, by_color.palette, tuple(keep), ignored)

    def read(file: Path) -> NDArray[np.uint8]:
        with open_picture(file) as picture:  # CVAT: 3 channels of colour, or 1 of indices
            indexed = picture.mode in ("1", "L") and np.asarray(picture).max() < len(names)
        return (by_index if indexed else by_color).read(file)

    listed = {}
    for file in sorted((root / "ImageSets" / "Segmentation").glob("*.txt")):
        called = "" if file.stem.lower() == "default" else file.stem.lower()
        for line in _text(file).splitlines():
            if line.strip():
                listed[line.strip()] = _SPLITS.get(called, called) or split
    if not (root / "SegmentationClass").is_dir():
        raise InputError(f"{root} has no folder SegmentationClass; export 'Segmentation mask 1.1'")
    masks = [
        Mask(name, listed.get(name, split), file, partial(read, file))
        for name, file in _by_name(root / "SegmentationClass").items()
    ]
    without_mask = listed.keys() - {mask.name for mask in masks}
    return Export(by_color, masks, {}, len(without_mask)), root


def _labelmap(file: Path) -> tuple[list[str], list[Color]]:
    names, palette = [], []
    for number, line in enumerate(_text(file).splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, *rest = line.rsplit(":", 3)
        try:
            red, green, blue = (int(part) for part in rest[0].split(","))
            np.array((red, green, blue), np.uint8)
        except (IndexError, ValueError, OverflowError):
            raise InputError(
                f"{file} line {number}: {line!r} is not name:red,green,blue:parts:actions"
            ) from None
        names.append(name.strip())
        palette.append((red, green, blue))
    return names, palette


def _coco(file: Path, images: Path | None, ignore: Sequence[str], split: str) -> Export:
    content = _panoptic(file)
    masks_folder = file.with_suffix("")
    if not masks_folder.is_dir():
        raise InputError(f"no folder {masks_folder}; the PNGs of {file.name} belong there")
    if not images:
        raise InputError(f"{file} holds no pictures; pass --images FOLDER")
    try:
        categories = sorted(content["categories"], key=lambda category: category["id"])
        names = [str(category["name"]) for category in categories]
        keep = _kept(names, ignore, file)
        colors = [categories[i].get("color") for i in keep]
        palette = [tuple(c) for c in colors if c is not None]
        table: dict[str, Any] = {
            "splits": {},
            "names": [names[i] for i in keep],
            "palette": palette if len(palette) == len(keep) else None,
        }
        labels = label_set(validate(Description, table, file), file)
        named = {image["id"]: image["file_name"] for image in content["images"]}
        train_id = {c["id"]: IGNORE for c in categories}
        train_id |= {categories[i]["id"]: k for k, i in enumerate(keep)}
        masks = []
        for annotation in content["annotations"]:
            known = {s["id"]: train_id[s["category_id"]] for s in annotation["segments_info"]}
            image = named[annotation["image_id"]]
            for path in (image, annotation["file_name"]):
                _check_inside(path, file)
            path = masks_folder / annotation["file_name"]
            name = Path(image).with_suffix("").as_posix()
            masks.append(Mask(name, split, path, partial(_read_segments, path, known)))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{file} is not COCO panoptic: {type(error).__name__} {error} in its annotations"
        ) from None
    without_mask = set(named.values()) - {named[a["image_id"]] for a in content["annotations"]}
    return Export(labels, masks, _by_name(images), len(without_mask))


def _panoptic(file: Path) -> dict[str, Any]:
    """The JSON file, if it is COCO panoptic; others that people have are told from it by name."""
    try:
        content = json.loads(_text(file))
    except ValueError as error:
        raise InputError(f"{file} is not JSON: {error}") from None
    if isinstance(content, list):
        raise InputError(
            f"{file} looks like a Label Studio export; export 'Brush labels to PNG' instead, and "
            "describe those with a dataset.yaml"
        )
    annotations = content.get("annotations") if isinstance(content, dict) else None
    if not isinstance(annotations, list) or not annotations:
        raise InputError(f"{file} has no annotations; wanted is the JSON file of COCO panoptic")
    if "segments_info" not in annotations[0]:
        raise InputError(
            f"{file} holds COCO instances, which leave most pixels open; export COCO panoptic"
        )
    return content  # type: ignore[no-any-return]


def _read_segments(file: Path, known: dict[int, int]) -> NDArray[np.uint8]:
    """Segment ids as class indices; id 0 is nothing."""
    with open_picture(file) as picture:
        ids = pack(np.asarray(picture.convert("RGB"))[..., ::-1])
    known = {0: IGNORE} | known
    segments = np.array(sorted(known))
    place = np.searchsorted(segments, ids).clip(max=len(segments) - 1)
    strange = ids[segments[place] != ids]
    if strange.size:
        raise InputError(
            f"{file}: segment {strange[0]} ({strange.size} pixels strange in all) is not in its "
            "segments_info; do the JSON file and the folder belong together?"
        )
    label: NDArray[np.uint8] = np.array([known[s] for s in segments.tolist()], np.uint8)[place]
    return label


def _by_name(folder: Path) -> dict[str, Path]:
    return {
        file.relative_to(folder).with_suffix("").as_posix(): file for file in pictures_below(folder)
    }


def _check_inside(path: str, source: Path) -> None:
    """A path out of a file from elsewhere must not lead out of the folder it is put in."""
    parsed = PureWindowsPath(path)  # knows both kinds of slash, and drives
    if parsed.anchor or ".." in parsed.parts:
        raise InputError(f"{source}: {path!r} leads out of its folder; nothing was imported")


def _kept(names: Sequence[str], ignore: Iterable[str], source: Path) -> list[int]:
    """Places of the names that are classes."""
    strange = [name for name in ignore if name not in names]
    if strange:
        raise InputError(f"{source} has no class {strange[0]!r} to ignore, only {', '.join(names)}")
    return [i for i, name in enumerate(names) if name not in ignore]


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} is not readable text: {error}") from None


def _write(export: Export, target: Path, unpacked: Path | None) -> dict[str, int]:
    """Make the folder `target`; pictures below `unpacked` are moved into it."""
    if not export.masks:
        raise InputError("the export holds no masks; export once something is labelled")
    palette = [value for color in export.labels.palette for value in color]

    def write(mask: Mask) -> tuple[str, str, str]:
        image = export.images.get(mask.name)
        if not image:
            raise InputError(
                f"{mask.file} has no picture {mask.name}.*; pass their --images FOLDER"
            )
        label = mask.read()
        if read_size(image) != label.shape:
            raise InputError(f"{mask.file} and {image} differ in size; they do not belong together")
        at = target / "labels" / f"{mask.name}.png"
        at.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(label)
        picture.putpalette(palette + [0] * (768 - len(palette)))
        picture.save(at)
        listed = str(image.resolve())
        if unpacked and image.is_relative_to(unpacked):
            listed = f"images/{mask.name}{image.suffix}"
            (target / listed).parent.mkdir(parents=True, exist_ok=True)
            image.rename(target / listed)
        return mask.split, listed, f"labels/{mask.name}.png"

    with ThreadPoolExecutor() as pool:
        rows = list(pool.map(write, export.masks))
    splits: dict[str, list[tuple[str, str]]] = {}
    for split, *files in rows:
        splits.setdefault(split, []).append((files[0], files[1]))
    for split, pairs in splits.items():
        with (target / f"{split}.csv").open("w", encoding="utf-8", newline="") as lines:
            csv.writer(lines).writerows([("image", "label"), *pairs])
    content = {
        "splits": {split: f"{split}.csv" for split in splits},
        "names": list(export.labels.names),
        "palette": [list(color) for color in export.labels.palette],
        "encoding": "index",
        "ignore": [IGNORE],
    }
    text = yaml.safe_dump(content, sort_keys=False, default_flow_style=None, allow_unicode=True)
    (target / "dataset.yaml").write_text(text, encoding="utf-8")
    return {split: len(pairs) for split, pairs in splits.items()}
