"""A dataset, checked."""

from __future__ import annotations

import json

import pytest

from hmsa.data.check import judge, plan
from hmsa.data.leaks import find_leaks
from hmsa.data.scan import look


@pytest.fixture
def checked():
    """`checked(dataset.yaml, *splits)` -> all findings; their summary is JSON."""

    def check(path, *splits):
        found = plan(path, splits)
        seen = {file.path: look(file) for file in found.files()}
        find_leaks(judge(found, seen), seen)
        json.dumps(found.summary(), allow_nan=False)
        return found

    return check
