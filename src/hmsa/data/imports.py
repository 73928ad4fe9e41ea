"""Exports of annotation tools -> a folder of ours: images/, labels/, lists of splits, dataset.yaml.

`exports.py` reads them. Labels become 8-bit palette PNGs of class indices, 255 = none.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from ..runs import InputError, Outcome
from .archives import unpacked
from .descriptions import description_text
from .exports import read_export
from .images import read_size
from .lists import list_text
from .masks import Export, Mask, by_name
from .pairs import last_names

_SPLITS = {"validation": "val", "valid": "val", "training": "train"}  # tools say: recipes say
_FEW = 5  # images; of fewer, none are held out
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
    the images to hold out if there is only the split train.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is not empty; name a new folder for the import")
    out.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as made,
        unpacked(source, out.parent) as folder,
    ):
        export, target = read_export(folder, ignore), Path(made) / "import"
        files = images or export.images
        if not files or not files.is_dir():
            raise InputError(f"{source}: no folder {files or 'of images'}; name it with --images")
        target.mkdir()
        found, inside = by_name(files), not images and folder != source  # unpacked here
        rows = _write(export, found, target, files if inside else None)
        notes = _write_lists(export, rows, target, split, val)
        left = sum(map(len, found.values())) - len(rows)
        notes[0] += f"; {left} have no label yet"
        if inside:
            files.rename(target / "images")
        if out.exists():
            out.rmdir()
        target.rename(out)
    return Outcome(path=out / "dataset.yaml", notes=notes)


def _write(
    export: Export, images: dict[str, list[Path]], target: Path, moved: Path | None
) -> list[tuple[Mask, Row]]:
    """Write all labels into the folder `target`; returns the rows of lists.

    moved: the folder of the images if it will be that in `target`.
    """
    palette = np.ravel(export.labels.palette).astype(np.uint8).tobytes().ljust(768, b"\0")
    twice = [name for name, n in Counter(mask.name for mask in export.masks).items() if n > 1]
    if twice:
        raise InputError(f"the export has two labels for {twice[0]}; rename one of the images")

    def write(mask: Mask) -> Row:
        image = _image_of(mask, images)
        size = read_size(image)
        if (mask.size or size) == size:  # else nothing so large is painted
            label = mask.read()
            mask = mask._replace(size=(label.shape[0], label.shape[1]))
        if mask.size != size:
            raise InputError(
                f"{mask.file}: {image} has another size; do they belong together? see --images"
            )
        file = target / "labels" / f"{mask.name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        painted = Image.fromarray(label)
        painted.putpalette(palette)
        painted.save(file)
        image = "images" / image.relative_to(moved) if moved else image.resolve()
        return image.as_posix(), file.relative_to(target).as_posix()

    with ThreadPoolExecutor() as pool:
        return [*zip(export.masks, pool.map(write, export.masks), strict=True)]


def _image_of(mask: Mask, images: dict[str, list[Path]]) -> Path:
    files = images.get(mask.name) or images.get(f"{mask.split}/{mask.name}")  # as CVAT's projects
    if not files:
        raise InputError(
            f"{mask.file}: there is no image {mask.name}.*; do they belong together? see --images"
        )
    if len(files) > 1:
        raise InputError(
            f"{files[0]} and {files[1]} have the same name, so it is unknown which one the label "
            "belongs to; rename one in the tool and export again"
        )
    return files[0]


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
