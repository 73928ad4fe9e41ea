"""Messages of mistakes: one line, whatever they quote."""

from __future__ import annotations

import pickle

from hmsa.runs import InputError


def test_a_message_is_one_line_and_controls_no_terminal():
    error = InputError("no file a\nb\x1b[2J\u2028\x85\r.png; é, \udc80 and − stay")
    assert str(error) == r"no file a\nb\x1b[2J\u2028\x85\r.png; é, " + "\udc80 and − stay"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
