"""`hmsa review`: the quality of auto-labels, tasks for people, and their corrections."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..data.datasets import open_dataset
from ..report.page import require_page
from ..report.tables import terminal
from ..runs import InputError, Outcome
from .corrections import read_corrections, take
from .labelled import Labelled, open_labelled
from .quality import LEVELS, Counts, against, confidence, drift, kept_at, queue
from .quality_page import Quality
from .tasks import export_tasks

LISTED = 20  # images of the queue in the JSON


def review(
    folder: Path,
    *,
    people: tuple[Path, str] | None = None,
    truth: tuple[Path, str] | None = None,
    before: Path | None = None,
    report: Path,
    command: str = "",
) -> Outcome:
    """Summarise the folder, which `hmsa autolabel` made, and write the page `report`.

    people: dataset and split with labels by people, of these images or others, whose class shares
    are compared. truth: dataset and split with true labels of some of these images. before: an
    earlier folder of the same images.
    """
    require_page(report)
    labelled = open_labelled(folder)
    drawn = labelled.beside(open_dataset(*people), others=True) if people else None
    true = labelled.beside(open_dataset(*truth)) if truth else None
    changes = drift(open_labelled(before), labelled) if before else None
    found = against(labelled, true) if true else None
    facts = _facts(labelled)
    for name, data in {"People": people, "Truth": truth}.items():
        facts += [(name, f"{data[0]}, split {data[1]}")] if data else []
    facts += [("Before", str(before))] if before else []
    quality = Quality(labelled, queue(labelled), drawn, true, found, changes, facts)
    quality.write(report, command)
    summary = _summary(quality) | {"report": str(report)}
    table = terminal(quality.classes(), f"{folder}, in %", quality.verdict)
    return Outcome(summary, table, notes=[f"report: {report}"])


def export(folder: Path, tool: str, file: Path, worst: int, url: str | None) -> Outcome:
    """Write the first images of the queue as tasks for `tool`, "cvat" or "labelstudio"."""
    labelled = open_labelled(folder)
    names = [doubt.name for doubt in queue(labelled)[:worst]]
    if not names:
        raise InputError(f"{folder}: people have corrected all images; there is nothing to export")
    files = export_tasks(labelled, names, tool, file, url)
    note = f"{len(names)} image(s) in {' and '.join(map(str, files))}"
    return Outcome({"images": len(names), "files": [str(f) for f in files]}, notes=[note])


def take_back(folder: Path, file: Path) -> Outcome:
    """Replace labels by those that people corrected, all in the file or none."""
    labelled = open_labelled(folder)
    with read_corrections(file, labelled) as found:
        taken = take(labelled, found)
    note = (
        f"{taken['taken']} label(s) taken, {taken['same']} were there already, {taken['empty']} "
        f"left empty; {taken['people']} by people in all"
    )
    return Outcome(taken, notes=[note])


def _summary(quality: Quality) -> dict[str, Any]:
    labelled = quality.labelled
    counts, names = labelled.counts, labelled.labels.names

    def numbers(own: Counts) -> dict[str, Any]:
        kept = {f"{level:g}": kept_at(own, level) for level in LEVELS}
        return {"confidence": float(confidence(own)), "kept": kept}

    classes = {
        name: {"share": float(own.sum() / max(1, counts.sum()))} | numbers(own)
        for name, own in zip(names, counts, strict=True)
    }
    summary: dict[str, Any] = {
        "images": len(labelled.rows),
        "failed": len(labelled.failed),
        "people": len(labelled.by_people),
        **numbers(counts.sum(0)),
        "class": classes,
        "queue": [
            {"image": d.name, "doubt": d.doubt, "confidence": d.confidence,
             "agreement": d.agreement, "why": d.reasons}
            for d in quality.queue[:LISTED]
        ],
    }  # fmt: skip
    if quality.truth:
        summary["truth"] = quality.truth.summary(names)
    if quality.drift:
        summary["changed"] = quality.drift.summary(names)
    return summary


def _facts(labelled: Labelled) -> list[tuple[str, str]]:
    settings = labelled.settings
    scales = ", ".join(f"{scale:g}" for scale in settings["scales"])
    coarse = ", ".join(map(str, (settings.get("coarse") or {}).values()))
    return [
        ("Auto-labels", str(labelled.out)),
        ("Not readable", f"{len(labelled.failed):,} images" if labelled.failed else ""),
        ("Teacher", f"sha256 {settings['teacher'][:16]}"),
        ("Scales", scales + ("; flip" if settings["flip"] else "; no flip")),
        ("Coarse labels", coarse),
    ]
