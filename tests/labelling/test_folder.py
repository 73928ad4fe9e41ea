"""Auto-labels on disk: read back as a dataset, gone on with, refused, repaired."""

from __future__ import annotations

import io
import json
import os

import numpy as np
import pytest
import yaml
from PIL import Image
from pyarrow import parquet

from hmsa.data.coarse import Coarse
from hmsa.data.datasets import open_dataset
from hmsa.data.labels import spread
from hmsa.inference.predictor import Predictor
from hmsa.labelling.folder import FINISHED, THRESHOLDS, Folder, total
from hmsa.report.pictures import png_bytes
from hmsa.runs import InputError, Run
from hmsa.runs.folder import read_records

NAMES = ("sky", "road", "post", "car")


class Counting(Predictor):
    """Remembers how many images it has labelled."""

    count = 0

    def __call__(self, image, detail=False):
        self.count += 1
        return super().__call__(image, detail=detail)


@pytest.fixture
def images(tmp_path):
    """Five images, one in a folder of its own, one that a viewer turns upright."""
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
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def run(label, tiny, images, out):
    """`run(**changes)` labels `images` into `out`; returns how often the network ran."""
    tiny.card.names = list(NAMES)

    def run(scales=(0.5, 1), flip=False, images=images, out=out, **options):
        predictor = Counting(tiny, scales, "fp32", "cpu", flip)
        label(predictor, images, out, **options)
        return predictor.count

    return run


@pytest.fixture
def predict(tiny):
    """`predict(image, scales)`: what the teacher of `run` predicts."""
    return lambda image, scales=(0.5, 1), **more: Predictor(tiny, scales, "fp32", "cpu", **more)(
        image, detail=True
    )


def manifest(out):
    return parquet.read_table(out / "manifest.parquet").to_pylist()


def files(images):
    return sorted(file for file in images.rglob("*") if file.is_file())


def test_round_trip_through_datasets(run, predict, out):
    run()
    dataset = open_dataset(out, "auto")
    assert [pair.name for pair in dataset.pairs] == ["a", "b", "c.d", "deep [x]/e", "lying"]
    assert dataset.labels.names == NAMES
    everything, nothing = dataset.trusting(0), dataset.trusting(1.001)
    middle = dataset.trusting({"sky": 0.9, "road": 0.3})
    for i, pair in enumerate(dataset.pairs):
        image, label = dataset.read(i)
        prediction = predict(image)
        assert (label == prediction.label).all()
        assert (everything.read_label(i) == prediction.label).all()
        assert (nothing.read_label(i) == 255).all()
        needed = np.array([0.9, 0.3, 0, 0])[prediction.label]
        kept = np.where(prediction.confidence8 / 255 >= needed, prediction.label, 255)
        assert (middle.read_label(i) == kept).all()
        with Image.open(pair.label) as stored:
            assert stored.mode == "P"
            assert stored.getpalette()[:12] == [value for color in spread(4) for value in color]
    assert {path.name for path in out.iterdir()} - {".autolabel.lock"} == {
        "autolabel.json", "autolabel.jsonl", "confidence", "dataset.yaml", "labels",
        "manifest.parquet", "thresholds.json",
    }  # fmt: skip


def test_manifest_agrees_with_the_files(run, images, out):
    run(scales=(1, 0.5))
    table = parquet.read_table(out / "manifest.parquet")
    about = {k.decode(): json.loads(v) for k, v in table.schema.metadata.items()}
    assert about == {"classes": list(NAMES), "thresholds": THRESHOLDS}
    for row, file in zip(table.to_pylist(), files(images), strict=True):
        label, confidence = (
            np.asarray(Image.open(out / row[kind])) for kind in ("label", "confidence")
        )
        assert (out / row["image"]).resolve() == file.resolve()
        assert (row["height"], row["width"]) == label.shape
        assert row["pixels"] == np.bincount(label.ravel(), minlength=4).tolist()
        for k in range(4):
            mean = confidence[label == k].mean() / 255 if (label == k).any() else None
            assert row["mean_confidence"][k] == (mean and pytest.approx(mean))
        assert row["kept"] == [(confidence / 255 >= t).mean() for t in THRESHOLDS]
        assert (row["teacher"], row["scales"], row["flip"]) == ("t1", [0.5, 1], False)
        assert (row["status"], row["reason"]) == ("done", "")
        assert row["seconds"] > 0
    counts = total(read_records(out, "autolabel").values(), 4)
    assert counts.sum(1).tolist() == np.sum([r["pixels"] for r in table.to_pylist()], 0).tolist()


def test_names_that_are_not_utf_8(run, images, out):
    """As `os.fsdecode` has them; escaped in the manifest, as they are everywhere else."""
    name = "b\udcff"
    try:
        (images / "a.png").rename(images / f"{name}.png")
    except (OSError, UnicodeEncodeError):
        pytest.skip("no such names here")
    out = out.with_name("out\udcfe")
    assert run(out=out) == 5
    manifest = parquet.read_table(io.BytesIO((out / "manifest.parquet").read_bytes()))
    assert "../in/b\\udcff.png" in manifest["image"].to_pylist()
    assert name in [pair.name for pair in open_dataset(out, "auto").pairs]
    assert (out / "labels" / f"{name}.png").is_file()
    assert name in read_records(out, "autolabel")
    assert run(out=out) == 0
    (images / f"{name}.png").write_bytes(b"nonsense")
    run(out=out)
    assert name not in [pair.name for pair in open_dataset(out, "auto").pairs]


def test_raw_values(run, predict, images, out, tmp_path):
    raw = dict(zip((7, 11, 33, 250), NAMES, strict=True))
    (tmp_path / "raw.yaml").write_text(yaml.safe_dump({"splits": {}, "names": raw}))
    run(raw=tmp_path / "raw.yaml")
    dataset = open_dataset(out, "auto")
    assert dataset.labels.raw == tuple(raw)
    with Image.open(dataset.pairs[0].label) as stored:
        assert set(np.unique(np.asarray(stored))) <= set(raw)
    assert (dataset.read_label(0) == predict(files(images)[0]).label).all()


class TestSameCommandAgain:
    def test_nothing_is_done_twice(self, run, out):
        assert run() == 5
        content = (out / "manifest.parquet").read_bytes()
        assert run() == 0
        assert (out / "manifest.parquet").read_bytes() == content

    def test_a_changed_image_is_done_again(self, run, images, out):
        run()
        when = os.stat(images / "a.png")
        Image.new("RGB", (9, 8)).save(images / "a.png")
        os.utime(images / "a.png", ns=(when.st_atime_ns, when.st_mtime_ns))
        assert run() == 1
        assert manifest(out)[0]["height"] == 8
        assert open_dataset(out, "auto").read_label(0).shape == (8, 9)

    @pytest.mark.parametrize("gone", ["labels/b.png", "confidence/c.d.png"])
    def test_a_lost_file_is_made_again(self, run, out, gone):
        run()
        content = (out / gone).read_bytes()
        (out / gone).unlink()
        assert run() == 1
        assert (out / gone).read_bytes() == content

    def test_a_torn_line_and_temporary_files(self, run, out):
        run()
        lines = (out / "autolabel.jsonl").read_bytes()
        (out / "autolabel.jsonl").write_bytes(lines[:-20])
        for torn in ("labels/.hmsa-999999999-x1", "labels/deep [x]/.hmsa-999999999-zz"):
            (out / torn).write_text("half")
        assert run() == 1
        assert {path.name for path in out.rglob(".*")} <= {".autolabel.lock"}

    def test_unfinished_means_no_manifest(self, run, images, out, monkeypatch):
        run()
        Image.new("RGB", (9, 8)).save(images / "z.png")
        monkeypatch.setattr(Folder, "finish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run()
        monkeypatch.undo()
        assert not [name for name in FINISHED if (out / name).exists()]
        assert run() == 0
        assert len(manifest(out)) == 6

    def test_a_row_never_stands_beside_the_files_of_another_image(
        self, run, images, out, monkeypatch
    ):
        """Interrupted while a changed image is stored; then the old one comes back."""
        run()
        before = (images / "a.png").read_bytes()
        Image.new("RGB", (9, 8)).save(images / "a.png")
        add, left = Run.add, [1]

        def dying(self, *arguments):
            if not left:
                raise KeyboardInterrupt
            left.pop()
            add(self, *arguments)

        monkeypatch.setattr(Run, "add", dying)
        with pytest.raises(KeyboardInterrupt):
            run()
        monkeypatch.undo()
        assert "interrupted" in read_records(out, "autolabel")["a"]["reason"]
        (images / "a.png").write_bytes(before)
        assert run() == 1
        assert open_dataset(out, "auto").read_label(0).shape == (20, 33)

    @pytest.mark.parametrize(
        ("change", "says"),
        [({"teacher": "t2"}, "teacher t1 -> t2"), ({"scales": (1,)}, "scales 0.5,1.0 -> 1.0")],
    )
    def test_other_settings_are_refused(self, run, out, change, says):
        run()
        with pytest.raises(InputError, match="--overwrite") as error:
            run(**change)
        assert says in str(error.value)
        assert len(manifest(out)) == 5
        assert run(overwrite=True, **change) == 5
        assert run(**change) == 0
        assert run(overwrite=True, **change) == 0, "killed, continued by the same command"

    def test_an_image_that_went_away_leaves_the_split_whole(self, run, images, out):
        run()
        (images / "deep [x]" / "e.png").unlink()
        run()
        assert len(open_dataset(out, "auto")) == len(manifest(out)) == 4
        assert (out / "labels" / "deep [x]" / "e.png").exists()


def test_unreadable_images_are_rows_with_a_reason(run, images, out):
    whole = (images / "a.png").read_bytes()
    (images / "deep [x]" / "bad.png").write_bytes(b"nonsense")
    (images / "half.png").write_bytes(whole[: len(whole) // 2])
    run()
    failed = {row["image"].split("/")[-1]: row for row in manifest(out)
              if row["status"] == "failed"}  # fmt: skip
    assert set(failed) == {"bad.png", "half.png"}
    assert "not an image" in failed["bad.png"]["reason"]
    assert failed["half.png"]["label"] is None
    assert len(failed["half.png"]["sha256"]) == 64
    assert len(open_dataset(out, "auto")) == 5
    assert run() == 0
    (images / "half.png").write_bytes(whole)
    assert run() == 1
    assert len(open_dataset(out, "auto")) == 6


def test_an_image_that_breaks_later_leaves_the_split(run, images, out):
    run()
    (images / "b.jpg").write_bytes(b"nonsense")
    run()
    names = [pair.name for pair in open_dataset(out, "auto").pairs]
    assert names == ["a", "c.d", "deep [x]/e", "lying"]


class TestCoarse:
    @pytest.fixture
    def coarse(self, images, tmp_path):
        """A quarter of the image a: car above, road below; elsewhere nothing."""
        folder = tmp_path / "people"
        folder.mkdir()
        label = np.full((20, 33), 255, np.uint8)
        label[:5], label[5:10, :3] = 3, 1
        Image.fromarray(label).save(folder / "a.png")
        content = {
            "splits": {"few": {"images": str(images), "labels": str(folder), "include": ["a"]}},
            "names": list(NAMES),
        }
        (tmp_path / "people.yaml").write_text(yaml.safe_dump(content))
        return open_dataset(tmp_path / "people.yaml", "few"), label

    @pytest.mark.parametrize("fill", [None, {1}, {0, 2}])
    def test_override_and_fill(self, run, coarse, predict, images, out, fill):
        dataset, drawn = coarse
        run(coarse=Coarse(dataset, fill and frozenset(fill)))
        prediction = predict(files(images)[0])
        counts = np.isin(drawn, [0, 1, 2, 3] if fill is None else list(fill))
        found = open_dataset(out, "auto")
        confidence = np.asarray(Image.open(found.pairs[0].confidence))
        assert (found.read_label(0) == np.where(counts, drawn, prediction.label)).all()
        assert (confidence == np.where(counts, 255, prediction.confidence8)).all()
        first, second, *_ = manifest(out)
        assert first["coarse_pixels"] == counts.sum()
        assert second["coarse_pixels"] is None

    def test_grow(self, run, coarse, out):
        run(coarse=Coarse(coarse[0], grow=4))
        label = open_dataset(out, "auto").read_label(0)
        assert (label[:9, 8:] == 3).all()  # down from row 4
        assert (label[5:14, :3] == 1).all()
        assert manifest(out)[0]["coarse_pixels"] > 20 * 33 * 0.4
        with pytest.raises(InputError, match="other settings"):
            run(coarse=Coarse(coarse[0], grow=5))

    def test_a_changed_coarse_label_is_noticed(self, run, coarse, out):
        dataset, drawn = coarse
        run(coarse=Coarse(dataset))
        Image.fromarray(np.full_like(drawn, 255)).save(dataset.pairs[0].label)
        assert run(coarse=Coarse(dataset)) == 1
        assert manifest(out)[0]["coarse_pixels"] == 0
        with pytest.raises(InputError, match="other settings"):
            run()

    def test_another_size_is_a_reason(self, run, coarse, out):
        dataset, _ = coarse
        Image.new("L", (5, 4)).save(dataset.pairs[0].label)
        run(coarse=Coarse(dataset))
        assert "5x4, but" in manifest(out)[0]["reason"]

    def test_of_other_images(self, run, coarse, out, tmp_path):
        (tmp_path / "else").mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / "else" / "q.png")
        with pytest.raises(InputError, match="neither by file nor by name"):
            run(coarse=Coarse(coarse[0]), images=tmp_path / "else")
        assert not out.exists()


class TestAgreement:
    @pytest.mark.parametrize(
        ("scales", "flip", "levels"),
        [((0.5, 1, 2), False, [0, 85, 170, 255]), ((0.5, 1), True, [0, 63, 127, 191, 255])],
    )
    def test_share_of_the_scales_and_mirrored_images(
        self, run, predict, images, out, scales, flip, levels
    ):
        run(agreement=True, scales=scales, flip=flip)
        for row, file in zip(manifest(out), files(images), strict=True):
            prediction = predict(file, scales, flip=flip)
            votes = [*prediction.single.values(), *prediction.flips.values()]
            same = sum((vote == prediction.label).astype(int) for vote in votes)
            stored = np.asarray(Image.open(out / row["agreement"]))
            assert (stored == np.array(levels)[same]).all()
            assert row["mean_agreement"] == pytest.approx(stored.mean() / 255)
            assert (np.asarray(Image.open(out / row["label"])) == prediction.label).all()
        assert 0 < np.mean([row["mean_agreement"] for row in manifest(out)]) < 1

    def test_a_split_can_trust_it_as_it_trusts_confidence(self, run, out):
        run(agreement=True)
        content = yaml.safe_load((out / "dataset.yaml").read_text())
        content["splits"]["agreed"] = content["splits"]["auto"] | {"confidence": "agreement"}
        (out / "agreed.yaml").write_text(yaml.safe_dump(content))
        agreed = open_dataset(out / "agreed.yaml", "agreed").trusting(1)
        auto = open_dataset(out, "auto")
        dropped = 0
        for i, pair in enumerate(auto.pairs):
            stored = np.asarray(Image.open(out / "agreement" / f"{pair.name}.png"))
            expected = np.where(stored == 255, auto.read_label(i), 255)
            assert (agreed.read_label(i) == expected).all()
            dropped += (expected == 255).sum()
        assert dropped > 0

    def test_it_is_a_setting(self, run, out):
        run()
        assert not (out / "agreement").exists()
        with pytest.raises(InputError, match="agreement False -> True"):
            run(agreement=True)
        assert run(agreement=True, overwrite=True) == 5
        (out / "agreement" / "b.png").unlink()
        assert run(agreement=True) == 1


class TestPersons:
    """Rows whose label a person corrected, as `hmsa review --take` stores them."""

    @pytest.fixture
    def corrected(self, run, out):
        """The label of the image a, which is all car."""
        run()
        row = read_records(out, "autolabel")["a"]
        label = np.full((row["height"], row["width"]), 3, np.uint8)
        settings = json.loads((out / "autolabel.json").read_text())
        with Folder(out, settings, open_dataset(out, "auto").labels, {}) as folder:
            png = png_bytes(Image.fromarray(label))
            row |= {"name": "a", "source": "person", "label_png": png}
            folder.store(row, outdated=["manifest.parquet"])
            assert (out / "thresholds.json").exists()
            folder.finish()
        return label

    def test_no_later_run_replaces_them(self, run, corrected, out):
        assert [row["source"] for row in manifest(out)] == ["person", None, None, None, None]
        assert run() == 0
        assert run(teacher="t2", overwrite=True) == 4
        assert (open_dataset(out, "auto").read_label(0) == corrected).all()
        assert manifest(out)[0]["source"] == "person"

    def test_images_may_move(self, run, corrected, images, out):
        moved = images.rename(images.with_name("moved"))
        assert run(images=moved, overwrite=True) == 4
        assert manifest(out)[0]["image"] == "../moved/a.png"
        assert (open_dataset(out, "auto").read_label(0) == corrected).all()

    def test_another_image_of_the_name_is_refused(self, run, corrected, images, out):
        Image.new("RGB", (9, 8)).save(images / "a.png")
        with pytest.raises(InputError, match="another image than the one that a person"):
            run()
        (out / "labels" / "a.png").unlink()
        assert run() == 1
        assert manifest(out)[0]["source"] is None


class TestRefused:
    def test_two_processes_in_one_folder(self, run, out):
        run()
        settings = json.loads((out / "autolabel.json").read_text())
        with (
            Run(out, "autolabel", settings),
            pytest.raises(InputError, match="another process is writing"),
        ):
            run()
        assert run() == 0

    def test_the_folder_of_others(self, run, out):
        (out / "labels").mkdir(parents=True)
        with pytest.raises(InputError, match="something else"):
            run()

    def test_two_of_one_name(self, run, images):
        Image.new("RGB", (4, 4)).save(images / "a.bmp")
        with pytest.raises(InputError, match="have the same name"):
            run()

    @pytest.mark.parametrize("place", ["nowhere", "empty"])
    def test_no_images(self, run, out, tmp_path, place):
        (tmp_path / "empty").mkdir()
        with pytest.raises(InputError, match="no images at"):
            run(images=tmp_path / place)
        assert not out.exists()

    def test_labels_among_the_images(self, run, images):
        with pytest.raises(InputError, match="elsewhere"):
            run(out=images / "out")
