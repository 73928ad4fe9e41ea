"""Do labels by a teacher make a better student? CamVid, every network from scratch.

    python benchmarks/autolabel.py --data ../shared/camvid --out runs/proof --seeds 0 1

CamVid's training pictures are three drives. Fine labels are known of the first quarter of 0001TP
(dusk) and of 0016E5; the last sixth of each, `held`, is learnt by nobody: it is what the
`precision` thresholds are measured on, and a look at how training goes. Of the rest of both people
have drawn coarse labels only. One network, the base, has learnt from the fine labels. The teacher
goes on from it, with the coarse labels of the rest beside them, and labels that rest. Students go
on from it, too, all for as many steps, and differ in one thing, what they are told of the rest. All
are judged on 0006R0, a drive that nobody has seen, and on val, a clip out of the rest's drive that
flatters. The rest's fine labels are used to judge labels and for the last student, the ceiling.

Labels are the teacher's, but where people have drawn, and `margin` pixels around, theirs count. How
far around is read off the pictures that have both kinds: up to there the nearest coarse label is
right in 98% of the pixels at every distance. These coarse labels are the fine ones, eroded by 8
pixels, so that is very true of them, and nearest-label fill is a strong rival. Stopped, the same
command goes on. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import distance_transform_edt

from hmsa.checkpoint.files import fingerprint
from hmsa.config import reading
from hmsa.config.options import Inference, Rules
from hmsa.config.recipe import Recipe
from hmsa.data.coarse import Coarse
from hmsa.data.datasets import Dataset, Pair, open_dataset
from hmsa.data.descriptions import describe
from hmsa.data.images import read_image
from hmsa.data.labels import IGNORE
from hmsa.evaluation.confusion import Confusion
from hmsa.evaluation.verbs import evaluate
from hmsa.labelling.autolabel import autolabel
from hmsa.labelling.folder import SPLIT
from hmsa.report.pictures import colorize, panel
from hmsa.runs.errors import InputError, Interrupted
from hmsa.runs.files import replace
from hmsa.runs.machine import best_device, describe_machine, keep_memory
from hmsa.runs.progress import say
from hmsa.training.train import train

RECIPE = """
model: {trunk: hrnet_w18_small, pretrained: false, width: 64}
augment: {color: 0.4, blur: 0.1}
sampling: {class_uniform: 0.5, tile: 120}
joint: {batch: 8, crop: [256, 256], lr: 2e-3, weight_decay: 0.02, warmup: 50, ema: 0.995}
attention: {steps: 100, crop: [360, 480], pictures: 64}
class_balance: 0.4
"""
JUDGED = {"unseen": "0006R0", "val": "val"}  # split: what it is
FUSIONS = ("average", "hierarchical")
AUTO, NEAREST = "auto", "nearest"
STUDENTS = (
    "nothing", "coarse", NEAREST, AUTO, "auto, 0.5", "auto, 0.9", "auto, by class", "truth"
)  # fmt: skip
FURTHER = 1e-3  # learning rate of those that go on from another
PRECISION = 0.9  # of the labels that the per-class rule keeps, on `held`
RIGHT = 0.98  # of the pixels as far as `margin` from a coarse label, to be like it


class Proof:
    """A run folder and all that is made in it."""

    def __init__(self, data: Path, folder: Path, changes: list[str]) -> None:
        self.folder, self.changes = folder, changes
        self.camvid = data.resolve()
        self.yaml = folder / "dataset.yaml"
        _, known, _ = describe(Path("camvid"), data)
        self.content = known.model_dump(include={"names", "palette", "ignore"})

    def describe(self) -> None:
        """The split, and with it nearest-label fill, as lists that every verb can read."""

        def drive(name: str) -> list[str]:
            return sorted(f.stem for f in (self.camvid / "train/images").glob(f"{name}_*"))

        dusk, day = drive("0001TP"), drive("0016E5")
        fit, held, rest = [], [], []
        for frames in (dusk, day):
            block = len(frames) // 4
            cut = block - max(1, block // 6)
            fit, held = fit + frames[:cut], held + frames[cut:block]
            rest += frames[block:]
        fine, coarse = "train/labels", "train/coarse"
        splits = {
            "fit": (fit, fine), "held": (held, fine), "unseen": (drive("0006R0"), fine),
            "coarse": (rest, coarse), NEAREST: (rest, NEAREST), "truth": (rest, fine),
            "fit-coarse": (fit, coarse),
        }  # fmt: skip
        for name, (stems, labels) in splits.items():
            rows = [f"train/images/{stem}.jpg,{labels}/{stem}.png\n" for stem in stems]
            text = "".join(["image,label\n", *rows])
            replace(self.folder / f"{name}.csv", lambda file, t=text: file.write_text(t))
        described = {"path": str(self.camvid)} | self.content
        described["splits"] = {name: f"{name}.csv" for name in splits} | {"val": "val"}
        text = yaml.safe_dump(json.loads(json.dumps(described)), sort_keys=False)
        replace(self.yaml, lambda file: file.write_text(text, encoding="utf-8"))
        pictures = self.folder / "rest"  # `hmsa autolabel` labels a folder
        pictures.mkdir(exist_ok=True)
        for stem in rest:
            if not (link := pictures / f"{stem}.jpg").is_symlink():
                link.symlink_to(self.camvid / f"train/images/{stem}.jpg")
            file = self.folder / NEAREST / f"{stem}.png"
            if not file.is_file():
                label = np.asarray(Image.open(self.camvid / coarse / f"{stem}.png"))
                picture = Image.fromarray(nearest(label, self.content["ignore"][0]))
                replace(file, lambda t, p=picture: p.save(t, format="PNG"))

    def open(self, split: str) -> Dataset:
        return open_dataset(self.yaml, split)

    def train(
        self, name: str, steps: int, seed: int, extra: dict[str, Any], sure: Any = 0,
        start: Path | None = None,
    ) -> Path:  # fmt: skip
        """A network of this name, if it is not there yet; the folder of its run."""
        content = yaml.safe_load(RECIPE) | {"seed": seed}
        if start:
            content |= {"start": str(start)}
            content["joint"]["lr"] = FURTHER
        content["data"] = {"dataset": self.yaml.name, "train": "fit", "val": "held"}
        content["joint"] |= {"steps": steps, "validate_every": max(1, steps)}
        content["attention"]["validate_every"] = content["attention"]["steps"]  # the last is kept
        if extra:
            fit, rest = len(self.open("fit")), len(self.open("truth"))
            share = round(rest / (fit + rest), 3)  # every picture as often as any other
            extra = extra | {"share": share, "boost": list(self.content["names"].values())}
            content["sampling"] |= {"confidence": sure, "extra": [extra]}
        file, out = self.folder / f"{name}.yaml", self.folder / name
        replace(file, lambda temporary: temporary.write_text(yaml.safe_dump(content)))
        say(f"--- {name}: hmsa train {file} --out {out} --resume")
        recipe = reading.read(Recipe, file, self.changes)
        train(recipe, out, self.yaml, pictures=None, resume=True, near=self.folder)
        return out

    def judge(self, run: Path) -> dict[str, Any]:
        """What `hmsa evaluate` finds on each judged split, kept beside the checkpoint."""
        kept = run / "judged.json"
        found = json.loads(kept.read_text()) if kept.is_file() else {}
        if found.get("checkpoint") != fingerprint(run):
            found = {"checkpoint": fingerprint(run)}
            for split in JUDGED:
                summary = evaluate(run, self.yaml, split=split).summary
                found[split] = {key: summary[key] for key in ("miou", "iou", "images", "scales")}
            replace(kept, lambda file: file.write_text(json.dumps(found)))
        return {split: found[split] for split in JUDGED}

    def label(self, teacher: Path, name: str, grow: int | None = None) -> Dataset:
        """The rest, labelled by the teacher; grow: see `hmsa autolabel`, None: without people."""
        autolabel(
            teacher, str(self.folder / "rest"), str(self.folder / name),
            inference=Inference(flip=True), rules=Rules(precision_target=PRECISION),
            held_out=self.open("held"),
            coarse=None if grow is None else Coarse(self.open("coarse"), grow=grow),
        )  # fmt: skip
        return open_dataset(self.folder / name / "dataset.yaml", SPLIT)


def nearest(label: NDArray[np.uint8], void: int) -> NDArray[np.uint8]:
    """Label `[H,W]` with each unlabelled pixel like the labelled one next to it."""
    if (label == void).all():
        return label
    y, x = distance_transform_edt(label == void, return_distances=False, return_indices=True)
    return label[y, x]


def margin(truth: Dataset, coarse: Dataset, farthest: int = 32) -> tuple[int, list[float]]:
    """Pixels around coarse labels up to which the nearest is right, and how often at 1, 2, .."""
    right, seen = np.zeros(farthest + 1), np.zeros(farthest + 1)
    for index in range(len(truth)):
        fine, drawn = truth.read_label(index), coarse.read_label(index)
        far = np.ceil(distance_transform_edt(drawn == IGNORE)).astype(int)
        known = (fine != IGNORE) & (far <= farthest)
        hit = known & (nearest(drawn, IGNORE) == fine)
        seen += np.bincount(far[known], minlength=farthest + 1)
        right += np.bincount(far[hit], minlength=farthest + 1)
    share = right[1:] / np.maximum(1, seen[1:])
    return int(np.argmin([*(share >= RIGHT), False])), share.tolist()


Reader = Callable[[Pair], NDArray[np.uint8]]


def reader(labels: Dataset) -> Reader:
    """Label `[H,W]` of the same picture in `labels`."""
    place = {pair.image.stem: index for index, pair in enumerate(labels.pairs)}
    return lambda pair: labels.read_label(place[pair.image.stem])


def laid_over(coarse: Reader, labels: Reader) -> Reader:
    """What `hmsa autolabel --override` makes of both."""

    def read(pair: Pair) -> NDArray[np.uint8]:
        drawn = coarse(pair)
        return np.where(drawn == IGNORE, labels(pair), drawn)

    return read


def no_farther(truth: Dataset, coarse: Reader, coverage: float) -> Reader:
    """Nearest-label fill, up to that distance from a label at which it covers as much."""

    def far(pair: Pair) -> NDArray[np.float32]:
        return distance_transform_edt(coarse(pair) == IGNORE).astype(np.float32)

    known = [far(p)[truth.read_label(i) != IGNORE] for i, p in enumerate(truth.pairs)]
    reach = np.quantile(np.concatenate(known), coverage)

    def read(pair: Pair) -> NDArray[np.uint8]:
        near = far(pair) <= reach
        return np.where(near, nearest(coarse(pair), IGNORE), np.uint8(IGNORE))

    return read


def compare(truth: Dataset, labels: Reader) -> dict[str, Any]:
    """Coverage: share of the truly labelled pixels that have a label. IoU: on these alone."""
    confusion, known = Confusion(len(truth.labels.names)), 0
    for index, pair in enumerate(truth.pairs):
        right, label = truth.read_label(index), labels(pair)
        known += int((right != IGNORE).sum())
        right[label == IGNORE] = IGNORE
        confusion.add(torch.from_numpy(right), torch.from_numpy(label))
    return {
        "coverage": int(confusion.matrix.sum()) / known,
        "accuracy": confusion.accuracy(),
        "miou": confusion.miou(),
        "iou": {
            name: None if math.isnan(iou) else iou  # JSON has no nan
            for name, iou in zip(truth.labels.names, confusion.iou().tolist(), strict=True)
        },
    }


def sheet(truth: Dataset, shown: dict[str, Reader], file: Path) -> None:
    """Three pictures, evenly out of the split: image, labels of each kind, truth."""
    palette = np.array(truth.labels.palette, np.uint8)
    rows = []
    for part in (1, 3, 5):
        pair = truth.pairs[len(truth) * part // 6]
        row = [(pair.image.stem, read_image(pair.image))]
        for name, labels in (shown | {"truth": reader(truth)}).items():
            row.append((name, colorize(labels(pair), palette)))
        rows.append(row)
    picture = panel(rows)
    replace(file, lambda temporary: picture.save(temporary, format="PNG"))


def mious(judged: dict[str, Any]) -> list[float]:
    return [judged[split]["miou"][kind] for split in JUDGED for kind in FUSIONS]


def row(name: str, cells: Iterable[float | None], width: int = 9) -> None:
    told = (" " * width if c is None else f"{100 * c:{width}.1f}" for c in cells)
    print(f"{name:<24}" + "".join(told), flush=True)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/camvid"), help="CamVid")
    parser.add_argument("--out", type=Path, default=Path("runs/proof"), help="run folder")
    parser.add_argument("--steps", type=int, default=400, help="joint steps of each student")
    parser.add_argument("--base-steps", type=int, default=1800)
    parser.add_argument("--teacher-steps", type=int, default=700)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the students")
    parser.add_argument("--students", nargs="*", choices=STUDENTS, default=STUDENTS,
                        metavar="NAME", help="by what they are told (all)")  # fmt: skip
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="changes",
                        help="of every recipe, as `hmsa train --set`")  # fmt: skip
    parser.add_argument("--picture", type=Path, help="sheet of three pictures and their labels")
    options = parser.parse_args(arguments)
    keep_memory()
    options.out.mkdir(parents=True, exist_ok=True)
    proof = Proof(options.data, options.out, options.changes)
    proof.describe()
    base = proof.train("base", options.base_steps, 0, {})
    teacher = proof.train("teacher", options.teacher_steps, 0, {"split": "coarse"}, start=base)
    truth, coarse = proof.open("truth"), reader(proof.open("coarse"))
    grow, shares = margin(proof.open("fit"), proof.open("fit-coarse"))
    alone = reader(proof.label(teacher, "teacher-labels"))
    auto = proof.label(teacher, AUTO, grow)
    rule = json.loads((options.out / AUTO / "thresholds.json").read_text())["precision"]
    made = {
        "coarse": coarse, NEAREST: reader(proof.open(NEAREST)), "teacher": alone,
        "teacher + coarse": laid_over(coarse, alone), AUTO: reader(auto),
        "auto, 0.5": reader(auto.trusting(0.5)), "auto, 0.9": reader(auto.trusting(0.9)),
        "auto, by class": reader(auto.trusting(rule)),
    }  # fmt: skip
    made["auto, 0.5, else nearest"] = laid_over(made["auto, 0.5"], made[NEAREST])
    print(describe_machine(best_device()))
    sizes = ", ".join(f"{len(proof.open(s))} {s}" for s in ("fit", "held", "truth", *JUDGED))
    print(f"pictures: {sizes} (truth: the rest); steps: base {options.base_steps}, teacher "
          f"{options.teacher_steps}, students {options.steps}; seeds {options.seeds}")  # fmt: skip
    ring = ", ".join(f"{100 * share:.1f}" for share in shares[: grow + 2])
    print(f"margin: {grow} pixels; right at 1, 2, .. pixels from a coarse label, %: {ring}")
    names = truth.labels.names
    print(f"\n{'labels of the rest, %':<24}{'coverage':>9}{'right':>9}{'mIoU':>9}"
          + "".join(f"{name[:8]:>9}" for name in names))  # fmt: skip
    labels = {}

    def told_of(name: str, read: Reader) -> float:
        labels[name] = found = compare(truth, read)
        row(name, (found["coverage"], found["accuracy"], found["miou"], *found["iou"].values()))
        return float(found["coverage"])

    for name, read in made.items():
        coverage = told_of(name, read)
        if name.startswith("auto") and coverage < 1:
            told_of(f"nearest, {coverage:.1%}", no_farther(truth, coarse, coverage))
    if options.picture:
        shown = {name: made[name] for name in ("coarse", NEAREST, AUTO)}
        sheet(truth, shown, options.picture)

    labelled = {"dataset": f"{AUTO}/dataset.yaml", "split": SPLIT}
    told: dict[str, tuple[dict[str, Any], Any]] = {
        "nothing": ({}, 0), "coarse": ({"split": "coarse"}, 0), NEAREST: ({"split": NEAREST}, 0),
        AUTO: (labelled, 0), "auto, 0.5": (labelled, 0.5), "auto, 0.9": (labelled, 0.9),
        "auto, by class": (labelled, rule), "truth": ({"split": "truth"}, 0),
    }  # fmt: skip
    columns = [f"{split} {kind}" for split in JUDGED for kind in FUSIONS]
    print(f"\n{'told of the rest, mIoU %':<24}" + "".join(f"{c:>21}" for c in columns))
    before = {"base": proof.judge(base), "teacher": proof.judge(teacher)}
    for name, judged in before.items():
        row(f"(the {name})", mious(judged), 21)
    students: dict[str, list[dict[str, Any]]] = {name: [] for name in options.students}
    for seed in options.seeds:
        for name, found in students.items():
            extra, sure = told[name]
            called = f"student-{name.replace(', ', '-').replace(' ', '-')}-{seed}"
            run = proof.train(called, options.steps, seed, extra, sure, base)
            found.append(proof.judge(run))
            row(f"{name} (seed {seed})", mious(found[-1]), 21)
    if len(options.seeds) > 1 and students:
        print(f"\n{'mean of the seeds':<24}" + "".join(f"{c:>21}" for c in columns))
        for name, found in students.items():
            row(name, np.mean([mious(each) for each in found], 0), 21)
    print(json.dumps({
        "machine": describe_machine(best_device()), "steps": options.steps,
        "base_steps": options.base_steps, "teacher_steps": options.teacher_steps,
        "seeds": options.seeds, "set": options.changes, **before, "margin": grow,
        "thresholds": rule, "labels": labels,
        "students": students,
    }))  # fmt: skip


if __name__ == "__main__":
    try:
        main()
    except (InputError, Interrupted) as stop:
        sys.exit(str(stop))
