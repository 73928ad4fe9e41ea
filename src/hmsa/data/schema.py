"""What the YAML file of a dataset may say.

    path: ../images              # relative to this file
    splits:                      # a folder with images/ and labels/, or both named, or a list file
      train: train
      val: {images: val/images, labels: val/labels, exclude: ["night_*"]}
      test: {held_out_of: train} # the last fifth of its names, which train then lacks
      drawn: drawn.csv           # see lists.py
    names: [sky, road, post]     # or value: name, where the values in the files are not 0, 1, 2
    palette: [[70, 130, 180], [128, 64, 128], [220, 220, 0]]
    encoding: index              # index | palette | rgb | binary (0 and 255, also blurred)
    ignore: [255]                # values, colours or class names that mean "no label"
    bands: [4, 3, 2, 8]          # of images with more than RGB; the network then has 4 channels
    stretch: [0, 3000]           # values of images with more than 8 bits that become 0 and 255

An image and its label have the same path below their folders, but for the suffix and the endings
that the split names: {.., image_ending: _leftImg8bit, label_ending: _labelIds.png}. Images and
labels may also be lists of folders, read as one. For finer scores a description may give
`categories` of classes and `instance_sizes`, as that of Cityscapes does.

What others write is read where it means the same: `train:` and `val:` without `splits`, `masks:`,
`classes:`, `ignore_classes:`, names as `name: value`, colours as "#4682b4".
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from PIL import ImageColor
from pydantic import BeforeValidator, Field

from ..config.options import Share
from ..config.reading import Strict, read_yaml, validate
from ..runs import InputError, did_you_mean
from .labels import COLOURED, IGNORE, Encoding

_Many = BeforeValidator(lambda value: _as_list(value))
_Pairs = BeforeValidator(
    lambda value: value if all(isinstance(each, list) for each in _as_list(value)) else [value]
)
LISTS = {".csv", ".parquet", ".txt"}  # a split of such a name is a list file
Byte = Annotated[int, Field(ge=0, le=255)]
Color = tuple[Byte, Byte, Byte]
Folders = Annotated[list[str], _Many]

_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_SPLIT_SYNONYMS = {"image": "images", "label": "labels", "masks": "labels", "mask": "labels",
                   "mask_ending": "label_ending"}  # fmt: skip
_UNUSED = ("nc", "download")  # Ultralytics: count of classes; where the data are on the web


class Split(Strict):
    """Folders, and which of their files belong together; an ending skips files without it."""

    images: Folders = Field(examples=["train/images"])
    labels: Folders = Field(examples=["train/labels"])
    include: Folders = Field(["*"], description="file-name patterns to take, or a .txt of names")
    exclude: list[str] = Field([], description="file-name patterns to leave out")
    image_ending: str = ""
    label_ending: str = ""
    confidence: Folders = Field([], description="8-bit images beside the labels: floor(255 p)")
    confidence_ending: str = ""
    instances: Folders = Field([], description="images: values above 1000 are instances")
    instance_ending: str = ""


class HeldOut(Strict):
    """The last names of another split, which that split then lacks."""

    held_out_of: str
    share: Annotated[Share, Field(gt=0, lt=1)] = 0.2


class Description(Strict):
    """The YAML file."""

    path: str = Field(".", description="folder of its images; relative to the file")
    path_from: str | None = Field(None, description="environment variable that replaces path")
    known_by: list[str] = Field([], description="what its folder contains, or its name")
    splits: dict[str, str | Split | HeldOut] = Field(examples=[{"train": "train", "val": "val"}])
    optional: list[str] = Field([], description="splits that may be absent, or divide others anew")
    names: dict[int, str] = Field(
        min_length=1, max_length=254, examples=[["sky", "road"], {7: "sky", 26: "road"}]
    )
    palette: list[Color] | None = Field(None, examples=[[[70, 130, 180], [128, 64, 128]]])
    encoding: Encoding = "index"
    ignore: list[int | Color] = Field([IGNORE], examples=[[255]])
    bands: list[Annotated[int, Field(ge=1)]] | None = Field(
        None, min_length=1, description="of each image, from 1; default: RGB", examples=[[4, 3, 2]]
    )
    stretch: Annotated[list[tuple[float, float]], _Pairs] = Field(
        [], description="values that become 0 and 255, of all bands or of each; default: decided",
        examples=[[0, 3000], [[0, 3000], [0, 4000], [0, 5000]]],
    )  # fmt: skip
    categories: dict[str, list[str]] = Field({}, description="category: its classes; scored, too")
    instance_sizes: dict[str, float] = Field({}, description="class: mean pixels of an instance")


def read_description(file: Path) -> Description:
    """The description in a YAML file. Raises InputError that names the file and the key."""
    content = _renamed(read_yaml(file), {"classes": "names"} | dict.fromkeys(_UNUSED))
    beside = {_SPLITS[key]: content.pop(key) for key in _SPLITS if key in content}
    if beside and "splits" in content:
        raise InputError(f"{file}: {next(iter(beside))!r} stands beside splits; move it below it")
    splits = content.get("splits", beside or None)
    if isinstance(splits, dict):
        content["splits"] = {str(name): _split(str(name), splits[name], file) for name in splits}
    _name_classes(content, file)
    _name_ignored(content, file)
    return validate(Description, content, file)


def _renamed(content: dict[Any, Any], synonyms: Mapping[str, str | None]) -> dict[str, Any]:
    """With our names for those of others, or without what is None; never two values of one name."""
    ours = {key: synonyms.get(key, key) for key in content}
    twice = Counter(ours.values())
    return {
        str(key if twice[name] > 1 else name): content[key]
        for key, name in ours.items()
        if name is not None
    }


def _split(name: str, value: Any, file: Path) -> str | Split | HeldOut:
    """A split as people write it. Raises InputError for keys of another level."""
    fields = _renamed(value, _SPLIT_SYNONYMS) if isinstance(value, dict) else {}
    for key, where in ({name: "splits"} | dict.fromkeys(fields, f"splits.{name}")).items():
        if key in Description.model_fields:
            raise InputError(
                f"{file}: {key!r} stands under {where}; move it to the left, where splits begins"
            )
    if name in {*Split.model_fields, *_SPLIT_SYNONYMS} or not isinstance(value, str | list | dict):
        raise InputError(
            f"{file}: splits has {name}: {value!r}; write splits: {{train: FOLDER}} or splits: "
            "{train: {images: FOLDER, labels: FOLDER}}"
        )
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        fields = {kind: [f"{each}/{kind}" for each in value] for kind in ("images", "labels")}
    if "held_out_of" in fields:
        return validate(HeldOut, fields, f"{file}, split {name}")
    return validate(Split, fields, f"{file}, split {name}")


def _name_classes(content: dict[str, Any], file: Path) -> None:
    """Make `names` value: name, and `palette` a list in that order."""
    names: Any = content.get("names")
    palette = content.get("palette")
    by_value: Any = names.items() if isinstance(names, dict) else ()
    if isinstance(names, list):
        by_value = enumerate(names)
    elif isinstance(names, dict) and names and not any(map(_is_number, names)):
        if all(map(_is_number, names.values())):  # name: value
            by_value = ((value, name) for name, value in names.items())
        elif not palette and not any(isinstance(_color(each), str) for each in names.values()):
            by_value, palette = enumerate(names), list(names.values())  # name: colour
    if isinstance(names, list | dict):
        pairs = [(int(v) if _is_number(v) else v, _text(name)) for v, name in by_value]
        names = dict(pairs)
        if len(names) < len(pairs):
            raise InputError(f"{file}: two names have one value; give each its own")
        if isinstance(palette, dict):
            palette = [palette.get(key, palette.get(str(name))) for key, name in names.items()]
        content["names"] = names
    if isinstance(palette, list):
        palette = [*map(_color, palette)]
        if isinstance(names, dict) and names and len(palette) != len(names):
            count = f"{len(palette)} colours for {len(names)} names"
            raise InputError(f"{file}: palette has {count}; give each name a colour")
    if palette is not None:
        content["palette"] = palette


def _name_ignored(content: dict[str, Any], file: Path) -> None:
    """Make `ignore` values or colours; a class that is named there is none any more."""
    names, palette = content.get("names"), content.get("palette")
    colored = content.get("encoding") in COLOURED
    if not isinstance(names, dict):
        return
    if "ignore_classes" in content:
        classes = _as_list(content.pop("ignore_classes"))
        classes = [names.get(each, each) if isinstance(each, int) else each for each in classes]
        content["ignore"] = classes + [IGNORE] * (not colored)
    if "ignore" not in content:
        return
    ignored = _as_list(content["ignore"])
    if colored and len(ignored) == 3 and all(map(_is_number, ignored)):
        ignored = [ignored]  # one colour
    known, found = {str(name): value for value, name in names.items()}, []
    for each in ignored:
        if isinstance(each, str | bool) and (name := _text(each)) in known:
            place = [*names].index(known[name])
            color = palette.pop(place) if isinstance(palette, list) else None
            found.append(color if colored and color else known[name])
            del names[known.pop(name)]
        elif isinstance(each, str) and not _is_number(each) and isinstance(_color(each), str):
            raise InputError(
                f"{file}: ignore has {each!r}, which is no class; {did_you_mean(each, known)}; "
                "values such as 255 and colours such as [0, 0, 0] may stand there, too"
            )
        else:
            found.append(_color(each))
    content["ignore"] = found


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _text(value: Any) -> Any:
    """A class name that YAML took for a number or a truth value, as text again."""
    return str(value).lower() if isinstance(value, bool | int | float) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, int) or (isinstance(value, str) and value.isdecimal())


def _color(value: Any) -> Any:
    """`"#4682b4"`, `4682b4` and CSS names as red, green, blue; all else as it is."""
    if isinstance(value, str):
        try:
            return ImageColor.getrgb(re.sub("^(?=[0-9a-fA-F]{6}$)", "#", value))[:3]
        except ValueError:
            return value
    return value
