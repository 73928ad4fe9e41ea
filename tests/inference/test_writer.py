"""The files of one picture: what was seen, exactly, and in little memory."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hmsa.checkpoint.files import Card
from hmsa.data.images import OpenImage
from hmsa.inference import writer
from hmsa.inference.predictor import Prediction
from hmsa.inference.writer import KINDS, Writer
from hmsa.runs.errors import CannotWrite, InputError

NAMES = ["land", "water", "road", "roof"]
PALETTE = [(10, 20, 30), (0, 0, 200), (99, 99, 99), (200, 60, 60)]


def seen_of(height: int, width: int, **more: object) -> Prediction:
    """Blobs of four classes."""
    y, x = np.ogrid[:height, :width]
    label = ((y // 7 + x // 11) % 4).astype(np.uint8)
    return Prediction(label, (100 + (x + y) % 156).astype(np.uint8), palette=PALETTE, **more)


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)


@pytest.fixture
def write(tmp_path, image):
    def write(*save, seen=None, source=Path("in/a.tif"), pixels=image):
        made = Writer(tmp_path, save, Card(names=NAMES, palette=PALETTE, network={}), (1, 0.5))
        seen = seen or seen_of(*pixels.shape[:2])
        made.write("sub/a", source, OpenImage(pixels), seen)
        files = made.files("sub/a", source)
        there = {p for p in tmp_path.rglob("*") if p.is_file()}
        assert there == set(files), "no more, no less"
        return files

    return write


def test_what_a_predictor_must_return(tmp_path):
    for save, needs in (
        (["label", "overlay", "confidence", "rle", "geotiff"], set()),
        (["npz"], {"detail"}),
        (["probabilities"], {"probabilities"}),
        (["entropy", "panel"], {"detail", "entropy"}),
    ):
        made = Writer(tmp_path, save, Card(names=NAMES, network={}), (1,))
        assert {name for name, needed in made.needs.items() if needed} == needs


def test_kinds_that_cannot_be_written_are_refused(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="--save: 'masks' is not one of label, overlay, conf"):
        Writer(tmp_path, ["label", "masks"], Card(names=NAMES, network={}), (1,))
    with pytest.raises(InputError, match="fusion max has none; leave them out"):
        Writer(tmp_path, ["weights"], Card(names=NAMES, network={"fusion": "max"}), (1,))
    for kind, module, extra in (("geotiff", "rasterio", "geo"), ("rle", "pycocotools", "coco")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(InputError, match=rf'{module}.*: pip install "hmsa\[{extra}\]"'):
            Writer(tmp_path, [kind], Card(names=NAMES, network={}), (1,))


def test_of_a_video_there_is_an_overlay(tmp_path):
    made = Writer(tmp_path, ["label"], Card(names=NAMES, network={}), (1,))
    for source, result in (("a.MP4", "a.mp4"), ("a.mov", "a.mov"), ("a.webm", "a.mkv")):
        assert made.files("a", Path(source)) == [tmp_path / "overlay" / result]


def test_probabilities(write):
    given = np.random.default_rng(0).dirichlet(np.ones(4), (60, 90)).transpose(2, 0, 1)
    seen = replace(seen_of(60, 90), probabilities=given.astype(np.float16))
    (file,) = write("probabilities", seen=seen)
    assert file.parts[-3:] == ("probabilities", "sub", "a.npz")
    with np.load(file) as held:
        assert sorted(held) == ["classes", "probabilities"]
        assert held["probabilities"].dtype == np.float16
        assert (held["probabilities"] == seen.probabilities).all()
        assert held["classes"].tolist() == NAMES


def test_entropy(write):
    entropy = np.random.default_rng(1).integers(0, 256, (60, 90), np.uint8)
    (file,) = write("entropy", seen=replace(seen_of(60, 90), entropy8=entropy))
    assert file.parts[-3:] == ("entropy", "sub", "a.png")
    with Image.open(file) as picture:
        assert picture.mode == "L"
        assert (np.asarray(picture) == entropy).all()


class TestGeotiff:
    @pytest.fixture
    def rasterio(self):
        return pytest.importorskip("rasterio")

    @pytest.fixture
    def source(self, rasterio, tmp_path_factory):
        """A picture of 4 bands near Vienna, in metres, that has no data in its first rows."""

        def make(**options):
            file = tmp_path_factory.mktemp("in") / "a.tif"
            bands = np.random.default_rng(0).integers(1, 9000, (4, 60, 90), np.uint16)
            bands[:, :5] = 0
            options = {
                "crs": "EPSG:32633", "nodata": 0,
                "transform": rasterio.Affine(0.5, 0, 600000, 0, -0.5, 5340000),
            } | options  # fmt: skip
            with rasterio.open(
                file, "w", driver="GTiff", count=4, height=60, width=90, dtype="uint16", **options
            ) as target:
                target.write(bands)
            return file

        return make

    def test_it_lies_where_the_picture_lies(self, rasterio, source, write):
        file, seen = source(), seen_of(60, 90)
        label, confidence = write("geotiff", source=file, seen=seen)
        assert [p.parts[-4:] for p in (label, confidence)] == [
            ("geotiff", part, "sub", "a.tif") for part in ("label", "confidence")
        ]
        with rasterio.open(file) as source, rasterio.open(label) as made:
            assert made.crs == source.crs
            assert made.crs.to_epsg() == 32633
            assert made.transform == source.transform
            assert (made.shape, made.count, made.dtypes) == ((60, 90), 1, ("uint8",))
            assert made.nodata == 255
            assert made.profile["tiled"]
            assert made.compression.name == "deflate"
            assert [made.colormap(1)[k][:3] for k in range(4)] == PALETTE
            assert json.loads(made.tags()["CLASSES"]) == NAMES
            values = made.read(1)
        assert (values[:5] == 255).all(), "no data, no label"
        assert (values[5:] == seen.label[5:]).all()
        with rasterio.open(confidence) as made:
            assert made.nodata == 0
            assert made.crs.to_epsg() == 32633
            assert not made.read(1)[:5].any()
            assert (made.read(1)[5:] == seen.confidence8[5:]).all()
        with Image.open(label) as picture:
            assert picture.mode == "P", "any viewer shows its colours"

    def test_without_nodata_all_is_seen(self, rasterio, source, write):
        label, _ = write("geotiff", source=source(nodata=None))
        with rasterio.open(label) as made:
            assert (made.read(1) == seen_of(60, 90).label).all()

    def test_ground_control_points(self, rasterio, source, write):
        from rasterio.control import GroundControlPoint

        points = [
            GroundControlPoint(row, col, 16 + col / 1000, 48 - row / 1000, 0)
            for row, col in ((0, 0), (0, 90), (60, 0), (60, 90))
        ]
        for file in write("geotiff", source=source(gcps=points, crs="EPSG:4326", transform=None)):
            with rasterio.open(file) as made:
                kept, system = made.gcps
                assert system.to_epsg() == 4326
                assert [(p.row, p.col, p.x, p.y) for p in kept] == [
                    (p.row, p.col, p.x, p.y) for p in points
                ]

    def test_a_world_file(self, rasterio, write, tmp_path_factory, image):
        folder = tmp_path_factory.mktemp("in")
        Image.fromarray(image).save(folder / "a.png")
        (folder / "a.pgw").write_text("2\n0\n0\n-2\n1001\n1999\n")
        label, _ = write("geotiff", source=folder / "a.png")
        with rasterio.open(label) as made:
            assert made.transform == rasterio.Affine(2, 0, 1000, 0, -2, 2000)

    @pytest.mark.parametrize("turned", [3, 6])
    def test_what_is_turned_lies_nowhere(self, rasterio, write, tmp_path_factory, image, turned):
        folder = tmp_path_factory.mktemp("in")
        exif = Image.Exif()
        exif[0x0112] = turned
        Image.fromarray(image).save(folder / "a.jpg", exif=exif)
        (folder / "a.jgw").write_text("2\n0\n0\n-2\n1001\n1999\n")
        label, _ = write("geotiff", source=folder / "a.jpg")
        with rasterio.open(label) as made:
            assert made.transform.is_identity
            assert made.crs is None

    def test_a_picture_larger_than_a_tile(self, rasterio, write, tmp_path):
        seen = seen_of(1300, 700)
        values = np.memmap(tmp_path.parent / "label.bin", np.uint8, "w+", shape=(1300, 700))
        values[:] = seen.label
        pixels = np.zeros((1300, 700, 3), np.uint8)
        label, _ = write("geotiff", pixels=pixels, seen=replace(seen, label=values))
        with rasterio.open(label) as made:
            assert (made.read(1) == seen.label).all()
            assert made.block_shapes == [(512, 512)]


def test_overlays_of_giants_are_shrunk(write, monkeypatch):
    monkeypatch.setattr(writer, "_OVERLAY", 1000)
    monkeypatch.setattr(writer, "_ROWS", 90 * 7)
    pixels = np.full((61, 90, 3), 200, np.uint8)
    pixels[:, 45:] = 50
    seen = replace(seen_of(61, 90), label=np.full((61, 90), 3, np.uint8))
    (file,) = write("overlay", pixels=pixels, seen=seen)
    with Image.open(file) as picture:
        assert picture.size == (30, 21), "a third"
        left, right = picture.getpixel((5, 20)), picture.getpixel((25, 20))
    assert np.abs(np.subtract(left, (200, 130, 130))).max() < 5
    assert np.abs(np.subtract(right, (125, 55, 55))).max() < 5


def test_an_overlay_longer_than_a_jpeg(write):
    (file,) = write("overlay", pixels=np.zeros((3, 70000, 3), np.uint8))
    with Image.open(file) as picture:
        assert picture.size == (35000, 2)


def test_maps_on_disk_make_the_same_files(write, image, tmp_path):
    """Of a giant picture the predictor keeps no map in memory."""
    save = [kind for kind in KINDS if kind not in ("weights", "geotiff")]
    seen = seen_of(
        60, 90, probabilities=np.ones((4, 60, 90), np.float16), entropy8=np.ones((60, 90), np.uint8)
    )
    first = {file: file.read_bytes() for file in write(*save, seen=seen)}
    on_disk = {}
    for field in ("label", "confidence8", "probabilities", "entropy8"):
        values = getattr(seen, field)
        on_disk[field] = np.memmap(
            tmp_path.parent / f"{field}.bin", values.dtype, "w+", shape=values.shape
        )
        on_disk[field][:] = values
    for file in write(*save, seen=replace(seen, **on_disk)):
        if file.suffix != ".npz":  # which holds the time
            assert file.read_bytes() == first[file]


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk_leaves_nothing_half_written(tmp_path, kind):
    """The kernel writes as much of a file as there is room for, then says no, as on a full disk."""
    resource = pytest.importorskip("resource", reason="no limits on files here")
    pytest.importorskip({"geotiff": "rasterio", "rle": "pycocotools"}.get(kind, "numpy"))
    random = np.random.default_rng(0)
    label, confidence = random.integers(0, 4, (2, 600, 700), np.uint8)
    maps = {1.0: random.random((600, 700), np.float32)}
    seen = Prediction(
        label, confidence, single={1.0: label}, weights=maps, entropy8=label,
        probabilities=random.random((4, 600, 700), np.float32).astype(np.float16),
    )  # fmt: skip
    image = OpenImage(random.integers(0, 256, (600, 700, 3), np.uint8))
    made = Writer(tmp_path, [kind], Card(names=NAMES, network={}), (1,))
    made.write("a", Path("a.png"), image, seen)
    (first, *_) = files = made.files("a", Path("a.png"))
    size = first.stat().st_size
    assert size > 20000
    before = [file.read_bytes() for file in files]
    for room in (10, 4096, 9000, size // 2, size - 1):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
        try:
            with pytest.raises(CannotWrite, match="File too large"):
                made.write("a", Path("a.png"), image, seen)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert [p for p in tmp_path.rglob("*") if p.is_file()] == files
        assert [file.read_bytes() for file in files] == before


def test_28_megapixels_take_little_memory(tmp_path, grown):
    small = seen_of(317, 307)
    label, confidence = (np.tile(each, (14, 21)) for each in (small.label, small.confidence8))
    seen = Prediction(label, confidence, entropy8=confidence)
    pixels = OpenImage(np.broadcast_to(np.uint8(99), (4438, 6447, 3)))
    save = ["label", "overlay", "confidence", "rle", "entropy"]
    made = Writer(tmp_path, save, Card(names=NAMES, network={}), (1,))
    with grown() as more:
        made.write("a", Path("a.png"), pixels, seen)
    assert more() < 400, "MiB"
    with Image.open(tmp_path / "label" / "a.png") as picture:
        assert picture.size == (6447, 4438)
