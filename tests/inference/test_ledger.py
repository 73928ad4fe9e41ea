"""The account of a folder: what counts as done, and which settings are refused."""

from __future__ import annotations

import json

import pytest

from hmsa.inference.ledger import DONE, SETTINGS, Ledger
from hmsa.runs.errors import InputError

BEFORE = {"checkpoint": "abc", "scales": [0.5, 1.0], "flip": False}


@pytest.fixture
def out(tmp_path):
    """A folder with one picture done."""
    source, result = tmp_path / "a.png", tmp_path / "out" / "a.png"
    source.write_text("picture")
    with Ledger(tmp_path / "out", BEFORE) as ledger:
        assert not ledger.has("a", source, [result])
        result.write_text("label")
        ledger.add("a")
    return tmp_path / "out"


def has(out, **more):
    with Ledger(out, BEFORE, **more) as ledger:
        return ledger.has("a", out.parent / "a.png", [out / "a.png"])


def test_done_is_done(out):
    assert has(out)


@pytest.mark.parametrize("change", ["source changes", "source goes", "result goes"])
def test_what_changed_is_not_done(out, change):
    if change == "source changes":
        (out.parent / "a.png").write_text("another picture")
    else:
        (out.parent / "a.png" if change == "source goes" else out / "a.png").unlink()
    assert not has(out)


def test_another_picture_of_the_same_name_is_not_done(out):
    other = out.parent / "b.png"
    other.write_text("picture")
    with Ledger(out, BEFORE) as ledger:
        assert not ledger.has("a", other, [out / "a.png"])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"scales": [1.0]}, "have scales 0.5,1.0, asked is 1.0"),
        ({"flip": True}, "have flip False, asked is True"),
        ({"checkpoint": "def"}, "another checkpoint"),
        ({"tile": 512}, "have tile None, asked is 512"),
    ],
)
def test_other_settings_are_refused(out, change, says):
    with pytest.raises(InputError, match="another -o, or .* --overwrite") as told:
        Ledger(out, BEFORE | change)
    assert says in str(told.value)
    assert has(out)


def test_overwrite_begins_anew(out):
    assert not has(out, overwrite=True)
    assert not has(out), "nor is it done for the run after that"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"settings": 3}'])
def test_a_damaged_account_is_refused(out, text):
    (out / SETTINGS).write_text(text)
    with pytest.raises(InputError, match="damaged.*--overwrite"):
        Ledger(out, BEFORE)


def test_a_torn_line_loses_only_itself(out):
    source = out.parent / "b.png"
    source.write_text("picture")
    (out / "b.png").write_text("label")
    with (out / DONE).open("a") as lines:
        lines.write('["b", "/somewh')
    for expected in (False, True):
        with Ledger(out, BEFORE) as ledger:
            assert ledger.has("a", out.parent / "a.png", [out / "a.png"])
            assert ledger.has("b", source, [out / "b.png"]) == expected
            ledger.add("b")


def test_the_settings_can_be_read(out):
    assert json.loads((out / SETTINGS).read_text())["settings"] == BEFORE
