"""Compare models on the same test cases: what they reach, how sure that is, and what they cost.

Runs of one model that differ in nothing but the seed are one row: every case counts with its mean over the seeds.
Intervals and tests are over patients (`medvid_core.metrics.statistics`); every model is compared with the first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from medvid_core.data.splits import STRADDLING
from medvid_core.engine.contrast import Difference, Metrics, Value, cases_of, correct, differences_of, values_of
from medvid_core.engine.cost import Cost, CostSettings, measure_cost
from medvid_core.engine.finished import FinishedRun, check_comparable, grouped, read_finished, read_scored
from medvid_core.engine.scoring import build_metrics, own_alarms
from medvid_core.errors import ConfigError, DataError
from medvid_core.metrics.base import CaseMetric, Metric
from medvid_core.metrics.statistics import RESAMPLES
from medvid_core.plugins import registry

__all__ = ["Comparison", "Difference", "Entry", "Value", "compare", "read_scored"]

UNTRAINED = "untrained"
"""The one trivial predictor that is another for every model."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Entry:
    """One row of the comparison.

    Attributes:
        label: what the model is called in it.
        model: its full name.
        version: of the distribution that built it.
        preset: the preset it was trained with.
        runs: the run directories.
        seeds: their seeds.
        values: by name of metric.
        differences: from the first entry, by name of metric; empty of the first itself.
        untrained: what its network reaches untrained, by name of metric, as the first of its runs says.
        cost: of the first of its runs; None where it was not measured.
    """

    label: str
    model: str
    version: str
    preset: str
    runs: tuple[str, ...]
    seeds: tuple[int, ...]
    values: Mapping[str, Value]
    differences: Mapping[str, Difference] = field(default_factory=dict)
    untrained: Mapping[str, float] = field(default_factory=dict)
    cost: Cost | None = None


@dataclass(frozen=True)
class Comparison:
    """Everything a comparison found.

    Attributes:
        entries: the models; the first is what the others are compared with.
        metrics: name → whether higher is better; the headline first, parts (``dice/lv``) after their metric.
        main: the names that are no parts.
        baselines: what the trivial predictors that look at no video reach on the same cases, as the first run says:
            name → metric → value.
        tasks: of the outputs.
        data: name, place, fingerprint and part of the data, number of cases and of patients.
        notes: what a reader should know.
        resamples: of bootstrap and permutations.
    """

    entries: tuple[Entry, ...]
    metrics: Mapping[str, bool]
    main: tuple[str, ...]
    baselines: Mapping[str, Mapping[str, float]]
    tasks: tuple[str, ...]
    data: Mapping[str, Any]
    notes: tuple[str, ...]
    resamples: int


def compare(
    runs: Sequence[Path],
    out: Path,
    cost: CostSettings | None = None,
    device: torch.device | None = None,
    resamples: int = RESAMPLES,
    say: Say = lambda line: None,
    load_average: float | None = None,
) -> Comparison:
    """Compare finished runs and write the tables.

    Args:
        runs: run directories; the model of the first is what the others are compared with.
        out: folder of the tables (``comparison.json``, ``.csv``, ``.md``, ``.tex``, ``.html``).
        cost: how long to measure time, memory and energy; None not to.
        device: where to measure; None for the CPU.
        resamples: of bootstrap and permutations.
        say: shows a line of progress.
        load_average: of the machine before anything of ours ran on it; None where unknown.

    Raises:
        DataError: a run has not finished, or the runs cannot be compared, which says in what they differ.
    """
    from medvid_core.report.comparison import write_comparison

    if not runs:
        raise ConfigError("There is nothing to compare. Name finished runs, or models with --models.")
    if out.exists() and not out.is_dir():
        raise DataError(f"--out {out} is a file; it must be a folder. Choose another --out.")
    finished = [read_finished(path) for path in runs]
    check_comparable(finished)
    groups = grouped(finished)
    found = _scored(groups, resamples, say)
    if cost is not None:
        where = device or torch.device("cpu")
        entries = []
        for entry, group in zip(found.entries, groups.values(), strict=True):
            say(f"measuring {entry.label} on {where}")
            measured = measure_cost(group[0].directory, where, cost, load_average)
            entries.append(dataclasses.replace(entry, cost=measured))
        found = dataclasses.replace(found, entries=tuple(entries))
    write_comparison(found, out)
    return found


def _scored(groups: Mapping[str, Sequence[FinishedRun]], resamples: int, say: Say) -> Comparison:
    """Return all values, intervals and tests."""
    runs = [run for group in groups.values() for run in group]
    metrics = common_metrics(runs)
    higher = {name: bool(value) for name, value in (runs[0].record.get("metrics") or {}).items()}
    cases = {label: cases_of(group, metrics) for label, group in groups.items()}
    first = next(iter(cases))
    values, differences = {}, {}
    for label, mine in cases.items():
        say(f"resampling the test cases of {label}")
        values[label] = values_of(mine, metrics, higher, resamples)
        differences[label] = {} if label == first else differences_of(mine, cases[first], metrics, higher, resamples)
    names = ordered(values[first], metrics)
    correct(differences, names)
    baselines = _baselines(runs[0], names)
    baselines.pop(UNTRAINED, None)
    entries = tuple(
        Entry(
            label=label,
            model=group[0].info.name,
            version=group[0].info.version,
            preset=str(group[0].settings.get("preset", "")),
            runs=tuple(str(run.directory) for run in group),
            seeds=tuple(run.seed for run in group),
            values={name: values[label][name] for name in names if name in values[label]},
            differences={name: differences[label][name] for name in names if name in differences[label]},
            untrained=_baselines(group[0], names).get(UNTRAINED, {}),
        )
        for label, group in groups.items()
    )
    return Comparison(
        entries=entries,
        metrics={name: higher.get(name.split("/")[0], True) for name in names},
        main=tuple(name for name in names if is_whole(name, metrics)),
        baselines=baselines,
        tasks=tuple(dict.fromkeys(output.task for output in runs[0].info.outputs)),
        data={
            "name": runs[0].data.get("name"),
            "fingerprint": runs[0].data.get("fingerprint"),
            "part": runs[0].record.get("split"),
            "cases": len(runs[0].rows),
            "patients": len({row["group_id"] for row in runs[0].rows.values()}),
        },
        notes=tuple(_notes(runs, metrics)),
        resamples=resamples,
    )


def _baselines(run: FinishedRun, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return what a run's trivial predictors reach in these metrics, where that is defined."""
    recorded: Mapping[str, Mapping[str, float | None]] = run.record.get("baselines") or {}
    return {
        baseline: {name: value for name in names if (value := values.get(name)) is not None}
        for baseline, values in recorded.items()
    }


def common_metrics(runs: Sequence[FinishedRun]) -> list[Metric | CaseMetric]:
    """Return the metrics that all runs were scored with.

    Raises:
        DataError: there is none.
    """
    named = runs[0].settings["metrics"]
    built = build_metrics(registry(), [named] if isinstance(named, str) else named, runs[0].info.outputs)
    metrics = [metric for metric in built if all(metric.name in _metrics_of(run) for run in runs)]
    if not metrics:
        each = "; ".join(f"{run.directory}: {', '.join(_metrics_of(run))}" for run in runs)
        raise DataError(f"The runs have no metric in common ({each}). Score them with the same metrics.")
    return metrics


def _metrics_of(run: FinishedRun) -> list[str]:
    return list(run.record.get("metrics") or {})


def ordered(names: Mapping[str, Any], metrics: Metrics) -> list[str]:
    """Return the names of all values, each metric followed by its parts."""
    order = [metric.name for metric in metrics]
    return sorted(names, key=lambda name: order.index(name.split("/")[0]))


def is_whole(name: str, metrics: Metrics) -> bool:
    """Whether a name is that of a metric of an output, not of a part of it."""
    outputs = {f"{m.name}/{o.name}" for m in metrics for o in m.outputs if len(m.outputs) > 1}
    return name in outputs or "/" not in name


def _notes(runs: Sequence[FinishedRun], metrics: Metrics) -> list[str]:
    """Return what a reader of the comparison should know."""
    notes = []
    part = runs[0].record.get("split")
    if part != "test":
        notes.append(f"There were no test cases: these are the {part} cases, and the results are too good.")
    if any(STRADDLING in (run.record.get("notes") or ()) for run in runs):
        notes.append(f"{STRADDLING[0].upper()}{STRADDLING[1:]}.")
    for run in runs:
        alarms = run.record.get("alarm_thresholds") or {}
        if remark := own_alarms(metrics, run.info.outputs, alarms, str(part)):
            notes.append(f"{run.directory}: {remark}.")
    names = {metric.name for metric in metrics}
    if left_out := sorted({name for run in runs for name in _metrics_of(run)} - names):
        notes.append(f"Not every run has been scored with {', '.join(left_out)}: left out.")
    if any(set(run.splits.get("train", ())) != set(runs[0].splits.get("train", ())) for run in runs):
        notes.append("The runs were not trained on the same cases.")
    versions = {str((run.record.get("versions") or {}).get("torch")) for run in runs}
    if len(versions) > 1:
        notes.append(f"The runs were trained with different versions of PyTorch: {', '.join(sorted(versions))}.")
    return notes
