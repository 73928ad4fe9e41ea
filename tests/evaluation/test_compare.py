"""`hmsa compare`: several runs on one page."""

from __future__ import annotations

import json
import re

import pytest

from hmsa.model.pretrained import save
from reading import Reader

CURVES = "stage,step,loss,val_miou,seconds,images_per_s,memory_gib,wait\n" + "".join(
    f"joint,{step},{{loss}},{{miou}},{36 * step},5.5,1.25,0.02\n" for step in (10, 20, 30)
)


@pytest.fixture
def made(tmp_path, tiny):
    """`made(name, lr, mIoU)` -> a folder as `hmsa train` leaves it."""

    def make(name, lr=0.001, miou=0.5, judged="a", place="runs"):
        folder = tmp_path / place / name
        folder.mkdir(parents=True)
        (folder / "train.json").write_text(json.dumps({"joint": {"lr": lr, "crop": [64, 64]}}))
        record = ["data", [{"digest": "learn"}, {"digest": judged}]]
        (folder / "train.jsonl").write_text(json.dumps(record) + "\n")
        (folder / "metrics.csv").write_text(CURVES.format(loss=1 - miou, miou=miou))
        tiny.card.names = ["road", "sky", "pole", "tram"]
        tiny.card.palette = [(128, 64, 128), (70, 130, 180), (153, 153, 153), (0, 80, 100)]
        iou = {"val_iou road": miou, "val_iou sky": 0.25}
        tiny.card.metrics = {"step": 30, "val_miou": miou} | iou
        save(folder / "best.safetensors", tiny)
        return folder

    return make


def test_two_runs_on_one_page(made, hmsa, tmp_path):
    ran = hmsa("compare", made("slow", 0.001, 0.5), made("fast", 0.01, 0.6))
    assert ran.code == 0, ran.err
    page = Reader(tmp_path / "runs" / "compare.html")
    assert "fast: 60.0 mIoU, +10.0 against slow (50.0)." in page.text
    assert page.headings == [
        "Mean IoU on the validation images", "Details", "Training", "IoU per class", "Cost",
        "Settings that differ",
    ]  # fmt: skip
    strokes = re.findall(r'<polyline style="stroke:(#\w+)"', page.source)
    assert len(strokes) == 4, "two runs in two charts"
    assert strokes[:2] == strokes[2:] == ["#0072b2", "#d55e00"]
    assert "last: slow 50, fast 60" in page.text
    assert re.search(r"</i>road</th>\s*<td>50.0</td>\s*<td class=\"best\">60.0", page.source)
    assert "tram" not in page.text, "it has no score"
    differ = page.text[page.text.index("Settings that differ") :]
    assert "joint.lr 0.001 0.01" in differ
    assert "crop" not in differ
    assert "5.5 1.2 2.0" in page.text
    summary = json.loads(ran.out.splitlines()[-1])
    assert summary["differ"] == {"joint.lr": ["0.001", "0.01"]}
    assert summary["runs"]["fast"]["val_miou"] == 0.6
    assert "different images" not in page.text


def test_what_does_not_compare_is_said(made, hmsa, tmp_path):
    runs = [made("one", judged="a"), made("one", judged="b", place="more")]
    (runs[1] / "best.safetensors").unlink()
    ran = hmsa("compare", *runs, "-o", tmp_path / "page.html")
    assert ran.code == 0, ran.err
    page = Reader(tmp_path / "page.html")
    assert "validated on different images" in page.text
    assert f"{runs[0]}: 50.0 mIoU." in page.text, "of one name, they are told apart by folder"
    assert "All settings are equal." in page.text


def test_a_real_run(trained, hmsa, tmp_path):
    ran = hmsa("compare", trained, "-o", tmp_path / "page.html")
    assert ran.code == 0, ran.err
    page = Reader(tmp_path / "page.html")
    assert {"Training", "IoU per class"} <= set(page.headings)
    table = page.text[page.text.index("IoU per class") :]
    assert "sky" in table
    scores = json.loads(ran.out.splitlines()[-1])["runs"]["run"]
    named = [value for key, value in scores.items() if key.startswith("val_iou ")]
    assert sum(named) / len(named) == pytest.approx(scores["val_miou"])


def test_mistakes(made, hmsa, tmp_path):
    run = made("run")
    ran = hmsa("compare", run, tmp_path)
    assert (ran.code, "is no run of hmsa train" in ran.err) == (2, True)
    assert hmsa("compare").code == 2
    assert "name 1 to 6" in hmsa("compare", *[run] * 7).err
    (run / "train.json").write_text("[")
    assert "damaged" in hmsa("compare", run).err
    assert not list(tmp_path.rglob("*.html"))
