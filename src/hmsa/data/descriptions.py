"""Which dataset a path or a name means: its YAML file, its folder, its class table.

The descriptions in `known/` come with the package: each is found by its bare name (`cityscapes`),
and by a folder that contains, or is called, all that its `known_by` lists. `schema.py` says what a
description holds.
"""

from __future__ import annotations

import os
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ..config.reading import read_yaml
from ..runs import InputError, did_you_mean
from .labels import COLOURED, IGNORE, LabelSet, pack, spread
from .schema import Color, Description, read_description

KNOWN = {file.stem: file for file in sorted((Path(__file__).parent / "known").glob("*.yaml"))}


def describe(path: Path, data: Path | None = None) -> tuple[Path, Description, Path]:
    """The YAML file that `path` means, its content, and the folder of its images.

    data: that folder, if it is not where the file says. Raises InputError if it does not exist.
    """
    file, folder = locate(path)
    description = read_description(file)
    root = data or folder or _root(description, file)
    if not os.path.isdir(root):
        place = description.path_from or "`path` there"
        raise InputError(f"{path}: no folder {root}; correct {place} or pass --data FOLDER")
    return file, description, root


def read_classes(path: Path) -> LabelSet:
    """The class table of the dataset that `path` means; its images need not be there."""
    file, _ = locate(path)
    return label_set(read_description(file), file)


def locate(path: Path) -> tuple[Path, Path | None]:
    """The YAML file that `path` means, and the folder of its images if `path` is that folder.

    path: a YAML file, a folder with dataset.yaml, a folder in a known layout, or a known name.
    """
    if (path / "dataset.yaml").exists():
        return path / "dataset.yaml", None
    if path.is_dir() and (name := _layout(path)):
        return KNOWN[name], path
    if str(path) in KNOWN and not path.is_file():
        return KNOWN[str(path)], None
    if path.is_dir():
        raise InputError(
            f"{path} has no dataset.yaml and is in no known layout; hmsa data check {path} writes "
            "one"
        )
    if _is_bare(path) and not path.exists():
        raise InputError(f"{path} is no known dataset; {did_you_mean(path.name, KNOWN)}")
    return path, None


def is_dataset(path: Path) -> bool:
    """Whether `path` means a dataset rather than a recipe, which has no `names`."""
    if path.is_dir() or not path.exists():
        return path.is_dir() or str(path) in KNOWN
    return not {"names", "classes"}.isdisjoint(read_yaml(path))


def beside(folder: Path, dataset: str) -> Path:
    """What a recipe in `folder` means by `dataset`: a path from there, or else a bare name."""
    path = folder / dataset
    return Path(dataset) if _is_bare(Path(dataset)) and not path.exists() else path


def label_set(description: Description, source: object) -> LabelSet:
    """The class table of a description. Raises InputError, naming `source`, for contradictions."""
    names, encoding, ignore = description.names, description.encoding, description.ignore
    palette = description.palette or spread(len(names))
    colored = encoding in COLOURED
    wanted = "colours such as [0, 0, 0]" if colored else "values such as 255"
    raw = tuple(map(_packed, palette) if colored else names)
    # 255 is only ignored where it is no class
    kept = [v for v in ignore if v != IGNORE or not (colored or IGNORE in names)]
    wrong = [v for v in kept if isinstance(v, tuple) != colored]
    ignored = tuple(_packed(v) if isinstance(v, tuple) else v for v in kept)
    twice = [name for name, times in Counter(names.values()).items() if times > 1]
    both = sorted({*raw} & {*ignored})
    for wrongly, mistake in [
        (twice, f"names has {twice[:1]} twice; every class needs its own name"),
        (colored and not description.palette, f"encoding {encoding} needs a palette"),
        (encoding == "binary" and {*names} != {0, IGNORE},
         "encoding binary needs two classes, such as names: {0: background, 255: foreground}"),
        (wrong, f"ignore has {wrong[:1]}, but encoding {encoding} needs {wanted}"),
        (len(set(raw)) < len(raw), "two classes have one colour; give each its own"),
        (both, f"ignore has what is also a class: {both[:1]}; remove it there or from names"),
    ]:  # fmt: skip
        if wrongly:
            raise InputError(f"{source}: {mistake}")
    return LabelSet(tuple(names.values()), tuple(palette), raw, ignored, encoding)


def _packed(color: Color) -> int:
    return int(pack(np.array(color, np.uint8)))


def description_text(labels: LabelSet, splits: dict[str, Any]) -> str:
    """A dataset.yaml for label files that hold `labels.raw`, 255 = no label, and lie beside it."""
    plain = labels.raw == tuple(range(len(labels.raw)))
    content = {
        "path": ".",
        "splits": splits,
        "names": [*labels.names] if plain else dict(zip(labels.raw, labels.names, strict=True)),
        "palette": [list(color) for color in labels.palette],
    }
    return yaml.safe_dump(content, sort_keys=False, default_flow_style=None, allow_unicode=True)


def _root(description: Description, file: Path) -> Path:
    """The folder of the images by the description alone."""
    variable = description.path_from
    if variable and (folder := os.environ.get(variable)):
        return Path(folder)
    if variable and "path" not in description.model_fields_set:
        raise InputError(
            f"{file.stem}: the folder of its images is unknown; pass --data FOLDER or set "
            f"{variable}=FOLDER"
        )
    return file.parent / description.path


def _is_bare(path: Path) -> bool:
    return len(path.parts) == 1 and not path.suffix


def _layout(folder: Path) -> str | None:
    """The name of the known layout that a folder has, if any."""
    called = folder.resolve().name.lower()
    found = [
        name
        for name in KNOWN
        if all(sign.lower() == called or (folder / sign).exists() for sign in _signs(name))
    ]
    if len(found) > 1:
        layouts = " or ".join(found)
        raise InputError(f"{folder} could be {layouts}; name one and pass --data {folder}")
    return found[0] if found else None


@cache
def _signs(name: str) -> list[str]:
    return read_description(KNOWN[name]).known_by
