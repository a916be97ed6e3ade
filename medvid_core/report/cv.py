"""The tables of a cross-validation: Markdown, CSV and JSON, and the files of its confusion matrices."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvid_core.engine.run import write_json, write_text
from medvid_core.report import figures
from medvid_core.report.comparison import Table, as_markdown, in_brackets
from medvid_core.report.overlay import safe_name
from medvid_core.report.plots import as_file
from medvid_core.report.predictions import about_positive, confusion_csv
from medvid_core.report.text import UNDEFINED, counted, metric_name, number, with_deviation

if TYPE_CHECKING:
    from medvid_core.engine.contrast import Value
    from medvid_core.engine.pooled import Classes, CrossValidation, FoldResult


def write_cv(found: CrossValidation, out: Path) -> None:
    """Write ``cv.json``, ``.csv``, ``.md``, ``.html``, ``cases.csv`` and ``patients.csv``, over those of before.

    And of every confusion matrix ``confusion….csv`` (counts), ``confusion_normalised….csv`` (shares of each true class)
    and ``confusion….svg`` (both, as a picture).
    """
    from medvid_core.report.cv_html import page

    write_text(out / "cv.csv", as_csv(_lines(found)))
    write_text(out / "cases.csv", as_csv(found.rows))
    if patients := _patient_rows(found):
        write_text(out / "patients.csv", as_csv(patients))
    for name, each in named(found.classes).items():
        if each.counts is None:
            continue
        write_text(out / f"confusion{name}.csv", confusion_csv(each.counts, each.names))
        shares = confusion_csv(figures.shares_of(each.counts), each.names)
        write_text(out / f"confusion_normalised{name}.csv", shares)
        write_text(out / f"confusion{name}.svg", as_file(confusion_picture(each)))
    write_text(out / "cv.md", markdown_of(found))
    write_text(out / "cv.html", page(found).encode("utf-8", "replace").decode("utf-8"))
    write_json(out / "cv.json", as_data(found))  # last: with it the cross-validation is there to be used


def markdown_of(found: CrossValidation) -> str:
    """Return all tables as Markdown."""
    return as_markdown(title(found), found.notes, tables(found))


def title(found: CrossValidation) -> str:
    """Return what was done."""
    return f"{found.model.rpartition('/')[2]} on {found.data['name']}: {found.of}-fold cross-validation"


def named(classes: Sequence[Classes]) -> dict[str, Classes]:
    """Return what is behind ``confusion`` in the name of each matrix's files."""
    outputs = list(dict.fromkeys(each.output.name for each in classes))
    names: list[str] = []
    for output in outputs:
        names.append(safe_name(output, names))
    ends = {output: f"-{name}" if len(outputs) > 1 else "" for output, name in zip(outputs, names, strict=True)}
    return {ends[each.output.name] + ("-patients" if each.unit == "patients" else ""): each for each in classes}


def confusion_picture(each: Classes) -> str:
    """Return a confusion matrix as inline SVG."""
    assert each.counts is not None
    heading = f"{each.output.name}: {each.unit}"
    return figures.confusion_plot(each.counts, each.names, heading, f"Confusion matrix of {heading}")


def as_data(found: CrossValidation) -> dict[str, Any]:
    """Return everything but the cases as plain data."""
    left_out = ("rows", "cases", "patients", "classes")
    plain = {item.name: getattr(found, item.name) for item in dataclasses.fields(found) if item.name not in left_out}
    for key in ("folds", "outputs", "grid"):
        plain[key] = [dataclasses.asdict(item) for item in plain[key]]
    for key in ("pooled", "per_patient"):
        plain[key] = {name: dataclasses.asdict(value) for name, value in plain[key].items()}
    plain["final"] = dataclasses.asdict(found.final) if found.final else None
    plain["over_folds"] = {
        name: {"mean": mean, "deviation": deviation}
        for name in found.metrics
        for mean, deviation in [over_folds(found, name)]
    }
    plain["classes"] = [
        {
            "output": each.output.name,
            "counted": each.unit,
            "classes": each.names,
            "positive": about_positive(each.output),
            "confusion": None if each.counts is None else each.counts.tolist(),
            "results": [dataclasses.asdict(result) for result in each.results],
        }
        for each in found.classes
    ]
    return plain


def over_folds(found: CrossValidation, name: str) -> tuple[float, float]:
    """Return mean and standard deviation (n - 1) of a metric over the folds in which it is defined."""
    values = [value for fold in found.folds if not math.isnan(value := fold.values.get(name, math.nan))]
    mean = statistics.fmean(values) if values else math.nan
    return mean, statistics.stdev(values) if len(values) > 1 else math.nan


# tables


def tables(found: CrossValidation) -> list[Table]:
    """Return all tables that have something to show."""
    parts = [name for name in found.metrics if name not in found.main]
    shown = [_results(found)]
    shown += [_by_class(each) for each in found.classes]
    shown += [_confusion(each) for each in found.classes if each.counts is not None]
    shown.append(_folds(found))
    if found.grid:
        shown.append(_grid(found))
    if found.final:
        shown.append(_final(found))
    if parts:
        rows = [_result_row(found, name) for name in parts]
        shown.append(Table("Parts of the metrics", _result_head(found), rows, lead="By class, number or threshold."))
    return shown


def arrow(found: CrossValidation, name: str) -> str:
    """Return a metric's name with the direction that is better."""
    return f"{metric_name(name)} {'↑' if found.metrics[name] else '↓'}"


def _results(found: CrossValidation) -> Table:
    data = found.data
    lead = (
        f"{counted(data['cases'], 'case')} of {counted(data['patients'], 'patient')}, each predicted by the model "
        "of the fold that had not seen it. Pooled: one value of all these cases together, in brackets its 95 % "
        "interval over patients; what training again would change is not in it."
    )
    if found.per_patient:
        lead += " Per patient: the mean probability, number or value of a patient's cases, every patient counting once."
    positive = [words for output in found.outputs if (words := about_positive(output))]
    rows = [_result_row(found, name) for name in found.main]
    after = _remarks(found.pooled, "pooled") + _remarks(found.per_patient, "per patient")
    return Table("Results", _result_head(found), rows, " ".join([lead, *positive]), " ".join(after))


def _result_head(found: CrossValidation) -> list[str]:
    patients = ["per patient"] if found.per_patient else []
    return ["metric", "pooled", *patients, "mean ± SD over folds", "constant prediction, mean over folds"]


def _result_row(found: CrossValidation, name: str) -> list[str]:
    row = [arrow(found, name), _value(found.pooled[name])]
    if found.per_patient:
        row.append(_value(found.per_patient[name]) if name in found.per_patient else UNDEFINED)
    constant = [fold.constant[name] for fold in found.folds if not math.isnan(fold.constant.get(name, math.nan))]
    return [
        *row,
        with_deviation(*over_folds(found, name)),
        number(statistics.fmean(constant) if constant else math.nan),
    ]


def _value(value: Value) -> str:
    return in_brackets(value.value, value.low, value.high)


def _remarks(values: Mapping[str, Value], where: str) -> list[str]:
    """Return what keeps values from being trusted, each remark once with the metrics it is about."""
    about: dict[str, list[str]] = {}
    whole = [name for name in values if "/" not in name]
    for name in whole:
        if note := values[name].note:
            about.setdefault(note, []).append(metric_name(name))
    return [
        f"Note ({where}{'' if len(names) == len(whole) else ': ' + ', '.join(names)}): {remark}."
        for remark, names in about.items()
    ]


def _by_class(each: Classes) -> Table:
    ranked = any(not math.isnan(result.auroc) for result in each.results)
    framed = any(result.frames is not None for result in each.results)
    head = [
        *("class", *(["frames that hold it"] if framed else []), f"true {each.unit}"),
        *("precision", "recall", "specificity", "F1", *(["AUROC"] if ranked else [])),
    ]
    rows = [
        [
            result.name,
            *([f"{result.frames:,}"] if framed else []),
            f"{result.count:,}",
            *(number(value) for value in (result.precision, result.recall, result.specificity, result.f1)),
            *([number(result.auroc)] if ranked else []),
        ]
        for result in each.results
    ]
    lead = "Pooled over folds; in each row the class named is the positive one."
    if each.unit == "pixels":
        lead += " All annotated pixels of all cases together: F1 is then the Dice of the whole data set."
    return Table(f"Classes of {each.output.name}, {each.unit}", head, rows, lead)


def _confusion(each: Classes) -> Table:
    assert each.counts is not None
    shares = figures.shares_of(each.counts)
    rows = [
        [name, *(f"{count:,} ({share:.1%})" if count else "0" for count, share in zip(row, of_row, strict=True))]
        for name, row, of_row in zip(each.names, each.counts.tolist(), shares.tolist(), strict=True)
    ]
    lead = "Rows are true, columns predicted; in brackets the share of the true class."
    return Table(f"Confusion of {each.output.name}, {each.unit}", ["true", *each.names], rows, lead)


def _folds(found: CrossValidation) -> Table:
    head = ["fold", "test cases", "patients", "best epoch", "validation"]
    rows = [
        [
            str(fold.fold),
            str(fold.cases),
            str(fold.patients),
            UNDEFINED if fold.best_epoch is None else str(fold.best_epoch),
            number(fold.validation),
            *(_of_fold(fold, name) for name in found.main),
        ]
        for fold in found.folds
    ]
    lead = "Test cases of each fold, in brackets the 95 % interval over its patients: of few it is a rough one. "
    if any(fold.best_epoch is not None for fold in found.folds):
        lead += (
            f"The epoch was chosen by {metric_name(found.main[0])} of validation cases taken from the other folds, "
            "which stands beside it; it is no result."
        )
    else:
        lead += "In no fold did validation cases choose an epoch."
    uneven = "" if math.isnan(found.imbalance) else f"Imbalance of the folds: {number(found.imbalance)} (0: all alike)."
    return Table("Folds", [*head, *(arrow(found, name) for name in found.main)], rows, lead, uneven)


def _of_fold(fold: FoldResult, name: str) -> str:
    value, interval = fold.values.get(name, math.nan), fold.intervals.get(name)
    return number(value) if interval is None else in_brackets(value, interval.low, interval.high)


def _grid(found: CrossValidation) -> Table:
    first = found.grid[0]
    head = ["settings", f"validation {metric_name(first.metric)}, mean", *(f"fold {fold.fold}" for fold in found.folds)]
    rows = [
        [
            " ".join(point.settings) + (" (chosen)" if point.name == found.chosen else ""),
            with_deviation(point.validation, _deviation(point.of_folds)),
            *map(number, point.of_folds),
        ]
        for point in found.grid
    ]
    lead = (
        f"Chosen is the point with the {'highest' if first.higher_is_better else 'lowest'} mean over folds of "
        f"{metric_name(first.metric)} on the validation cases (± SD). The test cases of the folds had no part in the "
        "choice; the results above are those of the chosen point on them."
    )
    after = (
        "The validation cases of one fold are test cases of another, so that a choice among very many points may still "
        "be somewhat too well suited to these data; a held-out test set, or other data, is free of that."
    )
    return Table("Grid", head, rows, lead, after)


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else math.nan


def _final(found: CrossValidation) -> Table:
    assert found.final is not None
    row = [found.final.run, str(found.final.epochs), found.final.reason]
    lead = (
        "Trained on the cases of all folds, without validation; the last weights are kept. It has no result of its own."
    )
    return Table("Final model", ["run", "epochs", "why so many"], [row], lead)


# files


def _lines(found: CrossValidation) -> list[dict[str, Any]]:
    """Return one row a fold, then pooled, per patient, and mean and deviation over folds."""
    lines: list[dict[str, Any]] = []
    for fold in found.folds:
        known = {"cases": fold.cases, "patients": fold.patients, "best_epoch": fold.best_epoch or ""}
        line: dict[str, Any] = {"of": f"fold {fold.fold}", "run": fold.run, **known, "validation": fold.validation}
        for name in found.metrics:
            line[name] = fold.values.get(name, math.nan)
            if interval := fold.intervals.get(name):
                line |= {f"{name}:low": interval.low, f"{name}:high": interval.high}
        lines.append(line)
    for of, values_of in (("pooled", found.pooled), ("per patient", found.per_patient)):
        if values_of:
            line = {"of": of, "cases": found.data["cases"], "patients": found.data["patients"]}
            for name, value in values_of.items():
                line |= {name: value.value, f"{name}:low": value.low, f"{name}:high": value.high}
            lines.append(line)
    for place, of in enumerate(("mean over folds", "deviation over folds")):
        lines.append({"of": of, **{name: over_folds(found, name)[place] for name in found.metrics}})
    return lines


def _patient_rows(found: CrossValidation) -> list[dict[str, Any]]:
    """Return what is predicted and known of every patient, as the columns of ``cases.csv``."""
    from medvid_core.engine.scoring import columns

    names = found.patients[0].predicted if found.patients else ()
    outputs = [output for output in found.outputs if output.name in names]
    return [{"group_id": case.group_id, **columns(case, outputs)} for case in found.patients] if outputs else []


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a table; an undefined value is an empty cell."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, names, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: "" if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()})
    return buffer.getvalue().encode("utf-8", "replace").decode("utf-8")
