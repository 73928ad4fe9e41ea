from __future__ import annotations

from hmsa.training.metrics import Metrics, read_curves


def test_rows_after_the_step_of_a_resume_are_removed(tmp_path):
    first = Metrics(tmp_path, 0)
    for step in (10, 20, 30):
        first.write(
            "joint", step, {"loss": step / 10, "val_miou": 0.5} if step == 20 else {"loss": 1}
        )
    again = Metrics(tmp_path, 20)
    again.write("joint", 30, {"loss": 7.0})
    rows = read_curves(tmp_path)
    assert [row["step"] for row in rows] == [10, 20, 30]
    assert rows[1]["val_miou"] == 0.5
    assert "val_miou" not in rows[0], "empty cells are left out"
    assert rows[2]["loss"] == 7.0
    assert rows[0]["stage"] == "joint"
    assert [row["seconds"] for row in rows] == sorted(row["seconds"] for row in rows)


def test_no_run_no_curves(tmp_path):
    assert read_curves(tmp_path) == []
