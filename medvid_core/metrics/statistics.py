"""Intervals and tests for metrics of patients who may have several cases each.

Cases of one patient are alike, so patients are what is drawn, swapped and counted; treating their cases as independent
gives intervals that are too narrow and differences that are not there (`benchmarks/patients.py` shows both, and how
close to 95 and 5 % what is here comes). Which to use:

| metric | interval | is one model better? (`medvid_core.metrics.permutation`) |
| --- | --- | --- |
| mean of values of cases (Dice, accuracy, absolute error) | `mean_interval` | `sign_flip_test` |
| only of all cases together (AUROC, F1, R²) | `bootstrap` of `by_group` | `swap_test` of `paired` |
| difference of two models, any metric | `bootstrap` of `paired`, with `difference` | |

What too few patients allow is said in ``note``. Everything is a function of its arguments and the seed; the order of
cases and groups changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from scipy import special, stats

from medvid_core.errors import DataError

Floats = npt.NDArray[np.float64]
T = TypeVar("T")
Statistic = Callable[[Sequence[T]], Mapping[str, float]]
"""What turns cases into named values, such as `medvid_core.metrics.CaseMetric.summarise`."""

RESAMPLES = 2000
FEWEST_GROUPS = 20
"""With fewer patients, intervals are said to be rough: at 10, some hold the truth 80 % of the time, not 95 %."""


class Identified(Protocol):
    """A case that knows its patient."""

    @property
    def case_id(self) -> str:
        """The case."""

    @property
    def group_id(self) -> str:
        """Its patient."""


C = TypeVar("C", bound=Identified)


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A value and where the truth lies with a given confidence.

    Attributes:
        value: the metric of all cases.
        low: lower end; NaN where there is no interval.
        high: upper end.
        level: the confidence, 0.95 for 95 %.
        groups: number of patients.
        method: how it was found.
        undefined: share of the resamples in which the metric was undefined; these are left out.
        note: what keeps it from being trusted; empty if nothing does.
    """

    value: float
    low: float
    high: float
    level: float
    groups: int
    method: str
    undefined: float = 0.0
    note: str = ""


def by_group(cases: Sequence[C]) -> dict[str, list[C]]:
    """Return the cases of every patient, in the order of their ids."""
    found: dict[str, list[C]] = {}
    for case in sorted(cases, key=lambda case: (case.group_id, case.case_id)):
        found.setdefault(case.group_id, []).append(case)
    return found


def paired(first: Sequence[C], second: Sequence[C]) -> dict[str, list[tuple[C, C]]]:
    """Return, by patient, what two models made of the same cases.

    Raises:
        DataError: they were not scored on the same cases of the same patients, or a case occurs twice.
    """
    theirs = {case.case_id: case for case in second}
    if len(theirs) < len(second) or len({case.case_id for case in first}) < len(first):
        raise DataError("A case occurs twice among those of one model; case ids must be unique to be compared.")
    if lonely := sorted(theirs.keys() ^ {case.case_id for case in first}):
        raise DataError(
            f"The models were scored on different cases: {len(lonely)} of one are missing from the other, the first is "
            f"{lonely[0]!r}. Evaluate both on the same split."
        )
    for case in first:
        if theirs[case.case_id].group_id != case.group_id:
            raise DataError(
                f"Case {case.case_id!r} is of patient {case.group_id!r} for one model and of "
                f"{theirs[case.case_id].group_id!r} for the other. Evaluate both on the same data."
            )
    return {group: [(case, theirs[case.case_id]) for case in cases] for group, cases in by_group(first).items()}


def difference(statistic: Statistic[T]) -> Statistic[tuple[T, T]]:
    """Return the statistic of pairs that is the first model's value minus the second's."""

    def of_pairs(pairs: Sequence[tuple[T, T]]) -> dict[str, float]:
        first, second = statistic([one for one, _ in pairs]), statistic([other for _, other in pairs])
        return {name: first[name] - second[name] for name in first}

    return of_pairs


def bootstrap(
    cases_by_group: Mapping[str, Sequence[T]],
    statistic: Statistic[T],
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Interval]:
    """Return an interval for every value of a statistic, by drawing patients with all their cases.

    BCa intervals (Efron, JASA 1987): percentiles of the resampled values, corrected for bias and for a spread that
    depends on the value, the latter from leaving out each patient in turn. They are read off at √(G/(G-1)) times
    Student's instead of the normal quantile, because plain percentiles are too narrow for few patients G (Hesterberg,
    The American Statistician 2015, "expanded percentiles").

    Args:
        cases_by_group: the cases, or pairs of `paired`, of every patient.
        statistic: called ``resamples`` times and once for each patient.
        resamples: how often patients are drawn.
        seed: of the draws; the same for two models draws the same patients.
        level: confidence.

    Raises:
        DataError: there are no patients.
    """
    ids = sorted(cases_by_group)
    if not ids:
        raise DataError("There are no cases to resample.")
    groups = [list(cases_by_group[name]) for name in ids]
    count = len(groups)

    def of(chosen: Sequence[int]) -> Mapping[str, float]:
        return statistic([case for number in chosen for case in groups[number]])

    value = of(range(count))
    if count == 1:
        note = "n too small: one patient, nothing to resample"
        return {name: _no_interval(v, level, 1, "BCa bootstrap", note) for name, v in value.items()}
    drawn = [of(chosen) for chosen in draw_groups(count, resamples, seed).tolist()]
    without = [of([i for i in range(count) if i != left_out]) for left_out in range(count)]
    return {
        name: bca_interval(v, column(drawn, name), column(without, name), count, level) for name, v in value.items()
    }


def draw_groups(count: int, resamples: int, seed: int) -> npt.NDArray[np.int64]:
    """Return which of ``count`` groups each resample consists of, with repetition, [resamples,count]."""
    return np.random.default_rng(seed).integers(0, count, (resamples, count))


def column(rows: Sequence[Mapping[str, float]], name: str) -> Floats:
    """Return one value of every row; NaN where a row lacks it."""
    return np.array([row.get(name, math.nan) for row in rows], dtype=np.float64)


def _no_interval(value: float, level: float, groups: int, method: str, note: str) -> Interval:
    return Interval(value=value, low=math.nan, high=math.nan, level=level, groups=groups, method=method, note=note)


def bca_interval(value: float, drawn: Floats, without: Floats, groups: int, level: float) -> Interval:
    """Return the BCa interval of a metric from its values in other sets of patients (see `bootstrap`).

    Args:
        value: of all patients.
        drawn: of resampled patients [resamples]; NaN where undefined.
        without: of all patients but one, [groups]; NaN likewise.
        groups: number of patients.
        level: confidence.
    """
    defined, kept = drawn[~np.isnan(drawn)], without[~np.isnan(without)]
    undefined = 1 - len(defined) / len(drawn)
    if math.isnan(value) or not len(defined):
        return _no_interval(value, level, groups, "BCa bootstrap", "undefined for these cases")
    low, high = np.quantile(defined, _bca_levels(value, defined, kept, groups, level))
    note = _notes(
        _few(groups),
        f"undefined in {undefined:.0%} of the resamples" if undefined > 0.05 else "",
        "every resample gives the same value, so that the interval says nothing" if np.ptp(defined) == 0 else "",
    )
    return Interval(
        value=value,
        low=float(low),
        high=float(high),
        level=level,
        groups=groups,
        method="BCa bootstrap",
        undefined=undefined,
        note=note,
    )


def _bca_levels(value: float, drawn: Floats, without: Floats, groups: int, level: float) -> Floats:
    """Return the two shares of the resampled values between which the interval lies."""
    below = (np.mean(drawn < value) + np.mean(drawn <= value)) / 2
    bias = special.ndtri(np.clip(below, 1 / len(drawn), 1 - 1 / len(drawn)))
    deviations = without.mean() - without if len(without) else np.zeros(1)
    spread = (deviations**2).sum()
    acceleration = (deviations**3).sum() / (6 * spread**1.5) if spread > 0 else 0.0
    half = math.sqrt(groups / (groups - 1)) * stats.t.ppf((1 + level) / 2, groups - 1)
    z = bias + np.array([-half, half])
    # the pole is reached with few patients only; from there on the end is the most extreme resample
    shrunk = np.maximum(1 - acceleration * z, 1e-9)
    levels: Floats = special.ndtr(bias + z / shrunk)
    return levels


def _notes(*notes: str) -> str:
    return "; ".join(filter(None, notes))


def _few(groups: int) -> str:
    if groups >= FEWEST_GROUPS:
        return ""
    return f"n too small: {groups} patients; with fewer than {FEWEST_GROUPS} intervals tend to be too narrow"


def mean_interval(values_by_group: Mapping[str, Sequence[float]], level: float = 0.95) -> Interval:
    """Return the mean over cases with Student's interval over patients.

    The standard error is that of a ratio of sums over patients, √(G/(G-1) Σ (S_g - m n_g)²) / Σ n_g with S_g the sum
    and n_g the number of a patient's values (Cochran, Sampling Techniques, 1977, §6.4), and there are G - 1 degrees of
    freedom. With as many cases of every patient this is the t-interval of the patients' means. It is not cut where a
    metric ends, at 0 or 1: see `bounds_of`.

    Args:
        values_by_group: the values of each patient's cases; NaN is left out.
        level: confidence.

    Raises:
        DataError: there are no values.
    """
    kept = defined_values(values_by_group)
    if not kept:
        raise DataError("There are no values to take the mean of: all are undefined.")
    sums, counts = np.array([sum(values) for values in kept]), np.array([len(values) for values in kept])
    groups, method, mean = len(kept), "t-interval over patients", float(sums.sum() / counts.sum())
    if groups == 1:
        return _no_interval(mean, level, 1, method, "n too small: one patient, nothing to compare with")
    residual = sums - mean * counts
    error = math.sqrt(groups / (groups - 1) * (residual**2).sum()) / counts.sum()
    half = float(stats.t.ppf((1 + level) / 2, groups - 1)) * error
    note = _notes(_few(groups), "" if error else "all patients are alike, so that the interval says nothing")
    return Interval(value=mean, low=mean - half, high=mean + half, level=level, groups=groups, method=method, note=note)


def bounds_of(values: Iterable[float], share: bool) -> tuple[float, float]:
    """Return below and above what the mean of such values cannot lie: an interval that is shown ends there.

    Values of which none is negative have a mean of at least 0; those of a ``share``, which all lie in [0, 1], one of at
    most 1.

    Args:
        values: of cases; NaN is left out.
        share: whether the metric is one of those of which 1 is the best.
    """
    known = [value for value in values if not math.isnan(value)]
    low = 0.0 if min(known, default=0.0) >= 0 else -math.inf
    return low, 1.0 if share and low == 0 and max(known, default=0.0) <= 1 else math.inf


def cut(interval: Interval, bounds: tuple[float, float]) -> Interval:
    """Return an interval that ends at the bounds; one that is undefined stays so."""
    low, high = (float(np.clip(end, *bounds)) for end in (interval.low, interval.high))
    return replace(interval, low=low, high=high)


def defined_values(values_by_group: Mapping[str, Sequence[float]]) -> list[list[float]]:
    """Return the values of each patient who has any that is not NaN, in the order of their ids."""
    kept = ([v for v in values_by_group[name] if not math.isnan(v)] for name in sorted(values_by_group))
    return [values for values in kept if values]
