"""What OUT holds beside labels and rows: the settings they depend on, the dataset they make."""

from __future__ import annotations

import glob
import json
from collections.abc import Iterable
from typing import Any

import yaml

from ..data.coarse import Coarse
from ..data.labels import LabelSet
from ..inference.predictor import Predictor
from ..runs.errors import InputError

SPLIT = "auto"
SETTINGS, DESCRIPTION, THRESHOLD_FILE = "settings.json", "dataset.yaml", "thresholds.json"
FOLDER_OF = {"label": "labels", "confidence": "confidence", "agreement": "agreement"}
MANIFEST = "manifest.parquet"


def settings_of(
    predictor: Predictor,
    teacher: str,
    precision: str,
    labels: LabelSet,
    coarse: Coarse | None = None,
    agreement: bool = False,
) -> dict[str, Any]:
    """All that a label depends on but the image and its coarse label."""
    return {
        "teacher": teacher,
        **predictor.settings,
        "precision": precision,
        "classes": dict(zip(labels.names, labels.raw, strict=True)),
        "coarse": coarse and coarse.settings,
        **({"agreement": True} if agreement else {}),
    }


def refuse_others(out: object, before: str, settings: dict[str, Any], overwrite: bool) -> None:
    """InputError if the settings.json `before` holds others, unless they are to be overwritten."""
    told = json.loads(before)
    other = [key for key in told | settings if told.get(key) != settings.get(key)]
    if other and not overwrite:
        came = "; ".join(f"{key} {told.get(key)}, now {settings.get(key)}" for key in other)
        raise InputError(
            f"{out} was made with other settings ({came}); give these, another OUT, or --overwrite"
        )


def description(labels: LabelSet, images: str, exclude: Iterable[str]) -> str:
    """dataset.yaml: the pictures below `images`, but for those of these names, with the labels."""
    return described(labels, {SPLIT: {
        "images": images, "labels": FOLDER_OF["label"], "confidence": FOLDER_OF["confidence"],
        "exclude": [glob.escape(name) for name in sorted(exclude)],
    }})  # fmt: skip


def described(labels: LabelSet, splits: dict[str, Any]) -> str:
    """A dataset's YAML file, in OUT: these splits of it."""
    k, raw = len(labels.names), labels.raw
    content = {
        "path": ".",
        "splits": splits,
        "names": (
            list(labels.names) if raw == tuple(range(k))
            else dict(zip(raw, labels.names, strict=True))
        ),
        "palette": [list(color) for color in labels.palette],
    }  # fmt: skip
    return yaml.safe_dump(content, sort_keys=False, default_flow_style=None)
