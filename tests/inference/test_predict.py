"""Prediction: any picture in, label, overlay, confidence and panel out."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from hmsa import Predictor
from hmsa.data.images import read_image
from hmsa.data.walk import find_images
from hmsa.inference.writer import KINDS
from hmsa.runs.errors import InputError


@pytest.fixture
def odd_pictures(tmp_path):
    """The pictures that must simply work."""
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    base = Image.effect_noise((50, 37), 60)
    base.save(folder / "gray.png")
    base.convert("RGBA").save(folder / "rgba.png")
    base.convert("P").save(folder / "palette.png")
    Image.new("I;16", (40, 40), 30000).save(folder / "deep.png")
    base.convert("CMYK").save(folder / "print.jpg")
    base.save(folder / "lying.jpg", exif=exif)
    Image.new("RGB", (1, 33)).save(folder / "thin.png")
    base.convert("RGB").save(folder / "sub" / "odd.bmp")
    return folder


def test_every_kind_of_picture(hmsa, trained, odd_pictures, tmp_path):
    out = tmp_path / "out"
    ran = hmsa("predict", trained, odd_pictures, "-o", out, "--scales", "0.5,1",
               "--save", "label,overlay,confidence,panel")  # fmt: skip
    assert ran.code == 0, ran.err
    names = {"gray", "rgba", "palette", "deep", "print", "lying", "thin", "sub/odd"}
    for folder, suffix in (
        ("label", "png"), ("overlay", "jpg"), ("confidence", "png"), ("panel", "png")
    ):  # fmt: skip
        made = {p.relative_to(out / folder).as_posix() for p in (out / folder).rglob("*.*")}
        assert made == {f"{n}.{suffix}" for n in names}
    with Image.open(out / "label" / "lying.png") as label:
        assert label.mode == "P"
        assert label.size == (37, 50), "upright, as a viewer shows the picture"
    predictor = Predictor.load(trained, (0.5, 1))
    seen = predictor(read_image(odd_pictures / "gray.png"), detail=True)
    with Image.open(out / "label" / "gray.png") as label:
        assert (np.asarray(label) == seen.label).all()
        assert label.getpalette()[:3] == [70, 130, 180]
    with Image.open(out / "confidence" / "gray.png") as confidence:
        assert (np.asarray(confidence) == seen.confidence8).all()


def test_without_a_folder_for_results(hmsa, trained, odd_pictures, tmp_path, monkeypatch):
    """It is named after the first file or folder, and never mixes results of others."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "other" / "gray.png")
    run = ["predict", trained, "--scales", "1", "--save", "label"]
    for _ in range(2):
        ran = hmsa(*run, "in/gray.png")
        assert "1 image(s) labelled in runs/predict/gray" in ran.err
    before = (tmp_path / "runs/predict/gray/label/gray.png").read_bytes()
    ran = hmsa(*run, "other/gray.png")
    assert ran.code == 2
    assert "begun with other settings, paths in/gray.png -> other/gray.png; name" in ran.err
    assert (tmp_path / "runs/predict/gray/label/gray.png").read_bytes() == before
    assert "labelled in runs/predict/other" in hmsa(*run, "other").err
    assert "labelled in runs/predict/images" in hmsa(*run, "other/*.png").err


def test_names_that_are_not_utf8(hmsa, trained, tmp_path):
    """Of the checkpoint, of folders and of images, with every kind of result."""
    folder = tmp_path / os.fsdecode(b"in\xff")
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system takes names in UTF-8 alone")
    rasterio = pytest.importorskip("rasterio")
    with rasterio.open(
        tmp_path / "a.tif", "w", driver="GTiff", count=3, height=30, width=40, dtype="uint8",
        crs="EPSG:32633", transform=rasterio.Affine(10, 0, 6e5, 0, -10, 5e6),
    ) as target:  # fmt: skip
        target.write(np.full((3, 30, 40), 99, np.uint8))
    (tmp_path / "a.tif").rename(folder / os.fsdecode(b"satellite\xe9.tif"))
    Image.effect_noise((40, 30), 60).save(folder / os.fsdecode(b"bild\xe9.png"))
    shutil.copy(trained / "best.safetensors", folder / os.fsdecode(b"best\xe9.safetensors"))
    out = tmp_path / "out"
    ran = hmsa("predict", folder / os.fsdecode(b"best\xe9.safetensors"), folder, "-o", out,
               "--scales", "1", "--save", ",".join(KINDS))  # fmt: skip
    assert ran.code == 0, ran.err
    made = {p.name for p in out.rglob("*.*") if p.is_file() and p.suffix != ".lock"}
    assert {os.fsdecode(b"bild\xe9." + s) for s in (b"png", b"jpg", b"npz", b"json", b"tif")} < made
    label = (out / "geotiff" / "label" / os.fsdecode(b"satellite\xe9.tif")).rename(out / "b.tif")
    with rasterio.open(label) as made:
        assert made.crs.to_epsg() == 32633
    coco = (out / "rle" / os.fsdecode(b"bild\xe9.json")).read_bytes()
    assert json.loads(coco)["images"][0]["file_name"] == "bild\\udce9.png"


def test_a_bad_picture_does_not_stop_the_rest(hmsa, trained, odd_pictures, tmp_path):
    (odd_pictures / "bad.png").write_bytes(b"nonsense")
    ran = hmsa("predict", trained, odd_pictures, "-o", tmp_path / "out", "--scales", "1")
    assert ran.code == 3
    assert "bad.png" in ran.err
    assert len(list((tmp_path / "out" / "label").rglob("*.png"))) == 8


RUN = ("predict.json", "predict.jsonl", ".predict.lock")


def files_below(out):
    return {p.relative_to(out).as_posix(): p for p in out.rglob("*") if p.is_file()}


class TestSaving:
    KINDS = "label,overlay,confidence,weights,panel,npz,rle"  # of any predictor

    def test_all_kinds(self, hmsa, trained, odd_pictures, tmp_path):
        out = tmp_path / "out"
        one = odd_pictures / "sub" / "odd.bmp"
        ran = hmsa("predict", trained, one, "-o", out, "--scales", "1,0.5", "--save", self.KINDS)
        assert ran.code == 0, ran.err
        assert set(files_below(out)) == {
            *RUN,
            *("label/odd.png", "overlay/odd.jpg", "confidence/odd.png", "panel/odd.png"),
            *("weights/0.5/odd.png", "weights/1/odd.png", "npz/odd.npz", "rle/odd.json"),
        }
        seen = Predictor.load(trained, (0.5, 1))(one, detail=True)
        with np.load(out / "npz" / "odd.npz") as held:
            assert (held["label"] == seen.label).all()
            assert (held["confidence"] == seen.confidence8).all()
            assert held["scales"].tolist() == [0.5, 1]
            assert held["weights"].shape == (2, 37, 50)
            np.testing.assert_allclose(held["weights"][1], seen.weights[1], atol=1e-3)
        with Image.open(out / "weights" / "0.5" / "odd.png") as weight:
            np.testing.assert_allclose(np.asarray(weight) / 255, seen.weights[0.5], atol=0.003)
        coco = json.loads((out / "rle" / "odd.json").read_text())
        assert coco["images"][0]["file_name"] == "odd.bmp"
        assert {a["category_id"]: a["area"] for a in coco["annotations"]} == {
            int(k): int((seen.label == k).sum()) for k in np.unique(seen.label)
        }

    def test_only_what_is_asked_for(self, hmsa, trained, odd_pictures, tmp_path):
        out = tmp_path / "out"
        ran = hmsa("predict", trained, odd_pictures / "gray.png", "-o", out, "--save", "rle,npz")
        assert ran.code == 0
        assert {p.split("/")[0] for p in files_below(out)} == {*("rle", "npz", *RUN)}

    def test_unknown_kinds_are_named(self, hmsa, trained, odd_pictures, tmp_path):
        out = tmp_path / "out"
        ran = hmsa("predict", trained, odd_pictures, "-o", out, "--save", "label,masks")
        assert ran.code == 2
        assert "'masks' is not one of label, overlay" in ran.err


class TestRasters:
    """A satellite picture: more bands, more bits, a place on the earth, and parts without data."""

    @pytest.fixture
    def raster(self, tmp_path):
        rasterio = pytest.importorskip("rasterio")
        bands = np.random.default_rng(0).integers(1, 60000, (5, 70, 90), np.uint16)
        bands[:, :, 80:] = 0
        (tmp_path / "in").mkdir()
        with rasterio.open(
            tmp_path / "in" / "s.tif", "w", driver="GTiff", count=5, height=70, width=90, nodata=0,
            dtype="uint16", crs="EPSG:32633", transform=rasterio.Affine(10, 0, 6e5, 0, -10, 5e6),
        ) as target:  # fmt: skip
            target.write(bands)
        return tmp_path / "in" / "s.tif"

    def test_from_the_earth_to_the_earth(self, hmsa, trained, raster, tmp_path):
        import rasterio

        out = tmp_path / "out"
        arguments = ["predict", trained, raster, "-o", out, "--save", "label,overlay,geotiff"]
        for before in ("", " (1 of them before)"):
            ran = hmsa(*arguments, "--scales", "0.5,1")
            assert ran.code == 0, ran.err
            assert f"1 image(s) labelled in {out}{before}, 0 could" in ran.err
        seen = Predictor.load(trained, (0.5, 1))(read_image(raster))
        with Image.open(out / "label" / "s.png") as label:
            assert (np.asarray(label) == seen.label).all()
        for part, map_, nothing in (
            ("label", seen.label, 255),
            ("confidence", seen.confidence8, 0),
        ):
            with rasterio.open(out / "geotiff" / part / "s.tif") as made:
                assert made.crs.to_epsg() == 32633
                assert made.transform == rasterio.Affine(10, 0, 6e5, 0, -10, 5e6)
                assert (made.read(1)[:, :80] == map_[:, :80]).all()
                assert (made.read(1)[:, 80:] == nothing).all()

    def test_results_are_not_taken_for_pictures(self, hmsa, trained, raster):
        folder = raster.parent
        for _ in range(2):
            ran = hmsa("predict", trained, folder, "-o", folder, "--scales", "1", "--save",
                       "geotiff")  # fmt: skip
            assert "1 image(s) labelled" in ran.err

    def test_without_rasterio(self, hmsa, trained, raster, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "rasterio", None)
        Image.new("L", (40, 40)).save(raster.parent / "gray.tif")
        arguments = ["predict", trained, raster.parent, "-o", tmp_path / "out", "--scales", "1"]
        ran = hmsa(*arguments)
        assert ran.code == 3
        assert f"hmsa: {raster} is not" in ran.err
        assert "rasterio reads more" in ran.err
        assert "1 image(s) labelled" in ran.err
        ran = hmsa(*arguments, "--save", "label,geotiff")
        assert ran.code == 2
        assert 'GeoTIFF needs rasterio, which is missing: pip install "hmsa[geo]"' in ran.err

    def test_a_damaged_one_does_not_stop_the_rest(self, hmsa, trained, raster, tmp_path):
        (raster.parent / "cut.tif").write_bytes(raster.read_bytes()[:30000])
        ran = hmsa("predict", trained, raster.parent, "-o", tmp_path / "out", "--scales", "1")
        assert ran.code == 3
        assert f"hmsa: {raster.parent / 'cut.tif'} cannot be decoded" in ran.err
        assert "1 image(s) labelled" in ran.err


class TestWhatThePredictorIsCalledFor:
    @pytest.fixture
    def calls(self, monkeypatch):
        """What each call wanted; a predictor that makes probabilities and entropy of its own."""
        calls, call = [], Predictor.__call__

        def predict(self, image, detail=False, **more):
            calls.append({name for name, wanted in more.items() if wanted})
            made = call(self, image, detail=detail)
            height, width = made.label.shape
            maps = {
                "probabilities": {"probabilities": np.full((4, height, width), 0.25, np.float16)},
                "entropy": {"entropy8": np.full((height, width), 255, np.uint8)},
            }
            for name in calls[-1]:
                made = dataclasses.replace(made, **maps[name])
            return made

        monkeypatch.setattr(Predictor, "__call__", predict)
        return calls

    @pytest.mark.parametrize(
        ("save", "wanted"),
        [
            ("label,npz", set()),
            ("probabilities", {"probabilities"}),
            ("label,entropy,probabilities", {"probabilities", "entropy"}),
        ],
    )
    def test_no_more_than_is_saved(
        self, hmsa, trained, odd_pictures, tmp_path, calls, save, wanted
    ):
        one, out = odd_pictures / "gray.png", tmp_path / "out"
        ran = hmsa("predict", trained, one, "-o", out, "--scales", "1", "--save", save)
        assert ran.code == 0, ran.err
        assert calls == [wanted]
        assert {p.split("/")[0] for p in files_below(out)} == {*RUN, *save.split(",")}
        if "entropy" in wanted:
            with Image.open(out / "entropy" / "gray.png") as entropy:
                assert (np.asarray(entropy) == 255).all()


def test_a_bomb_is_one_line_and_lifted_by_the_environment(
    hmsa, trained, odd_pictures, tmp_path, monkeypatch
):
    monkeypatch.setenv("HMSA_MAX_PIXELS", "1700")
    arguments = ["predict", trained, odd_pictures, "-o", tmp_path / "out", "--scales", "1"]
    ran = hmsa(*arguments)
    assert ran.code == 3
    file = odd_pictures / "gray.png"
    assert f"hmsa: {file} is 50x37, 1850 pixels, and at most 1700 are decoded at once" in ran.err
    assert "2 image(s) labelled" in ran.err
    monkeypatch.delenv("HMSA_MAX_PIXELS")
    assert hmsa(*arguments).code == 0


def test_a_full_disk(trained, tmp_path):
    """A real process, to which the kernel refuses more of a file, as a full disk does."""
    pytest.importorskip("resource", reason="no limits on files here")
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    Image.effect_noise((300, 200), 90).save(folder / "a.png")
    script = (
        "import resource, sys; from hmsa import __main__ as cli; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000)); cli.main()"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script, "predict", trained, folder, "-o", out, "--scales", "1",
         "--save", "overlay"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == 2, ran.stderr
    assert ran.stderr.splitlines()[-1].startswith(
        f"hmsa: cannot write into {out / 'overlay'} (File too large, a.jpg needs more than 0.0 MB)"
    )
    assert set(files_below(out)) == set(RUN)
    assert not (out / "predict.jsonl").read_bytes(), "nor taken for done"


class TestGoingOn:
    @pytest.fixture
    def run(self, hmsa, trained, tmp_path):
        def run(*more, code=0):
            ran = hmsa("predict", trained, tmp_path / "in", "-o", tmp_path / "out", *more)
            assert ran.code == code, ran.err
            return ran.err.splitlines()[-1]

        return run

    def test_only_what_is_missing_is_done(self, run, odd_pictures, tmp_path):
        out = tmp_path / "out"
        run("--scales", "1")
        before = {name: file.stat().st_mtime_ns for name, file in files_below(out).items()}
        (out / "overlay" / "gray.jpg").unlink()
        Image.new("RGB", (20, 30)).save(odd_pictures / "rgba.png")
        assert "8 image(s) labelled" in (last := run("--scales", "1"))
        assert "(6 of them before)" in last
        after = {name: file.stat().st_mtime_ns for name, file in files_below(out).items()}
        redone = {name.split(".")[0].split("/")[1] for name in before
                  if before[name] != after[name] and "/" in name}  # fmt: skip
        assert redone == {"gray", "rgba"}
        with Image.open(out / "label" / "rgba.png") as label:
            assert label.size == (20, 30)

    def test_other_settings_are_refused_unless_overwritten(self, run, odd_pictures, tmp_path):
        run("--scales", "1")
        for more, says in (
            (
                ["--scales", "0.5,1"],
                "begun with other settings, scales 1.0 -> 0.5,1.0; name another -o",
            ),
            (["--scales", "1", "--flip"], "flip False -> True"),
            (["--scales", "1", "--save", "label,panel"], "-> label,panel"),
        ):
            assert says in run(*more, code=2)
        assert "8 image(s) labelled" in (last := run("--scales", "0.5,1", "--overwrite"))
        assert "before" not in last
        assert "(8 of them before)" in run("--scales", "0.5,1")

    @pytest.mark.parametrize(
        ("error", "code", "says"),
        [
            (OSError(28, "No space left on device"), 2, "cannot write into"),
            (KeyboardInterrupt(), 130, "stopped; the same command goes on"),
        ],
    )
    def test_stopped_from_outside(self, run, odd_pictures, monkeypatch, error, code, says):
        def stop(*_):
            raise error

        with monkeypatch.context() as patched:
            patched.setattr("hmsa.inference.result.palette_png", stop)
            assert says in run("--scales", "1", code=code)
        assert "8 image(s) labelled" in run("--scales", "1")

    def test_a_file_in_the_place_of_the_folder(self, run, odd_pictures, tmp_path):
        (tmp_path / "out").write_text("mine")
        assert "cannot write into" in run("--scales", "1", code=2)

    def test_results_are_not_taken_for_pictures(self, hmsa, trained, odd_pictures):
        for _ in range(2):
            ran = hmsa("predict", trained, odd_pictures, "-o", odd_pictures, "--scales", "1")
            assert "8 image(s) labelled" in ran.err

    def test_killed_in_the_middle(self, hmsa, trained, tmp_path):
        """A real process and a real SIGKILL; what is there then is whole, and is left alone."""
        folder, out, count = tmp_path / "in", tmp_path / "out", 40
        folder.mkdir()
        for i in range(count):
            Image.effect_noise((160, 128), 10 + i).save(folder / f"{i:03}.png")
        arguments = ["predict", trained, folder, "-o", out, "--scales", "0.5,1", "--save",
                     "label,overlay,npz"]  # fmt: skip
        process = subprocess.Popen(
            [sys.executable, "-m", "hmsa", *map(str, arguments)], stderr=subprocess.PIPE
        )
        ledger, until = out / "predict.jsonl", time.monotonic() + 240
        while not ledger.is_file() or ledger.read_bytes().count(b"\n") < 4:
            assert process.poll() is None, process.stderr.read().decode()
            assert time.monotonic() < until
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL

        done = [json.loads(line)[0] for line in ledger.read_text().splitlines()]
        assert 4 <= len(done) < count
        whole = {name: f for name, f in files_below(out).items() if not f.name.startswith(".")}
        for name in done:
            assert {f"label/{name}.png", f"overlay/{name}.jpg", f"npz/{name}.npz"} <= set(whole)
        self.decode(whole)
        before = {name: whole[name].stat().st_mtime_ns for name in whole}
        (out / "npz" / ".hmsa-999999999-x1").write_bytes(b"torn")  # as a kill may leave it

        ran = hmsa(*arguments)
        assert ran.code == 0, ran.err
        assert f"{count} image(s) labelled in {out} ({len(done)} of them before)" in ran.err
        after = files_below(out)
        assert set(after) == set(RUN) | {
            f"{kind}/{i:03}.{suffix}" for i in range(count)
            for kind, suffix in (("label", "png"), ("overlay", "jpg"), ("npz", "npz"))
        }  # fmt: skip
        self.decode(after)
        for name in done:
            file = f"label/{name}.png"
            assert after[file].stat().st_mtime_ns == before[file], "done twice"

    @staticmethod
    def decode(files):
        for name, file in files.items():
            if name.endswith(".npz"):
                with np.load(file) as held:
                    assert held["label"].shape == (128, 160)
            elif name not in RUN:
                assert read_image(file).shape == (128, 160, 3)


def test_a_video_beside_pictures(hmsa, trained, odd_pictures, tmp_path):
    av = pytest.importorskip("av")
    with av.open(str(odd_pictures / "ride.mp4"), "w") as made:
        stream = made.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(5):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 50 * i, np.uint8))
            frame.pts = i
            made.mux(stream.encode(frame))
        made.mux(stream.encode(None))
    (odd_pictures / "bad.mkv").write_bytes(b"nonsense")
    out = tmp_path / "out"
    for before in ("", " (9 of them before)"):
        ran = hmsa("predict", trained, odd_pictures, "-o", out, "--scales", "1")
        assert ran.code == 3
        assert f"9 image(s) labelled in {out}{before}, 1 could not be read" in ran.err
        assert "bad.mkv cannot be decoded" in ran.err
    with av.open(str(out / "overlay" / "ride.mp4")) as taken:
        frames = [frame.to_ndarray(format="rgb24") for frame in taken.decode(video=0)]
    assert len(frames) == 5
    assert frames[0].max() > 20, "black is tinted by its class"


class TestFinding:
    def test_lists(self, odd_pictures, tmp_path):
        file = tmp_path / "list.txt"
        file.write_text(f"# two\nin/gray.png\n\n in/sub/odd.bmp \n{odd_pictures}/rgba.png\n")
        found = find_images([str(file)])
        root = str(odd_pictures).strip("/")
        assert sorted(found) == sorted(["in/gray", "in/sub/odd", f"{root}/rgba"])
        assert all(path.is_file() for path in found.values())
        file.write_text("in/gray.png\nin/grey.png")
        with pytest.raises(InputError, match=r"list.txt line 2: no file in/grey.png"):
            find_images([str(file)])

    def test_files_folders_globs(self, odd_pictures):
        found = find_images([
            str(odd_pictures / "gray.png"), str(odd_pictures / "sub"), str(odd_pictures / "r*.png")
        ])  # fmt: skip
        assert sorted(found) == ["gray", "odd", "rgba"]

    def test_one_name_for_two(self, tmp_path):
        for name in ("a.png", "a.jpg"):
            Image.new("RGB", (2, 2)).save(tmp_path / name)
        with pytest.raises(
            InputError, match=r"a.jpg and .*a.png have the same name; run them apart"
        ):
            find_images([str(tmp_path)])

    def test_the_same_file_twice_is_one(self, odd_pictures):
        file = str(odd_pictures / "gray.png")
        assert sorted(find_images([file, file])) == ["gray"]

    @pytest.mark.parametrize("path", ["nothing-here", "no*.png", "."])
    def test_nothing_matches(self, tmp_path, path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(InputError, match="no image matches"):
            find_images([path])


def test_no_images_is_exit_2(hmsa, trained, tmp_path):
    ran = hmsa("predict", trained, tmp_path / "none" / "*.jpg", "-o", tmp_path / "out")
    assert ran.code == 2
    assert "no image matches" in ran.err
    assert not os.path.exists(tmp_path / "out")
