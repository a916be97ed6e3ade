"""The table of metrics: over all cases, by class, and beside the trivial predictors."""

from __future__ import annotations

import math

from medvid_core.report.rundata import RunData, deviation
from medvid_core.report.text import NEUTRAL, counted, esc, metric_name, number, section, table, tag, with_deviation

MOST_CLASSES = 12
"""Columns of classes at most."""


def metrics_section(run: RunData) -> str:
    """Return the table of all metrics: overall and by class, beside the trivial predictors."""
    lines = metric_lines(run)
    if not lines:
        return ""
    found = {label for columns in lines.values() for label in columns} - {""}
    labels = [label for label in run.labels if label in found]
    shown = labels[:MOST_CLASSES]
    baselines = run.baseline_names
    titles = ["metric", "all classes" if shown else "model", *shown, *baselines.values()]
    head = [tag("th", esc(title), scope="col") for title in titles]
    rows = [_metric_row(run, name, lines[name], shown) for name in lines]
    return section("Metrics", table(head, rows), lead=_lead(run, lines, len(labels) - len(shown)))


def metric_lines(run: RunData) -> dict[str, dict[str, str]]:
    """Return for each line of the table, named by its column over all classes, class → column; "" is over all.

    Lines come in the order of the metrics, a metric before its parts. What is nowhere defined is left out.
    """
    found: dict[str, dict[str, str]] = {}
    for column in run.columns:
        line, label = run.taken_apart(column)
        if not math.isnan(run.result(column)) or run.values(column):
            found.setdefault(line, {})[label] = column
    order = list(run.metrics)
    return {line: found[line] for line in sorted(found, key=lambda line: (order.index(_metric(line)), "/" in line))}


def _metric(line: str) -> str:
    return line.split("/")[0]


def _lead(run: RunData, lines: dict[str, dict[str, str]], more: int) -> str:
    """Say what the numbers are."""
    overall = [columns[""] for columns in lines.values() if "" in columns]
    means = [column for column in overall if run.of_cases(column)]
    if len(run.scored) < 2 or not means:
        what = "↑ higher is better, ↓ lower is better."
    elif len(means) == len(overall):
        what = "Mean ± standard deviation over cases; ↑ higher is better, ↓ lower is better."
    else:
        what = (
            "With ±: mean and standard deviation over cases; without: one value of all cases together. "
            "↑ higher is better, ↓ lower is better."
        )
    classes = any(len(columns) > 1 for columns in lines.values())
    about = " The trivial predictors are given over all classes." if classes and run.baseline_names else ""
    return what + about + (f" {counted(more, 'more class').replace('classs', 'classes')} in run.json." if more else "")


def _metric_row(run: RunData, line: str, columns: dict[str, str], labels: list[str]) -> str:
    neutral = line.split("/")[-1] in NEUTRAL and "/" in line
    arrow = "" if neutral else " ↑" if run.higher_is_better(line) else " ↓"
    cells = [tag("th", f"{esc(metric_name(line))}{arrow}", scope="row")]
    for label in ["", *labels]:
        cells.append(tag("td", _cell(run, columns[label]) if label in columns else ""))
    cells += [tag("td", number(run.baseline(which, line))) for which in run.baseline_names]
    extra = {"class_": "headline"} if line == run.headline else {"class_": "part"} if "/" in line else {}
    return tag("tr", "".join(cells), **extra)


def _cell(run: RunData, column: str) -> str:
    """Return a value: with the standard deviation if it is a mean over cases, with their number if not all have it."""
    values = run.values(column)
    of_cases = run.of_cases(column)
    shown = with_deviation(run.result(column), deviation(values) if of_cases else math.nan)
    few = f" <small>({counted(len(values), 'case')})</small>" if values and len(values) < len(run.scored) else ""
    return shown + few
