"""`hmsa autolabel`: a teacher labels many images, for a student to learn from."""

from __future__ import annotations

import dataclasses
import json
import os
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from pathlib import Path
from platform import node

from ..checkpoint.files import fingerprint, require_classes, require_unseen
from ..config.options import Inference, Rules
from ..data.coarse import Coarse
from ..data.datasets import Dataset
from ..data.descriptions import read_classes
from ..data.images import decide
from ..data.labels import LabelSet, spread
from ..data.stretch import Range
from ..evaluation.proposal import calibrate, propose
from ..inference.predictor import Predictor
from ..model.pretrained import Card
from ..runs import InputError, Outcome
from ..runs.files import escaped
from .engine import Labeller, label_here, label_with_ray
from .folder import NAME, SPLIT, Folder, is_done, total
from .shards import Shards
from .sources import Row, find


def autolabel(
    teacher: Path,
    images: str,
    out: str,
    *,
    inference: Inference = Inference(),
    rules: Rules = Rules(),
    held_out: Dataset | None = None,
    coarse: Coarse | None = None,
    raw: Path | None = None,
    agreement: bool = False,
    workers: int | None = None,
    cluster: str | None = None,
    overwrite: bool = False,
) -> Outcome:
    """Label the images of a source with the checkpoint `teacher`.

    images: an address, see `sources`. out: a folder, see `folder`, or a URI, see `shards`.
    held_out: labelled images to measure precision on. coarse: labels by people. raw: a dataset
    whose values the label files shall hold. agreement: also store how many scales agree. workers:
    networks at the same time. cluster: address of a Ray cluster, or local. overwrite: label again
    if the teacher or a setting has changed.
    The outcome has a problem for each image that could not be labelled.
    Raises InputError for what can be refused, RuntimeError if images are missing in the end.
    """
    weights, predictor = fingerprint(teacher), Predictor.load(teacher, **vars(inference))
    card = predictor.model.card
    for dataset in [held_out, coarse.dataset if coarse else None]:
        if dataset:
            require_classes(card, dataset.labels.names, dataset.source, teacher)
    if held_out:
        require_unseen(card, held_out.source, held_out.split, teacher, "--held-out")
        held_out.require_labels()
    labels = _label_set(card, raw, teacher)
    images = images if "://" in images else os.path.abspath(images)
    source, where = find(images), images
    if not predictor.stretch.ranges and not any("://" in a for a in (out, *source.images.values())):
        ranges = _ranges_before(Path(out)) if not overwrite else None
        if not ranges:
            ranges = decide([*map(Path, source.images.values())], predictor.stretch).ranges
        predictor.stretch = dataclasses.replace(predictor.stretch, ranges=ranges)
        inference = dataclasses.replace(inference, stretch=ranges or None)
    if "://" not in images + out:
        root, place = Path(images).resolve(), Path(out).resolve()
        if place.is_relative_to(root):
            raise InputError(f"{out} is inside {images}; name an OUT elsewhere")
        where = Path(os.path.relpath(root, place)).as_posix()
    if coarse and source.images:
        coarse.check_names({n: Path(a) for n, a in source.images.items()}, images)
    settings: Row = {
        "images": where, "teacher": weights, **predictor.settings,
        "classes": dict(zip(labels.names, labels.raw, strict=True)),
        "coarse": coarse and coarse.settings, "agreement": agreement,
    }  # fmt: skip
    opened: AbstractContextManager[Folder | Shards]
    if "://" in out:
        opened = nullcontext(Shards(out, settings, overwrite))
    else:
        opened = Folder(Path(out), settings, labels, source.images, overwrite)
    with opened as output:
        new: list[str] = []

        def store(row: Row) -> None:
            output.store(row)
            new.append(row["name"])

        known = output.known()
        pieces = [piece for piece in source.pieces if escaped(piece.get("name", "")) not in known]
        options: Row = {"labels": labels, "known": known, "coarse": coarse, "agreement": agreement}
        if cluster or (workers or 1) > 1 or "://" in out:
            path = str(teacher.resolve() if teacher.exists() else teacher)
            backend = predictor.backend_in_use  # the same in all processes
            inference = dataclasses.replace(inference, backend=backend)
            make = partial(_load, path, weights, inference, options)
            label_with_ray(make, pieces, store, output.write, cluster or "local", workers)
        else:
            label_here(Labeller(predictor, **options), pieces, store)
        judged = calibrate(predictor, held_out) if held_out else None
        count, seconds, failed = 0, 0.0, list[str]()
        for row in output.rows():
            count, seconds = count + 1, seconds + (row.get("seconds") or 0)
            failed += [] if is_done(row) else [row["reason"]]
        if missing := max(0, (source.count or 0) - count):
            raise RuntimeError(
                f"{missing} of {source.count} images came back from no worker; the same command "
                "goes on"
            )
        proposal = propose(card.names, total(output.rows(), len(card.names)), rules, judged)
        output.finish(json.dumps(proposal.thresholds, indent=1))
    summary = {
        "images": count, "new": len(new), "failed": len(failed), "teacher": weights,
        "dataset": output.dataset, "split": SPLIT, "thresholds": proposal.thresholds,
        "unreached": proposal.unreached, "kept": proposal.kept(),
        "seconds": round(seconds, 3),
    }  # fmt: skip
    judged_on = f"{held_out.source}, split {held_out.split}" if held_out else ""
    return Outcome(summary, proposal.table(rules, judged_on), problems=failed)


def _ranges_before(out: Path) -> tuple[Range, ...]:
    """Values that became 0 and 255 in an earlier run in `out`, so that further images fit in."""
    with suppress(OSError, ValueError, KeyError):
        stored = json.loads((out / f"{NAME}.json").read_text())["stretch"]
        return tuple((low, high) for low, high in stored)
    return ()


def _load(teacher: str, weights: str, inference: Inference, options: Row) -> Labeller:
    """In another process. Raises InputError if the teacher is another file there."""
    if fingerprint(teacher) != weights:
        raise InputError(f"{teacher} is another file on {node()}; copy the same to all machines")
    return Labeller(Predictor.load(teacher, **vars(inference)), **options)


def _label_set(card: Card, raw: Path | None, teacher: Path) -> LabelSet:
    """The values that label files hold."""
    if raw is None:
        count = len(card.names)
        palette = [(r, g, b) for r, g, b in card.palette] or spread(count)
        return LabelSet(tuple(card.names), tuple(palette), tuple(range(count)))
    labels = read_classes(raw)
    require_classes(card, labels.names, raw, teacher)
    if labels.encoding != "index" or not all(0 <= value <= 255 for value in labels.raw):
        raise InputError(
            f"--raw: the labels of {raw} are not single values in 0..255; leave --raw out"
        )
    return labels
