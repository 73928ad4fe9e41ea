"""The numbers of self-training rounds as a table for the terminal and as one offline page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Group

from ..data.datasets import Dataset
from ..data.images import read_image
from ..report.page import Card, Cell, Figure, Legend, Page, Section, Table, write_page
from ..report.pictures import colorize, thin
from ..report.tables import difference, percent, percents, terminal
from .plan import Plan

EXAMPLES = 3  # images on the page

Numbers = dict[str, Any]  # JSON of one round; shares in 0..1


def scores(plan: Plan, rounds: Sequence[Numbers]) -> list[float]:
    """mIoU of each round by the network's own fusion; 0 where there is no score."""
    return [numbers["miou"][plan.recipe.model.fusion] or 0.0 for numbers in rounds]


def verdict(plan: Plan, rounds: Sequence[Numbers]) -> str:
    """The result in one sentence."""
    miou = [100 * score for score in scores(plan, rounds)]
    best = int(np.argmax(miou))
    if len(miou) == 1:
        return f"The teacher reaches {miou[0]:.1f} mIoU"
    if best:
        gain = f"{miou[best] - miou[0]:+.1f} against the teacher's {miou[0]:.1f}"
        return f"Round {best} is best, {miou[best]:.1f} mIoU: {gain}"
    student = int(np.argmax(miou[1:])) + 1
    return (
        f"No student is better than the teacher, {miou[0]:.1f} mIoU; the best, of round "
        f"{student}, reaches {miou[student]:.1f}"
    )


def rounds_tables(plan: Plan, rounds: Sequence[Numbers]) -> Group:
    """The rounds and their classes, for the terminal."""
    title = f"Rounds, {plan.val.split}, {len(plan.val)} images, in %"
    return Group(
        terminal(_rounds(plan, rounds), title),
        terminal(_classes(plan, rounds), "IoU in %", verdict(plan, rounds)),
    )


def write_rounds(
    path: Path, plan: Plan, rounds: Sequence[Numbers], labels: Sequence[Dataset], command: str
) -> None:
    """Write the page. labels: those that each student learnt, in order."""
    section, named = plan.section, _named(plan)
    facts = [
        ("Learns from", f"{plan.learn.source}, split {plan.learn.split}, {len(plan.learn)} images"),
        ("Labels", f"{plan.images}, {len(labels[-1]) if labels else 0} images"),
        ("Threshold", f"rule {section.rule}, {plan.level:g}"),
        ("Scored on", f"{plan.val.source}, split {plan.val.split}, {len(plan.val)} images"),
        ("Students start", f"from {section.start}"),
    ]
    sections: list[Section | Sequence[Section] | Legend] = [
        Section(
            "Rounds",
            [_rounds(plan, rounds)],
            "In per cent. Kept: pixels whose label reaches the threshold; changed: pixels whose "
            "label differs from that of the round before.",
        ),
        Section(
            "Classes",
            [_classes(plan, rounds)],
            "IoU in per cent; for the labels that the last round learnt, the threshold and the "
            "share of the class that reaches it.",
        ),
    ]
    if labels:
        cards = _examples(labels, np.stack([colour for _, colour in named]))
        sections.append(Legend([*named, ("not learnt", (0, 0, 0))]))
        sections.append(Section("Labels of images without labels", cards))
    title = f"Self-training, {path.resolve().parent.name}"
    write_page(path, Page(title, verdict(plan, rounds), facts, sections, named, command))


def _named(plan: Plan) -> list[tuple[str, NDArray[np.uint8]]]:
    labels = plan.learn.labels
    return [*zip(labels.names, np.array(labels.palette, np.uint8), strict=True)]


def _titles(rounds: Sequence[Numbers]) -> list[str]:
    return ["teacher", *(f"round {number}" for number in range(1, len(rounds)))]


def _rounds(plan: Plan, rounds: Sequence[Numbers]) -> Table:
    rows: list[list[str | Cell]] = []
    for number, (title, miou) in enumerate(
        zip(_titles(rounds), percents(scores(plan, rounds)), strict=True)
    ):
        labels = rounds[number]["labels"] or {}
        shares = [percent(labels.get(key)) for key in ("coverage", "changed")]
        link = f"round-{number}/report-{plan.val.split}.html"
        rows.append([Cell(title, link=link), miou, *shares])
    return Table(["round", f"mIoU, {plan.recipe.model.fusion}", "kept", "changed"], rows)


def _classes(plan: Plan, rounds: Sequence[Numbers]) -> Table:
    titles, best = _titles(rounds), int(np.argmax(scores(plan, rounds)))
    labels, rows = rounds[-1]["labels"], []
    for name, colour in _named(plan):
        iou = [numbers["iou"][name] for numbers in rounds]
        row = [Cell(name, colour=colour), *percents(iou)]
        row += [difference(iou[best], iou[0])] if best else []
        if labels:
            row += [Cell(f"{labels['thresholds'][name]:.2f}"), percent(labels["kept"][name])]
        rows.append(row)
    gain, last = ["best vs teacher"] if best else [], ["threshold", "kept"] if labels else []
    return Table(["class", *titles, *gain, *last], rows)


def _examples(labels: Sequence[Dataset], palette: NDArray[np.uint8]) -> list[Card]:
    """A few images, evenly by name, with what each round learnt of them."""
    places = [{pair.name: i for i, pair in enumerate(dataset.pairs)} for dataset in labels]
    order, cards = sorted(places[-1]), []
    for at in np.linspace(0, len(order) - 1, min(EXAMPLES, len(order))).astype(int):
        name = order[at]
        strip = [Figure("image", thin(read_image(labels[-1].pairs[places[-1][name]].image)))]
        for number, (dataset, place) in enumerate(zip(labels, places, strict=True), 1):
            if name in place:
                label = colorize(thin(dataset.read_label(place[name])), palette)
                strip.append(Figure(f"labels of round {number}", label, "label"))
        cards.append(Card(name, [strip]))
    return cards
