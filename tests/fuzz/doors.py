"""The doors through which other people's files come in: a valid sample, and what reads it."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pyarrow as pa
import torch
import yaml
from PIL import Image
from pyarrow import parquet

from fuzz import mutate
from fuzz.mutate import Mutation
from hmsa.data.brush import pack_mask
from hmsa.data.labels import LabelSet, spread

NAMES = ("sky", "road", "post")
LABELS = LabelSet(NAMES, tuple(spread(3)), (0, 1, 2))
PHOTO = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
LABEL = (np.arange(24 * 32) // 256).astype(np.uint8).reshape(24, 32)


class Door(NamedTuple):
    """read: takes the file, and a folder, not there yet, for all that it makes. beside: further
    files, by their path from the folder of the file."""

    file: str
    sample: Callable[[], bytes]
    mutations: Sequence[Mutation]
    read: Callable[[Path, Path], Any]
    beside: Mapping[str, Callable[[], bytes]] = MappingProxyType({})


def picture(array: np.ndarray, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, kind, **options)
    return stream.getvalue()


def photo() -> bytes:
    return picture(PHOTO, "PNG")


def label(colours: bool = False) -> bytes:
    return picture(np.array(LABELS.palette, np.uint8)[LABEL] if colours else LABEL, "PNG")


def deep(pixels: np.ndarray = PHOTO) -> bytes:
    """A PNG of 16 bits in colour, which Pillow does not write, with these rows of pixels."""
    rows = b"".join(b"\0" + row.tobytes() for row in pixels.astype(">u2") * 257)
    size = struct.pack(">IIBBBBB", 32, 24, 16, 2, 0, 0, 0)
    chunks = {b"IHDR": size, b"IDAT": zlib.compress(rows), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks.items()
    )


def exif() -> bytes:
    found = Image.Exif()
    found[0x0112] = 6
    return picture(PHOTO, "JPEG", exif=found)


def animated() -> bytes:
    frames = [Image.fromarray(PHOTO[..., c]) for c in range(3)]
    stream = io.BytesIO()
    frames[0].save(stream, "GIF", save_all=True, append_images=frames[1:])
    return stream.getvalue()


def geotiff(dtype: str = "uint16", count: int = 4, most: int = 200, **options: Any) -> bytes:
    from rasterio import Affine, MemoryFile

    options["transform"] = Affine(1, 0, 0, 0, -1, 9)
    bands = np.random.default_rng(0).integers(0, most, (count, 24, 32)).astype(dtype)
    with MemoryFile() as file:
        size = {"height": 24, "width": 32, "count": count, "dtype": dtype}
        with file.open(driver="GTiff", **size, **options) as made:
            made.write(bands)
        return bytes(file.read())


def description() -> bytes:
    content = {
        "path": "data", "splits": {"train": "train", "val": {"images": "train/images",
        "labels": "train/labels", "include": ["*"]}},
        "names": [*NAMES], "palette": [list(c) for c in LABELS.palette], "encoding": "index",
        "ignore": [255], "categories": {"all": ["sky"]}, "instance_sizes": {"post": 10.5},
    }  # fmt: skip
    return yaml.safe_dump(content).encode()


def listed(name: str) -> Callable[[], bytes]:
    content = {"path": "data", "splits": {"train": name}, "names": [*NAMES]}
    return lambda: yaml.safe_dump(content).encode()


PAIR = {"data/train/images/a.png": photo, "data/train/labels/a.png": label}
ROWS = "image,label,weight,source\ntrain/images/a.png,train/labels/a.png,2,drawn\n"


def zip_of(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def cvat() -> bytes:
    lines = [f"{n}:{','.join(map(str, c))}::" for n, c in zip(NAMES, LABELS.palette, strict=True)]
    return zip_of({
        "labelmap.txt": "\n".join(["# label:color_rgb:parts:actions", *lines, ""]).encode(),
        "ImageSets/Segmentation/default.txt": b"a\n",
        "SegmentationClass/a.png": label(colours=True),
        "JPEGImages/a.png": photo(),
    })  # fmt: skip


def coco() -> bytes:
    segments = [{"id": i, "category_id": i} for i in range(3)]
    return json.dumps({
        "categories": [{"id": i, "name": n, "color": [i, 9, 9]} for i, n in enumerate(NAMES)],
        "images": [{"id": 7, "file_name": "a.png"}],
        "annotations": [{"image_id": 7, "file_name": "a.png", "segments_info": segments}],
    }).encode()  # fmt: skip


def studio() -> bytes:
    size = {"original_width": 32, "original_height": 24, "image_rotation": 0}
    values = {
        "polygonlabels": {"points": [[10, 10], [60, 10], [60.5, 90]], "polygonlabels": ["sky"]},
        "rectanglelabels": {"x": 1, "y": 2, "width": 30, "height": 40, "rectanglelabels": ["post"]},
        "brushlabels": {"rle": pack_mask(LABEL == 1), "brushlabels": ["road"]},
    }
    result = [{"type": kind, "value": value} | size for kind, value in values.items()]
    annotation = {"updated_at": "2026", "was_cancelled": False, "result": result}
    data = {"image": "/data/upload/1/0123abcd-a.png"}
    return json.dumps([{"id": 1, "data": data, "annotations": [annotation]}]).encode()


def tar() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in {"a.png": photo(), "a.json": b"{}", "b/c.jpg": exif()}.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def parquet_of(columns: dict[str, list[Any]]) -> bytes:
    stream = io.BytesIO()
    parquet.write_table(pa.table(columns), stream, row_group_size=2)
    return stream.getvalue()


def network() -> Any:
    from hmsa.model import HMSA

    torch.manual_seed(0)
    model = HMSA(3, "mobilenetv3_small_050", width=4)
    model.card.names, model.card.palette = [*NAMES], [*LABELS.palette]
    return model


def checkpoint() -> bytes:
    from safetensors.torch import save

    model = network()
    return bytes(save(model.state_dict(), {"format": "pt", "hmsa": model.card.to_json()}))


def official() -> bytes:
    stream = io.BytesIO()
    weights = {
        f"module.{n}": torch.ones(2) for n in ("backbone.layer0.0.weight", "ocr.aux_head.2.bias")
    }
    torch.save({"arch": "ocrnet.HRNet_Mscale", "state_dict": weights, "epoch": 3}, stream)
    return stream.getvalue()


def pickled(draw: Any, content: bytes) -> bytes:
    """Another dictionary than the one of an official file."""
    found = torch.load(io.BytesIO(content), weights_only=True)
    plain = {k: v if k != "state_dict" else dict.fromkeys(v, 1) for k, v in found.items()}
    stream = io.BytesIO()
    torch.save(mutate.tree(draw, plain), stream)
    return stream.getvalue()


def onnx() -> bytes:
    """A graph with the inputs, outputs and header of `hmsa export`: the label is 0 everywhere."""
    from onnx import TensorProto, helper

    image = helper.make_tensor_value_info("image", TensorProto.UINT8, [1, 3, "h", "w"])
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.UINT8, [1, "h", "w"])
        for name in ("label", "confidence")
    ]
    nodes = [
        helper.make_node("Constant", [], [name], value_ints=value)
        for name, value in (("first", [0]), ("last", [1]), ("axis", [1]))
    ]
    nodes += [
        helper.make_node("Slice", ["image", "first", "last", "axis"], ["one"]),
        helper.make_node("Squeeze", ["one", "axis"], ["confidence"]),
        helper.make_node("Sub", ["confidence", "confidence"], ["label"]),
    ]
    graph = helper.make_graph(nodes, "g", [image], outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, {"hmsa": network().card.to_json(), "size": "dynamic"})
    return bytes(model.SerializeToString())


def onnx_header(draw: Any, content: bytes) -> bytes:
    """Another card, or another size, in the header of an exported network."""
    from onnx import helper, load_model_from_string

    model = load_model_from_string(content)
    found = {prop.key: prop.value for prop in model.metadata_props}
    found["hmsa"] = mutate.as_json(draw, found["hmsa"].encode()).decode()
    sizes = ["dynamic", "0x0", "-1x5", "64x64", "x", "3x", "1e9x1", "9" * 5000 + "x1"]
    found["size"] = sizes[draw(mutate.st.integers(0, len(sizes) - 1))]
    helper.set_model_props(model, found)
    return bytes(model.SerializeToString())


def tasks() -> bytes:
    """A Label Studio export of an image that the folder of auto-labels has."""
    region = {
        "type": "brushlabels", "original_width": 32, "original_height": 24, "image_rotation": 0,
        "value": {"format": "rle", "rle": pack_mask(LABEL == 1), "brushlabels": ["road"]},
    }  # fmt: skip
    annotation = {"was_cancelled": False, "updated_at": "2026", "result": [region]}
    return json.dumps([{"id": 1, "data": {"name": "a"}, "annotations": [annotation]}]).encode()


def auto_labelled(out: Path) -> Path:
    """A folder that `hmsa autolabel` might have made of the image a."""
    from hmsa.labelling.folder import Folder, figures, tally
    from hmsa.report.pictures import label_image, png_bytes

    (out / "images").mkdir(parents=True)
    image = out / "images" / "a.png"
    image.write_bytes(photo())
    settings = {"images": "../images", "teacher": "t" * 64, "scales": [1.0], "flip": False,
                "precision": "fp32", "classes": dict(zip(NAMES, range(3), strict=True)),
                "coarse": None, "agreement": False}  # fmt: skip
    sure = np.full_like(LABEL, 200)
    row = {"name": "a", "image": str(image), "status": "done", "reason": "", "sha256": "0" * 64,
           "height": 24, "width": 32, "label_png": png_bytes(label_image(LABEL, LABELS)),
           "confidence_png": png_bytes(Image.fromarray(sure)), "seconds": 0.0}  # fmt: skip
    with Folder(out / "auto", settings, LABELS, {"a": str(image)}) as folder:
        folder.store(row | figures(tally(LABEL, sure, 3)))
        folder.finish("{}")
    return out / "auto"


# What reads


def read_picture(file: Path, out: Path) -> None:
    from hmsa.data.images import read_image, read_size

    height, width, _ = read_image(file).shape
    assert read_size(file) == (height, width)


def read_bytes(file: Path, out: Path) -> None:
    from hmsa.data.images import read_image

    read_image(f"s3://{file.name}", file.read_bytes())


def read_label(file: Path, out: Path) -> None:
    LABELS.read(file)


def read_coloured(file: Path, out: Path) -> None:
    raw = tuple((r << 16) | (g << 8) | b for r, g, b in LABELS.palette)
    LabelSet(NAMES, LABELS.palette, raw, (), "rgb").read(file)


def read_dataset(file: Path, out: Path) -> None:
    from hmsa.data.datasets import open_dataset

    opened = open_dataset(file, "train")
    opened.frequencies()
    opened.read(0)


def read_checked(file: Path, out: Path) -> None:
    from hmsa.check import show
    from hmsa.check.check import check
    from hmsa.report.page import write_page

    found = check(file, [])
    json.dumps(found.summary(), allow_nan=False)
    write_page(out / "page.html", show.page(found))


def read_list(file: Path, out: Path) -> None:
    read_dataset(file.parent / "dataset.yaml", out)


def read_recipe(file: Path, out: Path) -> None:
    from hmsa.config.reading import read
    from hmsa.config.recipe import Recipe

    read(Recipe, file)


def import_export(file: Path, out: Path) -> None:
    from hmsa.data.imports import import_masks

    made = import_masks(file, out)
    assert made.path
    read_dataset(made.path, out)


def import_beside(file: Path, out: Path) -> None:
    """With the images in a folder beside it."""
    from hmsa.data.imports import import_masks

    import_masks(file, out, images=file.parent / "photos")


def import_alone(file: Path, out: Path) -> None:
    from hmsa.data.imports import import_masks

    import_masks(file, out)


class Gray:
    """In place of a network: all is the first class."""

    def __init__(self) -> None:
        from hmsa.data.stretch import Stretch
        from hmsa.model.pretrained import Card

        self.model = SimpleNamespace(card=Card({}, [*NAMES]))
        self.settings, self.stretch = {"scales": [1.0], "flip": False}, Stretch()

    def __call__(self, image: Any, detail: bool = False) -> Any:
        from hmsa.inference.predictor import Prediction

        return Prediction(np.zeros(image.shape[:2], np.uint8), image[..., 0])


def autolabel(file: Path, out: Path) -> None:
    """An image that cannot be read is a problem of the outcome."""
    from hmsa.labelling import autolabel as module
    from hmsa.runs import InputError

    with mock.patch.object(module, "fingerprint", str), mock.patch.object(module, "Predictor") as p:
        p.load.return_value = Gray()
        outcome = module.autolabel(Path("teacher"), str(file), str(out))
    if outcome.problems:
        raise InputError(outcome.problems[0])


def read_checkpoint(file: Path, out: Path) -> None:
    from hmsa.inference.predictor import Predictor

    Predictor.load(file)(PHOTO)


def read_official(file: Path, out: Path) -> None:
    from hmsa.checkpoint.official import read

    read(file)


def read_onnx(file: Path, out: Path) -> None:
    from hmsa.inference.export import Exported

    Exported(file)(np.zeros((64, 64, 3), np.uint8))


def take(file: Path, out: Path) -> None:
    from hmsa.labelling.review import take_back

    take_back(auto_labelled(out), file)


PICTURES: dict[str, Callable[[], bytes]] = {
    "rgb.png": photo,
    "gray16.png": lambda: picture(PHOTO[..., 0].astype(np.uint16) * 9, "PNG"),
    "rgb16.png": deep,
    "turned.jpg": exif,
    "rgb.tif": lambda: picture(PHOTO, "TIFF"),
    "float.tif": lambda: picture(PHOTO[..., 0].astype(np.float32), "TIFF"),
    "packed.tif": lambda: picture(PHOTO, "TIFF", compression="tiff_lzw"),
    "bands.tif": geotiff,
    "tiled.tif": lambda: geotiff("uint8", 3, tiled=True, blockxsize=16, blockysize=16,
                                 compress="deflate", BIGTIFF="YES"),
    "rgb.webp": lambda: picture(PHOTO, "WEBP"),
    "frames.gif": animated,
    "rgb.bmp": lambda: picture(PHOTO, "BMP"),
    "rgb.ppm": lambda: picture(PHOTO, "PPM"),
}  # fmt: skip


def _raw_and(kind: Mutation) -> list[Mutation]:
    return [mutate.raw, kind, kind]


def _picture_mutations(name: str) -> list[Mutation]:
    return _raw_and(mutate.png) if name.endswith(".png") else [mutate.raw]


DOORS: dict[str, Door] = {
    **{
        f"image {name}": Door(name, sample, _picture_mutations(name), read_picture)
        for name, sample in PICTURES.items()
    },
    "image in memory": Door("a.png", photo, _raw_and(mutate.png), read_bytes),
    "label": Door("a.png", label, _raw_and(mutate.png), read_label),
    "label.tif": Door("a.tif", lambda: geotiff("uint8", 1, 3), [mutate.raw], read_label),
    "label of colours": Door("a.png", lambda: label(True), _raw_and(mutate.png), read_coloured),
    "description": Door("d.yaml", description, _raw_and(mutate.as_yaml), read_dataset, PAIR),
    "data check": Door("d.yaml", description, _raw_and(mutate.as_yaml), read_checked, PAIR),
    "recipe": Door(
        "r.yaml",
        lambda: b"data: {dataset: d}\nmodel: {width: 8}\njoint: {steps: 2, crop: [8, 8]}\n"
        b"sampling: {extra: [{split: x, boost: [a]}], confidence: {a: 0.5}}\n"
        b"selftrain: {images: m}",
        _raw_and(mutate.as_yaml), read_recipe,
    ),
    "list.csv": Door(
        "l.csv", ROWS.encode, _raw_and(mutate.lines), read_list,
        PAIR | {"dataset.yaml": listed("l.csv")},
    ),
    "list.parquet": Door(
        "l.parquet",
        lambda: parquet_of({"image": ["train/images/a.png"], "label": ["train/labels/a.png"],
                            "weight": [2.0], "source": ["x"]}),
        _raw_and(mutate.table), read_list, PAIR | {"dataset.yaml": listed("l.parquet")},
    ),
    "import CVAT": Door(
        "t.zip", cvat, [mutate.raw, mutate.zipped(mutate.png_or_lines)], import_export
    ),
    "import COCO": Door(
        "p.json", coco, _raw_and(mutate.as_json), import_beside,
        {"p/a.png": lambda: picture(np.stack([LABEL, LABEL * 0, LABEL * 0], -1), "PNG"),
         "photos/a.png": photo},
    ),
    "import Label Studio": Door(
        "p.json", studio, _raw_and(mutate.as_json), import_beside, {"photos/a.png": photo}
    ),
    "import Parquet": Door(
        "t.parquet",
        lambda: parquet_of({
            name: [{"bytes": content, "path": "a.png"}]
            for name, content in (("image", photo()), ("label", label()))
        }),
        _raw_and(mutate.table), import_alone,
    ),
    "autolabel .txt": Door(
        "l.txt", lambda: b"data/train/images/a.png\n# more\n./data/train/labels/a.png\n",
        _raw_and(mutate.lines), autolabel, PAIR,
    ),
    "autolabel .tar": Door(
        "s.tar", tar, [mutate.raw, mutate.tarred(mutate.png_or_raw)], autolabel
    ),
    "autolabel .parquet": Door(
        "s.parquet", lambda: parquet_of({"name": ["a", "b"], "image": [photo(), exif()]}),
        _raw_and(mutate.table), autolabel,
    ),
    "autolabel paths.parquet": Door(
        "p.parquet", lambda: parquet_of({"image": ["data/train/images/a.png"]}),
        _raw_and(mutate.table), autolabel, PAIR,
    ),
    "checkpoint": Door(
        "c.safetensors", checkpoint, _raw_and(mutate.safetensors), read_checkpoint
    ),
    "convert .pth": Door("o.pth", official, _raw_and(pickled), read_official),
    "predict .onnx": Door("n.onnx", onnx, _raw_and(onnx_header), read_onnx),
    "take from CVAT": Door("t.zip", cvat, [mutate.zipped(mutate.png_or_lines)], take),
    "take from Label Studio": Door("t.json", tasks, _raw_and(mutate.as_json), take),
}  # fmt: skip
