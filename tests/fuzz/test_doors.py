"""Each door returns or raises InputError, whatever comes; `make fuzz` tries for longer."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz.doors import DOORS
from fuzz.runner import Runner


@pytest.fixture(scope="module", params=DOORS)
def door(request):
    runner = Runner(request.param)
    yield DOORS[request.param].sample(), DOORS[request.param].mutations, runner
    runner.close()


def test_a_valid_file_is_accepted(door):
    sample, _, runner = door
    assert runner(sample) == ("accepted", "")


@settings(max_examples=12, derandomize=True, database=None,
          suppress_health_check=[*HealthCheck])  # fmt: skip
@given(data=st.data())
def test_a_changed_file_is_accepted_or_refused(door, data):
    sample, mutations, runner = door
    content = data.draw(st.sampled_from(mutations))(data.draw, sample)
    assert runner(content).kind != "violation", runner(content)
