"""Labels that people corrected in an annotation tool, stored in place of auto-labels."""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, TypeAdapter, ValidationError

from ..data.archives import unpacked
from ..data.brush import unpack_mask
from ..data.descriptions import description_text
from ..data.labels import IGNORE
from ..data.masks import Mask, read_cvat
from ..report.pictures import label_image, png_bytes
from ..runs import InputError, Progress, replace
from .folder import MANIFEST, PERSON, Folder, figures, is_by_person, tally
from .labelled import Labelled
from .sources import Row
from .tasks import BACKGROUND, BRUSH

PEOPLE, LIST = "people.yaml", "people.csv"  # the corrected labels as a dataset for another round
Label = NDArray[np.uint8]  # [H,W] train ids, 255 where people left it open
Corrections = dict[str, Callable[[], Label]]  # by the name of the image


class _Region(BaseModel):
    type: str = ""
    original_width: int = 0
    original_height: int = 0
    image_rotation: float | None = 0
    value: dict[str, Any] = {}


class _Annotation(BaseModel):
    was_cancelled: bool | None = None
    updated_at: str | None = None
    result: list[_Region] = []


class _Task(BaseModel):
    id: int | str = "?"
    data: dict[str, Any] = {}
    annotations: list[_Annotation]


@contextmanager
def read_corrections(file: Path, labelled: Labelled) -> Iterator[Corrections]:
    """Labels in a CVAT zip or folder, or in a Label Studio JSON file.

    Raises InputError if it is neither, or has classes or images that the folder does not have.
    """
    if file.exists() and file.suffix.lower() not in (".zip", ".json") and not file.is_dir():
        raise InputError(f"{file} is neither a CVAT zip nor a Label Studio JSON file")
    with unpacked(file, labelled.out) as source:
        found = _studio(file, labelled) if source.is_file() else _cvat(source, labelled)
        strange = [n for n in found if n not in labelled.rows and n not in labelled.failed]
        if strange:
            raise InputError(
                f"{file} has {len(strange)} image(s) that {labelled.out} does not have, such as "
                f"{strange[0]!r}; nothing was taken; give the folder that it was exported from"
            )
        yield found


def take(labelled: Labelled, corrections: Corrections) -> dict[str, int]:
    """Store them with full confidence. All are checked before the first is written; after a kill
    the same call continues.

    Returns how many labels were taken, were the same already, were empty so that the auto-label
    stays; and how many labels by people the whole folder has.
    """
    files = {
        name: str((labelled.out / row["image"]).resolve())
        for name, row in (labelled.rows | labelled.failed).items()
    }
    with Folder(labelled.out, labelled.settings, labelled.labels, files) as folder:
        new, same, empty = [], 0, 0
        with Progress("check", len(corrections)) as progress:
            for name, read in corrections.items():
                label = _checked(read(), name, labelled)
                if (label == IGNORE).all():
                    empty += 1
                elif name in labelled.by_people and (labelled.label(name) == label).all():
                    same += 1
                else:
                    new.append(name)
                progress.advance()
        with Progress("take", len(new)) as progress:
            for name in new:
                folder.store(_corrected(name, corrections[name](), labelled), outdated=[MANIFEST])
                progress.advance()
        if new or not (labelled.out / MANIFEST).is_file():
            folder.finish()
        people = [row for row in folder.rows() if is_by_person(row)]
        if people:
            _list_people(people, labelled)
    return {"taken": len(new), "same": same, "empty": empty, "people": len(people)}


def _corrected(name: str, label: Label, labelled: Labelled) -> Row:
    sure = np.where(label == IGNORE, 0, 255).astype(np.uint8)
    row = _row(name, labelled) | {"name": name, "status": "done", "reason": "", "source": PERSON}
    row["label_png"] = png_bytes(label_image(label, labelled.labels))
    row["confidence_png"] = png_bytes(Image.fromarray(sure))
    if "agreement" in row:
        row |= {"agreement_png": row["confidence_png"], "mean_agreement": 1.0}
    return row | figures(tally(label, sure, len(labelled.labels.names)))


def _list_people(rows: list[Row], labelled: Labelled) -> None:
    content = io.StringIO()
    csv.writer(content, lineterminator="\n").writerows(
        [("image", "label"), *((row["image"], row["label"]) for row in rows)]
    )
    texts = {PEOPLE: description_text(labelled.labels, {"people": LIST}), LIST: content.getvalue()}
    for name, text in texts.items():
        file = labelled.out / name
        if not file.is_file() or file.read_text("utf-8") != text:
            replace(file, text)


def _row(name: str, labelled: Labelled) -> Row:
    row = labelled.rows.get(name) or labelled.failed[name]
    if "height" not in row:
        raise InputError(f"{name}: {row['reason']}; it cannot take a label")
    return row


def _checked(label: Label, name: str, labelled: Labelled) -> Label:
    row = _row(name, labelled)
    if label.shape != (row["height"], row["width"]):
        raise InputError(
            f"{name}: the label is {label.shape[1]}x{label.shape[0]}, the image "
            f"{row['width']}x{row['height']}; nothing was taken"
        )
    if IGNORE in labelled.labels.raw and (label == IGNORE).any():
        name_of_255 = labelled.labels.names[labelled.labels.raw.index(IGNORE)]
        raise InputError(
            f"{name}: {(label == IGNORE).sum()} pixels have no label, which files store as "
            f"{IGNORE}, but that is {name_of_255} in {labelled.out}; label them all, or run hmsa "
            "autolabel without --raw"
        )
    return label


def _cvat(folder: Path, labelled: Labelled) -> Corrections:
    export, ours = read_cvat(folder), labelled.labels
    table = np.full(256, IGNORE, np.uint8)
    for k, name in enumerate(export.labels.names):
        if name != BACKGROUND or name in ours.names:
            table[k] = ours.index(name, folder / "labelmap.txt")

    def read(mask: Mask) -> Label:
        return table[mask.read()]

    names = {normalize("NFC", name): name for name in (*labelled.rows, *labelled.failed)}
    return {names.get(mask.name, mask.name): partial(read, mask) for mask in export.masks}


def _studio(file: Path, labelled: Labelled) -> Corrections:
    try:
        content = file.read_bytes().removeprefix(codecs.BOM_UTF8)
        tasks = TypeAdapter(list[_Task]).validate_json(content)
    except ValidationError as error:
        place, why = ".".join(map(str, error.errors()[0]["loc"])), error.errors()[0]["msg"]
        raise InputError(
            f"{file} is not a Label Studio export with annotations ({place}: {why}); export as "
            "JSON, not as JSON-MIN or another format"
        ) from None
    found: Corrections = {}
    for task in tasks:
        annotations = [each for each in task.annotations if not each.was_cancelled]
        where, name = f"{file} task {task.id}", task.data.get("name")
        if not annotations:
            continue
        if not isinstance(name, str):
            raise InputError(f"{where} has no data.name, by which hmsa finds the image")
        if name in found:
            raise InputError(f"{where}: two tasks have the image {name!r}; remove one of them")
        last = max(annotations, key=lambda each: each.updated_at or "")
        found[name] = partial(_drawn, last.result, where, name, labelled)
    return found


def _drawn(result: list[_Region], where: str, name: str, labelled: Labelled) -> Label:
    """The masks of one annotation in one label; later masks cover earlier ones."""
    row = _row(name, labelled)
    label = np.full((row["height"], row["width"]), IGNORE, np.uint8)
    for region in result:
        size, classes = (region.original_height, region.original_width), region.value.get(BRUSH)
        if region.type != BRUSH:
            if region.type.endswith("labels"):
                raise InputError(f"{where} has {region.type}; only {BRUSH} can be taken")
            continue  # about the image, or about a region beside its label
        if region.image_rotation or not isinstance(classes, list) or len(classes) != 1:
            reason = "is rotated" if region.image_rotation else f"has the classes {classes!r}"
            raise InputError(f"{where}: a brush mask {reason}, which cannot be taken")
        if size != label.shape:
            raise InputError(
                f"{where}: a mask is {size[1]}x{size[0]}, {name} is {label.shape[1]}x"
                f"{label.shape[0]}; nothing was taken"
            )
        try:
            mask = unpack_mask(region.value.get("rle", ()), size)
        except ValueError as error:
            raise InputError(f"{where}: a mask of {classes[0]!r} is damaged, {error}") from None
        label[mask] = labelled.labels.index(str(classes[0]), where)
    return label
