"""A result by vendor, view, or another column: as lines of text, as CSV, as tables and pictures of a page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medvid_core.engine.scoring import write_rows
from medvid_core.metrics.statistics import FEWEST_GROUPS
from medvid_core.report.comparison import with_interval
from medvid_core.report.figures import breakdown_plot
from medvid_core.report.overlay import safe_name
from medvid_core.report.text import UNDEFINED, esc, metric_name, section, table, tag

if TYPE_CHECKING:
    from medvid_core.engine.breakdown import Breakdown, Part

MOST_COLUMNS = 3
"""Metrics in the lines of text; the page and the CSV hold all."""
MOST_PLOTS = 6


def in_lines(breakdown: Breakdown) -> list[str]:
    """Return the table as lines of text, its columns aligned."""
    names = list(breakdown.metrics)[:MOST_COLUMNS]
    head = [breakdown.column, "cases", "patients", *names]
    lines = [head, *([part.value, *_counts(part), *_cells(part, names)] for part in breakdown.parts)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    aligned = [
        "  ".join(f"{cell:>{width}}" if 0 < i < 3 else f"{cell:<{width}}" for i, (cell, width) in enumerate(pairs))
        for pairs in (list(zip(line, widths, strict=True)) for line in lines)
    ]
    lead = f"by {breakdown.column}, with 95 % intervals over patients"
    return [line.rstrip() for line in [lead, *aligned, *_notes(breakdown, names)]]


def _counts(part: Part) -> list[str]:
    return [str(len(part.rows)), str(part.patients)]


def _cells(part: Part, names: Sequence[str]) -> list[str]:
    return [with_interval(part.values[name]) if name in part.values else UNDEFINED for name in names]


def write_breakdowns(folder: Path, breakdowns: Sequence[Breakdown]) -> None:
    """Write ``by_<column>.csv`` each: a row for all cases and one a value, every metric with both ends."""
    names: list[str] = []
    for breakdown in breakdowns:
        names.append(safe_name(breakdown.column, names))
        write_rows(folder / f"by_{names[-1]}.csv", [_flat(breakdown, part) for part in breakdown.parts])


def _flat(breakdown: Breakdown, part: Part) -> dict[str, Any]:
    row: dict[str, Any] = {breakdown.column: part.value, "cases": len(part.rows), "patients": part.patients}
    for name, value in part.values.items():
        row |= {name: value.value, f"{name}:low": value.low, f"{name}:high": value.high}
    return row


def breakdown_section(breakdown: Breakdown) -> str:
    """Return the table of all metrics and a picture of each of the first ones."""
    names = list(breakdown.metrics)
    head = [tag("th", esc(title), scope="col") for title in (breakdown.column, "cases", "patients")]
    arrows = {name: "↑" if higher else "↓" for name, higher in breakdown.metrics.items()}
    head += [tag("th", f"{esc(metric_name(name))} {arrows[name]}", scope="col") for name in names]
    rows = [
        tag("tr", tag("th", esc(part.value), scope="row") + "".join(tag("td", esc(cell)) for cell in cells))
        for part in breakdown.parts
        for cells in [[*_counts(part), *_cells(part, names)]]
    ]
    pictures = "".join(tag("div", _picture(breakdown, name)) for name in _drawn(breakdown))
    return section(
        f"By {breakdown.column}",
        table(head, rows),
        *(tag("p", esc(f"{note[:1].upper()}{note[1:]}."), class_="lead") for note in _notes(breakdown, names)),
        tag("div", pictures, class_="pictures") if pictures else "",
        lead="In brackets the 95 % interval over patients; ↑ higher is better, ↓ lower is better. In the pictures a "
        "dot is a case, a line the interval, a diamond its value; dotted: all cases.",
    )


def _drawn(breakdown: Breakdown) -> list[str]:
    """The first metrics that are anywhere defined."""
    defined = [
        name
        for name in breakdown.metrics
        if any(name in part.values and not math.isnan(part.values[name].value) for part in breakdown.parts)
    ]
    return defined[:MOST_PLOTS]


def _picture(breakdown: Breakdown, name: str) -> str:
    whole, *parts = [part for part in breakdown.parts if name in part.values]
    arrow = "↑" if breakdown.metrics[name] else "↓"
    return breakdown_plot(
        [part.value for part in parts],
        [np.array([row.get(name, math.nan) for row in part.rows], np.float64) for part in parts],
        [(part.values[name].value, part.values[name].low, part.values[name].high) for part in parts],
        whole.values[name].value,
        f"{metric_name(name)} {arrow}",
        f"{metric_name(name)} by {breakdown.column}, with cases and 95 % intervals",
    )


def _notes(breakdown: Breakdown, names: Sequence[str]) -> list[str]:
    """What keeps intervals of these metrics from being trusted, each remark once with the values it is about."""
    few = f"fewer than {FEWEST_GROUPS} patients: intervals tend to be too narrow, of one there is none"
    about: dict[str, dict[str, None]] = {}
    for part in breakdown.parts:
        notes = {part.values[name].note for name in names if name in part.values}
        remarks = [remark for note in sorted(notes) for remark in note.split("; ") if remark]
        own = [remark for remark in remarks if not remark.startswith(("n too small", "with fewer than"))]
        for remark in [*([few] if part.patients < FEWEST_GROUPS else []), *own]:
            about.setdefault(remark, {})[part.value] = None
    return [f"{remark} ({', '.join(values)})" for remark, values in about.items()]
