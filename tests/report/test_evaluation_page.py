import base64
import io
import math
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hmsa.report import pictures
from hmsa.report.evaluation import Example, Repair, Report, Trusted, iou, verdict, write_report

NAMES = ["road", "sky", "pole", "tram"]  # no pixel is a tram
PALETTE = np.array([[128, 64, 128], [70, 130, 180], [153, 153, 153], [0, 80, 100]], np.uint8)
SCALES = [0.5, 1.0, 2.0]
HEIGHT, WIDTH = 60, 80
VOID = {"area", "base", "br", "col", "hr", "img", "input", "link", "meta", "source"}


def scene(seed: int) -> Example:
    """Sky over road with a pole; the coarse scale loses the pole, the fine one speckles the sky."""
    rng = np.random.default_rng(seed)
    label = np.zeros((HEIGHT, WIDTH), np.uint8)
    label[:25] = 1
    left = int(rng.integers(10, 60))
    label[5:50, left : left + 4] = 2
    label[-3:] = 255
    truth = np.where(label == 255, 0, label).astype(np.uint8)
    coarse = np.where(truth == 2, 0, truth).astype(np.uint8)
    fine = truth.copy()
    fine[:20][rng.random((20, WIDTH)) < 0.1] = 0
    fused = truth.copy()
    fused[20:25, left : left + 4] = 1
    image = PALETTE[truth] // 2 + rng.integers(0, 60, (HEIGHT, WIDTH, 1), dtype=np.uint8)
    first = rng.random((HEIGHT, WIDTH), dtype=np.float32)
    second = (1 - first) * 0.5
    return Example(
        name=f"scene_{seed}",
        image=image,
        label=label,
        single={0.5: coarse, 1.0: fused, 2.0: fine},
        fused=fused,
        weights={0.5: first, 1.0: second, 2.0: 1 - first - second},
        miou=0.5 + seed / 100,
    )


def crop(example: Example) -> Example:
    window = np.s_[5:35, 10:50]
    return Example(
        name=example.name,
        image=example.image[window],
        label=None if example.label is None else example.label[window],
        single={scale: label[window] for scale, label in example.single.items()},
        fused=example.fused[window],
        weights={scale: weight[window] for scale, weight in example.weights.items()},
        miou=None,
    )


def confusion(hits: float) -> np.ndarray:
    """[4,4] in which `hits` percent of the pixels of each of three classes are right."""
    matrix = np.zeros((4, 4), np.int64)
    for truth in range(3):
        matrix[truth, truth] = round(10 * hits)
        matrix[truth, (truth + 1) % 3] = 1000 - round(10 * hits)
    return matrix


def full() -> Report:
    examples = [scene(seed) for seed in range(4)]
    curves = [
        {
            "step": step,
            "stage": "joint" if step < 60 else "attention",
            "loss": 2 / (1 + step / 10),
            "val_miou": step / 200 if step % 20 == 0 else float("nan"),
        }
        for step in range(0, 100, 5)
    ]
    return Report(
        title="three classes & a tram",
        facts=[("checkpoint", "runs/best"), ("scales", "0.5, 1, 2")],
        names=NAMES,
        palette=PALETTE,
        matrices={
            "0.5": confusion(60),
            "1": confusion(80),
            "2": confusion(70),
            "average": confusion(85),
            "hierarchical": confusion(90),
        },
        weights=np.array([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.1, 0.2, 0.7], [np.nan] * 3]),
        scales=SCALES,
        curves=curves,
        examples=examples,
        repairs=[Repair(examples[0].name, 0.5, crop(examples[0]), 0.125)],
    )


def trusted() -> Trusted:
    """Of 1000 pixels, claimed 0.25, 0.75 and 0.95, half, 0.7 and 0.9 are right; a bin is empty."""
    kept = np.linspace(1, 0, 256)
    return Trusted(
        ece=0.0675,
        confidence=np.array([0.25, np.nan, 0.75, 0.95]),
        accuracy=np.array([0.5, np.nan, 0.7, 0.9]),
        pixels=np.array([100, 0, 300, 600]),
        kept=kept,
        right=np.where(kept > 0, 1 - kept / 5, np.nan),
    )


class Page(HTMLParser):
    """Reads a page and insists that every tag that opens is closed in order."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source = source
        self.stack: list[str] = []
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.headings: list[str] = []
        self.words: list[str] = []
        self.feed(source)
        self.close()
        assert not self.stack

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [value for key, value in attrs if key in {"src", "href", "srcset", "data"}]
        if tag not in VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag, f"</{tag}> at {self.getpos()} closes something else"

    def handle_data(self, data):
        if self.stack and self.stack[-1] == "h2":
            self.headings.append(data)
        if "style" not in self.stack and "script" not in self.stack:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def written(report: Report, folder: Path) -> Page:
    write_report(folder / "report.html", report)
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def decoded(uri: str) -> np.ndarray:
    with Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1]))) as picture:
        return np.asarray(picture.convert("RGB"))


def test_iou_is_over_the_union_and_nan_where_there_is_none() -> None:
    got = iou(np.array([[3, 1, 0], [2, 4, 0], [0, 0, 0]], np.int64))
    assert got[:2].tolist() == [3 / 6, 4 / 7]
    assert np.isnan(got[2])
    assert iou(np.array([[0, 0], [5, 0]], np.int64)).tolist() == [0, 0]  # predicted, never true


def test_a_full_page_shows_every_part(tmp_path) -> None:
    page = written(full(), tmp_path)
    assert page.headings == [
        "Mean IoU by fusion",
        "What was run",
        "IoU per class",
        "Which scale was trusted for which class",
        "Training",
        "Confusion, hierarchical",
        "Where fusion mended a single scale",
        "Examples, worst first",
    ]
    assert page.tags.count("polyline") == 2
    assert page.source.count('<line class="stage"') == 2  # one boundary in each chart
    assert page.source.count("<figure") == 2 + 6 + 4 * (4 + 3 + 3)
    assert page.source.count('class="wrong"') == 1
    assert "+12.5 % of the window" in page.text
    assert "Without pixels: tram." in page.text
    assert [page.text.index(f"scene_{seed} ") for seed in range(1, 4)] == sorted(
        page.text.index(f"scene_{seed} ") for seed in range(1, 4)
    )


def test_a_page_loads_nothing_from_outside(tmp_path) -> None:
    report = full()
    report.facts.append(("weights from", "https://example.org/weights"))  # text, not a load
    page = written(report, tmp_path)
    assert page.loads
    assert all(load.startswith("data:image/") for load in page.loads)
    bare = page.source.replace("https://example.org/weights", "")
    assert "http://" not in bare
    assert "https://" not in bare
    assert not re.search(r"@import|url\(|<link|fetch\(|XMLHttpRequest", bare)
    assert "default-src 'none'" in page.source


def test_embedded_labels_errors_and_weights_keep_their_exact_colours(tmp_path) -> None:
    report = full()
    example = report.examples[0]
    every = np.resize(np.linspace(0, 1, 256, dtype=np.float32), (HEIGHT, WIDTH))
    example.weights[2.0] = every  # all 256 colours of the map at once
    report.examples, report.repairs = [example], []
    shown = [decoded(uri) for uri in written(report, tmp_path).loads]
    image, truth, fused, wrong = shown[:4]
    assert np.abs(image.astype(int) - example.image).mean() < 6  # JPEG of a noisy picture
    assert (truth == pictures.colorize(example.label, PALETTE)).all()
    assert (fused == pictures.colorize(example.fused, PALETTE)).all()
    assert (wrong == pictures.error(example.fused, example.label)).all()
    assert (shown[4] == pictures.colorize(example.single[0.5], PALETTE)).all()
    assert (shown[-1] == pictures.heat(every)).all()


def test_big_pictures_are_reduced_without_new_colours(tmp_path) -> None:
    report = full()
    example = report.examples[0]
    example.image = np.tile(example.image, (10, 20, 1))
    example.label = np.tile(example.label, (10, 20))
    example.fused = np.tile(example.fused, (10, 20))
    example.single, example.weights = {}, {}
    report.examples, report.repairs = [example], []
    shown = [decoded(uri) for uri in written(report, tmp_path).loads]
    assert {picture.shape for picture in shown} == {(240, 640, 3)}
    allowed = {tuple(colour) for colour in [*PALETTE.tolist(), [0, 0, 0]]}
    assert {tuple(pixel) for pixel in shown[1].reshape(-1, 3).tolist()} <= allowed


def test_eight_examples_stay_below_eight_megabytes(tmp_path) -> None:
    report = full()
    rng = np.random.default_rng(0)
    worst = scene(0)
    worst.image = rng.integers(0, 256, (360, 480, 3), dtype=np.uint8)
    worst.label = np.repeat(np.repeat(worst.label, 6, 0), 6, 1)
    worst.fused = np.repeat(np.repeat(worst.fused, 6, 0), 6, 1)
    worst.single = dict.fromkeys(SCALES, worst.fused)
    ripple = np.sin(np.arange(360)[:, None] / 9) * np.sin(np.arange(480)[None] / 7) / 2 + 0.5
    worst.weights = {scale: ripple.astype(np.float32) for scale in SCALES}
    report.examples = [worst] * 8
    write_report(tmp_path / "report.html", report)
    assert (tmp_path / "report.html").stat().st_size < 8e6


def test_verdict_says_how_far_ahead() -> None:
    sentence = verdict(
        {"0.5": confusion(60), "1.0": confusion(80), "average": confusion(85)}
        | {"hierarchical": confusion(90)}
    )
    assert sentence == (
        "Hierarchical attention: 81.8 mIoU, 15.1 above the best single scale (1×, 66.7) "
        "and 7.9 above average pooling (73.9)."
    )


def test_verdict_says_how_far_behind_and_when_level() -> None:
    sentence = verdict(
        {"0.5": confusion(90), "1": confusion(80), "average": confusion(85)}
        | {"hierarchical": confusion(85)}
    )
    assert sentence == (
        "Hierarchical attention: 73.9 mIoU, 7.9 below the best single scale (0.5×, 81.8) "
        "and level with average pooling (73.9)."
    )


def test_verdict_without_rivals_without_hierarchy_and_without_labels() -> None:
    assert verdict({"hierarchical": confusion(90)}).startswith("Hierarchical attention: 81.8 mIoU")
    assert verdict({"0.5": confusion(90), "average": confusion(60)}).startswith(
        "0.5× is best: 81.8"
    )
    assert verdict({"hierarchical": np.zeros((4, 4), np.int64)}).startswith("No score")


def test_table_marks_the_best_and_the_difference(tmp_path) -> None:
    report = full()
    report.matrices["hierarchical"] = confusion(80)
    source = written(report, tmp_path).source
    road = re.search(r"<tr>\s*<th>[^/]*</i>road</th>.*?</tr>", source, re.S).group()
    assert re.findall(r'class="best">([\d.]+)', road) == ["73.9"]
    assert 'class="down">−7.2' in road
    assert re.search(r"</i>tram</th><td>0.00</td>(<td class=\"none\">–</td>){6}", source)


def test_names_are_escaped_everywhere(tmp_path) -> None:
    hostile = '<script>alert("x")</script>'
    report = full()
    plain = written(report, tmp_path).tags.count("script")
    report.names = [hostile, *NAMES[1:]]
    report.title = report.examples[0].name = report.repairs[0].name = hostile
    report.facts = [(hostile, hostile)]
    page = written(report, tmp_path)
    assert page.tags.count("script") == plain == 1
    assert "<script>alert" not in page.source
    assert hostile in page.text


def test_missing_parts_leave_no_trace(tmp_path) -> None:
    report = full()
    report.weights, report.curves, report.repairs, report.facts = None, [], [], []
    for example in report.examples:
        example.label = example.miou = None
    page = written(report, tmp_path)
    assert page.headings == [
        "Mean IoU by fusion",
        "IoU per class",
        "Confusion, hierarchical",
        "Examples, worst first",
    ]
    assert "svg" not in page.tags
    assert page.source.count("<figure") == 4 * (2 + 3 + 3)
    report.matrices, report.examples = {}, []
    bare = written(report, tmp_path)
    assert bare.headings == []
    assert "img" not in bare.tags
    assert "script" not in bare.tags


@pytest.mark.parametrize(
    "curves",
    [
        [{"step": 1, "loss": 0.5}],
        [{"step": 1}, {"step": 2, "loss": float("nan")}, {"loss": 0.3}],
        [{"step": float("nan"), "loss": 1.0}, {"step": float("nan"), "loss": 2.0}],
    ],
)
def test_curves_with_too_little_to_draw_are_left_out(curves, tmp_path) -> None:
    report = full()
    report.curves = curves
    assert "Training" not in written(report, tmp_path).headings


def test_long_and_flat_curves_are_drawn_inside_the_box(tmp_path) -> None:
    report = full()
    report.curves = [{"step": step, "loss": 0.25} for step in range(5000)]
    source = written(report, tmp_path).source
    points = re.search(r'polyline points="([^"]+)"', source).group(1).split()
    assert 100 < len(points) <= 400
    places = np.array([point.split(",") for point in points], float)
    assert (places >= [46, 14]).all()
    assert (places <= [466, 214]).all()
    assert (np.diff(places[:, 0]) > 0).all()


def test_a_failed_write_leaves_the_old_page_and_no_litter(tmp_path, monkeypatch) -> None:
    path = tmp_path / "report.html"
    path.write_text("the old page")

    def refuse(*_: object) -> None:
        raise OSError("no")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", refuse)
        with pytest.raises(OSError, match="no"):
            write_report(path, full())
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]

    def half(self: Path, text: str, encoding: str) -> None:
        self.write_bytes(text[: len(text) // 2].encode(encoding))
        raise OSError("disk full")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", half)
        with pytest.raises(OSError, match="disk full"):
            write_report(path, full())
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
    assert path.read_text() == "the old page"
    write_report(path, full())
    assert "the old page" not in path.read_text(encoding="utf-8")


def test_further_scores_and_trust(tmp_path):
    report = full()
    report.scores = [("Boundary F1", 0.512), ("Instance-level IoU", math.nan)]
    report.trusted = trusted()
    write_report(tmp_path / "page.html", report)
    source = (tmp_path / "page.html").read_text()
    page = Page(source)
    assert "Further scores of hierarchical" in page.headings
    assert "How far its confidence can be trusted" in page.headings
    assert "51.2" in page.words
    assert source.count("<rect") == 3, "an empty bin has no bar"
    assert "60.0% of the pixels, 90.0 % right" in source
    assert "expected calibration error 6.8" in source
    assert "90.0 of the surest half" in source
    assert not page.loads or all(link.startswith("data:") for link in page.loads)
