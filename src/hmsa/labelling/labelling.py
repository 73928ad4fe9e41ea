"""One run: the pictures below a folder, one after the other, into OUT."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ..data.coarse import Coarse
from ..data.images import images_below, read_image
from ..data.labels import LabelSet
from ..inference.predictor import Predictor
from ..runs.errors import InputError
from ..runs.files import replace
from ..runs.progress import Progress
from .look import look
from .out import (
    DESCRIPTION,
    FOLDER_OF,
    MANIFEST,
    SETTINGS,
    THRESHOLD_FILE,
    description,
    refuse_others,
    settings_of,
)
from .rows import PERSON, Row, is_done, sha256, write_manifest
from .workers import share

_FILES = (MANIFEST, DESCRIPTION, THRESHOLD_FILE)  # what there is only once all images are done
_FOLDERS = (*FOLDER_OF.values(), "rows")


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
    agreement: bool = False  # whether it is stored, too

    def __getstate__(self) -> dict[str, Any]:
        """Without the network and what can be worked out again: each process loads its own."""
        return {each.name: getattr(self, each.name) for each in dataclasses.fields(self)} | {
            "predictor": None
        }

    @property
    def dataset(self) -> str:
        return str(self.out / DESCRIPTION)

    def check(self) -> None:
        """InputError: there is nothing to label, or not there."""
        _ = self.files

    @cached_property
    def files(self) -> dict[str, Path]:
        """Images by name. InputError: there are none, or two share a name."""
        if not self.images.is_dir():
            raise InputError(
                f"no folder {self.images}; give the one that holds the pictures (lists, Parquet, "
                "tar files and URIs need --cluster)"
            )
        if self.out.resolve().is_relative_to(self.images.resolve()):
            raise InputError(f"{self.out} is inside {self.images}; labels must lie elsewhere")
        named: dict[str, Path] = {}
        for file in images_below(self.images):
            name = file.relative_to(self.images).with_suffix("").as_posix()
            if named.setdefault(name, file) != file:
                raise InputError(f"{named[name]} and {file} share one name; which is it? keep one")
        if not named:
            raise InputError(f"no pictures below {self.images}; the suffix tells them")
        if self.coarse:
            self.coarse.check_names(named, self.images)
        return named

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All that a label depends on but the image and its coarse label."""
        return {
            "images": os.path.relpath(self.images.resolve(), self.out.resolve()),
            **settings_of(
                self.predictor, self.teacher, self.precision, self.labels, self.coarse,
                self.agreement,
            ),
        }  # fmt: skip

    @cached_property
    def key(self) -> str:
        return hashlib.sha256(json.dumps(self.settings).encode()).hexdigest()

    def run(self, overwrite: bool = False, crew: Crew | None = None) -> int:
        """Label what is not labelled yet; returns how many images that were. `locked` around it.

        InputError if OUT was made with other settings, unless it is to be overwritten.
        """
        self._begin(overwrite)
        new, items = 0, self.files.items()
        if crew:
            start = _Start(self, crew.load)
            done = share(start, items, crew.count, crew.lock, lambda item: item[0])
        else:
            done = ((item, self._do(item)) for item in items)
        with closing(done), Progress("autolabel", len(items)) as meter:
            for _, was_new in done:
                new += was_new
                meter.advance()
        if crew:
            self._sweep()
        return new

    def rows(self) -> Iterator[Row]:
        """What is known of each image, in the order of their names, after `run`."""
        for name in self.files:
            row = self._row(name)
            if row is None:
                raise InputError(f"{self.out / 'rows' / name}.json went away; run the same again")
            yield row

    def finish(self, thresholds: str | None = None) -> int:
        """thresholds.json, dataset.yaml and, last, manifest.parquet; how many images there are."""
        done: set[str] = set()

        def write(manifest: Path) -> None:
            write_manifest(manifest, self._told(done), self.settings)
            written = images_below(self.out / "labels")
            left = {f.relative_to(self.out / "labels").with_suffix("").as_posix() for f in written}
            # Images that could not be read, labels whose image is gone
            exclude = {*self.files, *left} - done
            text = description(self.labels, self.settings["images"], exclude)
            replace(self.out / DESCRIPTION, lambda file: file.write_text(text, encoding="utf-8"))
            if thresholds is not None:
                replace(self.out / THRESHOLD_FILE, lambda file: file.write_text(thresholds))

        replace(self.out / MANIFEST, write)
        return len(self.files)

    def _told(self, done: set[str]) -> Iterator[Row]:
        """Rows for the manifest; `done` gets the names of those with labels."""
        for name, row in zip(self.files, self.rows(), strict=True):
            if is_done(row):
                done.add(name)
            yield row

    def _begin(self, overwrite: bool) -> None:
        file = self.out / SETTINGS
        if file.exists():
            refuse_others(self.out, file.read_text(encoding="utf-8"), self.settings, overwrite)
        elif any((self.out / name).exists() for name in (*_FOLDERS, *_FILES)):
            raise InputError(f"{self.out} holds labels of something else; give another OUT")
        text = json.dumps(self.settings, indent=1)
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            self._unfinish()
            replace(file, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        self._sweep()

    def _sweep(self) -> None:
        """Remove what a killed run, or worker, was writing; pictures begin with no dot."""
        torn = [f for name in (*_FILES, SETTINGS) for f in self.out.glob(f".{name}.*")]
        for name in _FOLDERS:
            torn += [f for f in (self.out / name).rglob(".*.*") if f.is_file()]
        for temporary in torn:
            temporary.unlink()

    def _unfinish(self) -> None:
        for name in _FILES:
            (self.out / name).unlink(missing_ok=True)

    def _do(self, item: tuple[str, Path]) -> bool:
        """One image, if it is not done; whether it was not."""
        began = time.monotonic()
        name, image = item
        place = self.coarse.find(image, name) if self.coarse else None
        row: Row = {"key": self.key, "status": "failed", "reason": ""}
        row["image"] = f"{self.settings['images']}/{image.relative_to(self.images).as_posix()}"
        try:
            row["sha256"] = sha256(image)
            if self.coarse and place is not None:
                row["coarse_sha256"] = sha256(self.coarse.dataset.pairs[place].label)
        except OSError as error:
            row["reason"] = f"{error.filename} cannot be read ({error.strerror})"
        else:
            if self._is_there(name, row) or self._people_spoke(name, row):
                return False
        self._unfinish()
        # Before the pictures change: no row may ever speak of others than those beside it
        (self.out / "rows" / f"{name}.json").unlink(missing_ok=True)
        if not row["reason"]:
            try:
                row |= self._label(name, image, place)
            except InputError as error:
                row["reason"] = " ".join(str(error).split())
        row["seconds"] = round(time.monotonic() - began, 4)
        text = json.dumps(row)
        replace(self.out / "rows" / f"{name}.json", lambda file: file.write_text(text))
        return True

    def _is_there(self, name: str, wanted: Row) -> bool:
        row = self._row(name)
        same = row is not None and all(
            row.get(key) == wanted.get(key) for key in ("key", "sha256", "coarse_sha256", "image")
        )
        if row is None or not same or not is_done(row):
            return same
        return all((self.out / row[kind]).is_file() for kind in FOLDER_OF if kind in row)

    def _people_spoke(self, name: str, wanted: Row) -> bool:
        """Whether a person gave the label, which then stays whatever the settings are now."""
        row = self._row(name)
        if row is None or row.get("source") != PERSON:
            return False
        file = self.out / "rows" / f"{name}.json"
        if row["sha256"] != wanted["sha256"]:
            raise InputError(
                f"{self.files[name]} is another picture than the one that a person labelled; bring "
                f"that back, or remove {file} to have this one labelled"
            )
        if row["image"] != wanted["image"]:  # the same, elsewhere
            self._unfinish()
            text = json.dumps(row | {"image": wanted["image"]})
            replace(file, lambda temporary: temporary.write_text(text))
        return all((self.out / row[kind]).is_file() for kind in FOLDER_OF if kind in row)

    def _row(self, name: str) -> Row | None:
        try:
            row: Row = json.loads((self.out / "rows" / f"{name}.json").read_bytes())
            return row
        except (OSError, ValueError):
            return None

    def _label(self, name: str, image: Path, place: int | None) -> Row:
        """Write label and confidence of one image; what its row says of them."""
        pixels = read_image(image)
        people = None
        if self.coarse and place is not None:
            people = self.coarse.read(place, image, pixels.shape[:2])
        pictures, told = look(self.predictor, pixels, self.labels, people, self.agreement)
        for kind, picture in pictures.items():
            told[kind] = f"{FOLDER_OF[kind]}/{name}.png"
            replace(self.out / told[kind], lambda t, p=picture: p.save(t, format="PNG"))  # type: ignore[misc]
        return told


@dataclass(frozen=True)
class Crew:
    """Processes that label together, each with a network of its own.

    load: makes the predictor on `device=`; None: the best one. lock: what `locked` gave.
    """

    count: int
    load: Callable[..., Predictor]
    lock: int


@dataclass(frozen=True)
class _Start:
    """Makes in worker `index` what labels an image there, on the GPU whose turn it is."""

    labelling: Labelling
    load: Callable[..., Predictor]

    def __call__(self, index: int) -> Callable[[tuple[str, Path]], bool]:
        gpus = torch.cuda.device_count()
        predictor = self.load(device=torch.device("cuda", index % gpus) if gpus else None)
        return dataclasses.replace(self.labelling, predictor=predictor)._do


@contextmanager
def locked(out: Path) -> Iterator[int]:
    """`out` for this process alone; gives the descriptor that holds it.

    The kernel lets go of it when the last process that has the descriptor ends, however it ends.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"another run is writing to {out}; wait for it or give another OUT"
            ) from None
        yield file.fileno()
