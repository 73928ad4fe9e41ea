"""`hmsa data preview`: a sheet of what the network will see."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..config.recipe import Recipe
from ..data.datasets import open_dataset
from ..data.sampling import TrainingStream, open_mix
from ..data.transforms import training_transform
from ..report.pictures import overlay, panel
from ..runs import replace


def preview(
    recipe: Recipe, data: Path, out: Path, count: int, *, pictures: Path | None, near: Path
) -> Path:
    """A PNG sheet of the first `count` samples of the joint stage, the label laid over each.

    The very samples that `hmsa train` begins with. data, pictures, near: as for `train`.
    """
    stage, augment, sampling = recipe.joint, recipe.augment, recipe.sampling
    learn = open_dataset(data, recipe.data.train, pictures).trusting(sampling.confidence)
    positions = max(count, stage.steps * stage.batch)
    mix = open_mix(learn, sampling, positions, near, pictures)
    transform = training_transform(stage.crop, stage.resize, augment, recipe.data.long_edge)
    stream = TrainingStream(learn, transform, recipe.seed * 2, mix)
    palette, names = np.array(learn.labels.palette, np.uint8), learn.labels.names
    cells = []
    for position in range(count):
        draw = stream.draw(position)
        image, label = stream[position]
        crop, ids = image.permute(1, 2, 0).numpy(), label.numpy()
        source = stream.source(draw)
        of = f" ({source.split})" if draw.source else ""
        why = "plain" if draw.class_ is None else f"around {names[draw.class_]}"
        cells.append((f"{source.pairs[draw.index].name}{of}", crop))
        cells.append((why, overlay(crop, ids, palette, 0.6)))
    rows = [cells[i : i + 4] for i in range(0, len(cells), 4)]
    replace(out, lambda temporary: panel(rows).save(temporary, format="PNG"))
    return out
