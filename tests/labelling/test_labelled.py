"""Folders of auto-labels as the review opens them."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hmsa.inference.predictor import Predictor
from hmsa.labelling.labelled import open_labelled
from hmsa.runs import InputError


@pytest.fixture
def out(label, tiny, tmp_path):
    (tmp_path / "here" / "in").mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 255, (20, 33, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "here" / "in" / "a.png")
    label(Predictor(tiny, (1,), "fp32", "cpu"), tmp_path / "here/in", tmp_path / "here/out")
    return tmp_path / "here" / "out"


def test_moved_together_with_its_images(out):
    moved = out.parent.rename(out.parent.with_name("there"))
    labelled = open_labelled(moved / "out")
    assert labelled.image("a").shape[:2] == labelled.label("a").shape == (20, 33)


def test_copied_without_its_images(out, tmp_path):
    copy = tmp_path / "deep" / "else" / "out"
    shutil.copytree(out, copy)
    with pytest.raises(InputError, match="none is there; bring these images there") as error:
        open_labelled(copy)
    wanted = Path(re.search(r"were in (\S+),", str(error.value))[1])
    assert not wanted.exists()
    shutil.copytree(out.with_name("in"), wanted)  # as the message says
    assert list(open_labelled(copy).rows) == ["a"]


def test_no_image_could_be_labelled(label, tiny, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"nonsense")
    label(Predictor(tiny, (1,), "fp32", "cpu"), tmp_path / "in", tmp_path / "out")
    with pytest.raises(InputError, match=r"no labelled image; see the reasons in .*parquet"):
        open_labelled(tmp_path / "out")
