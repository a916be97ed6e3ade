"""The results of a cross-validation: of every fold, and of the test cases of all folds together.

Pooled means that the predictions of all folds stand in one table, each made by the model that had not seen the case,
and every metric is computed once of all of them. A mean over folds would depend on how the cases fell, and of AUROC or
F1 it is another thing.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medvid_core.data.folds import lacking
from medvid_core.data.splits import STRADDLING
from medvid_core.engine.compare import common_metrics, is_whole, ordered
from medvid_core.engine.contrast import RunsCase, Value, cases_of, values_of
from medvid_core.engine.curves import at_one_threshold
from medvid_core.engine.cv_folds import Divided
from medvid_core.engine.finished import FinishedRun, read_pixels
from medvid_core.engine.scoring import mask_classes, own_alarms, read_holding
from medvid_core.metrics.base import CaseMetric, Metric, ScoredCase
from medvid_core.metrics.classification import ClassResult, class_results, confusion, decide, ranked_results
from medvid_core.metrics.frames import known_frames
from medvid_core.metrics.gather import together
from medvid_core.metrics.patients import averaged, of_patients
from medvid_core.metrics.statistics import by_group
from medvid_core.specs import OutputSpec

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class FoldResult:
    """What one fold came to.

    Attributes:
        fold: its number.
        run: its run directory, within the folder of the cross-validation.
        cases: number of test cases that were scored.
        patients: of them.
        best_epoch: see `best_epoch`.
        validation: the first metric of the validation cases, of the weights that were kept; NaN where there are none.
        values: every metric of the test cases.
        intervals: the same with their intervals over patients.
        constant: what the best constant prediction reaches there.
    """

    fold: int
    run: str
    cases: int
    patients: int
    best_epoch: int | None
    validation: float
    values: Mapping[str, float]
    intervals: Mapping[str, Value]
    constant: Mapping[str, float]


@dataclass(frozen=True)
class Classes:
    """How classes were confused.

    Attributes:
        output: what was predicted.
        unit: what is counted: ``cases``, ``patients``, ``frames`` or ``pixels``.
        names: of the classes.
        counts: [K,K], rows true; None of labels, which do not exclude one another.
        results: class by class.
    """

    output: OutputSpec
    unit: str
    names: tuple[str, ...]
    counts: Integers | None
    results: tuple[ClassResult, ...]


@dataclass(frozen=True)
class GridPoint:
    """One combination of settings that was tried.

    Attributes:
        name: of its folder.
        settings: ``key=value`` words.
        metric: the metric it is judged by.
        higher_is_better: of that.
        of_folds: its value on the validation cases of each fold.
        validation: their mean.
    """

    name: str
    settings: tuple[str, ...]
    metric: str
    higher_is_better: bool
    of_folds: tuple[float, ...]
    validation: float


@dataclass(frozen=True)
class Final:
    """The model that was trained on all cases: its run, the number of epochs, and why so many."""

    run: str
    epochs: int
    reason: str


@dataclass(frozen=True)
class CrossValidation:
    """Everything a cross-validation found.

    Attributes:
        model: its full name.
        version: of the distribution that built it.
        preset: its preset.
        data: name, fingerprint, number of pooled cases and patients, and of cases held out.
        outputs: what is predicted.
        folds: those that were trained.
        of: how many there are.
        imbalance: of the folds; NaN where unknown.
        metrics: name → whether higher is better, parts after their metric.
        main: the names that are no parts.
        pooled: every metric of all test cases together, with its interval over patients.
        per_patient: the same with one result a patient; empty where every patient has one case.
        classes: confusion and results by class.
        runs: the run directories, within the folder.
        rows: of every test case, fold and all columns.
        cases: what was predicted beside masks.
        patients: the same, one a patient.
        notes: what a reader should know.
        resamples: of the bootstrap.
        grid: the points that were tried; empty where there was one.
        chosen: the name of the best; empty likewise.
        final: the model trained on all; None where none was.
    """

    model: str
    version: str
    preset: str
    data: Mapping[str, Any]
    outputs: tuple[OutputSpec, ...]
    folds: tuple[FoldResult, ...]
    of: int
    imbalance: float
    metrics: Mapping[str, bool]
    main: tuple[str, ...]
    pooled: Mapping[str, Value]
    per_patient: Mapping[str, Value]
    classes: tuple[Classes, ...]
    runs: tuple[str, ...]
    rows: tuple[Mapping[str, str], ...]
    cases: tuple[ScoredCase, ...]
    patients: tuple[ScoredCase, ...]
    notes: tuple[str, ...]
    resamples: int
    grid: tuple[GridPoint, ...] = ()
    chosen: str = ""
    final: Final | None = None


@dataclass(frozen=True)
class _Pool:
    """The test cases of all folds."""

    metrics: Sequence[Metric | CaseMetric]
    higher: Mapping[str, bool]
    outputs: tuple[OutputSpec, ...]
    cases: Sequence[RunsCase]
    scored: Sequence[ScoredCase] = field(default_factory=list)


def as_float(value: Any) -> float:
    """Return a number of a record, where null stands for NaN."""
    return math.nan if value is None else float(value)


def best_epoch(run: FinishedRun) -> int | None:
    """Return the epoch, from 1, whose weights a run kept; None where validation cases did not choose it.

    That is where there are none, or where all evaluations came to the same: then the first was kept, not the best.
    """
    best = run.record.get("best") or {}
    if best.get("value") is None or not run.splits.get("val"):
        return None
    lines = [json.loads(line) for line in (run.directory / "metrics.jsonl").read_text("utf-8").splitlines()]
    name = next(iter(run.record["metrics"]))
    values = [line.get(name) for line in lines if line.get("kind") == "evaluation"]
    if len(values) > 1 and len(set(values)) == 1:
        return None
    steps = {line["step"]: line["epoch"] for line in lines if line.get("kind") == "train"}
    return int(steps[best["step"]]) + 1 if best.get("step") in steps else None


def pool(runs: Sequence[FinishedRun], divided: Divided, out: Path, resamples: int) -> CrossValidation:
    """Put the results of the folds together.

    Args:
        runs: the runs of the folds, in their order from 0.
        divided: all folds, and what is known of the cases.
        out: the folder of the cross-validation.
        resamples: of patients, for intervals.
    """
    folds = divided.folds
    own, runs = runs, at_one_threshold(runs)
    pooled = _pooled(runs)
    values = values_of(pooled.cases, pooled.metrics, pooled.higher, resamples)
    names = ordered(values, pooled.metrics)
    several = len(by_group(pooled.cases)) < len(pooled.cases)
    patients, left_out = averaged(pooled.scored, pooled.outputs) if several else ([], {})
    per_patient = _per_patient(pooled, patients, left_out, resamples) if several else {}
    first = runs[0]
    return CrossValidation(
        model=first.info.name,
        version=first.info.version,
        preset=str(first.settings.get("preset", "")),
        data={
            "name": first.data.get("name"),
            "fingerprint": first.data.get("fingerprint"),
            "cases": len(pooled.cases),
            "patients": len(by_group(pooled.cases)),
            "held_out": len(folds.held_out),
        },
        outputs=pooled.outputs,
        folds=tuple(_fold(number, run, out, pooled, resamples) for number, run in enumerate(own)),
        of=len(folds.test),
        imbalance=folds.imbalance,
        metrics={name: pooled.higher.get(name.split("/")[0], True) for name in names},
        main=tuple(name for name in names if is_whole(name, pooled.metrics)),
        pooled={name: values[name] for name in names},
        per_patient=per_patient,
        classes=tuple(_classes(runs, pooled, patients, left_out)),
        runs=tuple(str(run.directory.relative_to(out)) for run in runs),
        rows=tuple({"fold": str(number), **row} for number, run in enumerate(runs) for row in run.rows.values()),
        cases=tuple(pooled.scored),
        patients=tuple(patients),
        notes=tuple(_notes(runs, divided, pooled, several, left_out)),
        resamples=resamples,
    )


def _pooled(runs: Sequence[FinishedRun]) -> _Pool:
    """Return the test cases of all folds; where a fold's table lacks a column, its cases have no value."""
    outputs = tuple(
        _mean_output([run.info.outputs[place] for run in runs]) for place in range(len(runs[0].info.outputs))
    )
    seen = [replace(run, info=replace(run.info, outputs=outputs)) for run in runs]
    metrics = common_metrics(seen)
    cases = [case for run in seen for case in cases_of([run], metrics)]
    columns = dict.fromkeys(name for case in cases for name in case.rows[0])
    cases = [replace(case, rows=({name: case.rows[0].get(name, math.nan) for name in columns},)) for case in cases]
    higher = {name: bool(value) for name, value in (runs[0].record.get("metrics") or {}).items()}
    others = any(output.task != "segmentation" for output in outputs)
    scored = [case for run in seen for case in run.scored.values()] if others else []
    return _Pool(metrics, higher, outputs, cases, scored)


def _mean_output(outputs: Sequence[OutputSpec]) -> OutputSpec:
    """Return an output with the mean over folds of what its training cases centre on: metrics ask what is low."""
    return replace(
        outputs[0],
        center=tuple(statistics.fmean(values) for values in zip(*(o.center for o in outputs), strict=True)),
        scale=tuple(statistics.fmean(values) for values in zip(*(o.scale for o in outputs), strict=True)),
    )


def _per_patient(
    pooled: _Pool, patients: Sequence[ScoredCase], left_out: Mapping[str, str], resamples: int
) -> dict[str, Value]:
    """Return every metric with one result a patient."""
    metrics = of_patients(pooled.metrics, list(left_out))
    if not metrics:
        return {}
    of_masks = {metric.name for metric in metrics if isinstance(metric, Metric)}
    scored = {case.group_id: case for case in patients}
    others = any(isinstance(metric, CaseMetric) for metric in metrics)
    cases = []
    for group, mine in by_group(pooled.cases).items():
        row = {
            name: _mean([case.rows[0][name] for case in mine])
            for name in mine[0].rows[0]
            if name.split("/")[0] in of_masks
        }
        for metric in metrics:
            row |= metric.per_case(scored[group]) if isinstance(metric, CaseMetric) else {}
        cases.append(RunsCase(group, group, (row,), (scored[group] if others else None,)))
    columns = dict.fromkeys(name for case in cases for name in case.rows[0])
    cases = [replace(case, rows=({name: case.rows[0].get(name, math.nan) for name in columns},)) for case in cases]
    found = values_of(cases, metrics, pooled.higher, resamples)
    return {name: found[name] for name in ordered(found, metrics)}


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return statistics.fmean(known) if known else math.nan


def _fold(number: int, run: FinishedRun, out: Path, pooled: _Pool, resamples: int) -> FoldResult:
    """Return what a fold came to; a metric that chooses a threshold does so on the cases of the fold alone."""
    intervals = values_of(cases_of([run], pooled.metrics), pooled.metrics, pooled.higher, resamples)
    baselines = run.record.get("baselines") or {}
    return FoldResult(
        fold=number,
        run=str(run.directory.relative_to(out)),
        cases=len(run.rows),
        patients=len({row["group_id"] for row in run.rows.values()}),
        best_epoch=best_epoch(run),
        validation=as_float((run.record.get("best") or {}).get("value")),
        values={name: as_float(value) for name, value in (run.record.get("results") or {}).items()},
        intervals=intervals,
        constant={name: as_float(value) for name, value in (baselines.get("constant") or {}).items()},
    )


def _classes(
    runs: Sequence[FinishedRun], pooled: _Pool, patients: Sequence[ScoredCase], left_out: Mapping[str, str]
) -> list[Classes]:
    """Return how the classes of every output were confused: in cases, patients, frames or pixels."""
    found = []
    for output in pooled.outputs:
        if output.task == "segmentation":
            tables = [counts for run in runs for counts in read_pixels(run.directory, output).values()]
            counts = np.sum(tables, axis=0)
            names, frames = mask_classes(output), np.sum([read_holding(run.directory, output) for run in runs], axis=0)
            found.append(Classes(output, "pixels", names, counts, tuple(class_results(counts, names, frames))))
        elif output.task == "frame_classification":
            pairs = [known_frames(case, output) for case in pooled.scored]
            size = len(output.classes)
            counts = np.sum([confusion(*pair, size) for pair in pairs], axis=0)
            found.append(
                Classes(output, "frames", output.classes, counts, tuple(class_results(counts, output.classes)))
            )
        elif output.task in ("classification", "ordinal", "multilabel"):
            found.append(_of_cases(output, pooled.scored, "cases"))
            if patients and output.name not in left_out:
                found.append(_of_cases(output, patients, "patients"))
    return found


def _of_cases(output: OutputSpec, cases: Sequence[ScoredCase], unit: str) -> Classes:
    counts = None
    if output.task != "multilabel":
        predicted, true = together(cases, output)
        counts = confusion(true, decide(output, predicted), len(output.classes))
    if output.task == "ordinal" and counts is not None:
        results = class_results(counts, output.classes)
    else:
        results = ranked_results(output, cases)
    return Classes(output, unit, output.classes, counts, tuple(results))


def _notes(
    runs: Sequence[FinishedRun], divided: Divided, pooled: _Pool, several: bool, left_out: Mapping[str, str]
) -> list[str]:
    """Return what a reader should know."""
    notes, folds = [], divided.folds
    if len(runs) < len(folds.test):
        notes.append(f"{len(runs)} of {len(folds.test)} folds were trained: the cases of the others have no result.")
    if folds.held_out:
        notes.append(f"{len(folds.held_out)} case(s) are held out: they are in no fold.")
    notes += _skipped(runs, divided.lost)
    if any(STRADDLING in (run.record.get("notes") or ()) for run in runs):
        notes.append(f"{STRADDLING[0].upper()}{STRADDLING[1:]}.")
    notes += _of_all(runs)
    if not several:
        notes.append("Every patient has one case, as far as is known: results per case and per patient are the same.")
    notes += [f"{name} has no result per patient: {reason}." for name, reason in left_out.items()]
    for number, missing in lacking(folds, divided.contents, "test").items():
        if number < len(runs):
            notes.append(f"Fold {number}: no test case holds {', '.join(missing)}; its own values leave that out.")
    for number, run in enumerate(runs):
        if remark := own_alarms(pooled.metrics, run.info.outputs, run.record.get("alarm_thresholds") or {}, "test"):
            notes.append(f"Fold {number}: {remark}.")
        if problems := [row for row in run.tested if row not in run.rows]:
            notes.append(f"Fold {number}: {len(problems)} test case(s) were not scored, e.g. {problems[0]!r}.")
        if best_epoch(run) is None and run.splits.get("val"):
            notes.append(f"Fold {number}: validation cases chose no checkpoint; no evaluation was better than another.")
    if any(output.task == "anomaly" for output in pooled.outputs):
        notes.append(
            "Anomaly scores of different models differ in scale: pooled AUROC may be too low, see those of the folds."
        )
    return notes


def _skipped(runs: Sequence[FinishedRun], lost: Mapping[str, frozenset[str]]) -> list[str]:
    """Return, in words, which cases no run could use, and what they hold."""
    reasons = {name: str(reason) for run in runs for name, reason in (run.data.get("skipped") or {}).items()}
    if not reasons:
        return []
    held = Counter(label for name in reasons for label in lost.get(name, ()))
    classes = f" ({', '.join(f'{count} × {label}' for label, count in sorted(held.items()))})" if held else ""
    name, reason = next(iter(reasons.items()))
    return [f"{len(reasons)} case(s) are left out{classes}: they cannot be used, e.g. {name!r}: {reason.rstrip('.')}."]


def _of_all(runs: Sequence[FinishedRun]) -> list[str]:
    """Return what every run noted as it began, but for what is told of here in other words."""
    first, *others = [[str(note) for note in run.record.get("notes") or ()] for run in runs]
    told = ("left out ", "… and ", STRADDLING)
    return [
        f"All folds: {note.rstrip('.')}."
        for note in first
        if all(note in o for o in others) and not note.startswith(told)
    ]
