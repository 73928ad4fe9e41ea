"""`hmsa data check` as it is typed."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from PIL import Image

LABEL = np.array([[0, 1, 2, 255], [2, 2, 1, 0]], np.uint8)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Pages go to runs/ of the folder one is in."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def faulty(folder_dataset, tmp_path):
    """A dataset with a good pair, unknown values, a truncated image, and sizes that differ."""
    path = folder_dataset(
        {"good": LABEL, "odd": np.full((8, 8), 9, np.uint8), "cut": LABEL, "size": LABEL}
    )
    images = tmp_path / "pictures" / "train" / "images"
    (images / "cut.jpg").write_bytes((images / "cut.jpg").read_bytes()[:300])
    Image.new("RGB", (30, 20)).save(images / "size.jpg")
    return path


def test_a_good_dataset(hmsa, scenes, tmp_path):
    ran = hmsa("data", "check", scenes)
    assert ran.code == 0
    assert ran.out.splitlines()[-1].endswith("in 9 pairs of train, val."), "and no JSON"
    assert f"report: runs/check-{scenes.parent.name}.html" in ran.err
    summary = json.loads(hmsa("data", "check", scenes, "--json").out)
    assert {"pairs", "errors", "warnings", "notes"} <= summary.keys()
    assert {"frequencies", "sizes", "void", "unknown", "values"} <= summary.keys()
    assert (tmp_path / summary["report"]).exists()


def test_a_faulty_dataset(hmsa, faulty, tmp_path):
    ran = hmsa("data", "check", faulty, "--report", tmp_path / "page.html")
    assert ran.code == 2
    assert "{" not in ran.out
    summary = json.loads(hmsa("data", "check", faulty, "--json").out)
    kinds = {error["kind"]: error for error in summary["errors"]}
    assert kinds.keys() == {"cannot be read", "sizes differ", "unknown values"}
    assert kinds["cannot be read"]["such_as"][0].endswith("cut.jpg")
    assert summary["values"]["train"]["9"] == summary["unknown"]["train"]["pixels"] == 64
    assert summary["pairs"] == {"train": {"images": 4, "labels": 4, "pairs": 4}}
    flat = " ".join(ran.out.split())
    assert "error train: 1 label(s), such as train/labels/odd.png: 1 value(s) outside" in flat
    assert "Errors: 3, warnings: 0, in 4 pairs of train." in flat
    assert "Traceback" not in ran.err


def test_json_is_alone_on_stdout(hmsa, faulty):
    ran = hmsa("data", "check", faulty, "--json")
    assert ran.code == 2
    assert json.loads(ran.out)["errors"]


def test_a_second_run_reads_nothing(hmsa, faulty, monkeypatch):
    first = hmsa("data", "check", faulty, "--json").out
    monkeypatch.setattr("hmsa.check.scan.scan_file", lambda _: 1 / 0)
    assert hmsa("data", "check", faulty, "--json").out == first


def test_the_page_is_whole_and_offline(hmsa, faulty, tmp_path):
    hmsa("data", "check", faulty, "--report", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in page
    assert not re.search(r"(src|href)=.?(http|//)", page)
    levels = re.findall(r"<h3>(error|warning|note): ", page)
    assert levels == sorted(levels, key=["error", "warning", "note"].index)
    for name in ("odd.png", "cut.jpg", "size.jpg"):
        assert name in page
    figures = re.findall(r'data-caption="([^"]+)"', page)
    assert any("odd.png" in figure for figure in figures)
    assert sum("label over it" in figure for figure in figures) == 2  # of the pairs that are whole
    assert 'class="down"' not in page  # no class is without pixels
    assert str(tmp_path / "pictures" / "train") not in re.sub(r"<dd>.*?</dd>", "", page)


def test_names_cannot_break_the_page(hmsa, folder_dataset, tmp_path):
    path = folder_dataset({"a": LABEL}, names=["<script>alert(1)</script>", "[bold]b[/]", "c"])
    ran = hmsa("data", "check", path, "--report", tmp_path / "page.html")
    assert "[bold]b[/]" in ran.out
    assert "<script>alert" not in (tmp_path / "page.html").read_text()


def test_colours_under_index_are_shown_as_they_are(hmsa, folder_dataset, tmp_path):
    path = folder_dataset({"a": np.array([[[9, 8, 7]]], np.uint8)})
    ran = hmsa("data", "check", path, "--report", tmp_path / "page.html", "--json")
    assert ran.code == 2
    assert "labels/a.png, 1x1" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nothing.yaml"], "no file nothing.yaml"),
        (["DATA", "--split", "trian"], "did you mean train"),
        (["DATA", "--data", "/nowhere"], "no folder /nowhere"),
    ],
)
def test_mistakes_are_one_line(hmsa, folder_dataset, arguments, says):
    path = folder_dataset({"a": LABEL})
    ran = hmsa("data", "check", *(path if a == "DATA" else a for a in arguments))
    assert (ran.code, ran.out) == (2, "")
    assert says in ran.err
    assert len(ran.err.splitlines()) == 1


def test_stopped(hmsa, folder_dataset, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("hmsa.check.check.scan", stop)
    ran = hmsa("data", "check", folder_dataset({"a": LABEL}))
    assert ran.code == 130
    assert "the same command goes on" in ran.err
