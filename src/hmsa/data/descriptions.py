"""A dataset = a folder and one small YAML file that says what is in it; no code.

    path: ../pictures            # relative to this file
    splits:                      # a folder with images/ and labels/, or both named, or a list file
      train: train
      val: {images: val/images, labels: val/labels, exclude: ["night_*"]}
      drawn: pictures.csv        # see lists.py
    names: [sky, road, post]     # or value: name, where the values in the files are not 0, 1, 2
    palette: [[70, 130, 180], [128, 64, 128], [220, 220, 0]]
    encoding: index              # index | palette | rgb
    ignore: [255]                # values (rgb: colours) that mean "no label"

An image and its label share the path below their folders, but for `.jpg`, `.png` and the like, and
for what the split says they end in: {.., image_ending: _leftImg8bit, label_ending: _labelIds}.
Images and labels may also be lists of folders, read as one. For finer scores a description may give
`categories` of classes and `instance_sizes`, as that of Cityscapes does.
"""

from __future__ import annotations

import difflib
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from ..config.reading import Strict, read
from ..runs.errors import InputError
from .labels import IGNORE, Encoding, LabelSet, pack, spread
from .layouts import locate
from .lists import SUFFIXES

Byte = Annotated[int, Field(ge=0, le=255)]
Color = tuple[Byte, Byte, Byte]


class Split(Strict):
    images: str | list[str]
    labels: str | list[str]
    include: list[str] = Field(["*"], description="file-name patterns to take")
    exclude: list[str] = Field([], description="file-name patterns to leave out")
    image_ending: str = Field("", description="end of an image's name; other files are passed by")
    label_ending: str = Field("", description="end of a label's name; other files are passed by")
    confidence: str | None = Field(
        None, description="folder of 8-bit pictures beside the labels; value = floor(255 p)"
    )
    confidence_ending: str = Field("", description="end of such a picture's name")
    instances: str | list[str] | None = Field(
        None, description="folders of pictures beside the labels: values above 1000 are instances"
    )
    instance_ending: str = Field("", description="end of such a picture's name")


class Description(Strict):
    """The YAML file."""

    path: str = Field(".", description="where its pictures are; relative to the file")
    path_from: str | None = Field(None, description="environment variable that overrules path")
    known_by: list[str] = Field([], description="what its folder holds, or is called; layouts.py")
    splits: dict[str, str | Split]
    names: list[str] | dict[int, str]
    palette: list[Color] | None = None
    encoding: Encoding = "index"
    ignore: list[int | Color] | int = IGNORE
    categories: dict[str, list[str]] = Field({}, description="category: its classes; scored, too")
    instance_sizes: dict[str, float] = Field(
        {}, description="class: mean pixels of its instances; they are scored where there are any"
    )


def describe(path: Path, data: Path | None = None) -> tuple[Path, Description, Path]:
    """The YAML file that `path` means, what it says, and the folder of its pictures, which is."""
    file, folder = locate(path)
    description = read(Description, file)
    root = data or folder or _root(description, file)
    if not root.is_dir():
        mend = f"mend {description.path_from or '`path` there'} or pass --data FOLDER"
        raise InputError(f"{path}: no folder {root}; {mend}")
    return file, description, root


def find_split(description: Description, name: str, source: object) -> Split | str:
    """The folders of a split, or the name of its list file."""
    if name not in description.splits:
        near = difflib.get_close_matches(name, description.splits, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        known = ", ".join(description.splits)
        raise InputError(f"{source} has no split {name!r}, only {known}{hint}")
    split = description.splits[name]
    if isinstance(split, Split) or Path(split).suffix.lower() in SUFFIXES:
        return split
    return Split(images=f"{split}/images", labels=f"{split}/labels")


def folders(root: Path, names: str | list[str]) -> list[Path]:
    return [root / name for name in ([names] if isinstance(names, str) else names)]


def read_classes(path: Path) -> LabelSet:
    """The class table of the dataset that `path` means, its pictures left alone."""
    file, _ = locate(path)
    return label_set(read(Description, file), file)


def label_set(description: Description, source: object) -> LabelSet:
    names = description.names
    if isinstance(names, list):
        names = dict(enumerate(names))
    count = len(names)
    if not 1 <= count <= 254:
        raise InputError(f"{source}: names lists {count} classes; 1 to 254 can be handled")
    twice = [name for name, times in Counter(names.values()).items() if times > 1]
    if twice:
        raise InputError(f"{source}: names has {twice[0]!r} twice; every class needs its own name")
    palette = description.palette or spread(count)
    if len(palette) != count:
        raise InputError(f"{source}: palette has {len(palette)} colours for {count} names")
    ignore = description.ignore if isinstance(description.ignore, list) else [description.ignore]
    colored = description.encoding != "index"
    if colored and description.palette is None:
        raise InputError(f"{source}: encoding {description.encoding} needs a palette")
    wrong = [v for v in ignore if isinstance(v, tuple) != colored and v != IGNORE]
    if wrong:
        wanted = "colours such as [0, 0, 0]" if colored else "values such as 255"
        raise InputError(f"{source}: ignore has {wrong[0]!r}, but this encoding needs {wanted}")

    def packed(colors: Iterable[Color]) -> tuple[int, ...]:
        return tuple(int(pack(np.array(c, np.uint8))) for c in colors)

    if colored:
        raw, ignored = packed(palette), packed(c for c in ignore if isinstance(c, tuple))
    else:
        raw, ignored = tuple(names), tuple(v for v in ignore if isinstance(v, int))
    if len(set(raw)) < count:
        raise InputError(f"{source}: two classes have one colour; give each its own")
    both = set(raw) & set(ignored)
    if both and "ignore" in description.model_fields_set:  # a class may take over the default 255
        raise InputError(f"{source}: ignore has a value that is also a class ({min(both)})")
    return LabelSet(tuple(names.values()), tuple(palette), raw, ignored, description.encoding)


def _root(description: Description, file: Path) -> Path:
    """Where the pictures are by the description alone."""
    variable = description.path_from
    if variable and os.environ.get(variable):
        return Path(os.environ[variable])
    if variable and "path" not in description.model_fields_set:
        raise InputError(
            f"{file.stem}: where are its pictures? pass --data FOLDER or set {variable}=FOLDER"
        )
    return file.parent / description.path
