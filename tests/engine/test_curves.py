"""Metrics at the best threshold, of cases that were scored in several runs: one threshold for all of them."""

import pytest

from medvid_core.engine.curves import at_one_threshold
from medvid_core.engine.finished import FinishedRun
from medvid_core.errors import DataError
from medvid_core.models import ModelInfo
from medvid_core.specs import ClipSpec, OutputSpec

OUTPUT = OutputSpec(name="mask", task="segmentation", classes=("lesion",))
NAMES = ("threshold-max-dice", "dice")


def run(directory, rows, curves, names=NAMES):
    """A run whose rows are at the threshold that was best for its own cases."""
    directory.mkdir()
    lines = [",".join([case, "threshold-max-dice/curve", *curve]) for case, curve in curves.items()]
    (directory / "curves.csv").write_text("\n".join(["case_id,curve,0,1,2", *lines]) + "\n")
    return FinishedRun(
        directory=directory,
        record={"metrics": dict.fromkeys(names, True)},
        settings={"metrics": list(names)},
        splits={},
        info=ModelInfo("lab/cnn", "1.0", {}, (OUTPUT,), ClipSpec(), 4, (32, 32)),
        rows={case: {"case_id": case, "group_id": case, "dice": "0.5", **row} for case, row in rows.items()},
    )


def test_folds_are_put_to_one_threshold(tmp_path):
    """Means over all cases are 0.4, 0.5 and 0.6: the last, which is the best of neither fold, nor of any case."""
    one = run(
        tmp_path / "0",
        {"a": {"threshold-max-dice": "0.8"}, "empty": {"threshold-max-dice": ""}},
        {"a": ("0.8", "0.1", "0.6"), "empty": ("nan", "nan", "nan")},
    )
    other = run(tmp_path / "1", {"b": {"threshold-max-dice": "0.9"}}, {"b": ("0.0", "0.9", "0.6")})
    found = at_one_threshold([one, other])
    values = {case: row["threshold-max-dice"] for each in found for case, row in each.rows.items()}
    assert values == {"a": "0.6", "empty": "", "b": "0.6"}
    assert {row["dice"] for each in found for row in each.rows.values()} == {"0.5"}
    assert one.rows["a"]["threshold-max-dice"] == "0.8"
    assert found[0].number("a", "threshold-max-dice") == 0.6
    assert at_one_threshold([one])[0].rows["a"]["threshold-max-dice"] == "0.8"


def test_runs_without_such_metrics_need_no_table(tmp_path):
    runs = [run(tmp_path / "0", {"a": {}}, {}, ("dice",))]
    (tmp_path / "0" / "curves.csv").unlink()
    assert at_one_threshold(runs) == runs


def test_a_table_that_lacks_a_case_is_refused(tmp_path):
    runs = [run(tmp_path / "0", {"a": {"threshold-max-dice": "0.8"}}, {"c": ("0.8", "0.1", "0.6")})]
    with pytest.raises(DataError, match=r"curves\.csv lacks the case 'a'\. Score the model anew\."):
        at_one_threshold(runs)
