"""Prediction: any picture in, label, overlay, confidence and panel out."""

from __future__ import annotations

import os

import numpy as np
import pytest
from PIL import Image

from hmsa import Predictor
from hmsa.commands.predict import find_pictures
from hmsa.data.images import read_image
from hmsa.errors import InputError


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
    ran = hmsa("predict", trained, odd_pictures, "-o", out, "--panel", "--scales", "0.5,1")
    assert ran.code == 0, ran.err
    names = {"gray", "rgba", "palette", "deep", "print", "lying", "thin", "sub/odd"}
    for folder, suffix in (
        ("labels", "png"), ("overlay", "jpg"), ("confidence", "png"), ("panel", "png")
    ):  # fmt: skip
        made = {p.relative_to(out / folder).as_posix() for p in (out / folder).rglob("*.*")}
        assert made == {f"{n}.{suffix}" for n in names}
    with Image.open(out / "labels" / "lying.png") as label:
        assert label.mode == "P"
        assert label.size == (37, 50), "upright, as a viewer shows the picture"
    predictor = Predictor.load(trained, (0.5, 1))
    seen = predictor(read_image(odd_pictures / "gray.png"))
    with Image.open(out / "labels" / "gray.png") as label:
        assert (np.asarray(label) == seen.label).all()
        assert label.getpalette()[:3] == [70, 130, 180]
    with Image.open(out / "confidence" / "gray.png") as confidence:
        assert (np.asarray(confidence) == seen.confidence).all()


def test_a_bad_picture_does_not_stop_the_rest(hmsa, trained, odd_pictures, tmp_path):
    (odd_pictures / "bad.png").write_bytes(b"nonsense")
    ran = hmsa("predict", trained, odd_pictures, "-o", tmp_path / "out", "--scales", "1")
    assert ran.code == 2
    assert "bad.png is not a picture" in ran.err
    assert len(list((tmp_path / "out" / "labels").rglob("*.png"))) == 8


class TestFinding:
    def test_files_folders_globs(self, odd_pictures):
        found = find_pictures([
            str(odd_pictures / "gray.png"), str(odd_pictures / "sub"), str(odd_pictures / "r*.png")
        ])  # fmt: skip
        assert sorted(found) == ["gray", "odd", "rgba"]

    def test_one_name_for_two(self, tmp_path):
        for name in ("a.png", "a.jpg"):
            Image.new("RGB", (2, 2)).save(tmp_path / name)
        assert sorted(find_pictures([str(tmp_path)])) == ["a_jpg", "a_png"]

    def test_the_same_file_twice_is_one(self, odd_pictures):
        file = str(odd_pictures / "gray.png")
        assert sorted(find_pictures([file, file])) in (["gray_png"], ["gray"])

    @pytest.mark.parametrize("path", ["nothing-here", "no*.png", "."])
    def test_nothing_matches(self, tmp_path, path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(InputError, match="no picture"):
            find_pictures([path])


def test_no_images_is_exit_2(hmsa, trained, tmp_path):
    ran = hmsa("predict", trained, tmp_path / "none" / "*.jpg", "-o", tmp_path / "out")
    assert ran.code == 2
    assert "no picture matches" in ran.err
    assert not os.path.exists(tmp_path / "out")
