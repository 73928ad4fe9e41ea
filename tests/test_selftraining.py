from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from hmsa.data.datasets import open_dataset
from hmsa.selftraining import changed


def test_share_of_labels_that_are_others(folder_dataset, tmp_path):
    """Of pictures in both sets alone; one of another size is another altogether."""
    before = {name: np.zeros((4, 5), np.uint8) for name in ("a", "b", "gone")}
    path = folder_dataset(before, splits={"train": "train", "now": "now"})
    now = {"a": np.zeros((4, 5), np.uint8), "b": np.zeros((2, 5), np.uint8), "new": before["a"]}
    now["a"][1] = [0, 1, 2, 1, 255]
    for kind in ("images", "labels"):
        (tmp_path / "pictures" / "now" / kind).mkdir(parents=True)
        for name, label in now.items():
            Image.fromarray(label).save(tmp_path / "pictures" / "now" / kind / f"{name}.png")
    first, second = open_dataset(path, "train"), open_dataset(path, "now")
    assert changed(first, first) == 0
    assert changed(first, second) == pytest.approx((4 + 10) / (20 + 10))
    (tmp_path / "pictures" / "now" / "labels" / "a.png").unlink()
    (tmp_path / "pictures" / "now" / "images" / "a.png").unlink()
    assert changed(first, open_dataset(path, "now")) == 1
