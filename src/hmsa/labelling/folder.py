"""The folder that `hmsa autolabel` fills, and what it knows of each image.

    autolabel.json         settings that the labels depend on, see `runs.Run`
    autolabel.jsonl        a line [NAME, row] for each image; the last line of a name counts
    labels/NAME.png        8 bits, the raw values of the classes; NAME: path of the image, no suffix
    confidence/NAME.png    8 bits, floor(255 p)
    agreement/NAME.png     8 bits, floor(255 s), s: share of the scales, and of the image and its
                           mirror image, whose own label is the same; only with --agreement
    thresholds.json        rule -> class -> threshold
    dataset.yaml           the split `auto`, if the images are in a folder
    manifest.parquet       the rows

The last three exist only while all images are done. A row has the columns of `SCHEMA` and `counts`
(see `figures`). status: "done", or "failed" with a reason. sha256: of the image; a row without it
is not final. source: "person" if a person corrected the label; no later run replaces such a row.
"""

from __future__ import annotations

import base64
import glob
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow
from numpy.typing import NDArray
from pyarrow import parquet

from ..data.descriptions import description_text
from ..data.labels import LabelSet
from ..data.walk import images_below
from ..runs import InputError, Run, replace, sha256
from ..runs.files import escaped
from ..runs.folder import difference
from .sources import Row, read

NAME, SPLIT, PERSON = "autolabel", "auto", "person"
MANIFEST, DESCRIPTION, THRESHOLD_FILE = "manifest.parquet", "dataset.yaml", "thresholds.json"
FINISHED = (MANIFEST, DESCRIPTION, THRESHOLD_FILE)
FOLDER_OF = {"label": "labels", "confidence": "confidence", "agreement": "agreement"}
THRESHOLDS = [percent / 100 for percent in range(50, 100, 5)]  # of the column `kept`
MEND = "use these, name another OUT, or add --overwrite"

_TEXT, _INT, _FLOAT = pyarrow.string(), pyarrow.int64(), pyarrow.float64()
SCHEMA = pyarrow.schema({
    "image": _TEXT, "label": _TEXT, "confidence": _TEXT, "height": _INT, "width": _INT,
    "sha256": _TEXT, "teacher": _TEXT, "scales": pyarrow.list_(_FLOAT), "flip": pyarrow.bool_(),
    "pixels": pyarrow.list_(_INT), "mean_confidence": pyarrow.list_(_FLOAT),
    "kept": pyarrow.list_(_FLOAT), "agreement": _TEXT, "mean_agreement": _FLOAT,
    "coarse_sha256": _TEXT, "coarse_pixels": _INT, "seconds": _FLOAT, "status": _TEXT,
    "reason": _TEXT, "source": _TEXT,
})  # fmt: skip
REPEATED = ("teacher", "scales", "flip")  # columns that are settings


class Folder(Run):
    """The folder, opened by the one process that writes into it.

    files: address of each image by name; empty if the images are not files of their own.
    overwrite: with other settings forget all rows but those of persons.
    Raises InputError as `Run` does, and if `out` holds something else.
    """

    write = None  # other machines write nothing, see `Shards.write`

    def __init__(
        self, out: Path, settings: Row, labels: LabelSet, files: Mapping[str, str],
        overwrite: bool = False,
    ) -> None:  # fmt: skip
        self.settings, self.labels, self.files = settings, labels, files
        names = (*FOLDER_OF.values(), *FINISHED)
        if not (out / f"{NAME}.json").exists() and any((out / name).exists() for name in names):
            raise InputError(f"{out} holds labels of something else; name another OUT")
        overwrite = overwrite and bool(changed(f"{out}/{NAME}.json", settings))
        super().__init__(out, NAME, settings, overwrite=overwrite, keep=is_by_person, mend=MEND)
        self.has_split = bool(files) and (out / settings["images"]).is_dir()
        self.dataset = str(out / (DESCRIPTION if self.has_split else MANIFEST))
        self._remove(FINISHED if overwrite else ())

    def known(self) -> set[str]:
        """`key_of` the rows that stay, and the names that persons have labelled.

        Raises InputError if such a name now has another image.
        """
        keys = set()
        for name, row in list(self.records.items()):
            if all((self.folder / row[kind]).is_file() for kind in FOLDER_OF if kind in row):
                if is_by_person(row):
                    self._follow(name, row)
                    keys.add(escaped(name))
                elif row.get("sha256"):
                    keys.add(key_of(row | {"name": name}))
        return keys

    def _follow(self, name: str, row: Row) -> None:
        """The image that a person labelled may be elsewhere now, but must be the same."""
        if not (file := self.files.get(name)) or (image := self._relative(file)) == file:
            return
        if sha256(Path(file)) != row["sha256"]:
            raise InputError(
                f"{file} is another image than the one that a person labelled; bring that back, or "
                f"remove {self.folder / row['label']} to have this one labelled"
            )
        if row["image"] != image:
            self._remove(FINISHED)
            self.add(name, row | {"image": image})

    def store(self, row: Row, outdated: Sequence[str] = FINISHED) -> None:
        """Write the PNG files of a row, bytes in label_png and so on, and then its record.

        outdated: files that are removed first. May be called from several threads.
        """
        name = row["name"]
        self._remove(outdated)
        if name in self.records:  # a row never stands beside files of another one
            unfinished = {"status": "failed", "sha256": None, "source": None}
            reason = f"{name}: writing was interrupted; run the same command again"
            self.add(name, self.records[name] | unfinished | {"reason": reason})
        hidden = {"name", *(f"{kind}_png" for kind in FOLDER_OF)}
        record = {k: value for k, value in row.items() if value is not None and k not in hidden}
        for kind, folder in FOLDER_OF.items():
            if content := row.get(f"{kind}_png"):
                record[kind] = f"{folder}/{name}.png"
                replace(self.folder / record[kind], content)
        self.add(name, record | {"image": self._relative(self.files.get(name, row["image"]))})

    def _relative(self, image: str) -> str:
        if not Path(image).is_absolute():  # a URI, or relative already
            return image
        return Path(os.path.relpath(image, self.folder.resolve())).as_posix()

    def rows(self) -> Iterator[Row]:
        """The rows of `files`, with their names, in the order of these."""
        for name in sorted(self.records.keys() & self.files.keys() or self.records):
            yield self.records[name] | {"name": name}

    def finish(self, thresholds: str | None = None) -> None:
        """Write thresholds (JSON), dataset.yaml and, last, the manifest."""
        texts = {} if thresholds is None else {THRESHOLD_FILE: thresholds}
        if self.has_split:
            below = self.folder / FOLDER_OF["label"]
            left = {f.relative_to(below).with_suffix("").as_posix() for f in images_below(below)}
            done = {row["name"] for row in self.rows() if is_done(row)}
            # Images that could not be read, labels whose image is gone
            exclude = [glob.escape(name) for name in sorted({*self.files, *left} - done)]
            split = {"images": self.settings["images"], "labels": FOLDER_OF["label"],
                     "confidence": FOLDER_OF["confidence"], "exclude": exclude}  # fmt: skip
            texts[DESCRIPTION] = description_text(self.labels, {SPLIT: split})
        for name, text in texts.items():
            replace(self.folder / name, text)
        replace(self.folder / MANIFEST, as_parquet(table_of(self.rows(), self.settings)))

    def _remove(self, files: Iterable[str | Path]) -> None:
        for file in files:
            (self.folder / file).unlink(missing_ok=True)


def changed(file: str, settings: Row) -> str | None:
    """How the settings in a file, if there is one, differ from these."""
    try:
        return difference(json.loads(read(file)), settings)
    except InputError:
        return None
    except (ValueError, AttributeError):
        return "damaged"


def table_of(
    rows: Iterable[Row], settings: Row, more: Sequence[pyarrow.Field] = ()
) -> pyarrow.Table:
    """The rows with the columns of `SCHEMA`, and `more`.

    Its metadata are the classes and the thresholds of `kept`, in JSON. What is not Unicode in the
    names of files is escaped.
    """
    about = {"classes": [*settings["classes"]], "thresholds": THRESHOLDS}
    schema = pyarrow.schema([*SCHEMA, *more], {k: json.dumps(v) for k, v in about.items()})
    same = {key: settings[key] for key in REPEATED}
    texts = ({k: escaped(v) if isinstance(v, str) else v for k, v in r.items()} for r in rows)
    return pyarrow.Table.from_pylist([row | same for row in texts], schema)


def as_parquet(table: pyarrow.Table) -> bytes:
    """The content of a file; pyarrow itself takes no path that is not UTF-8."""
    content = pyarrow.BufferOutputStream()
    parquet.write_table(table, content)
    return bytes(content.getvalue())


def is_done(row: Row) -> bool:
    """Whether the image has a label; else `reason` says why not."""
    return bool(row["status"] == "done")


def is_by_person(row: Row) -> bool:
    """Whether a person corrected the label."""
    return row.get("source") == PERSON


def key_of(row: Row) -> str:
    """All that the label of an image depends on but the settings."""
    return f"{row['name']} {row.get('sha256')} {row.get('coarse_sha256')}"


def tally(
    label: NDArray[np.uint8], confidence: NDArray[np.uint8], classes: int
) -> NDArray[np.int64]:
    """`[K,256]`: pixels of one image by class and stored confidence; 255 is no class."""
    known = label < classes
    places = label[known].astype(np.int64) << 8 | confidence[known]
    return np.bincount(places, minlength=classes << 8).reshape(classes, 256)


def figures(counts: NDArray[np.int64]) -> Row:
    """Columns of a row from its pixels `[K,256]` by class and stored confidence."""
    value = np.arange(256)
    pixels, sums = counts.sum(1).tolist(), (counts @ value).tolist()
    return {
        "pixels": pixels,
        "mean_confidence": [s / 255 / n if n else None for s, n in zip(sums, pixels, strict=True)],
        "kept": [float(counts[:, value / 255 >= t].sum() / counts.sum()) for t in THRESHOLDS],
        "counts": base64.b64encode(zlib.compress(counts.astype("<u4").tobytes(), 1)).decode(),
    }


def total(rows: Iterable[Row], classes: int) -> NDArray[np.int64]:
    """`[K,256]`: pixels of all rows together by class and stored confidence."""
    counts = np.zeros((classes, 256), np.int64)
    for row in filter(is_done, rows):
        packed = zlib.decompress(base64.b64decode(row["counts"]))
        counts += np.frombuffer(packed, "<u4").reshape(classes, 256)
    return counts
