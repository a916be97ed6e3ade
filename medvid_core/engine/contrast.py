"""What the runs of a model reach on the test cases, and how much more than another's, with intervals and tests.

What is a mean over cases (Dice, accuracy, absolute error) is treated as such, with each case's mean over the runs; what
only exists of all cases together (AUROC, F1, R²) is computed anew for every resample, and averaged over the runs.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from medvid_core.engine.finished import FinishedRun
from medvid_core.metrics.base import CaseMetric, Metric, ScoredCase
from medvid_core.metrics.gather import Drawn, nan_mean
from medvid_core.metrics.permutation import PermutationTest, holm, sign_flip_test, swap_test
from medvid_core.metrics.statistics import Interval, bootstrap, bounds_of, by_group, cut, mean_interval, paired

Metrics = Sequence[Metric | CaseMetric]


@dataclass(frozen=True)
class Value:
    """What a model reaches in one metric.

    Attributes:
        value: over all test cases; of several runs the mean over seeds.
        low: lower end of the 95 % interval over patients; NaN where there is none.
        high: its upper end.
        patients: how many.
        of_seeds: the value of each run.
        method: how the interval was found.
        note: what keeps it from being trusted; empty if nothing does.
    """

    value: float
    low: float
    high: float
    patients: int
    of_seeds: tuple[float, ...]
    method: str
    note: str

    @property
    def deviation(self) -> float:
        """Standard deviation over seeds (n - 1); NaN of fewer than two."""
        return statistics.stdev(self.of_seeds) if len(self.of_seeds) > 1 else math.nan


@dataclass(frozen=True)
class Difference:
    """What a model reaches more or less than the first one.

    Attributes:
        difference: its value minus the first one's.
        low: lower end of the 95 % interval over patients; NaN where there is none.
        high: its upper end.
        p_value: of the permutation test over patients, two-sided; NaN where it cannot be made.
        p_holm: the same, corrected by Holm for comparing several models.
        patients: how many.
        discordant: patients in whom the two differ.
        note: what keeps it from being trusted, or from finding anything; empty if nothing does.
    """

    difference: float
    low: float
    high: float
    p_value: float
    p_holm: float
    patients: int
    discordant: int
    note: str


@dataclass(frozen=True)
class RunsCase:
    """What all runs of one model made of a case.

    Attributes:
        case_id: the case.
        group_id: its patient.
        rows: its metrics, one row a run.
        scored: what was predicted beside masks, one a run; None where there is nothing.
    """

    case_id: str
    group_id: str
    rows: tuple[Mapping[str, float], ...]
    scored: tuple[ScoredCase | None, ...]


def cases_of(group: Sequence[FinishedRun], metrics: Metrics) -> list[RunsCase]:
    """Return the scored cases with what each run of a model made of them, in the order of their ids."""
    heads = {metric.name for metric in metrics}
    first = group[0]
    columns = [name for name in next(iter(first.rows.values())) if name.split("/")[0] in heads]
    others = any(isinstance(metric, CaseMetric) for metric in metrics)
    return [
        RunsCase(
            case_id=case_id,
            group_id=first.rows[case_id]["group_id"],
            rows=tuple({name: run.number(case_id, name) for name in columns} for run in group),
            scored=tuple(run.scored[case_id] if others else None for run in group),
        )
        for case_id in sorted(first.rows)
    ]


class _Summary:
    """Every metric over the cases at some places, mean over the runs: the statistic that is resampled.

    Places, not cases, are drawn, so that what is slow to gather is gathered once (`Drawn`).
    """

    def __init__(self, cases: Sequence[RunsCase], metrics: Metrics) -> None:
        runs = range(len(cases[0].rows))
        self.metrics, self.masks = metrics, any(isinstance(metric, Metric) for metric in metrics)
        self.rows = [[case.rows[number] for case in cases] for number in runs]
        # of all cases or, where masks alone are predicted, of none
        self.scored = [Drawn([one for case in cases if (one := case.scored[number]) is not None]) for number in runs]

    def __call__(self, places: Sequence[int]) -> dict[str, float]:
        """Return the mean over the runs."""
        runs = self.of_runs(places)
        return {name: statistics.fmean(run[name] for run in runs) for name in runs[0]}

    def of_runs(self, places: Sequence[int]) -> list[dict[str, float]]:
        """Return every metric of each run."""
        return [self._of_run(number, places) for number in range(len(self.rows))]

    def _of_run(self, number: int, places: Sequence[int]) -> dict[str, float]:
        rows = [self.rows[number][place] for place in places] if self.masks else []
        scored = self.scored[number].draw(places) if len(self.scored[number]) else self.scored[number]
        found: dict[str, float] = {}
        for metric in self.metrics:
            found |= metric.summarise(rows) if isinstance(metric, Metric) else metric.summarise(scored)
        return found


def _of_runs(cases: Sequence[RunsCase], metrics: Metrics) -> tuple[dict[str, tuple[float, ...]], set[str]]:
    """Return every metric of every run, and which of them are means of the cases' own values."""
    runs = _Summary(cases, metrics).of_runs(range(len(cases)))
    found = {name: tuple(run[name] for run in runs) for name in runs[0]}
    return found, {name for name, values in found.items() if _is_mean(name, cases, values)}


def _is_mean(name: str, cases: Sequence[RunsCase], of_runs: Sequence[float]) -> bool:
    """Whether a metric is the mean of the cases' own values, as metrics that have such are."""
    if name not in cases[0].rows[0]:
        return False
    means = [nan_mean([case.rows[number][name] for case in cases]) for number in range(len(of_runs))]
    return bool(np.allclose(means, of_runs, rtol=1e-9, atol=1e-12, equal_nan=True))


def _not_means(metrics: Metrics, means: set[str], names: Sequence[str]) -> list[Metric | CaseMetric]:
    """Return the metrics of which something only exists over all cases together."""
    heads = {name.split("/")[0] for name in names if name not in means}
    return [metric for metric in metrics if metric.name in heads]


def _averaged(cases: Sequence[RunsCase], name: str) -> dict[str, float]:
    """Return the mean over runs of every case's own value, by case id."""
    return {case.case_id: nan_mean([row.get(name, math.nan) for row in case.rows]) for case in cases}


def _by_patient(cases: Sequence[RunsCase], values: Mapping[str, float]) -> dict[str, list[float]]:
    return {group: [values[case.case_id] for case in mine] for group, mine in by_group(cases).items()}


def _bounds(cases: Sequence[RunsCase], name: str, higher_is_better: Mapping[str, bool]) -> tuple[float, float]:
    """Return below and above what a metric that is a mean of cases' own values cannot lie."""
    values = (row.get(name, math.nan) for case in cases for row in case.rows)
    return bounds_of(values, higher_is_better.get(name.split("/")[0], True))


def _places(cases: Sequence[RunsCase]) -> dict[str, list[int]]:
    """Return the places of every patient's cases."""
    at = {case.case_id: place for place, case in enumerate(cases)}
    return {group: [at[case.case_id] for case in mine] for group, mine in by_group(cases).items()}


def values_of(
    cases: Sequence[RunsCase], metrics: Metrics, higher_is_better: Mapping[str, bool], resamples: int
) -> dict[str, Value]:
    """Return what a model reaches in every metric, with intervals, which end where the metric does."""
    of_runs, means = _of_runs(cases, metrics)
    whole = _not_means(metrics, means, list(of_runs))
    intervals = bootstrap(_places(cases), _Summary(cases, whole), resamples) if whole else {}
    for name in means:
        values = _by_patient(cases, _averaged(cases, name))
        found = mean_interval(values) if _any_defined(values) else _undefined(len(values))
        intervals[name] = cut(found, _bounds(cases, name, higher_is_better))
    return {
        name: Value(i.value, i.low, i.high, i.groups, of_runs[name], i.method, i.note)
        for name, i in ((name, intervals[name]) for name in of_runs)
    }


def differences_of(
    mine: Sequence[RunsCase],
    first: Sequence[RunsCase],
    metrics: Metrics,
    higher_is_better: Mapping[str, bool],
    resamples: int,
) -> dict[str, Difference]:
    """Return how much more or less than the first model another reaches, in every metric of both."""
    (ours, our_means), (theirs, their_means) = _of_runs(mine, metrics), _of_runs(first, metrics)
    names, means = [name for name in ours if name in theirs], our_means & their_means
    found = {}
    for name in means:
        one, other = _averaged(mine, name), _averaged(first, name)
        (low, high), (their_low, their_high) = (_bounds(cases, name, higher_is_better) for cases in (mine, first))
        by_patient = _by_patient(mine, {key: one[key] - other[key] for key in one})
        found[name] = _mean_difference(by_patient, (low - their_high, high - their_low), resamples)
    whole = _not_means(metrics, means, names)
    if whole:
        found = _whole_differences(mine, first, whole, resamples) | found
    return {name: found[name] for name in names}


def _whole_differences(
    mine: Sequence[RunsCase], first: Sequence[RunsCase], metrics: Metrics, resamples: int
) -> dict[str, Difference]:
    """Return the differences in metrics that only exist of all cases together."""
    here, there = ({case.case_id: place for place, case in enumerate(cases)} for cases in (mine, first))
    pairs = {
        group: [(here[one.case_id], there[other.case_id]) for one, other in cases]
        for group, cases in paired(mine, first).items()
    }
    ours, theirs = _Summary(mine, metrics), _Summary(first, metrics)

    def difference(places: Sequence[tuple[int, int]]) -> dict[str, float]:
        one, other = ours([place for place, _ in places]), theirs([place for _, place in places])
        return {name: one[name] - other[name] for name in one}

    intervals = bootstrap(pairs, difference, resamples)
    runs = [len(cases[0].rows) for cases in (mine, first)]
    if runs[0] != runs[1]:
        note = f"no test: {runs[0]} runs cannot be swapped with {runs[1]}"
        return {name: _difference(interval, None, note) for name, interval in intervals.items()}
    joined = {group: [(one, len(mine) + other) for one, other in places] for group, places in pairs.items()}
    tests = swap_test(joined, _Summary([*mine, *first], metrics), resamples)
    return {name: _difference(interval, tests[name]) for name, interval in intervals.items()}


def _mean_difference(
    differences: Mapping[str, Sequence[float]], bounds: tuple[float, float], resamples: int
) -> Difference:
    if not _any_defined(differences):
        return _difference(_undefined(len(differences)), None)
    return _difference(cut(mean_interval(differences), bounds), sign_flip_test(differences, resamples))


def _difference(interval: Interval, test: PermutationTest | None, note: str = "") -> Difference:
    notes = [interval.note, test.note if test is not None else note]
    p_value = test.p_value if test is not None else math.nan
    return Difference(
        difference=interval.value,
        low=interval.low,
        high=interval.high,
        p_value=p_value,
        p_holm=p_value,
        patients=interval.groups,
        discordant=test.discordant if test is not None else 0,
        note="; ".join(dict.fromkeys(note for note in notes if note)),
    )


def _any_defined(values: Mapping[str, Sequence[float]]) -> bool:
    return any(not math.isnan(value) for each in values.values() for value in each)


def _undefined(patients: int) -> Interval:
    nan = math.nan
    return Interval(
        value=nan, low=nan, high=nan, level=0.95, groups=patients, method="", note="undefined for these cases"
    )


def correct(differences: Mapping[str, dict[str, Difference]], names: Sequence[str]) -> None:
    """Correct the p-values of every metric, by Holm, for there being several models."""
    for name in names:
        tests = {label: found[name].p_value for label, found in differences.items() if name in found}
        for label, p_holm in holm(tests).items():
            differences[label][name] = dataclasses.replace(differences[label][name], p_holm=p_holm)
