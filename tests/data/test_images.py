"""Every kind of picture file means what a viewer shows; every broken one is one clear line."""

from __future__ import annotations

import struct
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from hmsa.data.images import open_image, read_image, read_size, require_one_size
from hmsa.data.rasters import MAX_PIXELS
from hmsa.runs import progress
from hmsa.runs.errors import InputError

RED = (200, 30, 40)


def saved(tmp_path, picture, name="picture.png", **options):
    picture.save(tmp_path / name, **options)
    return tmp_path / name


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [
        ("RGB", RED, RED),
        ("RGBA", (*RED, 10), RED),
        ("L", 77, (77, 77, 77)),
        ("LA", (77, 3), (77, 77, 77)),
        ("1", 1, (255, 255, 255)),
        ("I;16", 65535, (255, 255, 255)),
        ("I;16", 257 * 40, (40, 40, 40)),
        ("I;16", 200, (200, 200, 200)),
    ],
)
def test_modes(tmp_path, mode, color, expected):
    image = read_image(saved(tmp_path, Image.new(mode, (5, 3), color)))
    assert image.shape == (3, 5, 3)
    assert image.dtype == np.uint8
    assert image[1, 2].tolist() == list(expected)


def test_palette(tmp_path):
    picture = Image.new("P", (5, 3), 2)
    picture.putpalette([0, 0, 0, 9, 9, 9, *RED])
    assert read_image(saved(tmp_path, picture))[0, 0].tolist() == list(RED)


def test_cmyk_jpeg(tmp_path):
    picture = Image.new("RGB", (16, 16), RED).convert("CMYK")
    image = read_image(saved(tmp_path, picture, "a.jpg", quality=95))
    assert np.abs(image[8, 8].astype(int) - RED).max() < 6


def test_float_tiff(tmp_path):
    picture = Image.fromarray(np.full((4, 4), 0.5, np.float32))
    assert read_image(saved(tmp_path, picture, "a.tif"))[0, 0].tolist() == [128, 128, 128]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(tmp_path, orientation):
    """The bright corner of the upright picture is found by any viewer; we must agree."""
    pixels = np.zeros((24, 40), np.uint8)
    pixels[:8, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path, Image.fromarray(pixels), "a.jpg", exif=exif, quality=95)
    image = read_image(path)
    assert image.shape[:2] == read_size(path) == ((24, 40) if orientation < 5 else (40, 24))
    corners = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0),
               5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}  # fmt: skip
    assert image[corners[orientation]].min() > 200


def test_one_pixel_wide(tmp_path):
    assert read_image(saved(tmp_path, Image.new("RGB", (1, 7)))).shape == (7, 1, 3)


def test_truncated(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    path = saved(tmp_path, Image.fromarray(noise), "cut.jpg")
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(InputError, match="cut.jpg cannot be decoded"):
        read_image(path)


@pytest.mark.parametrize("content", [b"", b"not a picture"])
def test_no_picture(tmp_path, content):
    path = tmp_path / "text.png"
    path.write_bytes(content)
    with pytest.raises(InputError, match="text.png is not an image"):
        read_image(path)


def test_the_size_of_a_png_needs_its_header_alone(tmp_path):
    file = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40), np.uint8)).save(file)
    file.write_bytes(file.read_bytes()[:100])
    assert read_size(file) == (30, 40)


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("suffix", ["tif", "png", "webp"])
def test_rotation_of_other_kinds(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.zeros((24, 40), np.uint8)
    pixels[:8, :8] = 255
    path = saved(tmp_path, Image.fromarray(pixels), f"a.{suffix}", exif=exif)
    turns = {1: 0, 3: 2, 6: 3}[orientation]
    assert ((read_image(path)[..., 0] > 128) == (np.rot90(pixels, turns) > 0)).mean() > 0.98
    if suffix != "png":  # whose size is that of its header
        assert read_size(path) == read_image(path).shape[:2]


@pytest.fixture
def nothing_said(monkeypatch):
    monkeypatch.setattr(progress, "_SAID", set())


class TestTurnedByExif:
    """The label of a phone's picture, which some tools draw on the picture as it is stored."""

    @staticmethod
    def pair(tmp_path, orientation, size, label_size):
        exif = Image.Exif()
        exif[0x0112] = orientation
        image = saved(tmp_path, Image.new("RGB", size), "a.jpg", exif=exif)
        return image, saved(tmp_path, Image.new("L", label_size), "a.png")

    def test_drawn_on_the_stored_picture(self, tmp_path):
        with pytest.raises(InputError, match=r"a.jpg is 30x40 but .*a.png is 40x30 .*EXIF turns"):
            require_one_size(*self.pair(tmp_path, 6, (40, 30), (40, 30)))

    @pytest.mark.parametrize(
        ("orientation", "size", "label_size", "says"),
        [
            (6, (40, 30), (30, 40), False),
            (6, (40, 40), (40, 40), True),
            (3, (40, 30), (40, 30), True),
            (1, (40, 40), (40, 40), False),
        ],
    )
    def test_said_where_sizes_cannot_tell(
        self, tmp_path, nothing_said, capsys, orientation, size, label_size, says
    ):
        for _ in range(2):
            require_one_size(*self.pair(tmp_path, orientation, size, label_size))
        assert capsys.readouterr().err.count("a.jpg is turned by EXIF (orientation") == says


@pytest.mark.parametrize("suffix", ["tif", "gif", "webp", "png"])
def test_pages_beyond_the_first_are_said(tmp_path, nothing_said, capsys, suffix):
    pages = [Image.new("RGB", (8, 6), color) for color in (RED, (0, 0, 0), (9, 9, 9))]
    file = saved(tmp_path, pages[0], f"a.{suffix}", save_all=True, append_images=pages[1:])
    for _ in range(2):
        assert np.abs(read_image(file)[0, 0].astype(int) - RED).max() < 6
    said = capsys.readouterr().err
    assert said == f"{file} has 3 pages; of such files only the first page is read\n"


def test_one_page_is_not_worth_a_word(tmp_path, nothing_said, capsys):
    for suffix in ("tif", "gif", "webp", "png", "jpg"):
        read_image(saved(tmp_path, Image.new("RGB", (8, 6)), f"a.{suffix}"))
    assert not capsys.readouterr().err


class TestFalseClaims:
    """Files too short for the pixels of their header are refused before anything is allocated."""

    @pytest.mark.parametrize("strip", [48, 100000])
    @pytest.mark.parametrize("compression", ["raw", "tiff_adobe_deflate", "tiff_lzw"])
    @pytest.mark.parametrize("rasterio", [True, False])
    def test_tiff(self, tmp_path, monkeypatch, compression, strip, rasterio):
        noise = Image.effect_noise((64, 48), 90)
        file = saved(tmp_path, noise, "a.tif", compression=compression)
        content = file.read_bytes()
        for tag, old, new in ((256, 64, 100000), (257, 48, 100000), (278, 48, strip)):
            for kind, form in ((4, "<HHII"), (3, "<HHIHxx")):
                entry = struct.pack(form, tag, kind, 1, old)
                content = content.replace(entry, struct.pack("<HHII", tag, 4, 1, new))
        file.write_bytes(content)
        if not rasterio:
            monkeypatch.setitem(sys.modules, "rasterio", None)
        monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))
        for read in (read_image, read_size):
            with pytest.raises(
                InputError, match=r"a.tif cannot be decoded: .* 100000x100000 pixels"
            ):
                read(file)

    def test_png(self, tmp_path, monkeypatch):
        monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))
        (tmp_path / "a.png").write_bytes(png_of(16000, 16000))
        with pytest.raises(InputError, match=r"a.png cannot be decoded: .* the 16000x16000 pixels"):
            read_image(tmp_path / "a.png")


def png_of(width: int, height: int) -> bytes:
    """All that a PNG of that size says of itself, with hardly any pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(
            ">I", zlib.crc32(name + content)
        )  # fmt: skip

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0"))


class TestLimit:
    @pytest.fixture
    def bomb(self, tmp_path):
        (tmp_path / "bomb.png").write_bytes(png_of(40000, 50000))
        return tmp_path / "bomb.png"

    def test_a_bomb_is_one_line(self, bomb):
        for read in (read_image, open_image):
            with pytest.raises(InputError) as refused:
                read(bomb)
            assert str(refused.value) == (
                f"{bomb} is 40000x50000, 2000000000 pixels, and at most 268435456 are decoded at "
                "once; if you trust it, set HMSA_MAX_PIXELS=2000000000 in the environment"
            )
        assert read_size(bomb) == (50000, 40000), "the header harms nobody"

    def test_the_environment_lifts_and_lowers_it(self, bomb, tmp_path, monkeypatch):
        file = saved(tmp_path, Image.new("L", (50, 40)))
        monkeypatch.setenv("HMSA_MAX_PIXELS", "1999")
        with pytest.raises(InputError, match="50x40, 2000 pixels, and at most 1999 are"):
            read_image(file)
        monkeypatch.setenv("HMSA_MAX_PIXELS", "2000")
        assert read_image(file).shape == (40, 50, 3)
        monkeypatch.setenv("HMSA_MAX_PIXELS", "many")
        with pytest.raises(InputError, match="HMSA_MAX_PIXELS='many' .* not a number"):
            read_image(file)

    def test_no_word_of_pillows_own(self, tmp_path, monkeypatch):
        """Which would warn of 28 pixels here, and fail from 55 on; and stays so for others."""
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 27)
        files = [saved(tmp_path, Image.new("L", (9, 8)), f"{i}.png") for i in range(40)]
        with ThreadPoolExecutor(8) as pool, warnings.catch_warnings():
            warnings.simplefilter("error")
            assert all(image.shape == (8, 9, 3) for image in pool.map(read_image, files))
        assert Image.MAX_IMAGE_PIXELS == 27
        with pytest.raises(Image.DecompressionBombError):
            Image.open(files[0])

    def test_28_megapixels_are_far_below(self):
        assert MAX_PIXELS > 9 * 6447 * 4438


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("none.png", png_of(0, 5)),
        ("none.ppm", b"P6 0 4 255\n"),
        ("none.gif", b"GIF89a" + struct.pack("<HHBBB", 0, 0, 0, 0, 0) + b";"),
        ("none.bmp", b"BM" + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, 0, 5, 1, 24, *[0] * 6)),
    ],
)
def test_no_pixels(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    for read in (read_image, read_size):
        with pytest.raises(InputError, match=f"{name} .*; replace or remove it") as refused:
            read(tmp_path / name)
        assert "\n" not in str(refused.value)
