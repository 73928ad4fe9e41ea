import numpy as np
import pytest
from PIL import Image

from hmsa.report import pictures

PALETTE = np.array([[128, 64, 128], [220, 20, 60], [0, 0, 142]], np.uint8)
LABEL = np.array([[0, 1, 2], [2, 255, 0]], np.uint8)


def test_colorize_gives_every_class_its_exact_colour_and_ignore_black() -> None:
    expected = [
        [[128, 64, 128], [220, 20, 60], [0, 0, 142]],
        [[0, 0, 142], [0, 0, 0], [128, 64, 128]],
    ]
    assert pictures.colorize(LABEL, PALETTE).tolist() == expected


@pytest.mark.parametrize("draw", [pictures.colorize, pictures.palette_png])
def test_a_label_needs_a_colour_for_every_class(draw) -> None:
    with pytest.raises(ValueError, match="without one of the 3 colours"):
        draw(np.array([[0, 7]], np.uint8), PALETTE)


def test_overlay_ends_at_the_image_and_at_the_colours_and_lies_between() -> None:
    image = np.random.default_rng(0).integers(0, 256, (2, 3, 3), dtype=np.uint8)
    colours = pictures.colorize(LABEL, PALETTE)
    known = LABEL != 255
    assert (pictures.overlay(image, LABEL, PALETTE, alpha=0) == image).all()
    assert (pictures.overlay(image, LABEL, PALETTE, alpha=1)[known] == colours[known]).all()
    half = pictures.overlay(image, LABEL, PALETTE)
    assert half.dtype == np.uint8
    assert (half[known] >= np.minimum(image, colours)[known]).all()
    assert (half[known] <= np.maximum(image, colours)[known]).all()
    assert (half[~known] == image[~known]).all()
    white = np.full((2, 3, 3), 255, np.uint8)
    assert (pictures.overlay(white, LABEL, np.full((3, 3), 255, np.uint8)) == 255).all()


def test_heat_grows_brighter_with_weight() -> None:
    picture = pictures.heat(np.linspace(0, 1, 256, dtype=np.float32)[None])
    luminance = picture[0] @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(luminance) > -0.5).all()  # half a grey level: rounding to whole colours
    assert (np.diff(luminance[::16]) > 0).all()
    assert luminance[0] < 30
    assert luminance[-1] > 200


def test_heat_clips_what_is_outside() -> None:
    low, high, nothing = pictures.heat(np.array([[-3.0, 7.0, np.nan]]))[0].tolist()
    first, last = pictures.heat(np.array([[0.0, 1.0]]))[0].tolist()
    assert (low, high, nothing) == (first, last, first)


def test_error_tells_right_wrong_and_ignored_apart() -> None:
    picture = pictures.error(np.array([[1, 2, 2]], np.uint8), np.array([[1, 1, 255]], np.uint8))
    assert [tuple(pixel) for pixel in picture[0].tolist()] == [
        pictures.RIGHT,
        pictures.WRONG,
        pictures.UNKNOWN,
    ]


def test_palette_png_keeps_values_through_a_file_and_shows_colour(tmp_path) -> None:
    pictures.palette_png(LABEL, PALETTE).save(tmp_path / "label.png")
    with Image.open(tmp_path / "label.png") as stored:
        assert stored.mode == "P"
        assert (np.asarray(stored) == LABEL).all()
        assert (np.asarray(stored.convert("RGB")) == pictures.colorize(LABEL, PALETTE)).all()


def test_panel_is_a_grid_of_cells_in_proportion() -> None:
    wide = np.full((100, 200, 3), 200, np.uint8)
    tall = np.full((200, 100, 3), 100, np.uint8)
    one = pictures.panel([[("a", wide)]], width=100)
    three = pictures.panel([[("a", wide)] * 3], width=100)
    both = pictures.panel([[("a", wide)], [("b", tall)]], width=100)
    gap = 2 * one.width - pictures.panel([[("a", wide)] * 2], width=100).width
    assert one.width == 100 + 2 * gap
    assert three.width == 3 * 100 + 4 * gap
    assert (np.asarray(one) == 200).all(axis=2).sum() == 100 * 50
    assert (np.asarray(both) == 100).all(axis=2).sum() == 100 * 200


def test_panel_writes_the_caption_and_cuts_a_long_one() -> None:
    cell = np.full((50, 100, 3), 255, np.uint8)

    def ink(caption: str) -> np.ndarray:
        return np.asarray(pictures.panel([[(caption, cell), ("", cell)]], width=100)) < 128

    assert not ink("").any()
    assert ink("fused").any()
    assert ink("fused").sum() != ink("input").sum()
    assert not ink("a very long file name that would run into the next cell")[:, 106:].any()
    first, second = (ink(f"street/of/a/very/long/name/{name}.png") for name in ("0001", "0002"))
    assert (first != second).any(), "the end of a name tells files apart"


def test_panel_enlarges_without_new_colours() -> None:
    label = np.zeros((2, 2, 3), np.uint8)
    label[0, 0] = 200
    cell = np.asarray(pictures.panel([[("", label)]], width=64))
    assert {tuple(pixel) for pixel in cell.reshape(-1, 3).tolist()} == {
        (0, 0, 0),
        (200, 200, 200),
        (255, 255, 255),
    }
