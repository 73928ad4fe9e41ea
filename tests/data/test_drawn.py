"""Polygons, boxes, run lengths: the pixels whose centre they cover, in the right class."""

from __future__ import annotations

import base64
import io
import json
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hmsa.data.areas import coco_lengths, polygon, rectangle, runs
from hmsa.data.brush import pack_mask
from hmsa.data.datasets import open_dataset
from hmsa.data.imports import import_masks
from hmsa.runs import InputError

SIZE = 6, 8  # height and width
SQUARE = [2, 1, 6, 1, 6, 5, 2, 5]  # columns 2..5 and rows 1..4
EXPECTED = np.zeros(SIZE, np.uint8)
EXPECTED[1:5, 2:6] = 1


def painted(paint):
    label = np.zeros(SIZE, np.uint8)
    paint(label, 1)
    return label


@pytest.mark.parametrize(
    ("paint", "expected"),
    [
        (polygon(SQUARE), EXPECTED),
        (rectangle(2, 1, 6, 5), EXPECTED),
        (rectangle(6, 5, 2, 1), EXPECTED),
        (polygon([-9, -9, 99, -9, 99, 99, -9, 99]), np.ones(SIZE, np.uint8)),
        (polygon([-9, -9, -1, -9, -1, -1]), np.zeros(SIZE, np.uint8)),
        (polygon([3, 3, 5, 5]), np.zeros(SIZE, np.uint8)),  # a line covers nothing
    ],
)
def test_areas(paint, expected):
    assert (painted(paint) == expected).all()


@given(st.lists(st.tuples(st.floats(-5, 12), st.floats(-5, 12)), min_size=3, max_size=7))
def test_polygons_by_the_rule_of_even_and_odd(corners):
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    inside = np.zeros(SIZE, bool)
    for (x0, y0), (x1, y1) in zip(corners, [*corners[1:], corners[0]], strict=True):
        crosses = (y0 <= rows) != (y1 <= rows)
        with np.errstate(over="ignore"):
            inside ^= crosses & (x0 + (rows - y0) * (x1 - x0) / (y1 - y0 or 1) <= columns)
    assert (painted(polygon(np.ravel(corners))) == inside).all()


@given(st.integers(0, 2**48 - 1))
def test_run_lengths_of_coco(bits):
    pycocotools = pytest.importorskip("pycocotools.mask")
    mask = np.array([bits >> i & 1 for i in range(48)], np.uint8).reshape(SIZE)
    text = pycocotools.encode(np.asfortranarray(mask))["counts"].decode()
    assert (runs(coco_lengths(text), SIZE, "F") == mask).all()


@pytest.mark.parametrize(
    ("lengths", "size"), [([3], SIZE), ([-1, 49], SIZE), ([2**62] * 4 + [48], SIZE)]
)
def test_run_lengths_that_do_not_fit(lengths, size):
    with pytest.raises(ValueError, match="run lengths that are not"):
        runs(lengths, size)


def test_a_run_length_without_end():
    with pytest.raises(ValueError, match="beyond all bounds"):
        coco_lengths("o" * 99)


@pytest.fixture
def image(tmp_path):
    """`image(name)`: an image of SIZE in tmp_path/in."""

    def make(name):
        file = tmp_path / "in" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SIZE[::-1]).save(file)
        return file

    return make


def made(tmp_path, source=None, **options):
    """The first label of an import, and the names of its classes; what was told."""
    outcome = import_masks(source or tmp_path / "in", tmp_path / "out", **options)
    dataset = open_dataset(outcome.path, "train")
    return dataset.read(0)[1], dataset.labels, outcome.notes


XML = """<annotations><meta><task><labels>
<label><name>car</name><color>#0a141e</color></label><label><name>sky</name></label>
</labels></task></meta>
<image id="0" name="day 1/a.jpg" subset="Train" width="8" height="6">{}</image>
<image id="1" name="b.jpg" width="8" height="6"/></annotations>"""


@pytest.mark.parametrize(
    "shape",
    [
        '<polygon label="car" points="2,1;6,1;6,5;2,5" z_order="0"/>',
        '<box label="car" xtl="2" ytl="1" xbr="6" ybr="5"/>',
        '<mask label="car" rle="0, 16" left="2" top="1" width="4" height="4"/>',
        '<box label="car" xtl="2" ytl="1" xbr="6" ybr="5" z_order="1"/>'
        '<box label="sky" xtl="2" ytl="1" xbr="6" ybr="5" z_order="0"/>',
        '<polygon label="car" points="2,1;6,1;6,5;2,5"/><points label="car" points="1,1"/>'
        '<box label="car" xtl="0" ytl="0" xbr="9" ybr="9" rotation="30"/><tag label="sky"/>',
    ],
)
def test_cvat_for_images(tmp_path, image, shape):
    image("images/day 1/a.jpg")
    (tmp_path / "in" / "annotations.xml").write_text(XML.format(shape))
    label, labels, notes = made(tmp_path)
    assert (label == EXPECTED).all()
    assert labels.names == ("background", "car", "sky")
    assert labels.palette[1] == (10, 20, 30)
    passed = "passed over, as they are no areas: 1 points, 1 rotated box"
    assert notes[1:-1] == [passed] * ("rotation" in shape)
    assert notes[-1] == "what no area covers is background; --ignore background: is no label"


def test_cvat_for_images_in_folders_of_subsets(tmp_path, image):
    image("images/Train/day 1/a.jpg")
    shape = '<box label="car" xtl="2" ytl="1" xbr="6" ybr="5"/>'
    (tmp_path / "in" / "annotations.xml").write_text(XML.format(shape))
    assert (made(tmp_path)[0] == EXPECTED).all()


COCO = {
    "images": [{"id": 7, "file_name": "a.jpg", "height": 6, "width": 8}],
    "categories": [{"id": 9, "name": "sky"}, {"id": 3, "name": "car"}],
}


@pytest.mark.parametrize(
    "drawn",
    [
        [SQUARE],
        [[2, 1, 4, 1, 4, 5, 2, 5], [3, 1, 6, 1, 6, 5, 3, 5]],  # overlapping parts of one object
        {"counts": [13, 4, 2, 4, 2, 4, 2, 4, 13], "size": [6, 8]},
        {"counts": "=4200000;", "size": [6, 8]},
    ],
)
def test_coco(tmp_path, image, drawn):
    image("images/a.jpg")
    annotations = [
        {"image_id": 7, "category_id": 3, "segmentation": drawn, "area": 16},
        {"image_id": 7, "category_id": 9, "segmentation": [SQUARE], "area": 17},
        {"image_id": 7, "category_id": 9, "segmentation": [], "bbox": [0, 0, 1, 1]},
    ]
    file = tmp_path / "in" / "annotations" / "instances_default.json"
    file.parent.mkdir()
    file.write_text(json.dumps(COCO | {"annotations": annotations}))
    label, labels, notes = made(tmp_path, ignore=["background"])
    assert labels.names == ("car", "sky")
    assert (label == np.where(EXPECTED, 0, 255)).all()
    assert notes[1:] == ["passed over, as they are no areas: 1 box"]


def labelme(tmp_path, image, shapes, name="day/a", **changes):
    image(f"{name}.jpg")
    content = {"shapes": shapes, "imagePath": "a.jpg", "imageHeight": 6, "imageWidth": 8}
    (tmp_path / "in" / f"{name}.json").write_text(json.dumps(content | changes))


def png(mask):
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def test_coco_of_another_size(tmp_path, image):
    image("images/a.jpg")
    shape = {"counts": [0, 48], "size": [8, 6]}
    annotations = [{"image_id": 7, "category_id": 3, "segmentation": shape}]
    (tmp_path / "in" / "x.json").write_text(json.dumps(COCO | {"annotations": annotations}))
    with pytest.raises(InputError, match=r"x.json .* a mask of \[8, 6\] on an image of \(6, 8\)"):
        made(tmp_path)


@pytest.mark.parametrize("as_zip", [True, False])
@pytest.mark.parametrize(
    "shape",
    [
        {"points": np.reshape(SQUARE, (-1, 2)).tolist(), "shape_type": "polygon"},
        {"points": [[6, 5], [2, 1]], "shape_type": "rectangle"},
        {"points": [[2, 1], [5, 4]], "shape_type": "mask", "mask": png(np.ones((4, 4), bool))},
    ],
)
def test_labelme(tmp_path, image, shape, as_zip):
    labelme(tmp_path, image, [{"label": "car"} | shape, {"label": "x", "shape_type": "line"}])
    image("day/b.jpg")
    source = tmp_path / "in"
    if as_zip:
        source = tmp_path / "x.zip"
        with zipfile.ZipFile(source, "w") as archive:
            for file in (tmp_path / "in").rglob("*.*"):
                archive.write(file, file.relative_to(tmp_path / "in"))
    label, labels, notes = made(tmp_path, source)
    assert labels.names == ("background", "car")
    assert (label == EXPECTED).all()
    first, second, _ = notes
    assert first == "labelled images: 1 in train; 1 have no label yet"
    assert second == "passed over, as they are no areas: 1 line"


def test_the_words_of_labelme_for_no_label(tmp_path, image):
    shapes = [
        {"label": "car", "points": [[2, 1], [6, 5]], "shape_type": "rectangle"},
        {"label": "__ignore__", "points": [[0, 0], [8, 1]], "shape_type": "rectangle"},
        {"label": "_background_", "points": [[0, 4], [2, 6]], "shape_type": "rectangle"},
    ]
    labelme(tmp_path, image, shapes)
    label, labels, _ = made(tmp_path)
    assert labels.names == ("background", "car")
    expected = EXPECTED.copy()
    expected[0] = 255
    assert (label == expected).all()


RECTANGLE = {"label": "car", "points": [[6, 5], [2, 1]], "shape_type": "rectangle"}


@pytest.mark.parametrize(
    ("shapes", "changes", "says"),
    [
        ([RECTANGLE], {"imageWidth": 10**9}, "a.jpg has another size"),
        ([RECTANGLE], {"imageWidth": float("inf")}, r"damaged \(OverflowError"),
        ([RECTANGLE | {"shape_type": "mask", "mask": {}}], {}, "day/a has argument should be"),
        (7, {}, r"damaged \(TypeError"),
        ([{"label": "car", "points": []}], {}, r"damaged \(ValueError a polygon without points"),
        ([{"label": "car", "points": [[float("nan")] * 2]}], {}, "infinite"),
        ([RECTANGLE | {"shape_type": "mask", "mask": png(np.ones((9, 4), bool))}], {},
         "day/a has a mask that leads out of the image"),
        ([{"label": "x", "points": [[1, 1]], "shape_type": "point"}], {}, "only 1 point; draw"),
        ([{"label": f"{n}", "points": [[1, 1]]} for n in range(255)], {}, "has 256 classes"),
    ],
)  # fmt: skip
def test_mistakes(tmp_path, image, shapes, changes, says):
    labelme(tmp_path, image, shapes, **changes)
    with pytest.raises(InputError, match=says) as caught:
        made(tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


AREA = {"image_id": 7, "category_id": 3, "segmentation": [SQUARE], "area": 16}


@pytest.mark.parametrize(
    ("json_file", "image_file"),
    [
        ("annotations/instances_{}2017.json", "{}2017/a_{}.jpg"),
        ("{}/_annotations.coco.json", "{}/a.jpg"),
        ("annotations/instances_{}.json", "images/{}/a.jpg"),
    ],
    ids=["COCO", "Roboflow", "CVAT"],
)
def test_a_file_for_each_split(tmp_path, image, json_file, image_file):
    for split, drawn in (("train", AREA), ("val", AREA | {"category_id": 9})):
        name = image(image_file.format(split, split)).name
        content = COCO | {"images": [COCO["images"][0] | {"file_name": name}]}
        file = tmp_path / "in" / json_file.format(split)
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(content | {"annotations": [drawn]}))
    label, labels, _ = made(tmp_path)
    assert labels.names == ("background", "car", "sky")
    assert (label == EXPECTED).all()
    (val,) = open_dataset(tmp_path / "out", "val").pairs
    assert "val" in val.image.relative_to(tmp_path / "in").as_posix()
    assert (labels.read(val.label) == EXPECTED * 2).all()


def test_two_exports_in_one_folder(tmp_path, image):
    image("images/a.jpg")
    for name, categories in (("train", COCO["categories"]), ("val", COCO["categories"][1:])):
        content = COCO | {"annotations": [AREA], "categories": categories}
        (tmp_path / "in" / f"{name}.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="val.json have different classes; import each by itself"):
        made(tmp_path)


@pytest.mark.parametrize("place", ["images/sub/a.jpg", "a.jpg"])
def test_images_of_an_export_elsewhere_in_its_folder(tmp_path, image, place):
    image(place)
    content = COCO | {"annotations": [AREA]}
    (tmp_path / "in" / "result.json").write_text(json.dumps(content))
    assert (made(tmp_path)[0] == EXPECTED).all()


def studio(tmp_path, regions, url="/data/upload/1/0123abcd-a.jpg", **annotation):
    regions = [
        {"original_width": 8, "original_height": 6, "type": kind, "value": value | {kind: ["car"]}}
        for kind, value in regions
    ]
    content = {
        "id": 1,
        "data": {"text": "x", "image": url},
        "annotations": [
            {"updated_at": "2", "result": regions} | annotation,
            {"updated_at": "1", "result": [{"type": "choices", "value": {}}]},
            {"updated_at": "3", "was_cancelled": True, "result": []},
        ],
    }
    (tmp_path / "in" / "project-1.json").write_text(json.dumps([content]))


BOX = ("rectanglelabels", {"x": 25, "y": 100 / 6, "width": 50, "height": 400 / 6})


@pytest.mark.parametrize(
    "region",
    [
        BOX,
        (
            "polygonlabels",
            {"points": [[x / 0.08, y / 0.06] for x, y in ([2, 1], [6, 1], [6, 5], [2, 5])]},
        ),
        ("brushlabels", {"rle": pack_mask(EXPECTED == 1)}),
    ],
)
def test_label_studio(tmp_path, image, region):
    image("images/a.jpg")
    studio(
        tmp_path, [region, ("keypointlabels", {}), ("rectanglelabels", BOX[1] | {"rotation": 9})]
    )
    label, labels, notes = made(tmp_path)
    assert (label == EXPECTED).all()
    assert labels.names == ("background", "car")
    assert notes[1] == "passed over, as they are no areas: 1 keypointlabels, 1 rectanglelabels"


@pytest.mark.parametrize(
    ("url", "file"),
    [
        ("/data/local-files/?d=in/day%201/a.jpg", "day 1/a.jpg"),
        ("s3://bucket/day 1/a.jpg", "a.jpg"),
        ("/data/upload/1/0123abcd-a.jpg", "media/0123abcd-a.jpg"),
    ],
)
def test_images_of_label_studio(tmp_path, image, url, file):
    image(file)
    image("day 2/b.jpg")
    studio(tmp_path, [BOX], url)
    assert (made(tmp_path)[0] == EXPECTED).all()


def test_an_image_of_another_folder_is_not_taken(tmp_path, image):
    image("day 2/a.jpg")
    studio(tmp_path, [BOX], "/data/local-files/?d=in/day%201/a.jpg")
    with pytest.raises(InputError, match="there is no image in/day 1/a"):
        made(tmp_path)


def test_labelme_files_that_were_renamed(tmp_path, image):
    shape = {"label": "car", "points": [[2, 1], [6, 5]], "shape_type": "rectangle"}
    for day in ("day 1", "day 2"):
        labelme(tmp_path, image, [shape], f"{day}/b", imagePath="IMG_1.jpg")
    made(tmp_path)
    pairs = open_dataset(tmp_path / "out", "train").pairs
    assert [p.label.parent.name for p in pairs] == [p.image.parent.name for p in pairs]


def test_labelme_files_in_a_folder_of_their_own(tmp_path, image):
    shape = {"label": "car", "points": [[2, 1], [6, 5]], "shape_type": "rectangle"}
    for number, path in enumerate(["b0.jpg", "..\\images\\b1.jpg"]):
        labelme(tmp_path, image, [shape], f"day/b{number}", imagePath=path)
        (tmp_path / "in/images").mkdir(exist_ok=True)
        (tmp_path / f"in/day/b{number}.jpg").rename(tmp_path / f"in/images/b{number}.jpg")
    assert (made(tmp_path)[0] == EXPECTED).all()
    assert len(open_dataset(tmp_path / "out", "train")) == 2


def test_xml_that_expands_for_ever(tmp_path):
    lines = "".join(f'<!ENTITY l{n + 1} "{f"&l{n};" * 10}">' for n in range(9))
    text = f'<!DOCTYPE x [<!ENTITY l0 "lol">{lines}]><annotations>&l9;</annotations>'
    (tmp_path / "x.xml").write_text(text)
    with pytest.raises(InputError, match="x.xml cannot be read"):
        made(tmp_path, tmp_path / "x.xml")
