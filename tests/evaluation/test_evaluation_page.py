"""The page and the sentence of an evaluation, from predictions that are made up."""

from __future__ import annotations

import math
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hmsa.evaluation.calibration import Calibration
from hmsa.evaluation.confusion import Confusion
from hmsa.evaluation.measure import Evaluation
from hmsa.evaluation.page import calibration_charts, training_charts, verdict, write_evaluation
from hmsa.inference.result import Prediction
from hmsa.report import pictures
from reading import Reader

NAMES = ["road", "sky", "pole", "tram"]  # no pixel is a tram
PALETTE = [(128, 64, 128), (70, 130, 180), (153, 153, 153), (0, 80, 100)]
SCALES = [0.5, 1.0, 2.0]
HEIGHT, WIDTH = 60, 80
CURVES = "stage,step,loss,val_miou\n" + "".join(
    f"{'joint' if step < 60 else 'attention'},{step},{2 / (1 + step)},"
    f"{step / 200 if step % 20 == 0 else ''}\n"
    for step in range(0, 100, 5)
)


def scene(seed: int) -> tuple[np.ndarray, np.ndarray, Prediction]:
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
    fused[20 : 22 + seed, left : left + 4] = 1
    image = np.array(PALETTE, np.uint8)[truth] // 2
    first = rng.random((HEIGHT, WIDTH), dtype=np.float32)
    second = (1 - first) * 0.5
    prediction = Prediction(
        fused,
        np.where(fused == truth, 240, 140).astype(np.uint8),
        single={0.5: coarse, 1.0: fused, 2.0: fine},
        pooled={"average": coarse, "max": fine},
        weights={0.5: first, 1.0: second, 2.0: 1 - first - second},
    )
    return image, label, prediction


class Scenes:
    """Stands for a dataset of scenes and for the predictor that predicts them."""

    source, split = Path("data/dataset.yaml"), "val"
    instance_sizes, categories = (), {}
    scales = SCALES
    device = torch.device("cpu")
    settings = {"scales": SCALES, "flip": False, "gate": {"share": 0.2, "cell": 8}}  # noqa: RUF012
    model = SimpleNamespace(parameters=lambda: [], card=SimpleNamespace(trained_on={"split": "a"}))

    def __init__(self, count: int, names: list[str] = NAMES) -> None:
        self.pairs = [SimpleNamespace(name=f"scene_{seed}") for seed in range(count)]
        self.labels = SimpleNamespace(names=names, palette=PALETTE)

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        self.last = index
        return scene(index)[:2]

    def __call__(self, image: np.ndarray, detail: bool) -> Prediction:
        return scene(self.last)[2]

    def evaluation(self, own: str = "hierarchical") -> Evaluation:
        found = Evaluation(self, SCALES, own)
        for index in range(len(self)):
            found.add(index, *scene(index)[1:])
        return found


def written(scenes: Scenes, folder: Path, **further) -> Reader:
    (folder / "metrics.csv").write_text(CURVES)
    page = folder / "page.html"
    write_evaluation(page, scenes.evaluation(**further), scenes, folder / "best.safetensors")
    return Reader(page)


def with_hits(**hits: float) -> Evaluation:
    """`hits` per cent of the pixels of each of three classes are right, by fusion."""
    found = Scenes(0).evaluation("hierarchical" if "hierarchical" in hits else "average")
    for name, percent in hits.items():
        confusion = Confusion(4)
        for truth in range(3):
            confusion.matrix[truth, truth] = round(10 * percent)
            confusion.matrix[truth, (truth + 1) % 3] = 1000 - round(10 * percent)
        found.confusion[name.removeprefix("at").replace("_", ".")] = confusion
    return found


def test_a_full_page_shows_every_part(tmp_path):
    page = written(Scenes(4), tmp_path)
    assert page.headings == [
        "Mean IoU by fusion",
        "Details",
        "Further scores of hierarchical",
        "IoU per class",
        "Which scale was trusted for which class",
        "Training",
        "How far its confidence can be trusted",
        "Confusion, hierarchical",
        "Where fusion mended a single scale",
        "Examples, worst first",
    ]
    assert page.source.count('<line class="stage"') == 2, "one boundary in each chart"
    windows = page.source.count("% of the window")
    assert windows == 2 * 2, "the scales 0.5 and 2 are mended, 1 is as good as the fusion"
    assert page.source.count("<figure") == 4 + windows * 7 + 4 * (4 + 3 + 3)
    assert page.source.count('class="wrong"') == windows
    examples = page.text[page.text.index("Examples, worst first") :]
    assert [examples.index(f"scene_{seed} ") for seed in (3, 2, 1, 0)] == sorted(
        examples.index(f"scene_{seed} ") for seed in range(4)
    )
    assert "boundary" in page.text.lower()
    assert "flip False, gate (share 0.2, cell 8)" in page.text
    assert "data, val" in page.text


def test_examples_keep_their_exact_colours(tmp_path):
    image, label, prediction = scene(0)
    shown = written(Scenes(1), tmp_path).images[-10:]
    palette = np.array(PALETTE, np.uint8)
    assert np.abs(shown[0].astype(int) - image).mean() < 6, "JPEG"
    assert (shown[1] == pictures.colorize(label, palette)).all()
    assert (shown[2] == pictures.colorize(prediction.label, palette)).all()
    assert (shown[3] == pictures.error(prediction.label, label)).all()
    assert (shown[4] == pictures.colorize(prediction.single[0.5], palette)).all()
    assert (shown[-1] == pictures.heat(prediction.weights[2.0])).all()


def test_the_table_marks_the_best_and_the_difference(tmp_path):
    source = written(Scenes(2), tmp_path).source
    pole = re.search(r"<tr>\s*<th>[^/]*</i>pole</th>.*?</tr>", source, re.S).group()
    assert re.findall(r'class="best">([\d.]+)', pole) == ["97.2", "97.2"], "the fine scale, max"
    assert re.search(r'class="up">\+\d', pole)
    assert re.search(r"</i>tram</th>(<td class=\"none\">–</td>){7}<td>0.00</td>", source)


def test_parts_without_content_are_left_out(tmp_path):
    scenes = Scenes(0)
    found = scenes.evaluation()
    write_evaluation(tmp_path / "page.html", found, scenes, tmp_path)
    page = Reader(tmp_path / "page.html")
    for heading in ("Training", "Examples, worst first", "Which scale was trusted for which class",
                    "How far its confidence can be trusted"):  # fmt: skip
        assert heading not in page.headings
    assert "No score" in page.text


def test_verdict_says_how_far_ahead_or_behind():
    assert verdict(with_hits(at0_5=60, at1=80, at2=60, average=85, hierarchical=90)) == (
        "Hierarchical: 81.8 mIoU, +15.1 against the best single scale, 1× (66.7) "
        "and +7.9 against average pooling (73.9)."
    )
    assert verdict(with_hits(at0_5=90, at1=80, at2=60, average=85, hierarchical=85)) == (
        "Hierarchical: 73.9 mIoU, −7.9 against the best single scale, 0.5× (81.8) "
        "and 0.0 against average pooling (73.9)."
    )


def test_verdict_without_attention_and_without_labels():
    found = with_hits(at0_5=90, at1=80, at2=60, average=60, max=60)
    assert verdict(found) == (
        "Average: 42.9 mIoU, −38.9 against the best single scale, 0.5× (81.8) "
        "and 0.0 against average pooling (42.9)."
    )
    assert verdict(Scenes(0).evaluation()).startswith("No score")


@pytest.mark.parametrize(
    "content",
    ["", "step,loss\n1,0.5\n", "step,loss\n1,\n2,nan\n,0.3\n", "epoch,accuracy\n1,0.5\n2,0.5\n"],
)
def test_metrics_with_too_little_to_draw(content, tmp_path):
    (tmp_path / "metrics.csv").write_text(content)
    assert training_charts(tmp_path) == []
    assert training_charts(tmp_path / "none") == []


def test_metrics_are_drawn_with_the_stages_and_few_points(tmp_path):
    file = tmp_path / "metrics.csv"
    file.write_text(CURVES)
    loss, miou = training_charts(tmp_path)
    assert loss.stages == miou.stages == [(0, "joint"), (60, "attention")]
    assert (loss.left, loss.right) == (miou.left, miou.right) == (0, 95)
    assert miou.summary == "last 40, highest 40 at step 80"
    file.write_text("loss,step,other\n" + "".join(f"0.25,{step},x\n" for step in range(5000)))
    (loss,) = training_charts(tmp_path)
    assert 100 < len(loss.points) <= 400
    assert loss.points[0, 0] < 12
    assert loss.points[-1, 0] > 4987


def test_charts_of_confidence():
    """Of 1000 pixels with claims of 0.2, 0.7 and 0.93, 80 %, 70 % and 90 % are right."""
    calibration = Calibration(2)
    for stored, pixels, right in ((51, 100, 80), (178, 300, 210), (237, 600, 540)):
        label = np.repeat(np.array([0, 1], np.uint8), (right, pixels - right))
        calibration.add(label, np.zeros_like(label), np.full(pixels, stored, np.uint8))
    bars, curve = calibration_charts(calibration)
    assert [bar[2] for bar in bars.bars] == pytest.approx([80, 70, 90])
    assert bars.bars[-1][-1] == "60.0% of the pixels, 90.0 % right"
    assert f"{100 * calibration.ece():.1f}" in bars.summary
    assert curve.summary == "in %; 90.0 of the most confident half"
    assert curve.points[0].tolist() == pytest.approx([100, 83])
    assert calibration_charts(Calibration(2)) == []
    assert not math.isnan(curve.points.sum())
