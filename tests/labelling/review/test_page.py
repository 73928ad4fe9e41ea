"""What `hmsa review` finds, held against the pictures themselves; its page and its JSON."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import yaml
from PIL import Image

from hmsa.data.datasets import open_dataset
from hmsa.labelling.labelled import open_labelled
from hmsa.labelling.quality import LEVELS, against, drift, queue
from labelling.review.conftest import NAMES, Painted, seen


@pytest.fixture
def truth(pictures, tmp_path):
    """`truth(names)` -> a dataset of three of the pictures, some pixels wrong, some unknown."""

    def make(names=NAMES, only=("a", "b", "deep*")):
        rng = np.random.default_rng(5)
        for file in sorted(pictures.rglob("*.png")):
            label = seen(file)[0].copy()
            label[rng.random(label.shape) < 0.2] = 1
            label[rng.random(label.shape) < 0.1] = 255
            at = tmp_path / "true" / file.relative_to(pictures)
            at.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(label).save(at)
        content = {
            "splits": {"val": {"images": str(pictures), "labels": str(tmp_path / "true"),
                               "include": list(only)}},
            "names": list(names),
        }  # fmt: skip
        (tmp_path / "true.yaml").write_text(yaml.safe_dump(content))
        return tmp_path / "true.yaml"

    return make


def page(out):
    return (out / "quality.html").read_text()


def files(pictures):
    return {f.relative_to(pictures).with_suffix("").as_posix(): f for f in pictures.rglob("*.png")}


class TestQueue:
    def test_order_and_numbers(self, autolabel, pictures):
        out, _ = autolabel()
        found = queue(open_labelled(out))
        expected = {}
        for name, file in files(pictures).items():
            image = np.asarray(Image.open(file))
            label, confidence = seen(file)
            if name == "lying":
                continue
            single = Painted()(image, detail=True).single.values()
            agreed = np.mean([(one == label) for one in single])
            expected[name] = (confidence.mean() / 255, agreed)
        assert len(found) == 4
        assert [d.doubt for d in found] == sorted((d.doubt for d in found), reverse=True)
        for doubt in found:
            if doubt.name in expected:
                sure, agreed = expected[doubt.name]
                assert doubt.confidence == pytest.approx(sure)
                assert doubt.agreement == pytest.approx(agreed, abs=1 / 255)
                assert doubt.doubt == pytest.approx(1 - (sure + agreed) / 2, abs=1 / 255)
                told = f"scales disagree on {1 - doubt.agreement:.0%} of it"
                assert told in doubt.reasons

    def test_without_agreement_confidence_alone_counts(self, autolabel):
        out, _ = autolabel(agreement=False)
        for doubt in queue(open_labelled(out)):
            assert doubt.agreement is None
            assert doubt.doubt == pytest.approx(1 - doubt.confidence)
            assert not any("disagree" in why for why in doubt.reasons)

    def test_a_rare_class_is_a_reason(self, autolabel, pictures):
        image = np.full((30, 30, 3), 10, np.uint8)
        for i in range(60):
            Image.fromarray(image + i % 20).save(pictures / f"x{i:02}.png")
        for rare in ("a.png", "b.png", "deep [x]/c d.png", "lying.png"):
            (pictures / rare).unlink()
        image[:10] = 250
        Image.fromarray(image).save(pictures / "rare.png")
        out, _ = autolabel()
        why = {d.name: d.reasons for d in queue(open_labelled(out))}
        assert "car: in 1 of 61 images" in why["rare"]
        assert not any("images" in each for name in why if name != "rare" for each in why[name])

    def test_the_class_that_is_unsure_here_is_named(self, autolabel, pictures):
        image = np.full((20, 20, 3), 250, np.uint8)
        image[..., 1] = 240
        Image.fromarray(image).save(pictures / "sure.png")
        image[..., 1] = 20
        Image.fromarray(image).save(pictures / "unsure.png")
        out, _ = autolabel()
        first = queue(open_labelled(out))[0]
        assert first.name == "unsure"
        assert any(why.startswith("low confidence in car: 0.08, usually") for why in first.reasons)
        assert "confidence below 0.5 on 100% of it" in first.reasons


class TestTruth:
    def test_against_a_count_of_every_pixel(self, autolabel, truth, tmp_path):
        out, _ = autolabel()
        labelled = open_labelled(out)
        dataset = open_dataset(truth(), "val")
        found = against(labelled, labelled.beside(dataset))
        auto = open_dataset(out, "auto")
        matrix = np.zeros((4, 4), int)
        right = np.zeros((4, 256, 2), int)
        for i, pair in enumerate(auto.pairs):
            if pair.name == "lying":
                continue
            true = np.asarray(Image.open(tmp_path / "true" / f"{pair.name}.png"))
            stored, sure = auto.read_label(i), np.asarray(Image.open(pair.confidence))
            for t, p, c in zip(true.flat, stored.flat, sure.flat, strict=True):
                if t != 255:
                    right[p, c, int(t == p)] += 1
                    matrix[t, p] += 1
        assert (found.calibration.counts.numpy() == right).all()
        assert (found.confusion.matrix.numpy() == matrix).all()
        assert found.images == 3
        told = found.summary(NAMES)["at"]
        for level in LEVELS:
            first = next(v for v in range(256) if v / 255 >= level)
            left = right[:, first:].sum(1)
            expected = np.stack([left.sum(1) / right.sum((1, 2)), left[:, 1] / left.sum(1)], 1)
            assert np.allclose(found.reach(level), expected, equal_nan=True)
            assert told[f"{level:g}"] == pytest.approx(
                {"kept": left.sum() / right.sum(), "accuracy": left[:, 1].sum() / left.sum()}
            )

    def test_in_the_summary(self, autolabel, truth, hmsa):
        out, _ = autolabel()
        told = json.loads(hmsa("review", out, "--truth", truth(), "--json").out)["truth"]
        assert told["images"] == 3
        assert 0.6 < told["accuracy"] < 0.95
        kept = [told["at"][f"{level:g}"]["kept"] for level in LEVELS]
        assert kept == sorted(kept, reverse=True)
        assert set(told["class"]) == set(NAMES)
        html = page(out)
        assert "Against true labels" in html
        assert f"{100 * told['miou']:.1f} mIoU" in html

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            ({"names": ("sky", "road", "post", "bus")}, "they must be the same in the same order"),
            ({"only": ("nothing",)}, "the split is empty"),
        ],
    )
    def test_refused(self, autolabel, truth, hmsa, change, says):
        out, _ = autolabel()
        ran = hmsa("review", out, "--truth", truth(**change), "--json")
        assert ran.code == 2
        assert says in ran.err
        assert not (out / "quality.html").exists()

    def test_of_other_pictures_and_sizes(self, autolabel, truth, hmsa, tmp_path, scenes):
        out, _ = autolabel()
        described = yaml.safe_load(truth().read_text())
        (tmp_path / "else").mkdir()
        (tmp_path / "elsewhere").mkdir()
        for name, folder in (("q", "else"), ("q", "elsewhere")):
            Image.new("L", (5, 4)).save(tmp_path / folder / f"{name}.png")
        described["splits"]["val"] = {"images": "else", "labels": "elsewhere"}
        (tmp_path / "q.yaml").write_text(yaml.safe_dump(described))
        ran = hmsa("review", out, "--truth", tmp_path / "q.yaml")
        assert (ran.code, "name the split that has them" in ran.err) == (2, True)
        for folder in ("else", "elsewhere"):
            (tmp_path / folder / "q.png").rename(tmp_path / folder / "a.png")
        ran = hmsa("review", out, "--truth", tmp_path / "q.yaml")
        assert ran.code == 2
        assert "a.png is 5x4, but" in ran.err


class TestDrift:
    def test_against_a_count_of_every_pixel(self, autolabel, pictures):
        before, now = open_labelled(autolabel("one")[0]), open_labelled(autolabel("two", turn=1)[0])
        found = drift(before, now)
        assert set(found.changed.values()) == {1.0}
        pixels = before.counts.sum(1)
        assert (found.moved == np.roll(np.diag(pixels), 1, axis=1)).all()

    def test_what_people_left_open_and_what_is_another_picture(
        self, autolabel, pictures, tmp_path, monkeypatch
    ):
        before = open_labelled(autolabel("one")[0])
        out, _ = autolabel("two")
        label = np.array(Image.open(out / "labels" / "a.png"))
        label[:3] = 255
        changed = label[3:].size
        label[3:] = (label[3:] + 1) % 4
        Image.fromarray(label).save(out / "labels" / "a.png")
        Image.fromarray(np.full((9, 9, 3), 7, np.uint8)).save(pictures / "b.png")
        autolabel("two")
        found = drift(before, open_labelled(out))
        assert found.changed == {"a": 1.0, "deep [x]/c d": 0.0, "lying": 0.0}
        assert found.moved.sum() - np.trace(found.moved) == changed

    def test_on_the_page(self, autolabel, hmsa):
        before, (out, _) = autolabel("one")[0], autolabel("two", turn=1)
        told = json.loads(hmsa("review", out, "--before", before, "--json").out)["changed"]
        assert (told["share"], told["images"]) == (1, 4)
        assert told["class"]["sky"]["lost"] == 1
        html = page(out)
        assert "Changed since one" in html
        assert html.count("100.0% changed") == 4

    def test_refused(self, autolabel, hmsa, pictures, tmp_path):
        out, _ = autolabel("one")
        for file in pictures.rglob("*.png"):
            file.unlink()
        Image.new("RGB", (9, 9)).save(pictures / "z.png")
        other, _ = autolabel("two")
        ran = hmsa("review", other, "--before", out)
        assert ran.code == 2
        assert "none is there" in ran.err


class TestPage:
    def test_all_in_one(self, autolabel, truth, hmsa):
        before, (out, _) = autolabel("one", turn=1)[0], autolabel("two")
        (out / "thresholds.json").write_text(json.dumps({"fixed": dict.fromkeys(NAMES, 0.25)}))
        ran = hmsa("review", out, "--truth", truth(), "--people", truth(), "--people-split", "val",
                   "--before", before)  # fmt: skip
        assert ran.code == 0, ran.err
        summary = json.loads(ran.out.splitlines()[-1])
        assert (summary["images"], summary["failed"], summary["people"]) == (4, 0, 0)
        assert summary["report"] == str(out / "quality.html")
        assert sum(each["share"] for each in summary["class"].values()) == pytest.approx(
            1, abs=1e-3
        )
        html = page(out)
        html = re.sub(r"<script>.*</script>", "", html, flags=re.DOTALL)
        addresses = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')\s>]+)""", html)
        assert all(each.startswith("data:") for each in addresses)
        assert "http" not in re.sub(r"data:[^\"]+", "", html).replace("http-equiv", "")
        for told in ("by people", "auto label", "confidence", "agreement", "truth", "error"):
            assert f"<figcaption>{told}</figcaption>" in html
        assert "fixed 0.25 keeps" in html
        assert html.count("confidence below 0.5") >= 2

    def test_what_is_not_there_leaves_its_section_out(self, autolabel, hmsa):
        out, _ = autolabel(agreement=False)
        assert hmsa("review", out, "--report", out.parent / "p.html").code == 0
        assert not (out / "quality.html").exists()
        html = (out.parent / "p.html").read_text()
        for told in ("Against true labels", "Changed since", "by people</figcaption>", "agreed"):
            assert told not in html
        assert "To check by people" in html

    def test_labels_of_others_are_shown_as_counts_alone(self, autolabel, truth, hmsa, tmp_path):
        """A label by people of another picture that is called the same is not shown beside it."""
        out, _ = autolabel()
        described = yaml.safe_load(truth().read_text())
        (tmp_path / "else").mkdir()
        (tmp_path / "drawn").mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / "else" / "a.png")
        Image.new("L", (8, 8), 2).save(tmp_path / "drawn" / "a.png")
        described["splits"] = {"train": {"images": "else", "labels": "drawn"}}
        (tmp_path / "few.yaml").write_text(yaml.safe_dump(described))
        assert hmsa("review", out, "--people", tmp_path / "few.yaml").code == 0
        html = page(out)
        assert "<figcaption>by people" not in html
        auto = open_labelled(out).counts.sum(1)
        assert f"{auto[2] / 64:.3g}×" in html
        assert "100.00" in html

    def test_unreadable_pictures_and_those_that_went_away(self, autolabel, hmsa, pictures):
        (pictures / "bad.png").write_bytes(b"nonsense")
        out, _ = autolabel()
        (pictures / "b.png").unlink()
        summary = json.loads(hmsa("review", out, "--json").out)
        assert (summary["images"], summary["failed"]) == (3, 1)

    def test_all_seen_by_people(self, autolabel, hmsa, tmp_path):
        out, _ = autolabel()
        hmsa("review", out, "--export", "cvat", "-o", tmp_path / "x.zip")
        assert hmsa("review", out, "--take", tmp_path / "x.zip").code == 0
        ran = hmsa("review", out)
        assert ran.code == 0, ran.err
        assert "4 corrected by people" in page(out)
        assert "To check by people" not in page(out)

    @pytest.mark.parametrize(
        ("gone", "says"),
        [
            ("autolabel.json", "was not made by hmsa autolabel"),
            ("dataset.yaml", "is not finished"),
        ],
    )
    def test_refused(self, autolabel, hmsa, gone, says):
        out, _ = autolabel()
        (out / gone).unlink()
        ran = hmsa("review", out)
        assert ran.code == 2
        assert says in ran.err

    def test_a_confidence_that_does_not_fit(self, autolabel, hmsa, truth):
        out, _ = autolabel()
        Image.new("L", (3, 3)).save(out / "confidence" / "a.png")
        ran = hmsa("review", out, "--truth", truth())
        assert ran.code == 2
        assert "label and confidence of a differ in size" in ran.err
