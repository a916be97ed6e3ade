"""The table of cases, the worst first."""

from __future__ import annotations

import math
from collections.abc import Mapping

from medvid_core.report.rundata import Row, RunData
from medvid_core.report.text import UNDEFINED, counted, esc, joined, metric_name, number, section, table, tag
from medvid_core.specs import OutputSpec

MOST_ROWS = 200
"""Cases listed at most; the rest is in cases.csv."""
_MOST_NUMBERS = 4
_NAMED = ("classification", "ordinal")


def cases_section(run: RunData, merits: Mapping[str, float]) -> str:
    """Return the table of all cases, the worst first.

    Args:
        run: the run.
        merits: case id → how well a case went, where the headline metric has no value for it.
    """
    if not run.rows:
        return ""
    grouped = any(row.get("group_id") not in ("", row.get("case_id")) for row in run.rows)
    columns = _metric_columns(run)
    of_output = [(title, _as_text(output)) for output in run.others for title in _titles(run, output)]
    titles = [("case", "text"), *([("group", "text")] if grouped else []), *((t, "") for t in _frames_title(run))]
    titles += [*of_output, *((metric_name(column), "") for column in columns)]
    head = [tag("th", esc(title), scope="col", **({"class_": kind} if kind else {})) for title, kind in titles]
    ordered = sorted(run.rows, key=lambda row: _badness(run, row, merits))
    rows = [_case_row(run, row, columns, grouped) for row in ordered[:MOST_ROWS]]
    return section("Cases", table(head, rows), lead=_lead(run))


def _metric_columns(run: RunData) -> list[str]:
    """Return the metrics that cases have values of, the headline with its classes first.

    Beside truth and prediction, right and wrong as 1 and 0 says nothing more.
    """
    name = run.headline
    others = [column for column in run.columns if not run.taken_apart(column)[1] and column != name]
    columns = [name, *(f"{name}/{part}" for part in run.parts(name)), *others]
    known = [column for column in columns if run.values(column)]
    return [column for column in known if run.has_masks or set(run.values(column)) - {0.0, 1.0}]


def _frames_title(run: RunData) -> list[str]:
    """Return the head of the column that says how many frames there are, where frames are scored."""
    if run.has_masks:
        return ["frames scored"]
    return ["frames"] if any(o.task in ("anomaly", "frame_classification") for o in run.outputs) else []


def _lead(run: RunData) -> str:
    lead = f"Worst first, by {run.order}." if run.others else "Worst first."
    lead += " All values of all cases are in cases.csv beside this report."
    if len(run.rows) > MOST_ROWS:
        lead += f" The {MOST_ROWS} worst of {len(run.rows)} are listed."
    low = sum(_is_low(run, row) for row in run.scored)
    if low:
        marked = f"{counted(low, 'case')} marked ▾ {'is' if low == 1 else 'are'}"
        constant = run.baseline_names.get("constant", "")
        lead += f" {marked} " + ("wrong." if _names(run) else f"no better than the {constant} is on average.")
    unscored = len(run.rows) - len(run.scored)
    if unscored:
        known = "any annotated frame" if run.has_masks else "a known target"
        lead += f" {counted(unscored, 'case')} without {known}: not scored."
    return lead


def _badness(run: RunData, row: Row, merits: Mapping[str, float]) -> tuple[bool, float]:
    """Return the sorting key of a case: worst first, undefined last."""
    value = row.get(run.headline, math.nan)
    if not isinstance(value, float) or math.isnan(value):
        merit = merits.get(str(row.get("case_id")), math.nan)
    else:
        merit = value if run.higher_is_better(run.headline) else -value
    undefined = math.isnan(merit) or not row.get("scored_frames", 1)
    return undefined, 0.0 if undefined else merit


def _names(run: RunData) -> str:
    """Return the output whose class decides whether a case is wrong; empty where there is none."""
    first = run.outputs[0]
    return first.name if first.task in _NAMED else ""


def _is_low(run: RunData, row: Row) -> bool:
    """Whether a case is wrong, or its headline value no better than what the constant prediction reaches."""
    if _names(run):
        true, predicted = (str(row.get(f"{kind}/{_names(run)}") or "") for kind in ("true", "predicted"))
        return bool(true and predicted) and true != predicted
    value, constant = row.get(run.headline, math.nan), run.baseline("constant", run.headline)
    known = isinstance(value, float) and not math.isnan(value) and not math.isnan(constant)
    return known and not run.better(value, constant)


def _case_row(run: RunData, row: Row, columns: list[str], grouped: bool) -> str:
    low = _is_low(run, row)
    cells = [tag("th", esc(row.get("case_id", "")) + (" ▾" if low else ""), scope="row", class_="text")]
    if grouped:
        cells.append(tag("td", esc(row.get("group_id", "")), class_="text"))
    if _frames_title(run):
        cells.append(tag("td", esc(_frames(run, row))))
    for output in run.others:
        extra = {"class_": _as_text(output)} if _as_text(output) else {}
        cells += [tag("td", esc(text), **extra) for text in predicted_cells(row, output)]
    for column in columns:
        value = row.get(column, math.nan)
        bar = column == run.headline and run.higher_is_better(column) and 0 <= value <= 1
        extra = {"class_": "bar", "style": f"--part:{100 * value:.0f}%"} if bar else {}
        cells.append(tag("td", number(value), **extra))
    return tag("tr", "".join(cells), **({"class_": "low"} if low else {}))


def _frames(run: RunData, row: Row) -> str:
    """Return how many frames there are, of masks how many of them are annotated."""
    frames, scored = row.get("frames", ""), row.get("scored_frames", "")
    return f"{scored} of {frames}" if run.has_masks else str(frames)


def _titles(run: RunData, output: OutputSpec) -> list[str]:
    """Return the heads of an output's columns: what is true and what is predicted."""
    of = f" {output.name}" if len(run.others) > 1 else ""
    if output.task == "frame_classification":
        return []
    if output.task == "anomaly":
        return [f"true{of}", f"score{of}"]
    if output.task == "regression" and len(output.classes) > 1:
        return [f"{label}, {kind}" for label in output.classes[:_MOST_NUMBERS] for kind in ("true", "predicted")]
    return [f"true{of}", f"predicted{of}"]


def _as_text(output: OutputSpec) -> str:
    """Return the style of an output's cells: names flush left, numbers flush right."""
    return "" if output.task in ("regression", "anomaly") else "text"


def predicted_cells(row: Row, output: OutputSpec) -> list[str]:
    """Return what is true and what is predicted of a case, as text, one for each of an output's columns."""
    name, classes = output.name, output.classes
    if output.task in _NAMED:
        chosen = str(row.get(f"predicted/{name}") or UNDEFINED)
        sure = row.get(f"p/{name}/{chosen}", math.nan) if output.task == "classification" else math.nan
        known = str(row.get(f"true/{name}") or UNDEFINED)
        return [known, chosen if math.isnan(sure) else f"{chosen} ({sure:.2f})"]
    if output.task == "multilabel":
        return [_present(row, f"true/{name}", classes), _present(row, f"p/{name}", classes)]
    if output.task == "regression":
        ends = [f"{name}/{label}" for label in classes[:_MOST_NUMBERS]] if len(classes) > 1 else [name]
        return [number(row.get(f"{kind}/{end}", math.nan)) for end in ends for kind in ("true", "predicted")]
    if output.task == "anomaly":
        true = row.get(f"true/{name}", math.nan)
        known = UNDEFINED if math.isnan(true) else "abnormal" if true > 0 else "normal"
        return [known, number(row.get(f"score/{name}", math.nan))]
    return []


def _present(row: Row, start: str, labels: tuple[str, ...]) -> str:
    """Return the labels with more than a half; ``–`` where none is known."""
    values = {label: row.get(f"{start}/{label}", math.nan) for label in labels}
    if all(math.isnan(value) for value in values.values()):
        return UNDEFINED
    return joined([label for label, value in values.items() if value > 0.5]) or "none"
