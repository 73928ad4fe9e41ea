"""What `make fuzz` has found, each as the smallest file of its kind, and what is said of it now."""

from __future__ import annotations

import io
import json
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from fuzz.doors import DOORS, PHOTO, deep, parquet_of, photo
from fuzz.mutate import ESCAPE, OUTSIDE
from fuzz.runner import Runner


def panoptic(**category) -> bytes:
    content = json.loads(DOORS["import COCO"].sample())
    content["categories"][0] |= category
    return json.dumps(content).encode()


def folder_for_labelmap() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("labelmap.txt/x", "")
        archive.writestr("SegmentationClass/a.png", photo())
    return stream.getvalue()


def drawn(**value) -> bytes:
    content = json.loads(DOORS["take from Label Studio"].sample())
    content[0]["annotations"][0]["result"][0]["value"] |= value
    return json.dumps(content).encode()


def checkpoint(**network) -> bytes:
    content = DOORS["checkpoint"].sample()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    card = json.loads(header["__metadata__"]["hmsa"])
    card["network"] |= network
    header["__metadata__"]["hmsa"] = json.dumps(card)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + size :]


def exported(size: str) -> bytes:
    from onnx import helper, load_model_from_string

    model = load_model_from_string(DOORS["predict .onnx"].sample())
    found = {prop.key: prop.value for prop in model.metadata_props}
    helper.set_model_props(model, found | {"size": size})
    return bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("door", "content", "says"),
    [
        ("autolabel .parquet", lambda: parquet_of({"name": [OUTSIDE], "image": [photo()]}),
         "'../../../outside' cannot be the name of a result"),
        ("autolabel .parquet", lambda: parquet_of({"name": [ESCAPE], "image": [photo()]}),
         "cannot be the name of a result"),
        ("autolabel .parquet", lambda: parquet_of({"name": ["a", "a"], "image": [photo()] * 2}),
         "two images have the name 'a'"),
        ("autolabel .parquet", lambda: parquet_of({"name": [None, "a"], "image": [photo()] * 2}),
         "'' cannot be the name of a result"),
        ("autolabel paths.parquet", lambda: parquet_of({"image": ["."]}), "cannot be the name"),
        ("list.parquet", lambda: parquet_of({"image": ["."], "label": ["."]}), "no file . in"),
        ("list.parquet", lambda: parquet_of({"image": ["x" * 999], "label": ["y"]}), "no file xxx"),
        ("import COCO", lambda: panoptic(color=[1, 2]), "has the colour .1, 2.; a text and three"),
        ("import COCO", lambda: panoptic(color=[1, 2, 300]), "three numbers of 0 to 255"),
        ("import COCO", lambda: panoptic(name=None), "class None has"),
        ("import CVAT", folder_for_labelmap, "labelmap.txt cannot be read: Is a directory"),
        ("data check", lambda: b"names: [a, b]\nsplits: {train: " + b"x" * 5000 + b"}", "nothing"),
        ("data check", lambda: b'names: [a, b]\nsplits: {train: "x\\0"}', "has the character NUL"),
        ("image rgb16.png", lambda: deep(PHOTO[:9]), "its pixels are incomplete"),
        ("image rgb16.png", lambda: deep(PHOTO) [:900], "cannot be decoded"),
        ("checkpoint", lambda: checkpoint(width=0), "a width above 0"),
        ("predict .onnx", lambda: exported("x"), "'x' is not HEIGHTxWIDTH"),
        ("predict .onnx", lambda: exported("9" * 5000 + "x1"), "4300 digits"),
        ("predict .onnx", lambda: exported("-1x5"), "'-1x5' is not HEIGHTxWIDTH"),
        ("take from Label Studio", lambda: drawn(brushlabels="a\n"), r"has the classes 'a\\n'"),
        ("take from Label Studio", lambda: drawn(rle="text"), "its rle is not a list of bytes"),
    ],
    ids=lambda value: value.replace("/", "") if isinstance(value, str) else "",
)  # fmt: skip
def test_refused(door: str, content: Callable[[], bytes], says: str):
    runner = Runner(door)
    result = runner(content())
    runner.close()
    assert result.kind == "refused", result
    assert re.search(says, result.text), result.text


def test_damaged_tags_warn_of_nothing():
    """Pillow's warnings would show the path of a source file."""
    content = DOORS["image turned.jpg"].sample()
    at = content.index(b"MM\0*") + 4
    runner = Runner("image turned.jpg")
    for offset in (b"\0\0\0\x09", b"\0\0\xff\xff"):
        assert runner(content[:at] + offset + content[at + 4 :]).kind != "violation"
    runner.close()
    assert not [*Path("/tmp").glob(f"{Path(ESCAPE).name}*")]
