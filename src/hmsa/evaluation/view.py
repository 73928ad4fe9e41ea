"""Predict images, or a labelled split, for the page in which a person looks at them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checkpoint.files import require_classes
from ..config.options import Inference
from ..data.datasets import open_dataset
from ..data.images import decide, read_image
from ..data.labels import spread
from ..data.walk import find_images
from ..inference.predictor import Predictor
from ..inference.viewer import view_item, view_page
from ..report.page import require_page
from ..runs import InputError, Outcome, Progress, command_line, replace
from .confusion import Confusion

Bytes = NDArray[np.uint8]
Read = Callable[[], tuple[Bytes, Bytes | None]]  # of one image, and of its true label


def view(
    checkpoint: Path, paths: Sequence[str], split: str | None, files: Path | None,
    out: Path | None, most: int, options: Inference,
) -> Outcome:  # fmt: skip
    """Write a page of the `most` images of the lowest IoU or, without labels, confidence.

    paths: images as for `hmsa predict`, or one dataset: a YAML file, its folder, or anything with a
    `split`.
    Raises InputError for what concerns all images, or if none can be read; one that cannot be read
    is a problem of the outcome.
    """
    if not paths:
        raise InputError("no images given; name images or a dataset after the checkpoint")
    first = Path(paths[0])
    labelled = split or first.suffix in (".yaml", ".yml") or (first / "dataset.yaml").is_file()
    if labelled and len(paths) > 1:
        raise InputError(f"{paths[0]} is a dataset and {paths[1]} follows it; give one of them")
    split = split or "val"
    name = _name(first, split if labelled else None)
    run = checkpoint.parent if checkpoint.is_file() else checkpoint
    out = out or (run if run.is_dir() else Path("runs")) / f"view-{name}.html"
    require_page(out)
    predictor = Predictor.load(checkpoint, **vars(options))
    if labelled:
        images = _labelled(predictor, checkpoint, first, split, files)
    else:
        images = _unlabelled(predictor, paths)
    items: list[dict[str, Any]] = []
    problems: list[InputError] = []
    with Progress("view", len(images)) as progress:
        for image, read in images.items():
            try:
                items.append(_item(predictor, image, *read()))
            except InputError as problem:
                problems.append(problem)
            if len(items) > most:
                items.remove(max(items, key=_score))
            progress.advance()
    if not items:
        raise problems[0]
    card = predictor.model.card
    palette = card.palette or spread(predictor.model.classes)
    title = f"{checkpoint} on {name}"
    replace(out, view_page(title, items, card, predictor.scales, palette, command_line()))
    left = len(images) - len(problems) - len(items)
    note = f"{len(items)} image(s), {out.stat().st_size / 1e6:.1f} MB"
    note += f"; {left} that are better were left out, see --most" * (left > 0)
    return Outcome(path=out, notes=[note], problems=list(map(str, problems)))


def _name(source: Path, split: str | None) -> str:
    """Of a page of these images or this split."""
    named = source.resolve()
    if split:
        return f"{(named.parent if named.stem == 'dataset' else named).stem}-{split}"
    return named.stem if named.exists() else "images"


def _labelled(
    predictor: Predictor, checkpoint: Path, source: Path, split: str, files: Path | None
) -> dict[str, Read]:
    dataset = open_dataset(source, split, files)
    require_classes(predictor.model.card, dataset.labels.names, source, checkpoint)
    dataset = dataset.stretched(predictor.stretch)
    return {pair.name: partial(dataset.read, index) for index, pair in enumerate(dataset.pairs)}


def _unlabelled(predictor: Predictor, paths: Sequence[str]) -> dict[str, Read]:
    found = find_images(paths)
    stretch = decide([*found.values()], predictor.stretch)

    def read(file: Path) -> tuple[Bytes, None]:
        return read_image(file, stretch=stretch), None

    return {name: partial(read, file) for name, file in found.items()}


def _item(predictor: Predictor, name: str, image: Bytes, truth: Bytes | None) -> dict[str, Any]:
    made = predictor(image, detail=True, probabilities=True)
    if truth is None:
        return view_item(name, image, made)
    confusion = Confusion(predictor.model.classes)
    confusion.add(truth, made.label)
    *iou, miou = [
        None if math.isnan(n) else n for n in (*confusion.iou().tolist(), confusion.miou())
    ]
    return view_item(name, image, made, truth, iou, miou)


def _score(item: dict[str, Any]) -> float:
    """Lowest first: IoU, or without truth confidence."""
    score = item["miou"] if item["truth"] else item["confidence"]
    return 1.0 if score is None else float(score)
