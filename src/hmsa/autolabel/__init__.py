"""A folder of pictures -> labels, confidences and a manifest, by a run that can die at any moment.

    OUT/settings.json          what the labels depend on; written first
    OUT/labels/NAME.png        8-bit palette picture; NAME is the image's path below its folder
    OUT/confidence/NAME.png    8 bits, floor(255 p)
    OUT/agreement/NAME.png     8 bits, share of the scales that say so alone; if it was asked for
    OUT/rows/NAME.json         what is known of one image; written when its pictures are
    OUT/dataset.yaml           the images with these labels as a split, `auto`
    OUT/manifest.parquet       all rows in one table; there only when all of it is done

Every file is replaced whole. An image is done if its row is there, and the row names the content of
the image, that of its coarse label, and the settings; so going on is to do what has no such row.
What a person has corrected (its row says `source: person`) is done whatever the settings are.
On many machines it is another tree, which `cluster` draws.
"""

from .cluster import Cluster
from .labelling import Crew, Labelling, locked
from .out import (
    DESCRIPTION,
    FOLDER_OF,
    MANIFEST,
    SETTINGS,
    SPLIT,
    THRESHOLD_FILE,
    described,
    settings_of,
)
from .rows import (
    PERSON,
    THRESHOLDS,
    Row,
    figures,
    is_done,
    rows_below,
    sha256,
    tally,
    total,
    write_manifest,
)

__all__ = [
    "DESCRIPTION", "FOLDER_OF", "MANIFEST", "PERSON", "SETTINGS", "SPLIT", "THRESHOLDS",
    "THRESHOLD_FILE", "Cluster", "Crew", "Labelling", "Row", "described", "figures", "is_done",
    "locked", "rows_below", "settings_of", "sha256", "tally", "total", "write_manifest",
]  # fmt: skip
