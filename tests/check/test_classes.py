"""Class names from the files that tools put beside labels."""

from __future__ import annotations

import pytest

from hmsa.check.classes import named
from hmsa.runs import InputError

INDEX = {"names": {0: "class_0", 1: "class_1", 2: "class_2"}, "encoding": "index"}
MASK = {"names": {0: "background", 255: "foreground"}, "encoding": "index"}
COLOURS = [[0, 0, 0], [70, 130, 180], [128, 64, 128]]
RGB = {"names": ["#000000", "#4682b4", "#804080"], "palette": COLOURS, "encoding": "rgb"}
NAMES = {0: "void land", 1: "sky", 2: "road"}


@pytest.mark.parametrize(
    ("file", "content", "table", "changed"),
    [
        ("classes.txt", "void land\nsky\nroad\ncar\n", INDEX, {"names": {**NAMES, 3: "car"}}),
        ("labels.txt", "0: void land\n2: road\n1: sky", INDEX, {"names": NAMES}),
        ("train/_classes.csv", "Pixel Value, Class\n0, void land\n1, sky\n2, road\n", INDEX,
         {"names": NAMES}),
        ("classes.txt", "class 1\nclass 2\nclass 3\n", INDEX,
         {"names": {0: "class 1", 1: "class 2", 2: "class 3"}}),
        ("labels.txt", "__ignore__\n_background_\na\nb\n", INDEX,
         {"names": {0: "_background_", 1: "a", 2: "b"}}),
        ("classes.txt", "a\nb", INDEX | {"names": {1: "class_1", 2: "class_2"}},
         {"names": {1: "a", 2: "b"}}),
        ("classes.txt", "roof\n", MASK, {"names": {0: "background", 255: "roof"}}),
        ("classes.txt", "void\nsky\nroad", INDEX,
         {"names": {1: "sky", 2: "road"}, "ignore": [0, 255]}),
        ("label_colors.txt", "0 0 0\tVoid\n70 130 180\tsky\n128 64 128\troad\n9 9 9\tcar", RGB,
         {"names": ["sky", "road", "car"], "palette": [*COLOURS[1:], [9, 9, 9]],
          "ignore": [[0, 0, 0]]}),
        ("class_dict.csv", "name,r,g,b\nland,0,0,0\nsky,70,130,180\nroad,128,64,128\n", RGB,
         {"names": ["land", "sky", "road"], "palette": COLOURS}),
        ("labelmap.txt", "# label:color_rgb:parts:actions\nroad:128,64,128::\nland:0,0,0::\n"
         "sky:70,130,180:up,down:shine\n", RGB,
         {"names": ["road", "land", "sky"], "palette": [COLOURS[n] for n in (2, 0, 1)]}),
        ("classes.txt", "a\nb\n", INDEX | {"names": {0: "class_0", 7: "class_7"}}, {}),
        ("readme.txt", "a\nb\nc\n", INDEX, {}),
    ],
)  # fmt: skip
def test_names(tmp_path, file, content, table, changed):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(content)
    assert named(table, tmp_path) == table | changed


@pytest.mark.parametrize(
    ("files", "table", "says"),
    [
        ({"classes.txt": "a\nb\n"}, INDEX, "is 0 a class or no label? add a first line there"),
        ({"class_dict.csv": "sky,70,130,180\nroad,128,64,128\n"}, RGB, "`void 0 0 0` for no label"),
        ({"a/classes.txt": "a\nb\nc", "b/classes.txt": "a\nc\nb"}, INDEX, "remove one of them"),
    ],
)
def test_two_readings(tmp_path, files, table, says):
    for file, content in files.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(content)
    with pytest.raises(InputError, match=says.replace("?", r"\?")):
        named(table, tmp_path)
