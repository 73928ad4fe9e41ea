"""What people made of auto-labels, out of an annotation tool and into OUT again."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..data.imports import Mask, read_cvat, unpacked
from ..data.labels import IGNORE
from ..report.pictures import palette_png
from ..runs.errors import InputError
from ..runs.files import replace
from ..runs.progress import Progress
from .brush import unpack_mask
from .labelled import Labelled, present
from .out import FOLDER_OF, MANIFEST, described
from .rows import PERSON, Row, figures, tally, write_manifest
from .tasks import BACKGROUND

PEOPLE, LIST = "people.yaml", "people.csv"
Label = NDArray[np.uint8]  # [H,W] train ids, 255 where people left it open
Corrections = dict[str, Callable[[], Label]]  # by the name of the image


class Taken(NamedTuple):
    new: int
    same: int  # there already
    empty: int  # in which people drew nothing; the auto-label stays
    people: int  # labels by people in all of OUT


@contextmanager
def read_corrections(file: Path, labelled: Labelled) -> Iterator[Corrections]:
    """Labels in a CVAT zip or folder, or in a Label Studio JSON file.

    InputError: it is neither, or has classes or pictures that OUT has not.
    """
    if not file.exists():
        raise InputError(f"no file or folder {file}")
    if file.suffix.lower() not in (".zip", ".json") and not file.is_dir():
        raise InputError(f"{file} is neither a CVAT zip nor a Label Studio JSON file")
    with unpacked(file, labelled.out) as folder:
        try:
            found = _studio(file, labelled) if folder.is_file() else _cvat(folder, labelled)
            known = labelled.rows.keys() | labelled.failed.keys()
            strange = [name for name in found if name not in known]
            if strange:
                raise InputError(
                    f"{file} has {len(strange)} picture(s) that {labelled.out} has not, such as "
                    f"{strange[0]!r}; nothing was taken: is it of another folder?"
                )
            yield found
        except InputError as error:  # files of an archive are known by the archive's name
            raise InputError(str(error).replace(str(folder), str(file))) from None


def take(labelled: Labelled, corrections: Corrections) -> Taken:
    """Put them in place of the labels in OUT, with full confidence; `locked` around it.

    All are looked at before the first is written. Killed in between, the same again goes on.
    """
    new, same, empty = [], 0, 0
    with Progress("check", len(corrections)) as meter:
        for name, read in corrections.items():
            label = _checked(read(), name, labelled)
            if (label == IGNORE).all():
                empty += 1
            elif name in labelled.by_people and (labelled.label(name) == label).all():
                same += 1
            else:
                new.append(name)
            meter.advance()
    manifest = labelled.out / MANIFEST
    if new:
        manifest.unlink(missing_ok=True)
    with Progress("take", len(new)) as meter:
        for name in new:
            _write(name, corrections[name](), labelled)
            meter.advance()
    rows = present(labelled.out)
    if not manifest.is_file():
        replace(manifest, lambda file: write_manifest(file, rows.values(), labelled.settings))
    people = [row for row in rows.values() if row.get("source") == PERSON]
    _list_people(people, labelled)
    return Taken(len(new), same, empty, len(people))


def _list_people(rows: list[Row], labelled: Labelled) -> None:
    """A dataset in OUT of what people said, for whoever labels these pictures again."""
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(("image", "label"))
    writer.writerows((row["image"], row["label"]) for row in rows)
    listed = {PEOPLE: described(labelled.labels, {"people": LIST}), LIST: lines.getvalue()}
    for name, text in listed.items():
        file = labelled.out / name
        if rows and (not file.is_file() or file.read_text(encoding="utf-8") != text):
            replace(file, lambda temporary, t=text: temporary.write_text(t, encoding="utf-8"))  # type: ignore[misc]


def _row(name: str, labelled: Labelled) -> Row:
    row = labelled.rows.get(name) or labelled.failed[name]
    if "height" not in row:
        raise InputError(f"{name}: {row['reason']}; it cannot take a label")
    return row


def _checked(label: Label, name: str, labelled: Labelled) -> Label:
    row = _row(name, labelled)
    if label.shape != (row["height"], row["width"]):
        raise InputError(
            f"{name}: the label is {label.shape[1]}x{label.shape[0]}, the picture "
            f"{row['width']}x{row['height']}; nothing was taken"
        )
    if IGNORE in labelled.labels.raw and (label == IGNORE).any():
        whose = labelled.labels.names[labelled.labels.raw.index(IGNORE)]
        raise InputError(
            f"{name}: {(label == IGNORE).sum()} pixels have no label, which files write as "
            f"{IGNORE}, but that is {whose} in {labelled.out}; label them all, or make it anew "
            "without --raw"
        )
    return label


def _write(name: str, label: Label, labelled: Labelled) -> None:
    """Row, label, confidence, row: at no moment does a row speak of others than those beside it."""
    out, labels, row = labelled.out, labelled.labels, _row(name, labelled)
    file = out / "rows" / f"{name}.json"

    def note(row: Row) -> None:
        replace(file, lambda temporary: temporary.write_text(json.dumps(row)))

    note(row | {"status": "failed", "key": "", "source": None,
                "reason": f"{name}: a correction was cut short; take it again"})  # fmt: skip
    raw = np.full(256, IGNORE, np.uint8)
    raw[: len(labels.raw)] = labels.raw
    palette = np.zeros((max(labels.raw) + 1, 3), np.uint8)
    palette[list(labels.raw)] = labels.palette
    sure = np.where(label == IGNORE, 0, 255).astype(np.uint8)
    pictures = {"label": palette_png(raw[label], palette), "confidence": Image.fromarray(sure)}
    told: Row = {"status": "done", "reason": "", "source": PERSON}
    if "agreement" in row:
        pictures["agreement"], told["mean_agreement"] = Image.fromarray(sure), 1.0
    for kind, picture in pictures.items():
        told[kind] = f"{FOLDER_OF[kind]}/{name}.png"
        replace(out / told[kind], lambda t, p=picture: p.save(t, format="PNG"))  # type: ignore[misc]
    note(row | told | figures(tally(label, sure, len(labels.names))))


def _cvat(folder: Path, labelled: Labelled) -> Corrections:
    export = read_cvat(folder)
    ours = labelled.labels
    table = np.full(256, IGNORE, np.uint8)
    for k, name in enumerate(export.labels.names):
        if name != BACKGROUND or name in ours.names:
            table[k] = ours.index(name, folder)

    def read(mask: Mask) -> Label:
        return table[mask.read()]

    return {mask.name: partial(read, mask) for mask in export.masks}


def _studio(file: Path, labelled: Labelled) -> Corrections:
    try:
        tasks = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file} is not readable JSON: {error}") from None
    if not isinstance(tasks, list) or not all(
        isinstance(task, dict) and isinstance(task.get("annotations"), list) for task in tasks
    ):
        raise InputError(
            f"{file} is no Label Studio export with annotations; export 'JSON', not JSON-MIN or "
            "another format"
        )
    found: Corrections = {}
    for task in tasks:
        given = [each for each in task["annotations"] if not each.get("was_cancelled")]
        if not given:
            continue
        where = f"{file} task {task.get('id', '?')}"
        name = (task.get("data") or {}).get("name")
        if not isinstance(name, str):
            raise InputError(f"{where} has no data.name, by which hmsa knows the picture")
        if name in found:
            raise InputError(f"{where}: there is another task of {name!r}; which is it? keep one")
        last = max(given, key=lambda each: str(each.get("updated_at") or ""))
        found[name] = partial(_drawn, last.get("result") or [], where, name, labelled)
    return found


def _drawn(result: list[dict[str, Any]], where: str, name: str, labelled: Labelled) -> Label:
    """The masks of one annotation laid over each other, the later ones above."""
    row = _row(name, labelled)
    label = np.full((row["height"], row["width"]), IGNORE, np.uint8)
    for region in result:
        kind = str(region.get("type"))
        if kind != "brushlabels":
            if kind.endswith("labels"):
                raise InputError(f"{where} has a region of {kind}; only brush masks can be taken")
            continue  # what is said of the picture or of a region beside its label
        try:
            size = (int(region["original_height"]), int(region["original_width"]))
            value = region["value"]
            packed, (called, *more) = value["rle"], value["brushlabels"]
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{where}: a brush mask is incomplete ({error!r})") from None
        if more or region.get("image_rotation"):
            told = "is turned" if region.get("image_rotation") else "has several classes"
            raise InputError(f"{where}: a brush mask {told}, which cannot be taken")
        if size != label.shape:
            raise InputError(
                f"{where}: a mask is {size[1]}x{size[0]}, {name} is {label.shape[1]}x"
                f"{label.shape[0]}; nothing was taken"
            )
        try:
            mask = unpack_mask(packed, size)
        except InputError as error:
            raise InputError(f"{where}: a mask of {called!r} is damaged, {error}") from None
        label[mask] = labelled.labels.index(called, where)
    return label
