"""The page of a cross-validation: one HTML file that needs no network and no script, in the style of a run's report."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from medvid_core.report.comparison_html import table_section
from medvid_core.report.cv import arrow, confusion_picture, tables, title
from medvid_core.report.plots import ACCENT, INK, plot
from medvid_core.report.predictions import output_pictures
from medvid_core.report.text import counted, document, esc, facts, metric_name, section, tag

if TYPE_CHECKING:
    from medvid_core.engine.pooled import CrossValidation

Axes = Any
MOST_PLOTS = 6
"""Metrics that are drawn; all of them stand in the tables."""


def page(found: CrossValidation) -> str:
    """Return the whole page; every text in it is escaped."""
    data = found.data
    subtitle = (
        f"{len(found.folds)} of {found.of} folds · {counted(data['cases'], 'case')} of "
        f"{counted(data['patients'], 'patient')} · preset {found.preset}"
    )
    notes = "".join(tag("p", esc(note)) for note in found.notes)
    first, *rest = [table_section(table) for table in tables(found)]
    parts = [
        tag("header", tag("h1", esc(title(found))) + tag("p", esc(subtitle))),
        tag("div", notes, class_="notice", role="note") if notes else "",
        first,
        section(
            "Folds and all together",
            _folds_plots(found),
            lead="Every point is a fold, the diamond the pooled value; lines are 95 % intervals over patients.",
        ),
        section("Predictions", *_predictions(found), lead="Pooled over folds."),
        *rest,
        section("Runs", facts([*((f"fold {fold.fold}", fold.run) for fold in found.folds), *_about(found)])),
        tag("footer", "medvid"),
    ]
    return document(title(found), parts)


def _about(found: CrossValidation) -> list[tuple[str, str]]:
    return [
        ("model", f"{found.model} {found.version}"),
        ("final", found.final.run if found.final else ""),
        ("data fingerprint", str(found.data.get("fingerprint", ""))[:16]),
    ]


def _predictions(found: CrossValidation) -> list[str]:
    """Return confusion matrices of pixels and of patients, and what else is drawn of each output's cases."""
    blocks = []
    for output in found.outputs:
        drawn = [confusion_picture(each) for each in found.classes if each.output == output and each.counts is not None]
        if output.task != "segmentation":
            drawn = drawn[1:]  # the first is among the pictures of the cases
        heading = tag("h3", esc(output.name)) if len(found.outputs) > 1 else ""
        pictures = output_pictures(output, found.cases) if output.task != "segmentation" else ""
        more = tag("div", "".join(tag("div", picture) for picture in drawn), class_="pictures") if drawn else ""
        blocks.append(heading + pictures + more)
    return blocks


def _folds_plots(found: CrossValidation) -> str:
    drawn = [name for name in found.main if not math.isnan(found.pooled[name].value)][:MOST_PLOTS]
    pictures = "".join(tag("div", _folds_plot(found, name)) for name in drawn)
    return tag("div", pictures, class_="curves") if pictures else ""


def _folds_plot(found: CrossValidation, name: str) -> str:
    """Return the folds of one metric above the pooled value, and that of patients."""
    values = [fold.values.get(name, math.nan) for fold in found.folds]
    shown = {"pooled": found.pooled[name]}
    if name in found.per_patient:
        shown["per patient"] = found.per_patient[name]

    def draw(axes: Axes) -> None:
        for row, fold in enumerate(found.folds):
            if name in fold.intervals and not math.isnan(fold.intervals[name].low):
                axes.plot([fold.intervals[name].low, fold.intervals[name].high], [row, row], color=ACCENT, alpha=0.6)
        axes.plot(values, range(len(values)), "o", ms=7, color=ACCENT)
        for row, value in enumerate(shown.values(), len(values)):
            if not math.isnan(value.low):
                axes.plot([value.low, value.high], [row, row], color=INK)
            axes.plot([value.value], [row], "D", ms=6, color=INK)
        labels = [*(f"fold {fold.fold}" for fold in found.folds), *shown]
        axes.set_yticks(range(len(labels)), labels)
        axes.set_ylim(len(labels) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        axes.locator_params(axis="x", nbins=5)
        axes.set_title(arrow(found, name))

    return plot(draw, f"{metric_name(name)} of every fold and pooled", height=1.1 + 0.3 * (len(values) + len(shown)))
