"""Auto-labels as tasks of an annotation tool, with the labels drawn in.

CVAT: a zip "Segmentation mask 1.1" with the images, and a JSON file of the classes for its "Raw"
view. Label Studio: a JSON file of tasks, whose `predictions` hold one brush mask for each class,
and an XML file of the labelling interface.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np
from PIL import Image

from ..data.brush import pack_mask
from ..data.images import open_pillow, read_image
from ..data.labels import LabelSet, spread
from ..report.page import css
from ..report.pictures import png_bytes
from ..runs import InputError, Progress, replace
from .labelled import Labelled
from .quality import confidence

BACKGROUND = "background"  # CVAT's name for what has no label
BRUSH = "brushlabels"  # Label Studio's name for classes that are drawn as masks
_SUFFIX = {"cvat": ".zip", "labelstudio": ".json"}
_BESIDE = {"cvat": "-labels.json", "labelstudio": "-labels.xml"}  # the classes, for the tool
_SHOWN = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp"}  # what a browser can show
_ORIENTATION = 0x0112  # EXIF tag


def export_tasks(
    labelled: Labelled, names: Sequence[str], tool: str, file: Path, url: str | None = None
) -> list[Path]:
    """Write the tasks of these images for `tool`, "cvat" or "labelstudio"; returns the files.

    url: for Label Studio, the prefix of an image's path below the folder of images; None: its
    server reads them as local files, by their whole path.
    """
    if file.suffix.lower() != _SUFFIX[tool]:
        raise InputError(f"{file}: tasks for {tool} are a {_SUFFIX[tool]} file; use that suffix")
    if tool == "cvat" and url is not None:
        raise InputError("--url is for Label Studio; a CVAT export contains the images")
    beside = file.with_name(file.stem + _BESIDE[tool])
    if there := [each for each in (file, beside) if each.exists()]:
        raise InputError(f"{there[0]} is there already, perhaps with corrections; name another -o")
    with Progress("export", len(names)) as meter:
        if tool == "cvat":
            text = json.dumps(_raw_labels(labelled.labels))
            replace(file, lambda temporary: _write_cvat(temporary, labelled, names, meter.advance))
        else:
            text, tasks = _interface(labelled.labels), []
            for name in names:
                tasks.append(_task(labelled, name, url))
                meter.advance()
            replace(file, json.dumps(tasks))
    replace(beside, text)
    return [file, beside]


def _write_cvat(
    file: Path, labelled: Labelled, names: Sequence[str], advance: Callable[[], None]
) -> None:
    labels = labelled.labels
    colours = _colours(labels)
    table = np.zeros((256, 3), np.uint8)
    table[: len(colours)] = colours
    lines = [f"{n}:{','.join(map(str, c))}::" for n, c in zip(labels.names, colours, strict=True)]
    if BACKGROUND not in labels.names:
        lines.insert(0, f"{BACKGROUND}:0,0,0::")
    with zipfile.ZipFile(file, "w") as archive:
        head = "# label:color_rgb:parts:actions"
        archive.writestr("labelmap.txt", "\n".join([head, *lines, ""]))
        archive.writestr("ImageSets/Segmentation/default.txt", "\n".join([*names, ""]))
        for name in names:
            label = labelled.label(name)
            # One object for each class: their number is unknown
            objects = np.where(table[label].any(-1), label + 1, 0)
            for kind, colors in {"Class": table[label], "Object": _VOC[objects]}.items():
                picture = png_bytes(Image.fromarray(colors))
                archive.writestr(f"Segmentation{kind}/{name}.png", picture)
            suffix, content = _image(labelled.image_file(name))
            archive.writestr(f"JPEGImages/{name}{suffix}", content)
            advance()


def _raw_labels(labels: LabelSet) -> list[dict[str, Any]]:
    return [
        {"name": name, "color": css(colour), "attributes": []}
        for name, colour in zip(labels.names, _colours(labels), strict=True)
        if name != BACKGROUND
    ]


def _colours(labels: LabelSet) -> list[tuple[int, int, int]]:
    """A colour of its own for each class; black is the background in CVAT."""
    black, pairs = (0, 0, 0), zip(labels.names, labels.palette, strict=True)
    own = [colour for name, colour in pairs if name != BACKGROUND]
    if len({black, *own}) <= len(own):
        own = spread(len(own))
    left = iter(own)
    return [black if name == BACKGROUND else next(left) for name in labels.names]


def _voc_colours() -> Any:
    """`[256,3]`: the colours of object numbers in Pascal VOC, by their bits in turn."""
    number = np.arange(256)[:, None]
    bits = [(number >> (3 * place + np.arange(3)) & 1) << (7 - place) for place in range(3)]
    return np.sum(bits, 0).astype(np.uint8)


_VOC = _voc_colours()


def _image(file: Path) -> tuple[str, bytes]:
    """Suffix and content of an image that every tool shows alike: as it is, else as PNG."""
    with open_pillow(file) as picture:
        plain = picture.mode in ("RGB", "L", "P") and picture.getexif().get(_ORIENTATION, 1) == 1
    if plain and file.suffix.lower() in (".jpg", ".jpeg", ".png"):
        return file.suffix, file.read_bytes()
    return ".png", png_bytes(Image.fromarray(read_image(file)))


def _task(labelled: Labelled, name: str, url: str | None) -> dict[str, Any]:
    file, row = labelled.image_file(name), labelled.rows[name]
    if file.suffix.lower() not in _SHOWN:
        raise InputError(
            f"Label Studio cannot show {file}; use --export cvat, which gets it as PNG"
        )
    if url is None:
        address = f"/data/local-files/?d={quote(file.resolve().as_posix().lstrip('/'))}"
    else:
        below = str(row["image"]).removeprefix(f"{labelled.settings['images']}/")
        address = f"{url}{quote(below)}"
    label = labelled.label(name)
    region = {
        "type": BRUSH, "from_name": "label", "to_name": "image", "image_rotation": 0,
        "original_width": row["width"], "original_height": row["height"],
    }  # fmt: skip
    drawn = [
        {"id": f"class-{k}", **region,
         "value": {"format": "rle", "rle": pack_mask(label == k), BRUSH: [each]}}
        for k, each in enumerate(labelled.labels.names) if row["pixels"][k]
    ]  # fmt: skip
    sure = float(confidence(labelled.count([name]).sum(0)))
    teacher = f"hmsa {labelled.settings['teacher'][:12]}"
    return {
        "data": {"image": address, "name": name},
        "predictions": [{"model_version": teacher, "score": sure, "result": drawn}],
    }


def _interface(labels: LabelSet) -> str:
    lines = [
        f"    <Label value={quoteattr(name)} background={quoteattr(css(colour))}/>"
        for name, colour in zip(labels.names, labels.palette, strict=True)
    ]
    return "\n".join([
        "<View>", '  <Image name="image" value="$image" zoom="true" zoomControl="true"/>',
        '  <BrushLabels name="label" toName="image">', *lines, "  </BrushLabels>", "</View>", "",
    ])  # fmt: skip
