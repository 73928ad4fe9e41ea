"""`hmsa data preview`: the samples that training starts with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from ..config.recipe import Recipe
from ..data.datasets import open_dataset
from ..data.sampling import open_mix
from ..report.pictures import overlay, panel
from ..runs import Progress
from .train import stream_of


def draw(recipe: Recipe, data: Path, count: int, pictures: Path | None, near: Path) -> Image.Image:
    """The first `count` samples of the joint stage, each with its label laid over it.

    data, pictures, near: as for `train`.
    """
    stage, sampling = recipe.joint, recipe.sampling
    learn = open_dataset(data, recipe.data.train, pictures).trusting(sampling.confidence)
    samples = max(count, stage.steps * stage.batch)
    mix = open_mix(learn, sampling, samples, near=near, pictures=pictures, progress=Progress)
    stream, labels = stream_of(recipe, "joint", learn, mix), learn.labels
    palette, cells = np.array(labels.palette, np.uint8), []
    for position in range(count):
        draw, (image, label) = stream.draw(position), stream[position]
        source, crop = stream.source(draw), image.permute(1, 2, 0).numpy()
        split = f" ({source.split})" if draw.source else ""
        why = "plain" if draw.class_ is None else f"around {labels.names[draw.class_]}"
        cells.append((f"{source.pairs[draw.index].name}{split}", crop))
        cells.append((why, overlay(crop, label.numpy(), palette, 0.6)))
    return panel([cells[i : i + 4] for i in range(0, len(cells), 4)])
