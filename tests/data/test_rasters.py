"""TIFFs by windows: what Pillow would show, of more kinds, and never the whole file at once."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hmsa.check.scan import scan_file
from hmsa.data.images import open_image, read_image, read_size
from hmsa.data.labels import LabelSet
from hmsa.data.rasters import Raster
from hmsa.data.rasters import rasterio as the_module
from hmsa.runs import progress
from hmsa.runs.errors import InputError

pytest.importorskip("rasterio")
ALL = slice(None)
RAMP = np.arange(30 * 40, dtype=np.uint32).reshape(30, 40)


def write(file: Path, bands: np.ndarray, **options: object) -> Path:
    """[n,h,w] -> a GeoTIFF."""
    count, height, width = bands.shape
    colors = options.pop("colors", None)
    with the_module().open(
        file, "w", driver="GTiff", count=count, height=height, width=width, dtype=bands.dtype,
        **options,
    ) as target:  # fmt: skip
        if colors:
            target.write_colormap(1, colors)
        target.write(bands)
    return file


@pytest.fixture
def no_rasterio(monkeypatch):
    monkeypatch.setitem(sys.modules, "rasterio", None)


def without_rasterio(file: Path) -> np.ndarray | None:
    """What Pillow makes of it, None where it cannot read it."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(sys.modules, "rasterio", None)
        try:
            with open_image(file) as picture:
                assert not isinstance(picture, Raster)
                return picture.read(ALL, ALL)
        except InputError:
            return None


@st.composite
def windows(draw, size):
    found = []
    for side in size:
        a, b = draw(st.integers(-2, side + 3)), draw(st.integers(0, side + 3))
        found.append(draw(st.sampled_from([slice(a, b), slice(None, b), slice(a, None), ALL])))
    return tuple(found)


TYPES = ["uint8", "uint16", "int16", "uint32", "float32", "float64"]


@settings(max_examples=40)
@given(st.data())
def test_a_window_is_a_part_of_the_whole(tmp_path_factory, data):
    """And the whole is what Pillow reads, where it can."""
    count, dtype = data.draw(st.integers(1, 5)), data.draw(st.sampled_from(TYPES))
    size = data.draw(st.tuples(st.integers(1, 70), st.integers(1, 70)))
    top = data.draw(st.sampled_from([1, 200, 256, 4000, 60000]))
    values = np.random.default_rng(data.draw(st.integers(0, 9))).random((count, *size)) * top
    if np.dtype(dtype).kind != "f":
        values = np.minimum(values, np.iinfo(dtype).max)
    options = {"compress": data.draw(st.sampled_from([None, "deflate", "lzw"]))}
    if data.draw(st.booleans()):
        options |= {"tiled": True, "blockxsize": 16, "blockysize": 32}
    if data.draw(st.booleans()):
        options["interleave"] = data.draw(st.sampled_from(["pixel", "band"]))
    if in_colors := count >= 3 and data.draw(st.booleans()):
        options["photometric"] = "rgb"
    file = tmp_path_factory.mktemp("tiff") / "a.tif"
    write(file, values.astype(dtype), **options)

    whole = read_image(file)
    assert whole.shape == (*size, 3)
    assert whole.dtype == np.uint8
    assert read_size(file) == size
    with open_image(file) as picture:
        assert isinstance(picture, Raster)
        assert picture.size == size
        for _ in range(3):
            rows, cols = data.draw(windows(size))
            np.testing.assert_array_equal(picture.read(rows, cols), whole[rows, cols])
    pillow = without_rasterio(file)
    apart = count > 2 and options.get("interleave") == "band"
    if pillow is not None and (in_colors or not apart):  # of separate bands Pillow shows the first
        np.testing.assert_array_equal(whole, pillow)


@settings(max_examples=40)
@given(st.data())
def test_a_window_of_any_other_picture(tmp_path_factory, data):
    mode = data.draw(st.sampled_from(["RGB", "RGBA", "L", "P", "I;16", "CMYK"]))
    size = data.draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    base = Image.effect_noise(size[::-1], 90)
    file = tmp_path_factory.mktemp("other") / f"a.{'tif' if mode == 'CMYK' else 'png'}"
    if mode == "I;16":
        Image.fromarray(np.asarray(base).astype(np.uint16) * 200).save(file)
    else:
        base.convert(mode).save(file)
    with open_image(file) as picture:
        assert not isinstance(picture, Raster)
        assert picture.size == size == read_size(file)
        rows, cols = data.draw(windows(size))
        part = picture.read(rows, cols)
        np.testing.assert_array_equal(part, read_image(file)[rows, cols])
        assert part.base is not None or not part.size


def noise(count: int, dtype: object = np.uint8, top: int = 256) -> np.ndarray:
    return np.random.default_rng(count).integers(0, top, (count, 30, 40)).astype(dtype)


@pytest.mark.parametrize(
    ("bands", "expected"),
    [
        (noise(1), lambda b: b[[0, 0, 0]]),
        (noise(2), lambda b: b[[0, 0, 0]]),
        (noise(4), lambda b: b[:3]),
        (noise(12), lambda b: b[:3]),
        (noise(1, np.uint16, 65536), lambda b: np.rint(b / 257)[[0, 0, 0]]),
        (noise(1, np.uint16, 256), lambda b: b[[0, 0, 0]]),
        (noise(4, np.uint16, 65536), lambda b: np.rint(b[:3] / 257)),
        (noise(4, np.uint16, 256), lambda b: b[:3]),
        (noise(5, np.float32, 2), lambda b: b[:3] * 255),
        (noise(5, np.float32, 256), lambda b: b[:3]),
        (noise(1, np.int16), lambda b: b[[0, 0, 0]]),
    ],
)
def test_bands_and_types(tmp_path, bands, expected):
    image = read_image(write(tmp_path / "a.tif", bands))
    np.testing.assert_array_equal(image, np.moveaxis(expected(bands), 0, -1).astype(np.uint8))


def test_the_range_is_that_of_the_whole_picture_not_of_the_window(tmp_path):
    values = noise(1, np.float32, 2) / 2
    values[0, 15:] *= 400
    with open_image(write(tmp_path / "a.tif", values)) as picture:
        assert picture.read(slice(0, 9), ALL).max() <= 1
        assert picture.read(slice(20, 30), ALL).max() == 200


def test_nodata_is_black_and_widens_no_range(tmp_path):
    values = np.full((1, 30, 40), 0.5, np.float32)
    values[0, :10], values[0, 10] = 3.4e38, np.nan
    image = read_image(write(tmp_path / "a.tif", values, nodata=3.4e38))
    assert not image[:11].any()
    assert (image[11:] == 128).all()
    bytes_ = noise(3)
    plain = read_image(write(tmp_path / "b.tif", bytes_, nodata=255))
    np.testing.assert_array_equal(plain, np.moveaxis(bytes_, 0, -1)), "8 bits are as they are"


def test_palette(tmp_path):
    colors = {value: (value, 255 - value, 7, 255) for value in range(256)}
    file = write(tmp_path / "a.tif", noise(1), colors=colors, tiled=True)
    image = read_image(file)
    assert (image == np.stack([noise(1)[0], 255 - noise(1)[0], np.full((30, 40), 7)], -1)).all()
    assert (image == without_rasterio(file)).all()


def test_jpeg_inside(tmp_path):
    """Two decoders differ in how they smooth colours, no more."""
    smooth = np.stack([RAMP // 5, RAMP[::-1] // 5, np.full_like(RAMP, 90)]).astype(np.uint8)
    file = write(tmp_path / "a.tif", smooth, compress="jpeg", photometric="ycbcr", tiled=True)
    image = read_image(file)
    assert isinstance(open_image(file), Raster)
    assert np.abs(image.astype(int) - np.moveaxis(smooth, 0, -1)).max() < 12
    assert np.abs(image.astype(int) - without_rasterio(file)).max() < 12


def test_what_rasterio_takes_otherwise_is_left_to_pillow(tmp_path):
    base = Image.fromarray(noise(3).transpose(1, 2, 0).copy())
    base.convert("CMYK").save(tmp_path / "cmyk.tif")
    base.convert("1").save(tmp_path / "bits.tif")
    base.save(tmp_path / "lying.tif", tiffinfo={274: 6})
    Image.fromarray(noise(1)[0]).save(tmp_path / "inverted.tif", tiffinfo={262: 0})
    for file in sorted(tmp_path.iterdir()):
        with open_image(file) as picture:
            assert not isinstance(picture, Raster), file
        np.testing.assert_array_equal(read_image(file), without_rasterio(file))
    assert read_size(tmp_path / "lying.tif") == (40, 30)


def test_complex_numbers_are_refused(tmp_path):
    file = write(tmp_path / "radar.tif", noise(1).astype(np.complex64))
    with pytest.raises(InputError, match="radar.tif (cannot be decoded|is not an image)"):
        open_image(file)


def test_damaged_where_it_is_read(tmp_path):
    file = write(tmp_path / "cut.tif", np.tile(noise(3), (1, 9, 9)), tiled=True, compress="deflate",
                 blockxsize=64, blockysize=64)  # fmt: skip
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with open_image(file) as picture:
        assert picture.read(slice(0, 64), slice(0, 64)).any()
        with pytest.raises(InputError, match="cut.tif cannot be decoded .*; replace or remove it"):
            picture.read(ALL, ALL)
    with pytest.raises(InputError, match="cut.tif"):
        read_image(file)


def test_without_rasterio_says_what_is_needed(tmp_path, no_rasterio):
    file = tmp_path / "bands.tif"
    with pytest.MonkeyPatch.context() as there:
        there.delitem(sys.modules, "rasterio")
        write(file, noise(5, np.uint16))
    for read in (read_image, read_size):
        with pytest.raises(InputError, match=r'bands.tif .*rasterio.*: pip install "hmsa\[geo\]"'):
            read(file)
    file.write_bytes(b"no TIFF at all")
    with pytest.raises(InputError, match="bands.tif is not an image.*; replace or remove it"):
        read_image(file)


def test_a_dataset_of_them_can_be_checked(tmp_path):
    scan = scan_file(write(tmp_path / "a.tif", noise(5, np.uint16, 60000)))
    assert not scan.broken
    assert (scan.mode, scan.size) == ("5 band(s) of uint16", "40x30")


def test_memory_is_that_of_the_window(tmp_path, grown):
    """900 million pixels of 3 x 16 bits, 5 GiB, most of which the file leaves out."""
    file = tmp_path / "giant.tif"
    with the_module().open(
        file, "w", driver="GTiff", count=3, height=30000, width=30000, dtype="uint16", tiled=True,
        sparse_ok=True, compress="deflate", photometric="rgb",
    ) as target:  # fmt: skip
        target.write(np.full((3, 8, 8), 999, np.uint16), window=((0, 8), (0, 8)))
    with open_image(file) as picture:
        assert picture.size == (30000, 30000)
        with grown() as more:
            for at in range(0, 30000, 6000):
                window = slice(at, at + 1024)
                assert picture.read(window, window).shape == (1024, 1024, 3)
                assert picture.read(window, ALL).shape == (1024, 30000, 3)
        assert more() < 600, "MiB: the cache, and the 90 of the larger window"
    with pytest.raises(InputError, match="giant.tif is 30000x30000, 900000000 pixels"):
        read_image(file)


class TestLabels:
    """Label files have the reader that images have."""

    TABLE = LabelSet(("a", "b", "c"), ((0, 0, 0), (9, 9, 9), (99, 99, 99)), (0, 1, 2))
    VALUES = np.arange(30 * 40).reshape(1, 30, 40) % 3

    @pytest.mark.parametrize(
        "options",
        [{"dtype": t} for t in ("uint8", "int16", "uint16", "int32", "float32", "float64")]
        + [{"dtype": "uint8", "compress": "lerc"}, {"dtype": "uint8", "compress": "zstd"}],
    )
    def test_types(self, tmp_path, options):
        file = write(tmp_path / "a.tif", self.VALUES.astype(options.pop("dtype")), **options)
        assert (self.TABLE.read(file) == self.VALUES[0]).all()
        assert scan_file(file, self.TABLE).values == {0: 400, 1: 400, 2: 400}

    def test_three_equal_bands(self, tmp_path):
        file = write(tmp_path / "a.tif", self.VALUES.repeat(3, 0).astype(np.uint16))
        assert (self.TABLE.read(file) == self.VALUES[0]).all()
        file = write(tmp_path / "b.tif", (noise(3) % 3).astype(np.uint16))
        with pytest.raises(InputError, match="b.tif holds colours, not class values"):
            self.TABLE.read(file)

    @pytest.mark.parametrize("value", [0.8, np.nan, np.inf])
    @pytest.mark.parametrize("rasterio", [True, False])
    def test_what_is_not_whole(self, tmp_path, monkeypatch, value, rasterio):
        values = self.VALUES.astype(np.float32)
        values[0, 3, 3] = value
        file = write(tmp_path / "a.tif", values)
        if not rasterio:
            monkeypatch.setitem(sys.modules, "rasterio", None)
        with pytest.raises(InputError, match=f"a.tif holds {value:g}, which is not a whole number"):
            self.TABLE.read(file)

    @pytest.mark.parametrize(
        ("dtype", "nodata"),
        [("int16", -9999), ("float32", np.nan), ("float64", -1e9), ("uint8", 7)],
    )
    def test_nodata_is_no_label(self, tmp_path, dtype, nodata):
        values = self.VALUES.astype(dtype)
        values[0, :10] = nodata
        file = write(tmp_path / "a.tif", values, nodata=nodata)
        label = self.TABLE.read(file)
        assert (label[:10] == 255).all()
        assert (label[10:] == self.VALUES[0, 10:]).all()
        assert scan_file(file, self.TABLE).values[255] == 400, "nor is it one in a check"

    def test_nodata_that_is_a_class_is_said(self, tmp_path, capsys, monkeypatch):
        monkeypatch.setattr(progress, "_SAID", set())
        file = write(tmp_path / "a.tif", self.VALUES.astype(np.uint8), nodata=0)
        assert (self.TABLE.read(file) == self.VALUES[0]).all()
        assert "a.tif: 0 is its nodata, but also a; it counts as a" in capsys.readouterr().err

    def test_negative_values_are_named(self, tmp_path):
        file = write(tmp_path / "a.tif", self.VALUES.astype(np.int16) - 1)
        with pytest.raises(InputError, match=r"-1 \(400 pixels\)"):
            self.TABLE.read(file)

    def test_colours(self, tmp_path):
        table = LabelSet(("a", "b"), ((1, 2, 3), (4, 5, 6)), (0x010203, 0x040506), encoding="rgb")
        bands = np.array([1, 2, 3])[:, None, None] + 3 * (self.VALUES % 2)
        for dtype in ("uint8", "uint16"):
            file = write(tmp_path / "a.tif", bands.astype(dtype))
            assert (table.read(file) == self.VALUES[0] % 2).all()
        with pytest.raises(InputError, match="labels in colours have 8 bits"):
            table.read(write(tmp_path / "b.tif", bands.astype(np.uint16) * 257))


def test_an_empty_file_that_claims_much_is_no_image(tmp_path):
    """Blocks that are missing are empty, as GDAL writes them; a short list of blocks is a lie."""
    file = write(tmp_path / "a.tif", np.zeros((1, 64, 64), np.uint8), tiled=True, sparse_ok=True,
                 blockxsize=16, blockysize=16)  # fmt: skip
    assert not read_image(file).any()
