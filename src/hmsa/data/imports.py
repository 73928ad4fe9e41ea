"""Exports of annotation tools -> a folder of ours: images/, labels/, lists of splits, dataset.yaml.

`exports.py` reads them. Labels become 8-bit palette PNGs of class indices, 255 = none.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from ..runs import InputError, Outcome
from ..runs.files import new_folder
from . import parquet
from .archives import unpacked
from .descriptions import description_text
from .exports import NoSuchImages, UnknownExport, read_export
from .images import read_size
from .lists import list_text
from .masks import Export, Mask, by_name, name_of
from .pairs import last_names

_SPLITS = {"validation": "val", "valid": "val", "training": "train"}  # tools say: recipes say
_FEW = 5  # images; of fewer, none are held out
_UPLOADED = re.compile("(^|/)[0-9a-f]{8}-")  # Label Studio puts it before the names of images
Row = tuple[str, str]  # image and label, as a list names them


def import_masks(
    source: Path,
    out: Path,
    images: Path | None = None,
    ignore: Sequence[str] = (),
    split: str = "train",
    val: float = 0.2,
) -> Outcome:
    """Make the folder `out` from the export `source`, whole or not at all.

    images: folder of the images, if they are not in the export; they stay there. ignore: classes
    that mean "no label". split: what to call a split that the export does not name. val: share of
    the images to hold out if there is only the split train. Parquet files are unpacked, without a
    dataset.yaml, as what their labels hold is not known.
    """
    with new_folder(out) as target, unpacked(source, out.parent) as folder:
        try:
            export = read_export(folder, ignore)
        except UnknownExport:
            if not (tables := parquet.find(folder)):
                raise
            if images or ignore:
                raise InputError(
                    f"{source} holds Parquet files, with which --images and --ignore do nothing; "
                    f"leave them out, and correct {out}/dataset.yaml after hmsa data check {out}"
                ) from None
            count = parquet.unpack(tables, folder, target)
            return Outcome(path=out, notes=[f"labelled images: {count}"])
        files = images or export.images
        if not files or not files.is_dir():
            raise NoSuchImages(f"{source}: no folder {files or 'of images'}; name it with --images")
        inside = not images and folder != source  # unpacked here
        labels = {mask.file for mask in export.masks}
        found = {name: [*({*each} - labels)] for name, each in by_name(files).items()}
        rows = _write(export, _pairs(export.masks, found), files, target, inside)
        notes = _write_lists(export, rows, target, split, val)
        left = sum(map(len, found.values())) - len(rows)
        notes[0] += f"; {left} have no label yet"
        if inside:
            files.rename(target / "images")
    return Outcome(path=out / "dataset.yaml", notes=notes)


def _write(
    export: Export, pairs: dict[Path, Mask], folder: Path, target: Path, moved: bool
) -> list[tuple[Mask, Row]]:
    """Write all labels into the folder `target`; returns the rows of lists.

    pairs: of each image. folder: of the images; moved: whether it will be `target`/images.
    """
    palette = np.ravel(export.labels.palette).astype(np.uint8).tobytes().ljust(768, b"\0")

    def write(image: Path, mask: Mask) -> tuple[Mask, Row]:
        size = read_size(image)
        if (mask.size or size) == size:  # else nothing so large is painted
            label = mask.read()
            mask = mask._replace(size=(label.shape[0], label.shape[1]))
        if mask.size != size:
            raise NoSuchImages(
                f"{mask.file}: {image} has another size; do they belong together? see --images"
            )
        mask = mask._replace(name=name_of(image.relative_to(folder).as_posix(), folder))
        file = target / "labels" / f"{mask.name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        painted = Image.fromarray(label)
        painted.putpalette(palette)
        painted.save(file)
        image = "images" / image.relative_to(folder) if moved else image.resolve()
        return mask, (image.as_posix(), file.relative_to(target).as_posix())

    with ThreadPoolExecutor() as pool:
        return [*pool.map(write, pairs, pairs.values())]


def _pairs(masks: Sequence[Mask], images: dict[str, list[Path]]) -> dict[Path, Mask]:
    """The mask of each image; images: by their path below their folder, without suffix."""
    alike, pairs = defaultdict[str, list[str]](list), dict[Path, Mask]()
    for name in images:
        alike[_last(name)].append(name)
    for mask in masks:
        image = _image_of(mask, images, alike)
        if pairs.setdefault(image, mask) != mask:
            raise InputError(
                f"{pairs[image].file} and {mask.file} both label {image}; import each by itself, "
                "or rename one of the images"
            )
    return pairs


def _image_of(mask: Mask, images: dict[str, list[Path]], alike: dict[str, list[str]]) -> Path:
    """Tools move and rename the images that they export; alike: names by their last part."""
    files = images.get(mask.name) or images.get(f"{mask.split}/{mask.name}")  # as CVAT's projects
    for name in (mask.name, _UPLOADED.sub(r"\1", mask.name)):
        if not files:
            near = [each for each in alike[_last(name)] if _ends(each, name) or _ends(name, each)]
            files = [file for each in near for file in images[each]]
            files = [file for file in files if file.parent == mask.file.parent] or files
    if not files:
        raise NoSuchImages(
            f"{mask.file}: there is no image {mask.name}.*; do they belong together? see --images"
        )
    if len(files) > 1:
        first, second = sorted(files)[:2]
        raise InputError(
            f"{first} and {second} have the same name, so it is unknown which one the label "
            "belongs to; rename one in the tool and export again"
        )
    return files[0]


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def _ends(name: str, end: str) -> bool:
    return f"/{name}".endswith(f"/{end}")


def _write_lists(
    export: Export, rows: list[tuple[Mask, Row]], target: Path, split: str, val: float
) -> list[str]:
    """Write a list for each split and dataset.yaml; returns what there is, for people."""
    splits: dict[str, dict[str, Row]] = {}
    for mask, row in rows:
        name = (mask.split or split).lower()
        splits.setdefault(_SPLITS.get(name, name), {})[mask.name] = row
    if not splits:
        raise InputError("the export holds no masks; export once something is labelled")
    notes = [*export.notes]
    if [*splits] == ["train"] and len(rows) >= _FEW and val:
        held = last_names([*splits["train"]], val)
        splits["val"] = {name: splits["train"].pop(name) for name in held}
        notes.append(
            f"the export has one split; its last {len(held)} images by name, from {held[0]} on, "
            "are val (--val 0: none)"
        )
    for name, listed in splits.items():
        text = list_text(listed.values())
        (target / f"{name}.csv").write_text(text, encoding="utf-8")
    text = description_text(export.labels, {name: f"{name}.csv" for name in splits})
    (target / "dataset.yaml").write_text(text, encoding="utf-8")
    counts = ", ".join(f"{len(listed)} in {name}" for name, listed in splits.items())
    return [f"labelled images: {counts}", *notes]
