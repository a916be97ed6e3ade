"""A result by vendor, view or another column: from the command to table, CSV and page."""

import csv
import dataclasses
import json
import math
import re

import numpy as np
import pytest

from medvid_core import Case, ConfigError, OutputSpec, create_metric
from medvid_core.engine.breakdown import ALL, MOST_PARTS, UNKNOWN, break_down, values_by
from medvid_core.engine.scoring import CaseRow
from medvid_core.metrics.base import ScoredCase
from medvid_core.metrics.statistics import cut, mean_interval
from medvid_core.report.breakdown import breakdown_section, in_lines, write_breakdowns

LV = OutputSpec(name="mask", task="segmentation", classes=("lv",))
DRAWN = ("dataset.frames=6", "dataset.size=[48,48]")
TINY = ("preset=tiny", "dataset.cases=7", *DRAWN, "train.max_steps=4", "evaluate.overlays=0")
MIXED = ("--data", "echo-phantom", *DRAWN, "dataset.vendor=mixed", "dataset.cases=12")


@pytest.fixture(scope="module")
def aster_run(medvid, tmp_path_factory):
    """A run that has seen one vendor alone."""
    out = tmp_path_factory.mktemp("runs") / "aster"
    medvid("--model", "unet", *TINY, "dataset.vendor=aster", "metrics=[dice,ejection-fraction]", "--out", out)
    return out


def table(path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_model_of_one_vendor_on_those_of_all(medvid, aster_run, tmp_path, capsys):
    """The table, the CSV and the page hold the means of the rows in cases.csv, vendor by vendor."""
    out = tmp_path / "e"
    words = ("metrics=dice", "--split", "all", "--by", "vendor", "--by", "split", "--out", out)
    medvid("evaluate", aster_run, *MIXED, *words)
    said = capsys.readouterr().out
    from medvid_core import open_dataset

    drawn = open_dataset("echo-phantom", cases=12, frames=6, size=(48, 48), vendor="mixed")
    vendors = {case.case_id: case.metadata["vendor"] for case in drawn.cases}
    dice: dict[str, list[float]] = {}
    for row in table(out / "cases.csv"):
        dice.setdefault(vendors[row["case_id"]], []).append(float(row["dice"]))
    assert len(dice) > 2
    found = {row["vendor"]: row for row in table(out / "by_vendor.csv")}
    assert list(found) == [ALL, *sorted(dice)]
    for vendor, values in dice.items():
        assert float(found[vendor]["dice"]) == pytest.approx(np.mean(values))
        assert (found[vendor]["cases"], found[vendor]["patients"]) == (str(len(values)), str(len(values)))
        assert re.search(rf"^{vendor} +{len(values)} +{len(values)}  {np.mean(values):.3f} ", said, re.MULTILINE)
    summary = json.loads((out / "summary.json").read_text())
    assert float(found[ALL]["dice"]) == pytest.approx(summary["results"]["dice"])
    splits = {row["split"]: int(row["cases"]) for row in table(out / "by_split.csv")}
    recorded = json.loads((aster_run / "splits.json").read_text())
    assert splits == {ALL: 12, UNKNOWN: 5, **{part: len(names) for part, names in recorded.items()}}
    page = (out / "evaluation.html").read_text()
    for wanted in ("<h2>By vendor</h2>", "<h2>By split</h2>", "Dice by vendor, with cases"):
        assert wanted in page


WRITTEN = {"cases.csv", "summary.json", "evaluation.html", "pixels.csv", "confusion.csv", "confusion_normalised.csv"}


def test_without_a_column_there_is_a_page_and_no_table(medvid, aster_run, tmp_path):
    medvid("evaluate", aster_run, "--out", tmp_path / "e")
    assert {path.name for path in (tmp_path / "e").iterdir()} == WRITTEN
    for page in (tmp_path / "e" / "evaluation.html", aster_run / "report.html"):
        assert "<h2>Metrics</h2>" in page.read_text()
        for number in ("EF", "EDV", "ESV"):
            assert f"Bland-Altman plot of {number} (from masks)" in page.read_text()


def test_a_column_that_no_case_has_is_refused_before_anything_is_scored(refused, aster_run, tmp_path):
    text = refused("evaluate", aster_run, "--by", "vendr", "--out", tmp_path / "e")
    assert text == (
        "--by vendr: no case has it. Did you mean 'vendor'? The cases can be divided by: abnormal_wall, ed_frame, "
        "edv_ml, es_frame, esv_ml, group, heart_rate_bpm, split, stratum, vendor, view."
    )
    assert not (tmp_path / "e").exists()


# --- columns ------------------------------------------------------------------------------------------------------


def case(number, **values) -> Case:
    identity = {"case_id": f"c{number}", "group_id": f"p{number // 2}", **values}
    return Case(frames=1, streams={}, **identity)


def test_columns_are_metadata_and_what_a_case_says_itself():
    """Metadata of the same name gives way to the case's own, where it has one; without a value: unknown."""
    cases = [
        case(0, view="4CH", split="train", metadata={"view": "four", "site": "A"}),
        case(1, metadata={"view": "two"}),
        case(2, stratum="ill", metadata={"site": ""}),
    ]
    assert values_by("view", cases, {}) == ["4CH", "two", UNKNOWN]
    assert values_by("site", cases, {}) == ["A", UNKNOWN, UNKNOWN]
    assert values_by("group", cases, {}) == ["p0", "p0", "p1"]
    assert values_by("stratum", cases, {}) == [UNKNOWN, UNKNOWN, "ill"]
    assert values_by("split", cases, {"c0": "test", "c2": "val"}) == ["test", UNKNOWN, "val"]


def test_a_column_of_numbers_is_no_division():
    cases = [case(number, metadata={"age": str(number)}) for number in range(MOST_PARTS + 1)]
    with pytest.raises(ConfigError) as error:
        values_by("age", cases, {})
    assert str(error.value) == (
        "--by age: the 41 cases have 41 different values; a division has 40 at most. Every case's own values are in "
        "cases.csv."
    )
    assert len(set(values_by("age", cases[1:], {}))) == MOST_PARTS


# --- tables -------------------------------------------------------------------------------------------------------


def rows_of(dice) -> list[CaseRow]:
    return [
        CaseRow({"case_id": f"c{k}", "group_id": f"p{k // 2}", "scored_frames": 1, "dice": value})
        for k, value in enumerate(dice)
    ]


def broken_down(values=("s10", "s2", "s2", "s10", "s2", "lost"), dice=(0.5, 0.8, 0.9, 0.6, 0.7, math.nan)):
    rows = rows_of(dice)
    rows[5] = CaseRow({"case_id": "c5", "group_id": "p2", "scored_frames": 0, "problem": "damaged"})
    return break_down("site", values, rows, [create_metric("dice", [LV])], {"dice": True}, 50)


def test_parts_and_intervals():
    """All cases first, values in natural order; intervals are over patients; what could not be read has no value."""
    found = broken_down()
    assert [(part.value, len(part.rows), part.patients) for part in found.parts] == [
        (ALL, 5, 3),
        ("lost", 0, 0),
        ("s2", 3, 3),
        ("s10", 2, 2),
    ]
    expected = cut(mean_interval({"p0": [0.8], "p1": [0.9], "p2": [0.7]}), (0, 1))
    value = found.parts[2].values["dice"]
    assert (value.value, value.low, value.high) == (expected.value, expected.low, expected.high)
    assert found.metrics == {"dice": True}


def test_lines_of_text():
    lines = in_lines(broken_down())
    whole = cut(mean_interval({"p0": [0.5, 0.8], "p1": [0.9, 0.6], "p2": [0.7]}), (0, 1))
    assert lines[:4] == [
        "by site, with 95 % intervals over patients",
        "site   cases  patients  dice",
        f"(all)      5         3  0.700 ({whole.low:.3f} to {whole.high:.3f})",
        "lost       0         0  –",
    ]
    assert lines[-1] == (
        "fewer than 20 patients: intervals tend to be too narrow, of one there is none ((all), lost, s2, s10)"
    )


def test_files_and_page_of_names_that_are_no_names(tmp_path):
    """A column and values out of a table of a user's: no path, no markup."""
    evil = "<b>/../x"
    found = dataclasses.replace(broken_down(values=(evil, evil, "b", "b", "b", "b")), column=evil)
    write_breakdowns(tmp_path, [found, found])
    first, second = sorted(tmp_path.iterdir())  # of equal names one does not overwrite the other
    assert first.name.startswith("by_")
    assert {row[evil] for row in table(first)} == {row[evil] for row in table(second)} == {ALL, evil, "b"}
    page = breakdown_section(found)
    assert "<b>" not in page
    assert page.count("<svg") == 1


def test_metrics_beside_masks_are_divided_too():
    """What only all cases of a value give, such as an AUROC."""
    output = OutputSpec(name="state", task="classification", classes=("normal", "ill"))
    rows = []
    for k in range(12):
        true, p = k % 2, 0.75 if k % 2 else 0.25
        p = 1 - p if k >= 6 else p
        row = CaseRow({"case_id": f"c{k}", "group_id": f"c{k}", "scored_frames": 1})
        row.scored = ScoredCase(
            case_id=row["case_id"],
            group_id=row["group_id"],
            predicted={"state": np.array([1 - p, p])},
            true={"state": np.array(float(true))},
        )
        rows.append(row)
    metric = create_metric("auroc", [output])
    found = break_down("site", ["a"] * 6 + ["b"] * 6, rows, [metric], {"auroc": True}, 50)
    assert {part.value: part.values["auroc"].value for part in found.parts} == {ALL: 0.5, "a": 1.0, "b": 0.0}


def test_every_part_has_a_best_threshold_of_its_own():
    """Two cases whose curves have their best at different places: together both do worse than alone."""
    rows = rows_of([0.5, 0.5])
    for row, curve in zip(rows, ([0.2, 0.8, 0.6], [0.9, 0.1, 0.6]), strict=True):
        row["threshold-max-dice"] = 0.6
        row.curves = {"threshold-max-dice/curve": np.array(curve)}
    metric = create_metric("threshold-max-dice", [LV])
    found = break_down("site", ["a", "b"], rows, [metric], {"threshold-max-dice": True}, 50)
    values = {part.value: part.values["threshold-max-dice"].value for part in found.parts}
    assert values == {ALL: pytest.approx(0.6), "a": 0.8, "b": 0.9}


def test_a_column_that_one_case_lacks_costs_nothing():
    """Such as those in the row of the first view of a study alone."""
    rows = rows_of([0.5, 0.6, 0.7])
    rows[1]["dice/biplane"] = 0.25
    found = break_down("site", ["a", "a", "b"], rows, [create_metric("dice", [LV])], {"dice": True}, 50)
    assert found.parts[1].values["dice/biplane"].value == 0.25
    assert math.isnan(found.parts[2].values["dice/biplane"].value)
