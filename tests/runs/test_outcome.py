import json

from hmsa.runs import Outcome


def test_what_has_no_score_is_null(capsys):
    nan = float("nan")
    assert Outcome({"iou": {"tram": nan, "road": 0.5}, "all": [nan, 1]}).show() == 0
    assert json.loads(capsys.readouterr().out) == {
        "iou": {"tram": None, "road": 0.5},
        "all": [None, 1],
    }
