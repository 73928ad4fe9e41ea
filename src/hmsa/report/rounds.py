"""Numbers of each round of self-training -> one offline HTML page."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .old import View, css, line_chart, render, uri, write


@dataclass
class Sight:
    """A picture [H,W,3]; photo: has many colours, which need not stay exact."""

    caption: str
    picture: NDArray[np.uint8]
    photo: bool


@dataclass
class Rounds:
    """All that the page shows. Every score and share in `told` is in 0..1, or None."""

    title: str
    facts: list[tuple[str, str]]
    names: list[str]
    palette: NDArray[np.uint8]
    own: str  # the network's own fusion
    told: Sequence[dict[str, Any]]  # of each round, as rounds.json has it
    best: int
    report: str  # a round's own page, in its folder
    examples: list[tuple[str, list[Sight]]]  # name of a picture, and what was learnt of it


def titles(count: int) -> list[str]:
    return ["teacher", *(f"round {number}" for number in range(1, count))]


def verdict(told: Sequence[dict[str, Any]], own: str, best: int) -> str:
    """What came of it, in one sentence."""
    scores = [100 * (one["miou"][own] or 0.0) for one in told]
    if len(told) == 1:
        return f"The teacher reaches {scores[0]:.1f} mIoU"
    if best == 0:
        student = int(np.argmax(scores[1:])) + 1
        return (
            f"No student is better than the teacher, {scores[0]:.1f} mIoU; the best, of round "
            f"{student}, reaches {scores[student]:.1f}"
        )
    return (
        f"Best is round {best}, {scores[best]:.1f} mIoU: {scores[best] - scores[0]:+.1f} against "
        f"the teacher's {scores[0]:.1f}"
    )


def _charts(page: Rounds) -> list[View]:
    told = page.told

    def chart(title: str, summary: str, values: list[float | None]) -> View | None:
        points = [(number, 100 * value) for number, value in enumerate(values) if value is not None]
        if len(points) < 2:
            return None
        return line_chart(title, summary, "round", np.array(points), 0, len(told) - 1)

    labels = [one["labels"] or {} for one in told]
    charts = [
        chart(
            f"mIoU, {page.own}", "in %; 0 is the teacher", [one["miou"][page.own] for one in told]
        ),
        chart("Labels kept", "in % of the pixels", [one.get("coverage") for one in labels]),
        chart("Labels changed", "in % of the pixels", [one.get("changed") for one in labels]),
    ]
    return [one for one in charts if one]


def _classes(page: Rounds) -> list[View]:
    """Class by round: IoU, and of the labels that were learnt the threshold and the share kept."""
    rows = []
    for k, name in enumerate(page.names):
        iou = [one["iou"][name] for one in page.told]
        labels = [one["labels"] for one in page.told[1:]]
        last, first = iou[page.best], iou[0]
        rows.append({
            "name": name,
            "colour": css(page.palette[k]),
            "iou": [None if value is None else 100 * value for value in iou],
            "gain": None if None in (last, first) else round(100 * (last - first), 1),
            "labels": [(one["thresholds"][name], one["kept"][name]) for one in labels],
        })  # fmt: skip
    return rows


def write_rounds(path: Path, page: Rounds) -> None:
    examples = [
        (name, [
            {"caption": one.caption, "uri": uri(one.picture, one.photo), "wrong": False,
             "kind": "photo" if one.photo else "label"} for one in strip
        ])
        for name, strip in page.examples
    ]  # fmt: skip
    content = render(
        "rounds.html.j2",
        enlarge=bool(examples),
        page=page,
        verdict=verdict(page.told, page.own, page.best),
        titles=titles(len(page.told)),
        charts=_charts(page),
        classes=_classes(page),
        examples=examples,
        legend=[(n, css(c)) for n, c in zip(page.names, page.palette, strict=True)],
    )
    write(path, content)
