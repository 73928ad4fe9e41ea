"""A folder of pictures -> labels, confidences and a manifest, by a run that can die at any moment.

    OUT/settings.json          what the labels depend on; written first
    OUT/labels/NAME.png        8-bit palette picture; NAME is the image's path below its folder
    OUT/confidence/NAME.png    8 bits, floor(255 p)
    OUT/rows/NAME.json         what is known of one image; written when its two pictures are
    OUT/dataset.yaml           the images with these labels as a split, `auto`
    OUT/manifest.parquet       all rows in one table; there only when all of it is done

Every file is replaced whole. An image is done if its row is there, and the row names the content of
the image, that of its coarse label, and the settings; so going on is to do what has no such row.
"""

from __future__ import annotations

import base64
import fcntl
import glob
import hashlib
import json
import os
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import yaml
from numpy.typing import NDArray
from PIL import Image
from pyarrow import parquet

from .data.coarse import Coarse
from .data.images import pictures_below, read_image
from .data.labels import LabelSet
from .errors import InputError
from .files import replace
from .pictures import palette_png
from .predictor import Predictor
from .runtime import Meter

SPLIT = "auto"
THRESHOLDS = [percent / 100 for percent in range(50, 100, 5)]  # of the manifest's column `kept`
THRESHOLD_FILE = "thresholds.json"
_SETTINGS, _DESCRIPTION, _MANIFEST = "settings.json", "dataset.yaml", "manifest.parquet"
_FILES = (_MANIFEST, _DESCRIPTION, THRESHOLD_FILE)  # what there is only once all images are done
_FOLDERS = ("labels", "confidence", "rows")
_LOOK = {"scales": [float], "flip": bool}  # settings that the manifest repeats
_TABLE: dict[str, Any] = {
    "image": str, "label": str, "confidence": str, "height": int, "width": int, "sha256": str,
    "teacher": str, **_LOOK, "pixels": [int], "mean_confidence": [float], "kept": [float],
    "coarse_sha256": str, "coarse_pixels": int, "seconds": float, "status": str, "reason": str,
}  # fmt: skip
_TYPES = {str: pyarrow.string, int: pyarrow.int64, float: pyarrow.float64, bool: pyarrow.bool_}
_AT_ONCE = 4096  # rows in memory while the manifest is written


@dataclass(frozen=True)
class Labelling:
    """One run: the pictures below the folder `images` -> `out`.

    teacher: sha256 of the weights. labels: the values that are written.
    """

    predictor: Predictor
    teacher: str
    images: Path
    out: Path
    labels: LabelSet
    precision: str  # as it came to be: bf16 or fp32
    coarse: Coarse | None = None

    @cached_property
    def files(self) -> dict[str, Path]:
        """Images by name. InputError: there are none, or two share a name."""
        if not self.images.is_dir():
            raise InputError(f"no folder {self.images}; give the one that holds the pictures")
        if self.out.resolve().is_relative_to(self.images.resolve()):
            raise InputError(f"{self.out} is inside {self.images}; labels must lie elsewhere")
        named: dict[str, Path] = {}
        for file in pictures_below(self.images):
            name = file.relative_to(self.images).with_suffix("").as_posix()
            if named.setdefault(name, file) != file:
                raise InputError(f"{named[name]} and {file} share one name; which is it? keep one")
        if not named:
            raise InputError(f"no pictures below {self.images}; the suffix tells them")
        if self.coarse and not any(self.coarse.find(f, n) is not None for n, f in named.items()):
            raise InputError(
                f"{self.coarse.dataset.source}, split {self.coarse.dataset.split}: no label of a "
                f"picture below {self.images}, neither by file nor by name; which split has them?"
            )
        return named

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All that a label depends on but the image and its coarse label."""
        look, coarse = self.predictor, self.coarse
        return {
            "images": os.path.relpath(self.images.resolve(), self.out.resolve()),
            "teacher": self.teacher,
            "scales": list(look.scales),
            "flip": look.flip,
            "long_edge": look.model.card.long_edge,
            "precision": self.precision,
            "classes": dict(zip(self.labels.names, self.labels.raw, strict=True)),
            "coarse": coarse and {
                "dataset": coarse.dataset.source.name,
                "split": coarse.dataset.split,
                "values": list(coarse.dataset.labels.raw),
                "fill": None if coarse.fill is None else sorted(coarse.fill),
                "grow": coarse.grow,
            },
        }  # fmt: skip

    @cached_property
    def key(self) -> str:
        return hashlib.sha256(json.dumps(self.settings).encode()).hexdigest()

    def run(self, overwrite: bool = False) -> int:
        """Label what is not labelled yet; returns how many images that were. `locked` around it.

        InputError if OUT was made with other settings, unless it is to be overwritten.
        """
        self._begin(overwrite)
        new = 0
        with Meter("autolabel", len(self.files)) as meter:
            for name in self.files:
                new += self._do(name)
                meter.advance()
        return new

    def rows(self) -> Iterator[dict[str, Any]]:
        """What is known of each image, in the order of their names, after `run`."""
        for name in self.files:
            row = self._row(name)
            if row is None:
                raise InputError(f"{self.out / 'rows' / name}.json went away; run the same again")
            yield row

    def finish(self) -> None:
        """dataset.yaml and, last, manifest.parquet."""
        done = {n for n, row in zip(self.files, self.rows(), strict=True) if _is_done(row)}
        written = pictures_below(self.out / "labels")
        left = {f.relative_to(self.out / "labels").with_suffix("").as_posix() for f in written}
        k, raw = len(self.labels.names), self.labels.raw
        content = {
            "path": ".",
            "splits": {SPLIT: {
                "images": self.settings["images"], "labels": "labels", "confidence": "confidence",
                # Images that could not be read, labels whose image is gone
                "exclude": [glob.escape(name) for name in sorted({*self.files, *left} - done)],
            }},
            "names": (
                list(self.labels.names) if raw == tuple(range(k))
                else dict(zip(raw, self.labels.names, strict=True))
            ),
            "palette": [list(color) for color in self.labels.palette],
        }  # fmt: skip
        text = yaml.safe_dump(content, sort_keys=False, default_flow_style=None)
        replace(self.out / _DESCRIPTION, lambda file: file.write_text(text, encoding="utf-8"))
        replace(self.out / _MANIFEST, self._write_manifest)

    def _begin(self, overwrite: bool) -> None:
        file = self.out / _SETTINGS
        if file.exists():
            before = json.loads(file.read_text(encoding="utf-8"))
            other = [k for k, value in self.settings.items() if before.get(k) != value]
            if other and not overwrite:
                came = "; ".join(f"{k} {before.get(k)}, now {self.settings[k]}" for k in other)
                raise InputError(
                    f"{self.out} was made with other settings ({came}); give these, another OUT, "
                    "or --overwrite"
                )
        elif any((self.out / name).exists() for name in (*_FOLDERS, *_FILES)):
            raise InputError(f"{self.out} holds labels of something else; give another OUT")
        text = json.dumps(self.settings, indent=1)
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            self._unfinish()
            replace(file, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        # What a killed run was writing; pictures begin with no dot
        torn = [f for name in (*_FILES, _SETTINGS) for f in self.out.glob(f".{name}.*")]
        for name in _FOLDERS:
            torn += [f for f in (self.out / name).rglob(".*.*") if f.is_file()]
        for temporary in torn:
            temporary.unlink()

    def _unfinish(self) -> None:
        for name in _FILES:
            (self.out / name).unlink(missing_ok=True)

    def _do(self, name: str) -> bool:
        """One image, if it is not done; whether it was not."""
        began = time.monotonic()
        image = self.files[name]
        place = self.coarse.find(image, name) if self.coarse else None
        row: dict[str, Any] = {"key": self.key, "status": "failed", "reason": ""}
        row["image"] = f"{self.settings['images']}/{image.relative_to(self.images).as_posix()}"
        try:
            row["sha256"] = _sha256(image)
            if self.coarse and place is not None:
                row["coarse_sha256"] = _sha256(self.coarse.dataset.pairs[place].label)
        except OSError as error:
            row["reason"] = f"{error.filename} cannot be read ({error.strerror})"
        else:
            if self._is_there(name, row):
                return False
        self._unfinish()
        # Before the pictures change: no row may ever speak of others than those beside it
        (self.out / "rows" / f"{name}.json").unlink(missing_ok=True)
        if not row["reason"]:
            try:
                row |= self._label(name, image, place)
            except (InputError, Image.DecompressionBombError) as error:
                row["reason"] = " ".join(str(error).split())
        row["seconds"] = round(time.monotonic() - began, 4)
        text = json.dumps(row)
        replace(self.out / "rows" / f"{name}.json", lambda file: file.write_text(text))
        return True

    def _is_there(self, name: str, wanted: dict[str, Any]) -> bool:
        row = self._row(name)
        same = row is not None and all(
            row.get(key) == wanted.get(key) for key in ("key", "sha256", "coarse_sha256", "image")
        )
        if row is None or not same or not _is_done(row):
            return same
        return all((self.out / row[kind]).is_file() for kind in ("label", "confidence"))

    def _row(self, name: str) -> dict[str, Any] | None:
        try:
            row: dict[str, Any] = json.loads((self.out / "rows" / f"{name}.json").read_bytes())
            return row
        except (OSError, ValueError):
            return None

    def _label(self, name: str, image: Path, place: int | None) -> dict[str, Any]:
        """Write label and confidence of one image; what its row says of them."""
        pixels = read_image(image)
        seen = self.predictor(pixels)
        label, confidence = seen.label, seen.confidence
        told: dict[str, Any] = {}
        if self.coarse and place is not None:
            by_people, wanted = self.coarse.spoken(place)
            if by_people.shape != label.shape:
                (h, w), (height, width) = by_people.shape, label.shape
                pair = self.coarse.dataset.pairs[place]
                raise InputError(f"{pair.label} is {w}x{h}, but {image} is {width}x{height}; an "
                                 "image and its coarse label must have one size")  # fmt: skip
            label = np.where(wanted, by_people, label)
            confidence = np.where(wanted, np.uint8(255), confidence)
            told["coarse_pixels"] = int(wanted.sum())
        told |= {"label": f"labels/{name}.png", "confidence": f"confidence/{name}.png"}
        palette = np.zeros((max(self.labels.raw) + 1, 3), np.uint8)
        palette[list(self.labels.raw)] = self.labels.palette
        pictures = {
            "label": palette_png(self.labels.to_raw(label), palette),
            "confidence": Image.fromarray(confidence),
        }
        for kind, picture in pictures.items():
            replace(self.out / told[kind], lambda t, p=picture: p.save(t, format="PNG"))  # type: ignore[misc]
        k = len(self.labels.names)
        bins = np.bincount((label.astype(np.int64) << 8 | confidence).ravel(), minlength=k << 8)
        return told | figures(bins.reshape(k, 256)) | {
            "status": "done", "height": label.shape[0], "width": label.shape[1],
        }  # fmt: skip

    def _write_manifest(self, file: Path) -> None:
        def kind(of: Any) -> Any:
            return pyarrow.list_(_TYPES[of[0]]()) if isinstance(of, list) else _TYPES[of]()

        about = {"classes": list(self.labels.names), "thresholds": THRESHOLDS}
        schema = pyarrow.schema(
            [(name, kind(of)) for name, of in _TABLE.items()],
            metadata={key: json.dumps(value) for key, value in about.items()},
        )
        same = {key: self.settings[key] for key in ("teacher", *_LOOK)}
        rows = ({name: (row | same).get(name) for name in _TABLE} for row in self.rows())
        with parquet.ParquetWriter(file, schema) as writer:
            while some := list(islice(rows, _AT_ONCE)):
                writer.write_table(pyarrow.Table.from_pylist(some, schema))


def figures(counts: NDArray[np.int64]) -> dict[str, Any]:
    """What a row says of pixels `[K,256]` by class and stored confidence."""
    value = np.arange(256)
    pixels, sums = counts.sum(1).tolist(), (counts @ value).tolist()
    return {
        "pixels": pixels,
        "mean_confidence": [s / 255 / n if n else None for s, n in zip(sums, pixels, strict=True)],
        "kept": [float(counts[:, value / 255 >= t].sum() / counts.sum()) for t in THRESHOLDS],
        "counts": base64.b64encode(zlib.compress(counts.astype("<u4").tobytes())).decode(),
    }


def total(rows: Iterator[dict[str, Any]], classes: int) -> NDArray[np.int64]:
    """`[K,256]`: pixels of all rows together by class and stored confidence."""
    counts = np.zeros((classes, 256), np.int64)
    for row in rows:
        if _is_done(row):
            packed = zlib.decompress(base64.b64decode(row["counts"]))
            counts += np.frombuffer(packed, "<u4").reshape(classes, 256)
    return counts


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """`out` for this process alone. The kernel lets go of it however the process ends."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"another run is writing to {out}; wait for it or give another OUT"
            ) from None
        yield


def _is_done(row: dict[str, Any]) -> bool:
    return bool(row["status"] == "done")


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
