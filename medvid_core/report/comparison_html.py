"""The page of a comparison: one HTML file that needs no network and no script, in the style of a run's report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from medvid_core.report.comparison import Table, tables, title
from medvid_core.report.palette import palette, to_hex
from medvid_core.report.plots import FAINT, INK, plot
from medvid_core.report.text import counted, document, esc, facts, metric_name, section, table, tag

if TYPE_CHECKING:
    from medvid_core.engine.compare import Comparison, Entry

Axes = Any
MOST_PLOTS = 6
"""Metrics that are drawn; all of them stand in the tables."""


def page(comparison: Comparison) -> str:
    """Return the whole page; every text in it is escaped."""
    heading = title(comparison)
    data = comparison.data
    subtitle = f"{counted(data['cases'], 'case')} of {counted(data['patients'], 'patient')} · {data['part']} part"
    notes = "".join(tag("p", esc(note)) for note in comparison.notes)
    pictures = section("Metrics", intervals_plot(comparison), accuracy_against_time(comparison))
    first, *rest = [table_section(found) for found in tables(comparison)]
    parts = [
        tag("header", tag("h1", esc(heading)) + tag("p", esc(subtitle))),
        tag("div", notes, class_="notice", role="note") if notes else "",
        first,
        pictures,
        *rest,
        _runs(comparison),
        tag("footer", "medvid"),
    ]
    return document(heading, parts)


def table_section(found: Table) -> str:
    """Return a table as a section of a page."""
    head = [tag("th", esc(name), scope="col") for name in found.head]
    rows = [
        tag("tr", tag("th", esc(row[0]), scope="row") + "".join(tag("td", esc(cell)) for cell in row[1:]))
        for row in found.rows
    ]
    after = tag("p", esc(found.after), class_="lead") if found.after else ""
    return section(found.title, table(head, rows), after, lead=found.lead)


def _runs(comparison: Comparison) -> str:
    pairs = [
        (entry.label, f"{entry.model} {entry.version}, preset {entry.preset}: {', '.join(entry.runs)}")
        for entry in comparison.entries
    ]
    return section("Runs", facts([*pairs, ("data fingerprint", str(comparison.data.get("fingerprint", ""))[:16])]))


def _colours(entries: Sequence[Entry]) -> list[str]:
    return [to_hex(colour) for colour in palette(len(entries) + 1)[1:]]


def intervals_plot(comparison: Comparison) -> str:
    """Return a picture of every model's value with its interval, for the first metrics."""
    drawn = [name for name in comparison.main if _defined(comparison, name)][:MOST_PLOTS]
    pictures = [tag("div", _forest(comparison, name)) for name in drawn]
    return tag("div", "".join(pictures), class_="curves") if pictures else ""


def _defined(comparison: Comparison, name: str) -> bool:
    return any(not math.isnan(entry.values[name].value) for entry in comparison.entries)


def _forest(comparison: Comparison, name: str) -> str:
    entries, colours = comparison.entries, _colours(comparison.entries)
    constant = comparison.baselines.get("constant", {}).get(name)

    def draw(axes: Axes) -> None:
        for row, (entry, colour) in enumerate(zip(entries, colours, strict=True)):
            value = entry.values[name]
            if not math.isnan(value.low):
                axes.plot([value.low, value.high], [row, row], color=colour)
            axes.plot([value.value], [row], "o", ms=7, color=colour)
            axes.plot(value.of_seeds, [row] * len(value.of_seeds), "|", ms=9, color=INK)
        if constant is not None:
            axes.axvline(constant, color=INK, linewidth=1, linestyle=":")
        axes.set_yticks(range(len(entries)), [entry.label for entry in entries])
        axes.set_ylim(len(entries) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        axes.set_title(f"{metric_name(name)} ({'higher' if comparison.metrics[name] else 'lower'} is better)")

    alt = f"{metric_name(name)} of every model with 95 % interval; strokes are seeds, dots the constant prediction"
    return plot(draw, alt, height=1.1 + 0.42 * len(entries))


def accuracy_against_time(comparison: Comparison) -> str:
    """Return a picture of the headline metric against the time of a clip; empty where no time was measured."""
    name = comparison.main[0]
    pairs = zip(comparison.entries, _colours(comparison.entries), strict=True)
    shown = [
        (entry.label, entry.cost.latency_s * 1e3, entry.values[name], colour)
        for entry, colour in pairs
        if entry.cost is not None and not math.isnan(entry.values[name].value)
    ]
    if not shown:
        return ""

    def draw(axes: Axes) -> None:
        for label, time_ms, value, colour in shown:
            if not math.isnan(value.low):
                axes.plot([time_ms, time_ms], [value.low, value.high], color=colour)
            axes.plot([time_ms], [value.value], "o", ms=8, color=colour)
            axes.annotate(label, (time_ms, value.value), textcoords="offset points", xytext=(7, 5), color=INK)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        axes.xaxis.set_minor_formatter(lambda x, _: f"{x:g}" if f"{x:.0e}"[0] in "25" else "")
        axes.grid(which="minor", axis="x", color=FAINT, linewidth=0.3)
        axes.margins(x=0.25)
        axes.set_xlabel("time per clip, ms (median, batch 1)")
        axes.set_title(f"{metric_name(name)} against time")

    picture = plot(draw, f"{metric_name(name)} of every model against the time of a clip", width=9.2, height=3.6)
    return tag("div", picture, class_="wide")
