"""The page: offline, whole or not at all, exact colours, every kind of block."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hmsa.report import pictures
from hmsa.report.page import (
    SIDE,
    Card,
    Cell,
    Chart,
    Figure,
    Legend,
    Page,
    Section,
    Table,
    ticks,
    uri,
    write_page,
)  # fmt: skip
from hmsa.report.tables import difference, matrix, percent, percents, terminal
from hmsa.runs import InputError
from reading import Reader, decoded

NAMES = ["road", "sky & <air>", "pole"]
PALETTE = [(128, 64, 128), (70, 130, 180), (153, 153, 153)]
COLOURS = list(zip(NAMES, PALETTE, strict=True))
RANDOM = np.random.default_rng(0)
PHOTO = RANDOM.integers(0, 256, (60, 80, 3), dtype=np.uint8)
LABEL = pictures.colorize(RANDOM.integers(0, 3, (60, 80), dtype=np.uint8), np.array(PALETTE))


def figures() -> list[Figure]:
    return [Figure("input", PHOTO), Figure("label", LABEL, "label", wrong=True)]


def full() -> Page:
    line = np.stack([np.arange(50), 1 / (1 + np.arange(50))], 1)
    curve = Chart("Loss", "last 0.02", "step", line, stages=[(0, "joint"), (30, "attention")])
    bars = Chart(
        "Right", "in %", "confidence", np.array([[0, 0], [100, 100]]), (0, 100), (0, 100),
        bars=[(0, 20, 15, 0.5, "15 % right")], dashed=True,
    )  # fmt: skip
    small = Chart(
        "road", "keeps 4 %", "threshold", 100 * line / line.max(0), (0, 100), (0, 100),
        marks=[(50, "fixed", "fixed 0.5")], colour=PALETTE[0], small=True,
    )  # fmt: skip
    shares = Table(["class", "share"], [[Cell("road", colour=PALETTE[0]), Cell("3.0", bar=0.3)]])
    link = Table(["round"], [[Cell("teacher", link="round-0/report.html")]])
    parts = Table((), [[Cell("road"), Cell("", bar=np.array([0.05, 0.95]))]], "bars", COLOURS[:2])
    return Page(
        "three classes & more",
        "One sentence.",
        [("Checkpoint", "runs/best"), ("Empty", "")],
        [
            Section("Bars", [Table((), [["1×", Cell("60.0", "best", bar=0.6)]], "bars")]),
            Section("Tables", [(shares, link), "A note below."], note="A note above."),
            [Section("Parts", [parts]), Section("None", [[]])],
            Section("Matrix", [matrix(NAMES, PALETTE, np.diag([3, 2, 0]))]),
            Section("Charts", [(curve, bars), [small]]),
            Section("Found", [Card("error: broken", text="not readable", level="error")]),
            Legend(COLOURS, [("error:", [("wrong", (208, 24, 36))])], "weight:"),
            Section("Images", [
                Card("first", [figures()], "60 mIoU", ["rare class"]),
                Card("second", [figures(), figures()], columns=(2, 1)),
            ]),
        ],
        COLOURS,
        "hmsa evaluate runs/best",
    )  # fmt: skip


def written(page: Page, folder: Path) -> Reader:
    write_page(folder / "page.html", page)
    return Reader(folder / "page.html")


def test_a_full_page_shows_every_block(tmp_path):
    page = written(full(), tmp_path)
    assert page.headings == [
        "Bars", "Details", "Tables", "Parts", "Matrix", "Charts", "Found", "Images"
    ]  # fmt: skip
    for words in ("One sentence.", "A note above.", "A note below.", "runs/best", "keeps 4 %",
                  "hmsa evaluate runs/best", "error: broken", "rare class", "60 mIoU"):  # fmt: skip
        assert words in page.text
    assert "Empty" not in page.text
    assert page.source.count("<figure") == 3 + 2 + 4
    assert page.source.count('class="wrong"') == 3
    assert page.source.count('<line class="stage"') == 1, "where the second stage begins"
    assert "<rect" in page.source
    assert page.source.count('<line class="mark fixed"') == page.source.count("<polygon") == 1
    assert 'href="round-0/report.html"' in page.source
    assert page.tags.count("script") == 1


def test_a_page_without_images_needs_no_script(tmp_path):
    page = full()
    page.sections = page.sections[:1]
    assert "script" not in written(page, tmp_path).tags


def test_a_page_loads_nothing_from_outside(tmp_path):
    page = full()
    page.facts = [("weights from", "https://example.org/weights")]  # text, not a load
    shown = written(page, tmp_path)
    assert shown.loads
    assert all(load.startswith("data:image/") for load in shown.loads)
    bare = shown.source.replace("https://example.org/weights", "")
    assert not re.search(r"https?://|@import|url\(|<link|fetch\(|XMLHttpRequest", bare)
    assert "default-src 'none'" in shown.source


def test_text_is_escaped_everywhere(tmp_path):
    hostile = '<script>alert("x")</script>'
    page = full()
    page.title = page.verdict = hostile
    page.facts, page.colours = [(hostile, hostile)], [(hostile, (1, 2, 3))]
    page.sections = [
        Section(hostile, [Table([hostile], [[hostile], [Cell(hostile)]])], hostile),
        Section("x", [Card(hostile, [[Figure(hostile, PHOTO)]], hostile, [hostile])]),
    ]
    shown = written(page, tmp_path)
    assert shown.tags.count("script") == 1
    assert "<script>alert" not in shown.source
    assert hostile in shown.text


@given(st.integers(1, 256), st.integers(0, 2**32 - 1))
def test_labels_keep_their_exact_colours(count, seed):
    random = np.random.default_rng(seed)
    palette = random.integers(0, 256, (count, 3), dtype=np.uint8)
    image = palette[random.integers(0, count, (20, 30))]
    assert (decoded(uri(Figure("", image, "label"))) == image).all()


def test_maps_of_weight_keep_all_256_colours():
    every = pictures.heat(np.linspace(0, 1, 256)[None].repeat(3, 0))
    assert (decoded(uri(Figure("", every, "map"))) == every).all()


def test_large_images_are_reduced_without_new_colours():
    large = np.tile(LABEL, (10, 20, 1))
    small = decoded(uri(Figure("", large, "label")))
    assert small.shape == (240, SIDE, 3)
    assert {tuple(pixel) for pixel in small.reshape(-1, 3).tolist()} <= set(PALETTE)
    photo = np.linspace(0, 255, 80 * 60, dtype=np.uint8).reshape(60, 80, 1).repeat(3, 2)
    assert np.abs(decoded(uri(Figure("", photo))).astype(int) - photo).mean() < 3


@given(st.floats(-1e6, 1e6, allow_subnormal=False), st.just(0) | st.floats(1e-3, 1e6))
def test_ticks_are_few_round_and_reach_around(low, span):
    found = ticks(low, low + span)
    slack = 1e-6 * max(1, abs(low), span)
    assert found[0] <= low + slack
    assert found[-1] >= low + span - slack
    assert 2 <= len(found) <= 8


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("values", [np.full(50, 0.25), np.linspace(0, 1000, 50)])
def test_curves_stay_inside_the_box(values, small):
    chart = Chart("", "", "step", np.stack([np.arange(50), values], 1), small=small)
    places = np.array([chart.place(x, y) for x, y in chart.points])
    assert (places >= [46, 24]).all()
    assert (places <= [chart.width - 14, chart.height - 36]).all()
    assert (np.diff(places[:, 0]) > 0).all()


def test_a_failed_write_leaves_the_old_page_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "page.html"
    write_page(path, full())
    old = path.read_bytes()

    def refuse(*_: object) -> None:
        raise OSError("no")

    def half(self: Path, content: bytes) -> None:
        with self.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError("disk full")

    for target, name, replacement in ((os, "replace", refuse), (Path, "write_bytes", half)):
        with monkeypatch.context() as patched:
            patched.setattr(target, name, replacement)
            with pytest.raises(OSError, match="no|disk full"):
                write_page(path, full())
        assert [file.name for file in tmp_path.iterdir()] == ["page.html"]
        assert path.read_bytes() == old
    page = full()
    page.verdict = "Another sentence."
    write_page(path, page)
    assert "Another sentence." in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["dataset.yaml", "folder"])
def test_a_page_replaces_nothing_but_a_page(tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "dataset.yaml").write_text("names: [a, b]")
    with pytest.raises(InputError, match=f"{name} is not a page of hmsa; name another file"):
        write_page(tmp_path / name, full())
    assert (tmp_path / "dataset.yaml").read_text() == "names: [a, b]"


def test_shares_are_compared_as_they_are_written():
    nan = float("nan")
    row = percents([0.5004, 0.4996, None, nan, 0.3])
    assert [cell.text for cell in row] == ["50.0", "50.0", "–", "–", "30.0"]
    assert [cell.kind for cell in row] == ["best", "best", "none", "none", ""]
    assert percent(0.12345, 2).text == "12.35"
    gaps = [difference(*pair) for pair in ((0.7, 0.5), (0.5, 0.7), (0.5, 0.5004), (0.5, nan))]
    assert [(gap.text, gap.kind) for gap in gaps] == [
        ("+20.0", "up"), ("−20.0", "down"), ("0.0", ""), ("–", "none"),
    ]  # fmt: skip


def test_a_matrix_is_in_per_cent_of_its_rows():
    table = matrix(NAMES, PALETTE, np.array([[6, 3, 0], [0, 999, 1], [0, 0, 0]]))
    assert [[cell.text for cell in row[1:]] for row in table.rows] == [
        ["67", "33", ""], ["", "100", "·"], ["", "", ""]
    ]  # fmt: skip
    assert table.rows[0][1].kind == "hit"
    assert table.rows[0][1].shade > table.rows[0][2].shade


def test_a_table_in_the_terminal(capsys):
    from rich.console import Console

    rows = [[Cell("[road]", colour=PALETTE[0]), *percents([0.5, 0.25])], ["mean", "50.0", "–"]]
    Console(width=60).print(terminal(Table(["class", "a", "b"], rows, "total"), "IoU", "so far"))
    out = capsys.readouterr().out
    for words in ("IoU", "[road]", "50.0", "25.0", "mean", "so far"):
        assert words in out
