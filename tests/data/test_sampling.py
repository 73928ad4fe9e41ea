"""Augmentation keeps image and label together; the stream is a function of its position."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision import tv_tensors

from hmsa.data.datasets import open_dataset
from hmsa.data.sampling import TrainingStream, batches
from hmsa.data.transforms import RandomScaleCrop, training_transform
from hmsa.errors import InputError

TRANSFORM = training_transform((48, 64), (0.5, 2.0), flip=0.5, color=0.2, blur=0.5)


def stream(scenes, seed=0):
    return TrainingStream(open_dataset(scenes, "train"), TRANSFORM, seed)


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
    transform = training_transform((64, 64), (0.7, 1.5), flip=0.5, color=0, blur=0)
    for seed in range(20):
        torch.manual_seed(seed)
        image, moved = transform(tv_tensors.Image(label.repeat(3, 1, 1)), tv_tensors.Mask(label))
        valid = moved != 255
        wrong = ((image[0].float() - moved.float()).abs() > 100) & valid
        assert wrong.sum() < 0.01 * valid.sum()


def test_stream_depends_on_position_and_seed_alone(scenes):
    torch.manual_seed(1)
    first = stream(scenes)[7]
    torch.manual_seed(2)
    again, other, seeded = stream(scenes)[7], stream(scenes)[8], stream(scenes, 5)[7]
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    assert not torch.equal(first[0], seeded[0])


def test_stream_leaves_the_global_generator_alone(scenes):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    stream(scenes)[0]
    assert torch.rand(1) == expected


def test_every_epoch_shows_every_picture(scenes, monkeypatch):
    seen = []
    data = stream(scenes)
    read = type(data.dataset).read
    monkeypatch.setattr(
        type(data.dataset), "read", lambda self, i: (seen.append(i), read(self, i))[1]
    )
    for position in range(12):
        data[position]
    assert sorted(seen[:6]) == sorted(seen[6:]) == list(range(6))
    assert seen[:6] != seen[6:]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_resume_where_they_stopped(scenes, workers):
    whole = list(batches(stream(scenes), range(4), 2, workers))
    rest = list(batches(stream(scenes), range(2, 4), 2, workers))
    assert len(whole) == 4
    image, label = whole[2]
    assert image.shape == (2, 3, 48, 64)
    assert image.dtype == torch.uint8
    assert label.dtype == torch.int64
    assert torch.equal(image, rest[0][0])
    assert torch.equal(label, rest[0][1])


def test_processes_share_out_the_positions(scenes):
    alone = [im for im, _ in batches(stream(scenes), range(2), 4, 0)]
    ranks = [[im for im, _ in batches(stream(scenes), range(2), 2, 0, r, 2)] for r in (0, 1)]
    for step in range(2):
        assert torch.equal(alone[step], torch.cat([ranks[0][step], ranks[1][step]]))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_file_is_one_line_from_any_process(folder_dataset, workers):
    path = folder_dataset({"a": np.zeros((64, 64), np.uint8)})
    data = TrainingStream(open_dataset(path, "train"), TRANSFORM, 0)
    file = path.parent / "pictures" / "train" / "images" / "a.jpg"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(InputError) as caught:
        list(batches(data, range(1), 1, workers))
    assert "a.jpg" in str(caught.value)
    assert "\n" not in str(caught.value)
