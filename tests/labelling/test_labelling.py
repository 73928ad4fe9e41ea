"""Auto-labels on disk: read back as a dataset, gone on with, refused, repaired."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import yaml
from PIL import Image
from pyarrow import parquet

from hmsa.data.coarse import Coarse
from hmsa.data.datasets import open_dataset
from hmsa.data.labels import LabelSet, spread
from hmsa.evaluation.calibration import precise
from hmsa.inference.predictor import Prediction, Predictor
from hmsa.labelling.autolabel import calibrate
from hmsa.labelling.labelling import Labelling, locked
from hmsa.labelling.rows import THRESHOLDS, total
from hmsa.runs.errors import InputError

NAMES = ("sky", "road", "post", "car")
LABELS = LabelSet(NAMES, tuple(spread(4)), (0, 1, 2, 3))


class Counting(Predictor):
    """Remembers how many pictures it was shown."""

    shown = 0

    def __call__(self, image, detail=False):
        self.shown += 1
        return super().__call__(image, detail)


@pytest.fixture
def pictures(tmp_path):
    """Five pictures, one in a folder of its own, one that a viewer turns upright."""
    folder = tmp_path / "in"
    (folder / "deep [x]").mkdir(parents=True)
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    for i, name in enumerate(("a.png", "b.jpg", "c.d.png", "deep [x]/e.png")):
        noise = rng.integers(0, 255, (20 + i, 33, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / name)
    Image.effect_noise((30, 18), 60).convert("RGB").save(folder / "lying.jpg", exif=exif)
    return folder


@pytest.fixture
def labelling(tiny, pictures, tmp_path):
    """`labelling(**changes)` -> a run that was finished; what it was shown is in `.predictor`."""

    def run(overwrite=False, finish=True, scales=(0.5, 1), **changes):
        predictor = Counting(tiny, scales, "fp32", "cpu")
        made = Labelling(**{
            "predictor": predictor, "teacher": "t1", "images": pictures, "out": tmp_path / "out",
            "labels": LABELS, "precision": "fp32",
        } | changes)  # fmt: skip
        with locked(made.out):
            made.run(overwrite)
            if finish:
                made.finish()
        return made

    return run


def manifest(out):
    return parquet.read_table(out / "manifest.parquet").to_pylist()


def test_round_trip_through_datasets(labelling, tiny, pictures, tmp_path):
    made = labelling()
    dataset = open_dataset(made.out, "auto")
    assert [pair.name for pair in dataset.pairs] == ["a", "b", "c.d", "deep [x]/e", "lying"]
    assert dataset.labels.names == NAMES
    everything, nothing = dataset.trusting(0), dataset.trusting(1.001)
    middle = dataset.trusting({"sky": 0.9, "road": 0.3})
    for i, pair in enumerate(dataset.pairs):
        image, label = dataset.read(i)
        seen = Predictor(tiny, (0.5, 1), "fp32", "cpu")(image)
        assert (label == seen.label).all()
        assert (everything.read_label(i) == seen.label).all()
        assert (nothing.read_label(i) == 255).all()
        needed = np.array([0.9, 0.3, 0, 0])[seen.label]
        kept = np.where(seen.confidence / 255 >= needed, seen.label, 255)
        assert (middle.read_label(i) == kept).all()
        with Image.open(pair.label) as picture:
            assert picture.mode == "P"
            assert picture.getpalette()[:12] == [c for rgb in LABELS.palette for c in rgb]
    assert sorted(p.name for p in made.out.iterdir()) == [
        ".lock", "confidence", "dataset.yaml", "labels", "manifest.parquet", "rows", "settings.json"
    ]  # fmt: skip


def test_manifest_says_what_is_in_the_pictures(labelling):
    made = labelling(scales=(1, 0.5))
    table = parquet.read_table(made.out / "manifest.parquet")
    about = {k.decode(): json.loads(v) for k, v in table.schema.metadata.items()}
    assert about == {"classes": list(NAMES), "thresholds": THRESHOLDS}
    for row, file in zip(table.to_pylist(), made.files.values(), strict=True):
        label, confidence = (
            np.asarray(Image.open(made.out / row[kind])) for kind in ("label", "confidence")
        )
        assert (made.out / row["image"]).resolve() == file.resolve()
        assert (row["height"], row["width"]) == label.shape
        assert row["pixels"] == np.bincount(label.ravel(), minlength=4).tolist()
        for k in range(4):
            mean = confidence[label == k].mean() / 255 if (label == k).any() else None
            assert row["mean_confidence"][k] == (mean and pytest.approx(mean))
        assert row["kept"] == [(confidence / 255 >= t).mean() for t in THRESHOLDS]
        assert (row["teacher"], row["scales"], row["flip"]) == ("t1", [0.5, 1], False)
        assert (row["status"], row["reason"]) == ("done", "")
        assert row["seconds"] > 0
    counts = total(made.rows(), 4)
    assert counts.sum(1).tolist() == np.sum([r["pixels"] for r in table.to_pylist()], 0).tolist()


def test_raw_values(labelling):
    raw = LabelSet(NAMES, LABELS.palette, (7, 11, 250, 33))
    made = labelling(labels=raw)
    dataset = open_dataset(made.out, "auto")
    assert dataset.labels.raw == raw.raw
    with Image.open(dataset.pairs[0].label) as picture:
        assert set(np.unique(np.asarray(picture))) <= set(raw.raw)
    assert (dataset.read_label(0) == Predictor.__call__(made.predictor, pictures_of(made)[0]).label
            ).all()  # fmt: skip


def pictures_of(made):
    return list(made.files.values())


class TestGoingOn:
    def test_nothing_is_done_twice(self, labelling):
        before = labelling()
        assert before.predictor.shown == 5
        content = (before.out / "manifest.parquet").read_bytes()
        again = labelling()
        assert again.predictor.shown == 0
        assert (again.out / "manifest.parquet").read_bytes() == content

    def test_a_changed_image_is_done_again(self, labelling, pictures):
        labelling()
        when = os.stat(pictures / "a.png")
        Image.new("RGB", (9, 8)).save(pictures / "a.png")
        os.utime(pictures / "a.png", ns=(when.st_atime_ns, when.st_mtime_ns))
        again = labelling()
        assert again.predictor.shown == 1
        assert manifest(again.out)[0]["height"] == 8
        assert open_dataset(again.out, "auto").read_label(0).shape == (8, 9)

    @pytest.mark.parametrize("gone", ["labels/b.png", "confidence/c.d.png", "rows/a.json"])
    def test_a_lost_file_is_made_again(self, labelling, gone):
        made = labelling()
        content = (made.out / gone).read_bytes()
        (made.out / gone).unlink()
        assert labelling().predictor.shown == 1
        if not gone.startswith("rows"):
            assert (made.out / gone).read_bytes() == content

    def test_torn_rows_and_temporary_files(self, labelling):
        made = labelling()
        (made.out / "rows" / "b.json").write_text('{"key":')
        for torn in ("labels/.b.png.x1y2", "rows/deep [x]/.e.json.zz", ".manifest.parquet.abc"):
            (made.out / torn).write_text("half")
        assert labelling().predictor.shown == 1
        assert not [f for f in made.out.rglob(".*") if f.name != ".lock"]

    def test_unfinished_means_no_manifest(self, labelling, pictures):
        made = labelling()
        Image.new("RGB", (9, 8)).save(pictures / "z.png")
        labelling(finish=False)
        assert not (made.out / "manifest.parquet").exists()
        assert not (made.out / "dataset.yaml").exists()

    @pytest.mark.parametrize(
        ("change", "says"),
        [({"teacher": "t2"}, "teacher t1, now t2"), ({"scales": (1,)}, "now [1.0]")],
    )
    def test_other_settings_are_refused(self, labelling, change, says):
        made = labelling()
        with pytest.raises(InputError, match="--overwrite") as error:
            labelling(**change)
        assert says in str(error.value)
        assert len(manifest(made.out)) == 5
        assert labelling(overwrite=True, **change).predictor.shown == 5
        assert labelling(**change).predictor.shown == 0
        assert labelling(overwrite=True, **change).predictor.shown == 0, "killed, gone on with"

    def test_an_image_that_went_away_leaves_the_split_whole(self, labelling, pictures):
        labelling()
        (pictures / "deep [x]" / "e.png").unlink()
        again = labelling()
        assert len(open_dataset(again.out, "auto")) == len(manifest(again.out)) == 4
        assert (again.out / "labels" / "deep [x]" / "e.png").exists()


def test_unreadable_pictures_are_rows_with_a_reason(labelling, pictures):
    whole = (pictures / "a.png").read_bytes()
    (pictures / "deep [x]" / "bad.png").write_bytes(b"nonsense")
    (pictures / "half.png").write_bytes(whole[: len(whole) // 2])
    made = labelling()
    failed = {row["image"].split("/")[-1]: row for row in manifest(made.out)
              if row["status"] == "failed"}  # fmt: skip
    assert set(failed) == {"bad.png", "half.png"}
    assert "not a picture" in failed["bad.png"]["reason"]
    assert failed["half.png"]["label"] is None
    assert len(failed["half.png"]["sha256"]) == 64
    assert len(open_dataset(made.out, "auto")) == 5
    assert labelling().predictor.shown == 0
    (pictures / "half.png").write_bytes(whole)
    assert labelling().predictor.shown == 1
    assert len(open_dataset(made.out, "auto")) == 6


def test_a_picture_that_breaks_later_leaves_the_split(labelling, pictures):
    labelling()
    (pictures / "b.jpg").write_bytes(b"nonsense")
    assert [pair.name for pair in open_dataset(labelling().out, "auto").pairs] == [
        "a", "c.d", "deep [x]/e", "lying"
    ]  # fmt: skip


class TestCoarse:
    @pytest.fixture
    def coarse(self, pictures, tmp_path):
        """A quarter of the picture called a: car above, road below; elsewhere nothing."""
        folder = tmp_path / "people"
        folder.mkdir()
        label = np.full((20, 33), 255, np.uint8)
        label[:5], label[5:10, :3] = 3, 1
        Image.fromarray(label).save(folder / "a.png")
        content = {
            "splits": {"few": {"images": str(pictures), "labels": str(folder), "include": ["a"]}},
            "names": list(NAMES),
        }
        (tmp_path / "people.yaml").write_text(yaml.safe_dump(content))
        return open_dataset(tmp_path / "people.yaml", "few"), label

    @pytest.mark.parametrize("fill", [None, {1}, {0, 2}])
    def test_override_and_fill(self, labelling, coarse, tiny, fill):
        dataset, drawn = coarse
        made = labelling(coarse=Coarse(dataset, fill and frozenset(fill)))
        seen = Predictor(tiny, (0.5, 1), "fp32", "cpu")(pictures_of(made)[0])
        speaks = np.isin(drawn, [0, 1, 2, 3] if fill is None else list(fill))
        found = open_dataset(made.out, "auto")
        confidence = np.asarray(Image.open(found.pairs[0].confidence))
        assert (found.read_label(0) == np.where(speaks, drawn, seen.label)).all()
        assert (confidence == np.where(speaks, 255, seen.confidence)).all()
        first, second, *_ = manifest(made.out)
        assert first["coarse_pixels"] == speaks.sum()
        assert second["coarse_pixels"] is None

    def test_grow(self, labelling, coarse):
        made = labelling(coarse=Coarse(coarse[0], grow=4))
        label = open_dataset(made.out, "auto").read_label(0)
        assert (label[:9, 8:] == 3).all()  # down from row 4
        assert (label[5:14, :3] == 1).all()
        assert manifest(made.out)[0]["coarse_pixels"] > 20 * 33 * 0.4
        with pytest.raises(InputError, match="other settings"):
            labelling(coarse=Coarse(coarse[0], grow=5))

    def test_a_changed_coarse_label_is_noticed(self, labelling, coarse):
        dataset, drawn = coarse
        labelling(coarse=Coarse(dataset))
        Image.fromarray(np.full_like(drawn, 255)).save(dataset.pairs[0].label)
        again = labelling(coarse=Coarse(dataset))
        assert again.predictor.shown == 1
        assert manifest(again.out)[0]["coarse_pixels"] == 0
        with pytest.raises(InputError, match="other settings"):
            labelling()

    def test_another_size_is_a_reason(self, labelling, coarse):
        dataset, _ = coarse
        Image.new("L", (5, 4)).save(dataset.pairs[0].label)
        made = labelling(coarse=Coarse(dataset))
        assert "5x4, but" in manifest(made.out)[0]["reason"]

    def test_of_other_pictures(self, labelling, coarse, tmp_path):
        (tmp_path / "else").mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / "else" / "q.png")
        with pytest.raises(InputError, match="which split has them"):
            labelling(coarse=Coarse(coarse[0]), images=tmp_path / "else")


class TestAgreement:
    def test_share_of_the_scales_that_say_so_alone(self, labelling, tiny, pictures):
        made = labelling(agreement=True, scales=(0.5, 1, 2))
        for row, file in zip(manifest(made.out), pictures_of(made), strict=True):
            seen = Predictor(tiny, (0.5, 1, 2), "fp32", "cpu")(file, detail=True)
            same = sum((one == seen.label).astype(int) for one in seen.single.values())
            stored = np.asarray(Image.open(made.out / row["agreement"]))
            assert (stored == np.array([0, 85, 170, 255])[same]).all()
            assert row["mean_agreement"] == pytest.approx(stored.mean() / 255)
            assert (np.asarray(Image.open(made.out / row["label"])) == seen.label).all()
        assert 0 < np.mean([row["mean_agreement"] for row in manifest(made.out)]) < 1

    def test_so_do_the_picture_and_its_mirror_image(self, labelling, tiny, pictures):
        flipping = Predictor(tiny, (0.5, 1), "fp32", "cpu", flip=True)
        made = labelling(agreement=True, predictor=flipping)
        for row, file in zip(manifest(made.out), pictures_of(made), strict=True):
            seen = flipping(file, detail=True)
            voices = [*seen.single.values(), *seen.flips.values()]
            same = sum((one == seen.label).astype(int) for one in voices)
            stored = np.asarray(Image.open(made.out / row["agreement"]))
            assert (stored == np.array([0, 63, 127, 191, 255])[same]).all()

    def test_a_split_can_trust_it_as_it_trusts_confidence(self, labelling):
        made = labelling(agreement=True)
        content = yaml.safe_load((made.out / "dataset.yaml").read_text())
        content["splits"]["agreed"] = content["splits"]["auto"] | {"confidence": "agreement"}
        (made.out / "agreed.yaml").write_text(yaml.safe_dump(content))
        agreed = open_dataset(made.out / "agreed.yaml", "agreed").trusting(1)
        auto = open_dataset(made.out, "auto")
        dropped = 0
        for i, pair in enumerate(auto.pairs):
            stored = np.asarray(Image.open(made.out / "agreement" / f"{pair.name}.png"))
            expected = np.where(stored == 255, auto.read_label(i), 255)
            assert (agreed.read_label(i) == expected).all()
            dropped += (expected == 255).sum()
        assert dropped > 0

    def test_it_is_a_setting(self, labelling):
        assert not (labelling().out / "agreement").exists()
        with pytest.raises(InputError, match="agreement None, now True"):
            labelling(agreement=True)
        assert labelling(agreement=True, overwrite=True).predictor.shown == 5
        with pytest.raises(InputError, match="agreement True, now None"):
            labelling()

    def test_a_lost_one_is_made_again(self, labelling):
        made = labelling(agreement=True)
        (made.out / "agreement" / "b.png").unlink()
        assert labelling(agreement=True).predictor.shown == 1


class TestRefused:
    def test_two_runs_on_one_output(self, labelling, tmp_path):
        with locked(tmp_path / "out"), pytest.raises(InputError, match="another run"):
            labelling()
        labelling()

    def test_somebody_elses_folder(self, labelling, tmp_path):
        (tmp_path / "out" / "labels").mkdir(parents=True)
        with pytest.raises(InputError, match="something else"):
            labelling()

    def test_two_of_one_name(self, labelling, pictures):
        Image.new("RGB", (4, 4)).save(pictures / "a.bmp")
        with pytest.raises(InputError, match="share one name"):
            labelling()

    @pytest.mark.parametrize(("place", "says"), [("none", "no folder"), ("empty", "no pictures")])
    def test_no_pictures(self, labelling, tmp_path, place, says):
        (tmp_path / "empty").mkdir()
        with pytest.raises(InputError, match=says):
            labelling(images=tmp_path / place)

    def test_labels_among_the_pictures(self, labelling, pictures):
        with pytest.raises(InputError, match="lie elsewhere"):
            labelling(out=pictures / "out")


def test_precision_on_held_out_pictures_by_hand(folder_dataset):
    """Predicted water with 200 is right on all of 4 pixels, with 100 on 2 of 4."""
    path = folder_dataset({"a": np.array([[1, 1, 1, 1, 1, 1, 2, 2, 255]], np.uint8)})

    def predictor(image):
        assert image.shape == (1, 9, 3)
        sure = np.array([[200] * 4 + [100] * 4 + [50]], np.uint8)
        return Prediction(np.ones((1, 9), np.uint8), sure)

    counts = calibrate(predictor, open_dataset(path, "train")).counts
    assert counts.sum() == 8
    assert precise(counts, 0.95) == [None, 0.7843, None]
    assert precise(counts, 0.75) == [None, 0.3921, None]
