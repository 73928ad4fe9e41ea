"""A folder of pictures -> labels, confidences and a manifest, by a run that can die at any moment.

    OUT/settings.json          what the labels depend on; written first
    OUT/labels/NAME.png        8-bit palette picture; NAME is the image's path below its folder
    OUT/confidence/NAME.png    8 bits, floor(255 p)
    OUT/rows/NAME.json         what is known of one image; written when its two pictures are
    OUT/dataset.yaml           the images with these labels as a split, `auto`
    OUT/manifest.parquet       all rows in one table; there only when all of it is done

Every file is replaced whole. An image is done if its row is there, and the row names the content of
the image, that of its coarse label, and the settings; so going on is to do what has no such row.
On many machines it is another tree, which `cluster` draws.
"""

from .cluster import Cluster
from .labelling import Crew, Labelling, locked
from .out import SPLIT, THRESHOLD_FILE, settings_of
from .rows import THRESHOLDS, Row, figures, is_done, total

__all__ = [
    "SPLIT", "THRESHOLDS", "THRESHOLD_FILE", "Cluster", "Crew", "Labelling", "Row", "figures",
    "is_done", "locked", "settings_of", "total",
]  # fmt: skip
