"""The tables of the report: metrics over all cases, and every case."""

from __future__ import annotations

import math

from medvid_core.report.rundata import Row, RunData, deviation
from medvid_core.report.text import (
    BASELINES,
    counted,
    esc,
    metric_name,
    number,
    section,
    table,
    tag,
    with_deviation,
)

MOST_ROWS = 200
"""Cases listed at most; the rest is in cases.csv."""


def metrics_section(run: RunData) -> str:
    """Return the table of all metrics: overall and by class, beside the trivial predictors."""
    names = [name for name in run.metrics if not math.isnan(run.result(name)) or run.values(name)]
    if not names:
        return ""
    parts = list(dict.fromkeys(part for name in names for part in run.parts(name)))[:12]
    baselines = [which for which in BASELINES if (run.record.get("baselines") or {}).get(which)]
    overall = "all classes" if parts else "model"
    labels = ["metric", overall, *parts, *(BASELINES[which] for which in baselines)]
    head = [tag("th", esc(label), scope="col") for label in labels]
    rows = [_metric_row(run, name, parts, baselines) for name in names]
    return section(
        "Metrics",
        table(head, rows),
        lead="Mean ± standard deviation over cases; ↑ higher is better, ↓ lower is better. "
        "The trivial predictors are given over all classes.",
    )


def _metric_row(run: RunData, name: str, parts: list[str], baselines: list[str]) -> str:
    arrow = "↑" if run.higher_is_better(name) else "↓"
    cells = [tag("th", f"{esc(metric_name(name))} {arrow}", scope="row")]
    for column in [name, *(f"{name}/{part}" for part in parts)]:
        values = run.values(column)
        shown = with_deviation(run.result(column), deviation(values))
        undefined = len(run.scored) - len(values)
        few = f" <small>({counted(len(values), 'case')})</small>" if values and undefined else ""
        cells.append(tag("td", shown + few))
    cells += [tag("td", number(run.baseline(which, name))) for which in baselines]
    return tag("tr", "".join(cells), **({"class_": "headline"} if name == run.headline else {}))


def cases_section(run: RunData) -> str:
    """Return the table of all cases, the worst first."""
    if not run.rows:
        return ""
    name = run.headline
    grouped = any(row.get("group_id") not in ("", row.get("case_id")) for row in run.rows)
    columns = [name, *(f"{name}/{part}" for part in run.parts(name)), *list(run.metrics)[1:]]
    columns = [column for column in columns if column in run.rows[0]]
    labels = ["case", *(["group"] if grouped else []), "frames scored", *(metric_name(c) for c in columns)]
    head = [tag("th", esc(label), scope="col") for label in labels]
    ordered = sorted(run.rows, key=lambda row: _badness(run, row))
    low = [row for row in run.scored if _is_low(run, row)]
    rows = [_case_row(run, row, columns, grouped) for row in ordered[:MOST_ROWS]]
    return section("Cases", table(head, rows), lead=_cases_lead(run, low))


def _cases_lead(run: RunData, low: list[Row]) -> str:
    lead = "Worst first. All values of all cases are in cases.csv beside this report."
    if len(run.rows) > MOST_ROWS:
        lead += f" The {MOST_ROWS} worst of {len(run.rows)} are listed."
    if low:
        lead += f" {counted(len(low), 'case')} marked ▾ no better than the best constant map does on average."
    unscored = len(run.rows) - len(run.scored)
    if unscored:
        lead += f" {counted(unscored, 'case')} without any annotated frame: not scored."
    return lead


def _badness(run: RunData, row: Row) -> tuple[bool, float]:
    """Return the sorting key of a case: worst first, undefined last."""
    value = row.get(run.headline, math.nan)
    undefined = not isinstance(value, float) or math.isnan(value) or not row.get("scored_frames", 1)
    return undefined, 0.0 if undefined else value if run.higher_is_better(run.headline) else -value


def _is_low(run: RunData, row: Row) -> bool:
    value, constant = row.get(run.headline, math.nan), run.baseline("constant", run.headline)
    known = isinstance(value, float) and not math.isnan(value) and not math.isnan(constant)
    return known and not run.better(value, constant)


def _case_row(run: RunData, row: Row, columns: list[str], grouped: bool) -> str:
    low = _is_low(run, row)
    cells = [tag("th", esc(row.get("case_id", "")) + (" ▾" if low else ""), scope="row", class_="text")]
    if grouped:
        cells.append(tag("td", esc(row.get("group_id", "")), class_="text"))
    cells.append(tag("td", esc(_frames(row))))
    for column in columns:
        value = row.get(column, math.nan)
        bar = column == run.headline and 0 <= value <= 1
        extra = {"class_": "bar", "style": f"--part:{100 * value:.0f}%"} if bar else {}
        cells.append(tag("td", number(value), **extra))
    return tag("tr", "".join(cells), **({"class_": "low"} if low else {}))


def _frames(row: Row) -> str:
    scored, frames = row.get("scored_frames"), row.get("frames")
    return "–" if scored is None else f"{scored} of {frames}" if frames is not None else str(scored)
