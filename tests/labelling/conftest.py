"""Auto-labelling with any predictor, without a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from hmsa.labelling import autolabel as module


@pytest.fixture
def label():
    """`label(predictor, images, out, teacher="t1", **options)` -> the outcome of `autolabel`."""

    def run(predictor, images, out, teacher="t1", **options):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "fingerprint", lambda source: teacher)
            patch.setattr(module.Predictor, "load", lambda *_, **named: predictor)
            return module.autolabel(Path("teacher"), str(images), str(out), **options)

    return run
