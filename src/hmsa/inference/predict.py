"""`hmsa predict`: labels, overlays, confidence and more for files, folders, globs and videos."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..checkpoint.files import GateCurve, fingerprint
from ..data.images import SUFFIXES, OpenImage, open_image, read_size
from ..model.pretrained import Card
from ..runs.errors import InputError
from ..runs.files import sweep
from ..runs.machine import Precision
from ..runs.progress import Progress, say
from . import video
from .export import OPEN, Exported
from .ledger import Ledger
from .pipeline import flow
from .predictor import Predictor
from .result import Prediction
from .writer import DEFAULT, KINDS, Writer

Item = tuple[str, Path]  # the name that results get, and the picture
_LISTS = {".txt"}
_ROOM = 32 << 20  # pixels read and not yet written: some hundred MiB beside the network


class Done(NamedTuple):
    made: int  # pictures and videos
    before: int  # done by an earlier run, and kept
    problems: list[str]  # one line for each that could not be done


def predict(
    source: Path,
    paths: Sequence[str],
    out: Path,
    scales: Sequence[float] | None = None,
    *,
    save: Sequence[str] = DEFAULT,
    overwrite: bool = False,
    batch: int = 1,
    precision: Precision = "auto",
    flip: bool | None = None,
    **further: Any,
) -> Done:
    """Write what is in `save`, keys of `outputs.KINDS`, of each picture into its folder in `out`.

    What an earlier run has done there with the same settings is kept; InputError if its settings
    were others, unless `overwrite`. Of a video, its overlay is made. batch: so many
    neighbours of one size are looked at together. further: as `Predictor.load` takes it.
    """
    found = find_pictures(paths, out)
    if any(map(_is_video, found.values())):
        video.pyav()  # or else said now, not after hours of pictures
    predictor: Predictor | Exported
    if source.suffix in OPEN:
        predictor = Exported(source, scales=scales, precision=precision, flip=flip, **further)
        card = predictor.card
    else:
        predictor = Predictor.load(source, scales, precision, flip, **further)
        card = predictor.model.card
        if predictor.gate:
            _tell_curve(card, predictor)
    scales = sorted(scales or card.scales)
    writer = Writer(out, save, card, scales)
    asked = {"detail": writer.detail}  # and the others only when they are needed
    asked |= {"probabilities": True} if writer.probabilities else {}
    asked |= {"entropy": True} if writer.entropy else {}
    if any(asked.values()) and isinstance(predictor, Exported):
        raise InputError(
            f"{source} tells label and confidence alone; for weights, panel, npz, probabilities "
            "or entropy give the checkpoint"
        )
    settings = predictor.settings | {"checkpoint": fingerprint(source), "save": writer.save}
    made, problems = 0, []
    with _writable(out), Ledger(out, settings, overwrite=overwrite) as ledger:
        results = {name: _results(writer, name, file) for name, file in found.items()}
        todo = [item for item in found.items() if not ledger.has(*item, results[item[0]])]
        sweep(file for name, _ in todo for file in results[name])
        films = [item for item in todo if _is_video(item[1])]
        stills = [item for item in todo if not _is_video(item[1])]

        def look(images: list[OpenImage]) -> list[Prediction]:
            if len(images) > 1 and isinstance(predictor, Predictor):
                return predictor(list(images), **asked)
            return [predictor(image, **asked) for image in images]

        def write(item: Item, image: OpenImage, seen: Prediction) -> None:
            with image:
                writer.write(*item, image, seen)
            ledger.add(item[0])

        def see(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
            return predictor(frame).label

        threads = min(8, os.cpu_count() or 1)
        steps = flow(
            stills, _open, look, write, threads=threads, cost=_pixels, room=_ROOM * batch,
            batch=batch, alike=lambda image: image.size,
        )  # fmt: skip
        all_stills = len(found) - sum(map(_is_video, found.values()))
        with Progress("predict", all_stills, all_stills - len(stills)) as meter:
            for (_, file), problem in steps:
                if problem:
                    named = str(file) in str(problem)
                    problems.append(str(problem) if named else f"{file}: {problem}")
                made += not problem
                meter.advance()
        for name, file in films:
            try:
                video.redraw(file, results[name][0], see, writer.tint)
            except InputError as error:
                problems.append(str(error))
            else:
                ledger.add(name)
                made += 1
    return Done(made, len(found) - len(todo), problems)


def find_pictures(paths: Sequence[str], out: Path | None = None) -> dict[str, Path]:
    """Pictures and videos by the name that their results get: the path below the folder given, or
    as the list has it, no suffix.

    Where two would get one name (a.jpg beside a.png), both keep their suffix in it. What lies in
    the folders of results in `out` is not looked at, nor is it listed.
    """
    found: list[tuple[str, Path]] = []
    for text in paths:
        path = Path(text)
        if path.is_dir():
            below = sorted(p for p in path.rglob("*") if _is_ours(p, out))
            found += [(f.relative_to(path).as_posix(), f) for f in below]
        elif path.is_file() and path.suffix.lower() in _LISTS:
            found += _listed(path)
        elif path.is_file():
            found.append((path.name, path))
        else:
            matches = [Path(match) for match in sorted(glob.glob(text, recursive=True))]
            pictures = [m for m in matches if _is_ours(m, out)]
            if not pictures:
                raise InputError(f"no picture matches {text!r}; give files, folders or a glob")
            found += [(file.name, file) for file in pictures]
    if not found:
        known = ", ".join(sorted(SUFFIXES | video.SUFFIXES))
        raise InputError(f"no pictures in {', '.join(paths)}; known suffixes: {known}")
    stems = Counter(str(Path(name).with_suffix("")) for name, _ in found)
    named: dict[str, Path] = {}
    for name, file in found:
        stem = str(Path(name).with_suffix(""))
        if stems[stem] > 1:
            stem = name.replace(".", "_")
        if named.setdefault(stem, file) != file:
            raise InputError(f"{named[stem]} and {file} would both be named {stem}; run them apart")
    return named


def _tell_curve(card: Card, predictor: Predictor) -> None:
    """What was measured for this budget."""
    curve = GateCurve(**card.gate) if card.gate else None
    share = predictor.gate.share if predictor.gate else None
    if share is None:
        return
    if curve is None or curve.scales != predictor.scales:
        say(f"budget {share:g}: `hmsa gate` would tell what that costs; not measured yet")
        return
    then, full = curve.at(share), curve.at(1.0)
    say(
        f"budget {share:g}: {then.cost:.0%} of the work; on {curve.dataset}, {curve.split}, "
        f"{then.miou:.1%} mIoU against {full.miou:.1%}, {then.agreement:.1%} of the labels the same"
    )


def _is_ours(file: Path, out: Path | None) -> bool:
    if file.suffix.lower() not in SUFFIXES | video.SUFFIXES or file.name.startswith("."):
        return False
    if out is not None:
        below = os.path.relpath(file, out).split(os.sep)[0]
        if below in {form.split("/")[0] for form in KINDS.values()}:
            return False
    return file.is_file()


def _listed(file: Path) -> Iterator[tuple[str, Path]]:
    """The pictures of a list: a path a line, relative to the list; # begins a comment."""
    try:
        lines = file.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} is not a readable list in UTF-8: {error}") from None
    for number, line in enumerate(map(str.strip, lines), 1):
        if line and not line.startswith("#"):
            path = PurePath(line)
            if not (file.parent / path).is_file():
                raise InputError(f"{file} line {number}: no file {line}; mend the path")
            name = "/".join(part for part in path.parts if part not in (path.anchor, ".."))
            yield name, file.parent / path


def _is_video(file: Path) -> bool:
    return file.suffix.lower() in video.SUFFIXES


def _results(writer: Writer, name: str, file: Path) -> list[Path]:
    if _is_video(file):
        return [writer.out / "overlay" / f"{name}{video.redrawn(file)}"]
    return writer.files(name)


def _open(item: Item) -> OpenImage:
    try:
        return open_image(item[1])
    except InputError:
        raise
    except Exception as error:  # whatever else a decoder may raise must not stop the others
        raise InputError(f"{item[1]} cannot be decoded ({error}); replace or remove it") from None


def _pixels(item: Item) -> int:
    try:
        height, width = read_size(item[1])
    except Exception:
        return 0  # reading it will tell why
    return height * width


@contextmanager
def _writable(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{out} cannot be written to ({error.strerror or error}); mend that, and the same "
            "command goes on"
        ) from None
