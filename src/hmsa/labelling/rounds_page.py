"""The numbers of self-training rounds as a table for the terminal and as one offline page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group

from ..data.datasets import Dataset
from ..data.images import read_image
from ..report.page import DASH, Card, Cell, Figure, Legend, Page, Section, Table, write_page
from ..report.pictures import colorize
from ..report.tables import difference, percent, percents, terminal
from .plan import Plan

EXAMPLES = 3  # images on the page

Numbers = dict[str, Any]  # JSON of one round; shares in 0..1


def verdict(rounds: Sequence[Numbers], fusion: str, best: int) -> str:
    """The result in one sentence."""
    scores = [100 * (numbers["miou"][fusion] or 0.0) for numbers in rounds]
    if len(rounds) == 1:
        return f"The teacher reaches {scores[0]:.1f} mIoU"
    if best == 0:
        student = int(np.argmax(scores[1:])) + 1
        return (
            f"No student is better than the teacher, {scores[0]:.1f} mIoU; the best, of round "
            f"{student}, reaches {scores[student]:.1f}"
        )
    return (
        f"Round {best} is best, {scores[best]:.1f} mIoU: {scores[best] - scores[0]:+.1f} against "
        f"the teacher's {scores[0]:.1f}"
    )


def rounds_tables(rounds: Sequence[Numbers], fusion: str, best: int, plan: Plan) -> Group:
    """The rounds and their classes, for the terminal."""
    palette = plan.learn.labels.palette
    named = list(zip(plan.learn.labels.names, palette, strict=True))
    title = f"Rounds, {plan.val.split}, {len(plan.val)} images, in %"
    sentence = verdict(rounds, fusion, best)
    return Group(
        terminal(_rounds(rounds, fusion, best), title),
        terminal(_classes(rounds, best, named), "IoU in %", sentence),
    )


def write_rounds(
    path: Path,
    plan: Plan,
    rounds: Sequence[Numbers],
    fusion: str,
    best: int,
    labelled: Sequence[Dataset],
    command: str,
) -> None:
    """Write the page. labelled: the labels that each student learnt, in order."""
    section, names = plan.section, plan.learn.labels.names
    palette = [np.array(colour, np.uint8) for colour in plan.learn.labels.palette]
    starts = {"scratch": "as the teacher did", "teacher": "from their teacher"}
    facts = [
        ("Learns from", f"{plan.learn.source}, split {plan.learn.split}, {len(plan.learn)} images"),
        ("Labels", f"{plan.images}, {len(labelled[-1]) if labelled else 0} images"),
        ("Threshold", f"rule {section.rule}, {plan.level:g}"),
        ("Scored on", f"{plan.val.source}, split {plan.val.split}, {len(plan.val)} images"),
        ("Students start", starts[section.start]),
    ]
    named = list(zip(names, palette, strict=True))
    sections: list[Section | Sequence[Section] | Legend] = [
        Section(
            "Rounds",
            [_rounds(rounds, fusion, best, f"report-{plan.val.split}.html")],
            "In per cent. Kept: pixels whose label reaches the threshold; changed: pixels whose "
            "label differs from that of the round before.",
        )
    ]
    sections.append(
        Section(
            "Classes",
            [_classes(rounds, best, named)],
            "IoU in per cent; for the labels that a round learnt, the threshold and the share of "
            "the class that reaches it.",
        )
    )
    if labelled:
        sections.append(Legend([*named, ("not learnt", (0, 0, 0))]))
        sections.append(Section("Labels of images without labels", _examples(labelled, palette)))
    title = f"Self-training, {path.resolve().parent.name}"
    write_page(path, Page(title, verdict(rounds, fusion, best), facts, sections, named, command))


def _titles(rounds: Sequence[Numbers]) -> list[str]:
    return ["teacher", *(f"round {number}" for number in range(1, len(rounds)))]


def _rounds(rounds: Sequence[Numbers], fusion: str, best: int, report: str = "") -> Table:
    others = ["average"] if fusion != "average" else []
    rows = []
    for number, (title, numbers) in enumerate(zip(_titles(rounds), rounds, strict=True)):
        labels, own = numbers["labels"] or {}, percent(numbers["miou"][fusion])
        own.kind = "best" if number == best else own.kind
        rows.append([
            Cell(title, link=f"round-{number}/{report}"),
            own,
            *(percent(numbers["miou"][name]) for name in others),
            Cell(str(labels.get("pictures", DASH))),
            *(percent(labels.get(key)) for key in ("coverage", "changed")),
            *(f"{numbers['seconds'][key]:.0f}" for key in ("label", "train")),
        ])  # fmt: skip
    columns = ["round", f"mIoU, {fusion}", *others, "labelled", "kept", "changed"]
    return Table([*columns, "label s", "train s"], rows)


def _classes(rounds: Sequence[Numbers], best: int, named: Sequence[tuple[str, Any]]) -> Table:
    titles = _titles(rounds)
    columns = ["class", *titles, *(["best vs teacher"] if best else [])]
    for title in titles[1:]:
        columns += [f"threshold, {title}", "kept"]
    rows = []
    for name, colour in named:
        iou = [numbers["iou"][name] for numbers in rounds]
        row = [Cell(name, colour=colour), *percents(iou)]
        row += [difference(iou[best], iou[0])] if best else []
        for numbers in rounds[1:]:
            labels = numbers["labels"]
            row += [Cell(f"{labels['thresholds'][name]:.2f}"), percent(labels["kept"][name])]
        rows.append(row)
    return Table(columns, rows)


def _examples(labelled: Sequence[Dataset], palette: Sequence[Any]) -> list[Card]:
    """A few images, evenly by name, with what each round learnt of them."""
    place = [{pair.name: i for i, pair in enumerate(dataset.pairs)} for dataset in labelled]
    order = sorted(place[-1])
    chosen = np.linspace(0, len(order) - 1, min(EXAMPLES, len(order))).astype(int)
    cards = []
    for name in (order[i] for i in chosen):
        image = read_image(labelled[-1].pairs[place[-1][name]].image)
        strip = [Figure("image", image)]
        for number, dataset in enumerate(labelled, 1):
            if name in place[number - 1]:
                label = dataset.read_label(place[number - 1][name])
                coloured = colorize(label, np.array(palette, np.uint8))
                strip.append(Figure(f"labels of round {number}", coloured, "label"))
        cards.append(Card(name, [strip]))
    return cards
