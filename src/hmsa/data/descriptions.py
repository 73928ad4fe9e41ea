"""A dataset = a folder and one small YAML file that says what is in it; no code.

    path: ../images              # relative to this file
    splits:                      # a folder with images/ and labels/, or both named, or a list file
      train: train
      val: {images: val/images, labels: val/labels, exclude: ["night_*"]}
      drawn: drawn.csv           # see datasets.py
    names: [sky, road, post]     # or value: name, where the values in the files are not 0, 1, 2
    palette: [[70, 130, 180], [128, 64, 128], [220, 220, 0]]
    encoding: index              # index | palette | rgb
    ignore: [255]                # values (rgb: colours) that mean "no label"

An image and its label have the same path below their folders, but for the suffix and the endings
that the split names: {.., image_ending: _leftImg8bit, label_ending: _labelIds}. Images and labels
may also be lists of folders, read as one. For finer scores a description may give `categories` of
classes and `instance_sizes`, as that of Cityscapes does.

The descriptions in `known/` come with the package: each is found by its bare name (`cityscapes`),
and by a folder that contains, or is called, all that its `known_by` lists.
"""

from __future__ import annotations

import os
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import yaml
from pydantic import BeforeValidator, Field

from ..config.reading import Strict, read
from ..runs import InputError, did_you_mean
from .labels import IGNORE, Encoding, LabelSet, pack, spread

KNOWN = {file.stem: file for file in sorted((Path(__file__).parent / "known").glob("*.yaml"))}
_Many = BeforeValidator(lambda value: value if isinstance(value, list) else [value])
_ByValue = BeforeValidator(
    lambda names: dict(enumerate(names)) if isinstance(names, list) else names
)
LISTS = {".csv", ".parquet"}
Byte = Annotated[int, Field(ge=0, le=255)]
Color = tuple[Byte, Byte, Byte]
Folders = Annotated[list[str], _Many]


class Split(Strict):
    """Folders, and which of their files belong together; an ending skips files without it."""

    images: Folders
    labels: Folders
    include: list[str] = Field(["*"], description="file-name patterns to take")
    exclude: list[str] = Field([], description="file-name patterns to leave out")
    image_ending: str = ""
    label_ending: str = ""
    confidence: Folders = Field([], description="8-bit images beside the labels: floor(255 p)")
    confidence_ending: str = ""
    instances: Folders = Field([], description="images: values above 1000 are instances")
    instance_ending: str = ""


class Description(Strict):
    """The YAML file."""

    path: str = Field(".", description="folder of its images; relative to the file")
    path_from: str | None = Field(None, description="environment variable that replaces path")
    known_by: list[str] = Field([], description="what its folder contains, or its name")
    splits: dict[str, str | Split]
    optional: list[str] = Field([], description="splits that may be absent, or divide others anew")
    names: Annotated[dict[int, str], _ByValue, Field(min_length=1, max_length=254)]
    palette: list[Color] | None = None
    encoding: Encoding = "index"
    ignore: Annotated[list[int | Color], _Many] = Field([IGNORE])
    categories: dict[str, list[str]] = Field({}, description="category: its classes; scored, too")
    instance_sizes: dict[str, float] = Field({}, description="class: mean pixels of an instance")


def describe(path: Path, data: Path | None = None) -> tuple[Path, Description, Path]:
    """The YAML file that `path` means, its content, and the folder of its images.

    data: that folder, if it is not where the file says. Raises InputError if it does not exist.
    """
    file, folder = locate(path)
    description = read(Description, file)
    root = data or folder or _root(description, file)
    if not root.is_dir():
        place = description.path_from or "`path` there"
        raise InputError(f"{path}: no folder {root}; correct {place} or pass --data FOLDER")
    return file, description, root


def read_classes(path: Path) -> LabelSet:
    """The class table of the dataset that `path` means; its images need not be there."""
    file, _ = locate(path)
    return label_set(read(Description, file), file)


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
    if path.is_dir() or (_is_bare(path) and not path.exists()):
        raise InputError(
            f"{path} is no known dataset, nor a folder with dataset.yaml or in a known layout; "
            f"{did_you_mean(path.name, KNOWN)}"
        )
    return path, None


def beside(folder: Path, dataset: str) -> Path:
    """What a recipe in `folder` means by `dataset`: a path from there, or else a bare name."""
    path = folder / dataset
    return Path(dataset) if _is_bare(Path(dataset)) and not path.exists() else path


def find_split(description: Description, name: str, source: object) -> Split | str:
    """The folders of a split, or the name of its list file."""
    if name not in description.splits:
        raise InputError(
            f"{source} has no split {name!r}; {did_you_mean(name, description.splits)}"
        )
    split = description.splits[name]
    if isinstance(split, Split) or Path(split).suffix.lower() in LISTS:
        return split
    return Split(images=[f"{split}/images"], labels=[f"{split}/labels"])


def folders(root: Path, names: list[str]) -> list[Path]:
    return [root / name for name in names]


def label_set(description: Description, source: object) -> LabelSet:
    """The class table of a description. Raises InputError, naming `source`, for contradictions."""

    def require(fulfilled: bool, mistake: str) -> None:
        if not fulfilled:
            raise InputError(f"{source}: {mistake}")

    names, encoding, ignore = description.names, description.encoding, description.ignore
    palette = description.palette or spread(len(names))
    colored = encoding != "index"
    twice = [name for name, times in Counter(names.values()).items() if times > 1]
    require(not twice, f"names has {twice[:1]} twice; every class needs its own name")
    count, colors = len(names), len(palette)
    require(count == colors, f"palette has {colors} colours for {count} names")
    require(not colored or bool(description.palette), f"encoding {encoding} needs a palette")
    wrong = [v for v in ignore if isinstance(v, tuple) != colored and v != IGNORE]
    wanted = "colours such as [0, 0, 0]" if colored else "values such as 255"
    require(not wrong, f"ignore has {wrong[:1]}, but encoding {encoding} needs {wanted}")
    raw = tuple(map(_packed, palette) if colored else names)
    ignored = tuple(
        _packed(v) if isinstance(v, tuple) else v for v in ignore if isinstance(v, tuple) == colored
    )
    require(len(set(raw)) == len(names), "two classes have one colour; give each its own")
    both = {*raw} & {*ignored}  # a class may have the value 255, which is only ignored by default
    explicit = "ignore" in description.model_fields_set
    require(not (both and explicit), f"ignore has a value that is also a class: {sorted(both)[:1]}")
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
    return read(Description, KNOWN[name]).known_by
