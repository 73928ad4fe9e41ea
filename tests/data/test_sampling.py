"""The stream is a function of its position, deals everything out evenly, and resumes exactly."""

from __future__ import annotations

import math
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hmsa.config.recipe import Sampling
from hmsa.data.datasets import Dataset, Pair, open_dataset
from hmsa.data.labels import LabelSet
from hmsa.data.sampling import Mix, TrainingStream, batches, open_mix
from hmsa.data.transforms import training_transform
from hmsa.runs.errors import InputError

TRANSFORM = training_transform((48, 64), (0.5, 2.0), flip=0.5, color=0.2, blur=0.5)


def stream(scenes, seed=0):
    return TrainingStream(open_dataset(scenes, "train"), TRANSFORM, seed)


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


# Position, checksum of the label, sum of the image, as the stream gave them before there was
# anything but plain pictures: published figures rest on its staying so.
PLAIN = [
    (0, 2858382208, 1066021),
    (1, 1889338601, 1238196),
    (2, 2573260210, 1248175),
    (3, 612040253, 1323699),
    (4, 329783093, 1277980),
    (5, 3314264112, 1205856),
    (11, 82536655, 1085664),
    (23, 1926340458, 937464),
    (1000003, 1667798889, 1251757),
]


def test_plain_stream_is_what_it_always_was(tmp_path):
    rng = np.random.default_rng(7)
    for kind in ("images", "labels"):
        (tmp_path / "train" / kind).mkdir(parents=True)
    for i, (height, width) in enumerate([(60, 80), (50, 50), (90, 64), (30, 120), (64, 64)]):
        blocks = (height // 5 + 1, width // 5 + 1)
        image = rng.integers(0, 256, (*blocks, 3), dtype=np.uint8)
        label = rng.integers(0, 4, blocks, dtype=np.uint8)
        label[label == 3] = 255
        for kind, array in (("images", image), ("labels", label)):
            whole = array.repeat(5, 0).repeat(5, 1)[:height, :width]
            Image.fromarray(whole).save(tmp_path / "train" / kind / f"{i}.png")
    content = {"splits": {"train": "train"}, "names": ["a", "b", "c"]}
    (tmp_path / "dataset.yaml").write_text(yaml.safe_dump(content))
    data = TrainingStream(open_dataset(tmp_path, "train"), TRANSFORM, 3)
    for position, label_sum, image_sum in PLAIN:
        image, label = data[position]
        assert zlib.crc32(label.contiguous().numpy().tobytes()) == label_sum
        assert int(image.long().sum()) == pytest.approx(image_sum, rel=3e-3)


SEA, ISLAND, NOWHERE = 0, 1, 2


@pytest.fixture
def world(folder_dataset, tmp_path):
    """Seven pictures of sea, two with an island, one of nothing; a further set all of islands."""
    labels = {f"p{i}": np.full((40, 60), SEA, np.uint8) for i in range(8)}
    labels["p1"][5:9, 5:9] = labels["p4"][30:39, 50:] = ISLAND
    labels["p7"][:] = 255
    path = folder_dataset(labels, splits={"train": "train", "more": "more"})
    for kind in ("images", "labels"):
        (tmp_path / "pictures" / "more" / kind).mkdir(parents=True)
    for i in range(3):
        Image.new("RGB", (60, 40)).save(tmp_path / "pictures" / "more" / "images" / f"{i}.png")
        label = np.full((40, 60), ISLAND, np.uint8)
        Image.fromarray(label).save(tmp_path / "pictures" / "more" / "labels" / f"{i}.png")
    return path


def mixed(path, positions=1000, seed=0, **sampling):
    dataset = open_dataset(path, "train")
    chosen = Sampling.model_validate({"tile": 32} | sampling)
    mix = open_mix(dataset, chosen, positions, path.parent)
    return TrainingStream(dataset, TRANSFORM, seed, mix)


def stub(count):
    """A dataset that is only counted."""
    table = LabelSet(("a", "b"), ((0, 0, 0),) * 2, (0, 1))
    return Dataset(Path("d.yaml"), "train", (Pair("p", Path(), Path()),) * count, table)


def stub_pool():
    first = np.array([[0, 0, 0, 5, 8, 1], [0, 1, 0, 6, 9, 1]], np.int32)
    return math.inf, {0: first, 1: np.array([[0, 2, 1, 7, 10, 1]], np.int32)}


def draws(stream, start, end):
    return [stream.draw(position) for position in range(start, end)]


class TestClassUniform:
    @given(share=st.floats(0, 1), seed=st.integers(0, 2**40), epoch=st.integers(0, 10**6))
    def test_share_of_every_epoch(self, share, seed, epoch):
        dataset = stub(64)
        stream = TrainingStream(dataset, TRANSFORM, seed, Mix(share, pools=(stub_pool(),)))
        seen = draws(stream, epoch * 64, (epoch + 1) * 64)
        around = sum(draw.class_ is not None for draw in seen)
        assert abs(around - share * 64) <= 1 + 1e-6 * epoch
        assert all(0 <= draw.index < 64 for draw in seen)

    def test_classes_are_as_often(self, world):
        seen = Counter(d.class_ for d in draws(mixed(world, class_uniform=0.5), 80, 160))
        assert seen == {None: 40, SEA: 20, ISLAND: 20}, "and the absent class takes no place"

    def test_tiles_of_a_class_are_as_often(self, world):
        stream = mixed(world, class_uniform=1.0)
        seen = Counter((d.index, d.point) for d in draws(stream, 0, 160) if d.class_ == ISLAND)
        assert len(seen) == 3, "p1 once; p4's lies in two tiles"
        assert max(seen.values()) - min(seen.values()) <= 1

    def test_plain_pictures_are_as_often(self, world):
        seen = Counter(d.index for d in draws(mixed(world, class_uniform=0.5), 0, 160)
                       if d.class_ is None)  # fmt: skip
        assert seen == dict.fromkeys(range(8), 10)

    def test_crop_holds_its_class(self, world):
        stream = mixed(world, class_uniform=1.0)
        for position in range(60):
            _, label = stream[position]
            if stream.draw(position).class_ == ISLAND:
                assert (label == ISLAND).any()

    def test_until(self, world):
        stream = mixed(world, positions=100, class_uniform=0.5, until=0.8)
        classes = [draw.class_ for draw in draws(stream, 0, 200)]
        assert sum(c is not None for c in classes[:80]) == 40
        assert set(classes[80:]) == {None}
        plain = Counter(draw.index for draw in draws(stream, 80, 200))
        assert plain == dict.fromkeys(range(8), 15)

    def test_another_seed_is_another_order(self, world):
        first, second = (draws(mixed(world, seed=s, class_uniform=0.5), 0, 40) for s in (0, 1))
        assert first != second

    def test_nothing_but_ignored_pixels(self, folder_dataset):
        path = folder_dataset({"a": np.full((40, 60), 255, np.uint8)})
        with pytest.raises(InputError, match="no labelled pixel"):
            mixed(path, class_uniform=0.5)


class TestExtraSets:
    def test_share(self, world):
        stream = mixed(world, extra=[{"split": "more", "share": 0.25}])
        seen = Counter((d.source, d.index) for d in draws(stream, 0, 96))
        assert seen == {**{(0, i): 9 for i in range(8)}, **{(1, i): 8 for i in range(3)}}

    def test_shares_of_several_and_of_class_uniform_crops(self, world):
        extra = [{"split": "more", "share": 0.5}, {"split": "train", "share": 0.25}]
        stream = mixed(world, class_uniform=0.2, extra=extra)
        seen = Counter((d.source, d.class_ is None) for d in draws(stream, 0, 1000))
        assert seen[0, False] == 200
        assert {k[0]: n for k, n in seen.items() if k[1]} == pytest.approx(
            {0: 200, 1: 400, 2: 200}, abs=1
        )

    def test_boost_adds_places_of_the_named_classes_alone(self, world):
        extra = [{"split": "more", "boost": ["water"], "until": 0.5}]
        stream = mixed(world, positions=2000, class_uniform=1.0, extra=extra)
        seen = Counter((d.class_, d.source) for d in draws(stream, 0, 1000))
        assert seen[SEA, 0] == seen[ISLAND, 0] + seen[ISLAND, 1] == 500
        # 3 pictures of 2x2 tiles beside the 3 tiles of the main set
        assert seen[ISLAND, 1] == pytest.approx(500 * 12 / 15, abs=12)
        assert {d.source for d in draws(stream, 1000, 2000)} == {0}

    def test_the_last_passes_see_the_main_set_alone(self, world):
        """Plain pictures and class-uniform crops both; until then each set has its share."""
        extra = [{"split": "more", "share": 0.5, "boost": ["water"], "until": 0.75}]
        stream = mixed(world, positions=800, class_uniform=0.5, extra=extra)
        early = Counter((d.source, d.class_ is None) for d in draws(stream, 0, 600))
        assert (early[0, True], early[1, True]) == (150, 150)
        assert early[1, False] > 100
        assert {d.source for d in draws(stream, 600, 800)} == {0}

    def test_each_set_has_its_own_confidence_and_border(self, world, tmp_path):
        root = tmp_path / "pictures" / "more"
        (root / "sure").mkdir()
        for i in range(3):
            sure = np.full((40, 60), 128, np.uint8)
            sure[:, 30:] = 250
            Image.fromarray(sure).save(root / "sure" / f"{i}.png")
        content = yaml.safe_load(world.read_text())
        more = {"images": "more/images", "labels": "more/labels", "confidence": "more/sure"}
        content["splits"] = {"train": "train", "more": more}
        world.write_text(yaml.safe_dump(content))

        def kept(confidence=0.9, **extra):
            extra = {"split": "more", "share": 0.5, "boost": ["water"]} | extra
            mix = mixed(world, class_uniform=0.5, confidence=confidence, extra=[extra]).mix
            label = mix.extras[0].dataset.read_label(0)
            tiles = np.concatenate([*mix.pools[0][1].values()])
            tiles = int(tiles[tiles[:, 0] == 1, 5].sum())
            assert tiles == 3 * (label != 255).sum(), "crops are around what counts alone"
            return label != 255

        assert kept(0.0).all()
        assert (kept() == (np.arange(60) >= 30)).all()
        assert kept(confidence=0.9, border=[1, 2, 3, 4]).sum() == 36 * 28
        extra = {"confidence": {"water": 0.5}, "border": [1, 2, 3, 4]}
        assert (kept(**extra)[1:37, 4:58]).all()
        assert kept(**extra).sum() == 36 * 54
        assert kept(border=[30, 0, 30, 0]).sum() == 0

    def test_a_set_of_its_own_file(self, world, tmp_path):
        content = yaml.safe_load(world.read_text()) | {"path": "../pictures"}
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "o.yaml").write_text(yaml.safe_dump(content))
        extra = [{"dataset": "other/o.yaml", "split": "more", "share": 1.0}]
        stream = mixed(world, extra=extra)
        assert {d.source for d in draws(stream, 0, 50)} == {1}
        assert stream[0][1].unique().tolist() in ([ISLAND], [ISLAND, 255])

    @pytest.mark.parametrize(
        ("sampling", "says"),
        [
            ({"extra": [{"split": "mor"}]}, "did you mean more"),
            ({"extra": [{"split": "more", "boost": ["land"]}]}, "set class_uniform"),
            ({"class_uniform": 0.5, "extra": [{"split": "more", "boost": ["watr"]}]},
             "no class 'watr'; did you mean 'water'"),
            ({"extra": [{"split": "more", "share": 0.6}] * 2}, "more than 1"),
            ({"extra": [{"dataset": "other.yaml", "split": "more"}]}, "not those of"),
        ],
    )  # fmt: skip
    def test_mistakes(self, world, sampling, says):
        other = yaml.safe_load(world.read_text()) | {"names": ["land", "road", "water"]}
        world.with_name("other.yaml").write_text(yaml.safe_dump(other))
        with pytest.raises(InputError, match=says) as caught:
            mixed(world, **sampling)
        assert "\n" not in str(caught.value)


MIX = {
    "class_uniform": 0.4,
    "until": 0.7,
    "extra": [{"split": "more", "share": 0.3, "boost": ["water"]}],
}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_mix_resumes_where_it_stopped(world, workers):
    whole = list(batches(mixed(world, 40, **MIX), range(10), 4, workers))
    rest = list(batches(mixed(world, 40, **MIX), range(6, 10), 4, workers))
    for (image, label), (again, same) in zip(whole[6:], rest, strict=True):
        assert torch.equal(image, again)
        assert torch.equal(label, same)


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_out_a_mix(world, monkeypatch, processes):
    """Together they see every position once, whatever their number; nobody sees another's."""
    stream, seen = mixed(world, 48, **MIX), []
    monkeypatch.setattr(
        TrainingStream,
        "__getitem__",
        lambda self, i: (seen.append(i), (torch.zeros(3, 1, 1), torch.zeros(1, 1)))[1],
    )
    for rank in range(processes):
        list(batches(stream, range(48 // (2 * processes)), 2, 0, rank, processes))
    assert sorted(seen) == list(range(48))


@given(st.lists(st.sampled_from([0.5, 1.0, 2.0, 5.0]), min_size=2, max_size=12), st.integers(0, 99))
def test_a_picture_comes_as_often_as_its_weight_says(weights, seed):
    pairs = tuple(
        Pair(str(i), Path("a"), Path("b"), weight=weight) for i, weight in enumerate(weights)
    )
    table = LabelSet(("a", "b"), ((0, 0, 0),) * 2, (0, 1))
    dataset = Dataset(Path("x.yaml"), "train", pairs, table)
    dealt, n, passes = TrainingStream(dataset, TRANSFORM, seed), len(weights), 8
    for done in range(passes):
        drawn = [dealt.draw(done * n + place).index for place in range(n)]
        times = np.bincount(drawn, minlength=n)
        expected = np.array(weights) * n / sum(weights)
        assert (abs(times - expected) < 1 + 1e-9).all()
