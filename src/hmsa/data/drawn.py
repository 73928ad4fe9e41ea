"""Exports whose labels are drawn areas: "CVAT for images 1.1", COCO, labelme, Label Studio."""

from __future__ import annotations

import base64
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import unquote
from xml.etree.ElementTree import Element

import numpy as np
from numpy.typing import NDArray
from PIL import ImageColor

from ..runs import InputError
from .areas import Paint, coco_lengths, pasted, polygon, rectangle, runs
from .brush import unpack_mask
from .images import open_pillow
from .masks import BACKGROUND, Export, Label, Mask, class_table, name_of, read_panoptic, split_name
from .rasters import check_size
from .schema import Color
from .walk import SUFFIXES


class _Drawn(NamedTuple):
    """An image with areas, of which later ones cover earlier ones."""

    name: str
    file: Path
    size: tuple[int, int]
    areas: list[tuple[str, Paint]]
    split: str | None = None


def read_cvat_xml(file: Path, root: Element, ignore: Sequence[str]) -> Export:
    shapes: dict[str, Callable[[dict[str, str]], Paint]] = {
        "polygon": lambda a: polygon([float(v) for v in re.split("[,;]", a["points"])]),
        "box": lambda a: rectangle(*(float(a[key]) for key in ("xtl", "ytl", "xbr", "ybr"))),
        "mask": lambda a: pasted(
            partial(runs, [*map(int, a["rle"].split(","))], (int(a["height"]), int(a["width"]))),
            int(a["left"]),
            int(a["top"]),
        ),
    }
    if root.find("track") is not None:
        raise InputError(f"{file} is 'CVAT for video'; export 'Segmentation mask 1.1' instead")
    colors: dict[str, Color | None] = {}
    for label in root.iterfind(".//labels/label"):
        color = label.findtext("color")
        colors[str(label.findtext("name"))] = ImageColor.getrgb(color)[:3] if color else None
    drawn, passed = [], Counter[str]()
    for image in root.iterfind("image"):
        areas = []
        for shape in sorted(image, key=lambda each: int(each.get("z_order") or 0)):
            about = dict(shape.items())
            if shape.tag in shapes and not float(about.get("rotation") or 0):
                colors.setdefault(about["label"])
                areas.append((about["label"], shapes[shape.tag](about)))
            elif shape.tag != "tag":
                passed["rotated " * (shape.tag in shapes) + shape.tag] += 1
        about = dict(image.items())
        size, split = (int(about["height"]), int(about["width"])), about.get("subset")
        name = name_of(about["name"], file)
        drawn.append(_Drawn(name, file, size, areas, split_name(split or "default")))
    return _paint(drawn, colors, ignore, file, passed)


def read_coco(file: Path, content: dict[str, Any], ignore: Sequence[str]) -> Export:
    """Instances, or what `read_panoptic` reads; content: of the JSON file."""
    if any("segments_info" in each for each in content["annotations"][:1]):
        return read_panoptic(file, content, ignore)
    categories = sorted(content["categories"], key=lambda category: int(category["id"]))
    names = {category["id"]: category["name"] for category in categories}
    images = {image["id"]: image for image in content["images"]}
    drawn, passed = dict[Any, _Drawn](), Counter[str]()
    for annotation in sorted(content["annotations"], key=lambda a: -float(a.get("area") or 0)):
        key, name = annotation["image_id"], names[annotation["category_id"]]
        size = int(images[key]["height"]), int(images[key]["width"])
        image = _Drawn(name_of(images[key]["file_name"], file), file, size, [])
        areas, shape = drawn.setdefault(key, image).areas, annotation.get("segmentation")
        if isinstance(shape, dict):
            lengths = shape["counts"]
            if (*shape["size"],) != size:
                raise ValueError(f"a mask of {shape['size']} on an image of {size}")
            lengths = coco_lengths(lengths) if isinstance(lengths, str) else lengths
            areas.append((name, pasted(partial(runs, lengths, size, "F"))))
        else:
            areas += [(name, polygon(ring)) for ring in shape or ()]
            passed["box"] += not shape
    colors = {category["name"]: category.get("color") for category in categories}
    return _paint([*drawn.values()], colors, ignore, file, passed)


def read_labelme(root: Path, contents: Mapping[Path, Any], ignore: Sequence[str]) -> Export:
    """contents: of each JSON file below `root`."""

    def mask(points: list[list[float]], shape: dict[str, Any]) -> Paint:
        def decode() -> NDArray[np.bool_]:
            with open_pillow(root, base64.b64decode(shape["mask"])) as image:
                return np.asarray(image.convert("L")) > 0

        return pasted(decode, *(round(min(each)) for each in zip(*points, strict=True)))

    shapes: dict[str, Callable[[list[list[float]], dict[str, Any]], Paint]] = {
        "polygon": lambda points, _: polygon(np.ravel(points).tolist()),
        "rectangle": lambda points, _: rectangle(*points[0], *points[len(points) // 2]),
        "mask": mask,
    }
    drawn, passed, names = [], Counter[str](), set()
    for file, content in contents.items():
        if "shapes" not in content:
            raise InputError(f"{file} is not of labelme, as others in {root} are; move it away")
        areas = []
        for shape in content["shapes"]:
            kind = shape.get("shape_type") or "polygon"
            if kind in shapes:
                name = BACKGROUND if shape["label"] == "_background_" else shape["label"]
                areas.append((name, shapes[kind](shape["points"], shape)))
                names.add(name)
            else:
                passed[kind] += 1
        size = int(content["imageHeight"]), int(content["imageWidth"])
        image = Path(os.path.normpath(file.parent / content["imagePath"].replace("\\", "/")))
        inside = image.is_file() and image.is_relative_to(root)
        name = image.relative_to(root).as_posix() if inside else file.name
        drawn.append(_Drawn(name_of(name, file), file, size, areas))
    ignore = [*ignore, *names & {"__ignore__"}]
    return _paint(drawn, dict.fromkeys(sorted(names)), ignore, root, passed)


def read_label_studio(file: Path, tasks: list[Any], ignore: Sequence[str]) -> Export:
    """The last annotation of each task, whose places are in percent; tasks: of the JSON file."""

    def box(v: dict[str, Any], x: float, y: float) -> Paint:
        left, top = v["x"] * x, v["y"] * y
        return rectangle(left, top, left + v["width"] * x, top + v["height"] * y)

    # Of a region's value and the pixels of one percent along x and y
    shapes: dict[str, Callable[[dict[str, Any], float, float], Paint]] = {
        "polygonlabels": lambda v, x, y: polygon(np.ravel(np.array(v["points"]) * (x, y)).tolist()),
        "rectanglelabels": box,
        "brushlabels": lambda v, x, y: pasted(
            partial(unpack_mask, v["rle"], (round(100 * y), round(100 * x)))
        ),
    }
    drawn, passed, names = [], Counter[str](), set[str]()
    for task in tasks:
        kept = [each for each in task["annotations"] if not each.get("was_cancelled")]
        regions = max(kept, key=lambda each: each.get("updated_at") or "")["result"] if kept else []
        size, areas = (0, 0), []
        for region in regions:
            kind, value = region["type"], region.get("value", {})
            turned = region.get("image_rotation") or value.get("rotation")
            if kind not in shapes or turned or len(value[kind]) != 1:
                passed[kind] += 1
                continue
            size = int(region["original_height"]), int(region["original_width"])
            areas.append((value[kind][0], shapes[kind](value, size[1] / 100, size[0] / 100)))
            names.add(value[kind][0])
        if areas:
            drawn.append(_Drawn(name_of(_image_of(task), file), file, size, areas))
    return _paint(drawn, dict.fromkeys(sorted(names)), ignore, file, passed)


def _image_of(task: dict[str, Any]) -> str:
    """Path of the image of a task, as far as it is the same elsewhere: of an upload its name."""
    names = []
    for text in (each for each in task["data"].values() if isinstance(each, str)):
        path, _, local = text.partition("?d=")
        names.append(unquote(local or PurePosixPath(path.partition("?")[0]).name))
    return min(names, key=lambda name: PurePosixPath(name).suffix.lower() not in SUFFIXES)


def _paint(
    drawn: list[_Drawn],
    colors: dict[str, Color | None],
    ignore: Sequence[str],
    source: Path,
    passed_over: Mapping[str, int],
) -> Export:
    """Images on which nothing is drawn have no label yet; elsewhere, the rest is background.

    passed_over: kind of shape that is no area: how many.
    """
    kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(passed_over.items()) if n)
    if not any(image.areas for image in drawn):
        raise InputError(f"{source} holds no areas{kinds and ', only '}{kinds}; draw some")
    if BACKGROUND not in colors:
        colors = {BACKGROUND: (0, 0, 0), **colors}
    labels, ids = class_table(colors, ignore, source)

    def paint(image: _Drawn) -> Label:
        check_size(image.file, *image.size)
        label = np.full(image.size, ids[BACKGROUND], np.uint8)
        try:
            for name, area in image.areas:
                area(label, ids[name])
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(f"{image.file}: {image.name} has {error}") from None
        return label

    masks = [
        Mask(image.name, image.file, partial(paint, image), image.split, image.size)
        for image in drawn
        if image.areas
    ]
    notes = [f"passed over, as they are no areas: {kinds}"] if kinds else []
    if BACKGROUND not in ignore:
        notes.append("what no area covers is background; --ignore background: is no label")
    usual = (source.parent / "images", source.parent.parent / "images")
    folder = next((place for place in usual if source.is_file() and place.is_dir()), None)
    return Export(labels, masks, folder, (*notes,))
