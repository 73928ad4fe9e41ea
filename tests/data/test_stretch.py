"""From any type to 8 bits: the range is that of most values of all files, and it is said."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from hmsa.data.images import decide, read_image
from hmsa.data.rasters import rasterio
from hmsa.data.stretch import Stretch
from hmsa.runs import progress
from hmsa.runs.errors import InputError


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    monkeypatch.setattr(progress, "_SAID", set())


def photo(count=3, size=(60, 80), seed=0):
    """Smooth bands `[n,h,w]` of 0..255, as a photo has them."""
    rng = np.random.default_rng(seed)
    small = rng.random((count, size[0] // 10, size[1] // 10))
    big = small.repeat(10, 1).repeat(10, 2) * 235 + rng.random((count, *size)) * 20
    return big.round().astype(np.uint8)


def write(file, bands, tags=None, scale=None, **options):
    pytest.importorskip("rasterio")
    count, height, width = bands.shape
    options |= {"count": count, "height": height, "width": width, "dtype": bands.dtype}
    with rasterio().open(file, "w", driver="GTiff", **options) as target:
        target.write(bands)
        target.update_tags(**(tags or {}))
        if scale:
            target.scales, target.offsets = [scale] * count, [0.0] * count
    return file


def difference(image, bands):
    return np.abs(image.astype(int) - np.moveaxis(bands, 0, -1)).mean()


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.uint32, np.float32, np.float64])
def test_a_satellites_12_bits_look_like_their_8_bits(tmp_path, dtype, capsys):
    bands = photo()
    image = read_image(write(tmp_path / "a.tif", bands.astype(dtype) * 12))
    assert difference(image, bands) < 5
    assert "a.tif has more than 8 bits: " in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["gray.png", "rgb.png", "gray.tif"])
def test_without_rasterio_too(tmp_path, monkeypatch, mode):
    kind, suffix = mode.split(".")
    bands = photo(1 if kind == "gray" else 3)
    file = tmp_path / mode
    if suffix == "png" and kind == "rgb":
        pytest.importorskip("rasterio")
        with rasterio().open(file, "w", driver="PNG", count=3, height=60, width=80,
                             dtype="uint16") as target:  # fmt: skip
            target.write(bands.astype(np.uint16) * 12)
    else:
        Image.fromarray(bands[0].astype(np.uint16) * 12).save(file)
    monkeypatch.setitem(__import__("sys").modules, "rasterio", None)
    assert difference(read_image(file), bands) < 5


@pytest.mark.parametrize("value", [0, 65535])
@pytest.mark.parametrize("size", [(60, 80), (10, 10)])
def test_one_pixel_decides_nothing(tmp_path, value, size):
    bands = photo(3, size).astype(np.uint16) * 12 + 100
    plain = read_image(write(tmp_path / "a.tif", bands))
    bands[0, 5, 5] = value
    image = read_image(write(tmp_path / "b.tif", bands)).astype(int)
    image[5, 5] = plain[5, 5]
    assert np.abs(image - plain).max() <= 5


@pytest.mark.parametrize(
    ("bands", "options", "expected"),
    [
        (photo().astype(np.uint16) * 257, {}, "0..65535"),
        (photo().astype(np.uint16), {}, "0..255"),
        (photo().astype(np.float32), {}, "0..255"),
        (photo() / np.float32(255), {}, "0..1"),
        (photo().astype(np.uint16) * 16, {"nbits": 12}, "0..4095"),
        (photo().astype(np.uint16) * 10, {"tags": {"TIFFTAG_MINSAMPLEVALUE": "0",
                                                   "TIFFTAG_MAXSAMPLEVALUE": "2550"}}, "0..2550"),
        (photo().astype(np.uint16) * 25, {"scale": 1 / 6375}, "0..1"),
    ],
)  # fmt: skip
def test_declared_and_usual_ranges_count_where_values_fill_them(tmp_path, bands, options, expected):
    """So a photo in a wider type is that photo, to the digit."""
    file = write(tmp_path / "a.tif", bands, **options)
    assert decide([file]).text == expected
    assert difference(read_image(file), photo()) < 0.6


@pytest.mark.parametrize(
    "options",
    [{"nbits": 12}, {"tags": {"TIFFTAG_MINSAMPLEVALUE": "0", "TIFFTAG_MAXSAMPLEVALUE": "65535"}}],
)
def test_declared_ranges_that_values_hardly_fill_do_not_count(tmp_path, options):
    bands = photo().astype(np.uint16) * 4
    assert difference(read_image(write(tmp_path / "a.tif", bands, **options)), photo()) < 5


def test_nodata_decides_nothing_and_is_black(tmp_path):
    bands = photo().astype(np.int16) * 12
    bands[:, :20] = -9999
    image = read_image(write(tmp_path / "a.tif", bands, nodata=-9999))
    assert not image[:20].any()
    assert difference(image[20:], photo()[:, 20:]) < 5


def test_one_range_for_all_files_of_a_set(tmp_path, capsys):
    """The dark file stays darker than the bright one."""
    dark, bright = (photo(seed=s).astype(np.uint16) * n + 50 for s, n in ((0, 2), (1, 12)))
    files = [write(tmp_path / "a.tif", dark), write(tmp_path / "b.tif", bright)]
    decided = decide(files)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"{decided.text} becomes 0..255, by 2 of 2 files" in said
    means = [read_image(file, stretch=decided).mean() for file in files]
    assert means[0] < 0.4 * means[1]
    assert decide(files, decided) == decided
    assert not capsys.readouterr().err, "what is known is not decided anew"


def test_8_bits_are_as_they_are(tmp_path, capsys):
    Image.fromarray(np.moveaxis(photo(), 0, -1).copy()).save(tmp_path / "a.png")
    assert decide([tmp_path / "a.png"]) == Stretch()
    image = read_image(tmp_path / "a.png", stretch=Stretch(ranges=((0, 3000),)))
    assert difference(image, photo()) == 0
    assert not capsys.readouterr().err


def test_chosen_bands_have_a_range_each(tmp_path):
    bands = photo(5).astype(np.uint16) * np.array([12, 12, 12, 40, 3], np.uint16)[:, None, None]
    file = write(tmp_path / "a.tif", bands)
    stretch = decide([file], Stretch((4, 3, 5, 1)))
    assert len(stretch.ranges) == 4
    image = read_image(file, stretch=stretch)
    assert image.shape == (60, 80, 4)
    assert difference(image, photo(5)[[3, 2, 4, 0]]) < 5
    with pytest.raises(InputError, match=r"a.tif has 5 band\(s\), and band 6 is needed"):
        read_image(file, stretch=Stretch((6,)))


def test_bands_of_an_8_bit_image(tmp_path):
    Image.fromarray(np.moveaxis(photo(4), 0, -1).copy()).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png", stretch=Stretch((4, 1)))
    assert difference(image, photo(4)[[3, 0]]) == 0


def test_colours_are_found_by_their_names(tmp_path):
    file = write(tmp_path / "a.tif", photo(4))
    with rasterio().open(file, "r+") as target:
        names = rasterio().enums.ColorInterp
        target.colorinterp = [names.blue, names.green, names.red, names.undefined]
    assert difference(read_image(file), photo(4)[[2, 1, 0]]) == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [((None, ((5, 5),)), "the smaller one"), ((None, ((0, 1), (0, 2))), "2 ranges for 3 bands")],
)
def test_mistakes(arguments, says):
    with pytest.raises(InputError, match=says):
        Stretch(*arguments)


def test_jpeg_2000_of_16_bits(tmp_path):
    pytest.importorskip("rasterio")
    bands = photo(1).astype(np.uint16) * 12
    options = {"count": 1, "height": 60, "width": 80, "dtype": "uint16", "REVERSIBLE": True}
    file = tmp_path / "a.jp2"
    with rasterio().open(file, "w", driver="JP2OpenJPEG", QUALITY=100, **options) as target:
        target.write(bands)
    assert difference(read_image(tmp_path / "a.jp2"), photo(1)) < 5
