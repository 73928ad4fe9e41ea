"""Predict files, folders, globs, lists and videos, and write what was predicted."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..checkpoint.files import GateCurve, fingerprint
from ..config.options import Inference
from ..data.images import decide, open_image, read_size
from ..data.rasters import OpenImage
from ..data.walk import SUFFIXES, find_images
from ..model.pretrained import Card
from ..runs import CannotWrite, InputError, Outcome, Progress, Run, say, stamp
from . import video
from .choose import choose, names_images
from .export import OPEN, Exported
from .pipeline import flow
from .predictor import Predictor
from .result import Prediction
from .writer import KINDS, Writer

DEFAULT = Path("runs/predict")  # folder of results that have no other
MEND = "name another -o, or do all of it again with --overwrite"
_RANGES = "/stretch"  # of the records, of which the others are names of images
_ROOM = 32 << 20  # pixels read and not yet written: some hundred MiB beside the network


def predict(
    arguments: list[str], out: Path | None, save: list[str], options: Inference, overwrite: bool
) -> Outcome:
    """Write what is in `save`, some of `KINDS`, for each image, and the overlay of each video.

    arguments: paths of images, after a checkpoint or an exported file, unless one is to be chosen.

    What an earlier run did in `out` with the same settings is kept, unless `overwrite`. Raises
    InputError for what concerns all files; one that cannot be read is a problem of the outcome.
    out: None: a folder named after the first of the paths, for these paths alone.
    """
    known = SUFFIXES | video.SUFFIXES.keys()
    chosen = not arguments or names_images(arguments[0], known | {".txt"})
    paths = arguments if chosen else arguments[1:]
    if not paths:
        after = f" after {arguments[0]}, which is taken for a checkpoint" if arguments else ""
        raise InputError(f"no images given{after}; name files, folders, globs or .txt lists")
    named, out = out is not None, out or DEFAULT / _name(Path(paths[0]))
    found = find_images(paths, known, lambda file: _is_result(file, out))
    videos = {name for name, file in found.items() if file.suffix.lower() in video.SUFFIXES}
    if videos:
        video.pyav()  # better refused now than after hours
    source = choose([*found.values()]) if chosen else Path(arguments[0])
    if chosen:
        say(f"{source.name}: these images are most like its training images; others: hmsa models")
    exported = Exported(source, **vars(options)) if source.suffix in OPEN else None
    predictor: Any = exported or Predictor.load(source, **vars(options))
    card = exported.card if exported else predictor.model.card
    if exported is None and predictor.gate and predictor.gate.share is not None:
        say(_expected(card, predictor.scales, predictor.gate.share))
    writer = Writer(out, save, card, options.scales or card.scales)
    if exported and any(writer.needs.values()):
        raise InputError(f"{source} has label and confidence only; for others give the checkpoint")
    settings = predictor.settings | {"checkpoint": fingerprint(source), "save": writer.save}
    settings |= {} if named else {"paths": paths}
    stamps = {file: stamp(file) for file in found.values()}

    def is_done(name: str, file: Path) -> bool:
        unchanged = stamps[file] is not None and run.records.get(name) == stamps[file]
        return unchanged and all(result.is_file() for result in writer.files(name, file))

    def write(item: tuple[str, Path], image: OpenImage, made: Prediction) -> None:
        with image:
            writer.write(*item, image, made)
        run.add(item[0], stamps[item[1]])

    with Run(out, "predict", settings, overwrite=overwrite, mend=MEND) as run:
        if not predictor.stretch.ranges:  # one range for all, also for images that come later
            decided = decide([f for n, f in found.items() if n not in videos], predictor.stretch)
            ranges = run.records.get(_RANGES) or decided.ranges
            predictor.stretch = replace(predictor.stretch, ranges=tuple(map(tuple, ranges)))
            if ranges and _RANGES not in run.records:
                run.add(_RANGES, ranges)
        todo = [item for item in found.items() if not is_done(*item)]
        images = [item for item in todo if item[0] not in videos]
        problems = []
        with Progress("predict", len(images)) as progress:
            for (_, file), problem in flow(
                images, lambda item: open_image(item[1], predictor.stretch),
                lambda image: predictor(image, **writer.needs), write,
                threads=min(8, os.cpu_count() or 1), room=_ROOM,
                cost=lambda item: math.prod(read_size(item[1])),
            ):  # fmt: skip
                problems += [_named(file, problem)] if problem else []
                progress.advance()
        for name, file in (item for item in todo if item[0] in videos):
            try:
                (result,) = writer.files(name, file)
                video.redraw(file, result, lambda frame: predictor(frame).overlay(frame))
                run.add(name, stamps[file])
            except CannotWrite:
                raise
            except InputError as problem:
                problems.append(_named(file, problem))
    kept, count = len(found) - len(todo), len(found) - len(problems)
    before = f" ({kept} of them before)" if kept else ""
    note = f"{count} image(s) labelled in {out}{before}, {len(problems)} could not be read"
    return Outcome(notes=[note], problems=problems)


def _name(path: Path) -> str:
    """Of the folder for the results of what lies at `path`, which may also be a glob."""
    path = path.resolve()
    return path.name if path.is_dir() else path.stem if path.exists() else "images"


def _expected(card: Card, scales: Sequence[float], share: float) -> str:
    """What `hmsa gate` measured for this budget."""
    curve = GateCurve.of(card)
    if curve is None or curve.scales != list(scales):
        return f"budget {share:g}: its cost was not measured yet; hmsa gate measures it"
    then, full = curve.at(share), curve.at(1.0)
    return (
        f"budget {share:g}: {then.cost:.0%} of the work; on {curve.dataset}, {curve.split}, "
        f"{then.miou:.1%} mIoU against {full.miou:.1%}, {then.agreement:.1%} of the labels the same"
    )


def _named(file: Path, problem: Exception) -> str:
    return str(problem) if str(file) in str(problem) else f"{file}: {problem}"


def _is_result(file: Path, out: Path) -> bool:
    return os.path.relpath(file, out).split(os.sep)[0] in KINDS
