"""Image and label are cut, sized, flipped and padded as one; a crop holds the point it is for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision import tv_tensors
from torchvision.transforms import v2

from hmsa.config.recipe import Augment
from hmsa.data.transforms import ColorJitter, RandomScaleCrop, training_transform


@given(
    st.tuples(st.integers(1, 90), st.integers(1, 90)),
    st.tuples(st.integers(1, 70), st.integers(1, 70)),
    st.sampled_from([(0.5, 2.0), (1.0, 1.0), (0.1, 0.1), (4.0, 4.0)]),
)
def test_crop_has_its_size_and_padding_is_ignored(size, crop, scale):
    image = tv_tensors.Image(torch.zeros(*size, 3, dtype=torch.uint8).permute(2, 0, 1))  # as read
    label = tv_tensors.Mask(torch.ones(size, dtype=torch.uint8))
    image, label = RandomScaleCrop(crop, scale)(image, label)
    assert image.shape == (3, *crop)
    assert label.shape == crop
    assert set(label.unique().tolist()) <= {1, 255}, "labels are never mixed"
    inside = label == 1
    assert inside.any()
    assert (image[:, inside] == 0).all(), "the label is exactly where the picture is"
    assert (image[0][~inside] == 124).all(), "padding is the mean colour"


def test_geometry_is_one():
    """A picture that shows its own label must still show it after every augmentation."""
    label = torch.zeros(60, 80, dtype=torch.uint8)
    label[20:50, 30:70] = 200
    transform = training_transform((64, 64), (0.7, 1.5), Augment(color=0))
    for seed in range(20):
        torch.manual_seed(seed)
        image, moved = transform(tv_tensors.Image(label.repeat(3, 1, 1)), tv_tensors.Mask(label))
        valid = moved != 255
        wrong = ((image[0].float() - moved.float()).abs() > 100) & valid
        assert wrong.sum() < 0.01 * valid.sum()


def point(x, y, size):
    return tv_tensors.KeyPoints([[x, y]], canvas_size=size)


@given(st.data(), st.sampled_from([(0.5, 2.0), (1.0, 1.0), (4.0, 4.0)]))
def test_crop_holds_its_point(data, scale):
    size = height, width = data.draw(st.tuples(st.integers(1, 90), st.integers(1, 90)))
    crop = data.draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    x, y = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    image = tv_tensors.Image(torch.zeros(3, *size, dtype=torch.uint8))
    label = tv_tensors.Mask(torch.zeros(size, dtype=torch.uint8))
    transform = training_transform(crop, scale, Augment(flip=0, color=0))
    step = transform.transforms[0]
    make_params, windows = step.make_params, []
    step.make_params = lambda flat: (params := make_params(flat), windows.append(params))[0]
    torch.manual_seed(data.draw(st.integers(0, 99)))
    _, label, moved = transform(image, label, point(x, y, size))
    top, left, rows, columns = windows[0]["window"]
    assert top <= y < top + rows <= height
    assert left <= x < left + columns <= width
    assert moved.canvas_size == crop
    assert label[moved[0, 1], moved[0, 0]] == 0, "in the picture, not in its padding"


def test_a_picture_that_shrinks_to_one_pixel():
    image = tv_tensors.Image(torch.full((3, 2, 3), 7, dtype=torch.uint8))
    made = RandomScaleCrop((4, 4), (0.1, 0.1))(image)
    assert (made == 7).all(0).sum() == 1


def test_crops_lie_everywhere_around_their_point():
    image = tv_tensors.Image(torch.zeros(3, 10, 100, dtype=torch.uint8))
    step = RandomScaleCrop((10, 8), (1.0, 1.0))
    seen = {
        at: {step.make_params([image, point(at, 3, (10, 100))])["window"][1] for _ in range(200)}
        for at in (0, 5, 50, 99)
    }
    assert seen == {0: {0}, 5: set(range(6)), 50: set(range(43, 51)), 99: {92}}


@pytest.mark.parametrize(
    ("color", "hue", "bounds"),
    [(0.25, None, 0.05), (0.25, 0.25, 0.25), (0.0, 0.1, 0.1), (0.25, 0.0, None), (0, None, "off")],
)
def test_hue_is_a_fifth_of_color_unless_it_is_given(color, hue, bounds):
    transform = training_transform((8, 8), (1, 1), Augment(color=color, hue=hue))
    jitter = [step for step in transform.transforms if isinstance(step, ColorJitter)]
    if bounds == "off":
        assert not jitter
    else:
        assert jitter[0].hue == (None if bounds is None else (-bounds, bounds))


@pytest.mark.parametrize("strength", [(0.4, 0.4, 0.4, 0.08), (0, 0.3, 0, 0), (0, 0, 0, 0.5)])
def test_jitter_is_torchvisions_in_pillow(strength):
    pixels = torch.randint(256, (3, 64, 80), generator=torch.Generator().manual_seed(0))
    image = tv_tensors.Image(pixels.to(torch.uint8))
    label, before = tv_tensors.Mask(torch.zeros(64, 80, dtype=torch.uint8)), image.clone()
    for seed in range(5):
        torch.manual_seed(seed)
        ours, same = ColorJitter(*strength)(image, label)
        torch.manual_seed(seed)
        theirs = v2.ColorJitter(*strength)(image)
        assert (ours.float() - theirs.float()).abs().mean() < 2.5, "hue has 8 bits in Pillow"
        assert isinstance(ours, tv_tensors.Image)
        assert same is label
    assert torch.equal(image, before)
