"""Numbers that metrics measure in masks: their names, units and pictures in the report."""

import csv
import math

import pytest

from medvid_core.report.html import write_report
from medvid_core.report.text import NEUTRAL, metric_name

from .test_html import checked


@pytest.mark.parametrize(
    ("column", "name"),
    [
        ("ejection-fraction", "EF error"),
        ("ejection-fraction/bias", "EF, bias"),
        ("ejection-fraction/edv/lower", "EDV, limits of agreement, lower"),
        ("ejection-fraction/biplane", "EF error, biplane"),
        ("ejection-fraction/biplane/esv/true", "ESV, true, biplane"),
        ("ejection-fraction-area-length/rmse", "EF, RMSE, by area and length"),
        ("hd95", "HD95"),
        ("hd95/mm", "HD95, mm"),
        ("assd/undefined", "ASSD, undefined"),
        ("hausdorff/lv", "Hausdorff distance, lv"),
        ("temporal-consistency", "Temporal consistency"),
    ],
)
def test_names(column, name):
    assert metric_name(column) == name


def with_columns(run_files, first, values):
    """A run of eight cases with these columns, of which the first is the headline; a shorter list ends in NaN."""
    run_files.record["metrics"] = {first: False, "dice": True}
    run_files.record["results"] = {first: 4.0}
    for number, row in enumerate(run_files.rows):
        row |= {name: column[number] if number < len(column) else math.nan for name, column in values.items()}
        row |= {name: "" for name, value in row.items() if isinstance(value, float) and math.isnan(value)}
    return write_report(run_files.write())


def test_agreement_of_what_is_measured_in_masks(run_files):
    """Of the cases where both are known; nothing is drawn of a number that no case has."""
    true, predicted = [60.0, 50, 40, 55], [63.0, 48, 44]
    columns = {
        "ejection-fraction": [3.0, 2, 4],
        "ejection-fraction/true": true,
        "ejection-fraction/predicted": predicted,
        "ejection-fraction/edv/true": [],
        "ejection-fraction/edv/predicted": [],
        "ejection-fraction/biplane/true": [60.0],
        "ejection-fraction/biplane/predicted": [61.0],
    }
    page, words, _ = checked(with_columns(run_files, "ejection-fraction", columns))
    assert "EF (from masks): bias (mean of predicted − true) 1.67, 95 % limits of agreement -4.63 to 7.97" in words
    assert "(bias ± 1.96 standard deviations), 3 cases." in words
    assert (
        "EF, biplane (from masks): bias (mean of predicted − true) 1.00, no limits of agreement from a single" in words
    )
    assert "EDV (from masks)" not in words
    assert page.count("Bland-Altman plot of EF") == 2
    assert "EF error in percentage points, 8 held-out test cases (lower is better)" in words


@pytest.mark.parametrize("unit", ["mm", "pixels"])
def test_a_distance_is_said_with_its_unit(run_files, unit):
    values = [3.0, 4, 5, 4, 3, 4, 5, 4]
    _, words, _ = checked(with_columns(run_files, "hd95", {"hd95": values, f"hd95/{unit}": values}))
    assert f"mean HD95 in {unit}, 8 held-out test cases (lower is better)" in words
    with open(run_files.directory / "cases.csv", newline="") as file:
        assert f"hd95/{unit}" in next(csv.reader(file))


def test_a_correlation_has_no_arrow_of_its_metric():
    assert {"correlation", "true", "predicted"} <= set(NEUTRAL)
