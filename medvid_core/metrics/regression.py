"""Metrics of numbers predicted for whole cases, such as the ejection fraction.

Conventions. Every case counts the same; differences are predicted - true, in the unit of the target. An output of
several numbers has a value for each, ``<metric>/<number>``, and the mean of these as its own: of use where they share
a unit. What is undefined (R² of equal values, a correlation with a constant) is NaN. A metric that has values per case
is their mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from scipy import stats

from medvid_core.metrics.base import CaseMetric, Floats, ScoredCase, of_masks_or_cases
from medvid_core.metrics.curves import auroc
from medvid_core.metrics.gather import nan_mean, stacked, together
from medvid_core.metrics.segmentation import MeanAbsoluteError as PixelError
from medvid_core.specs import OutputSpec

THRESHOLDS = (35.0, 40.0, 45.0, 50.0)
"""Below these an ejection fraction, in percent, counts as reduced (those of EchoNet-Dynamic)."""

WORSENED = 10.0
"""A number that fell by so much, or more, since it was measured last has worsened: percentage points of an EF."""

_REACH = 3.0
"""A threshold is asked for if it lies within so many standard deviations of the mean of the training cases."""


def thresholds_of(output: OutputSpec, number: int) -> tuple[float, ...]:
    """Return those of `THRESHOLDS` that values of this number are likely to lie on both sides of.

    They say nothing of a volume in litres. Judged by the training cases, so that they are the same for every set of
    cases; all of them where the output does not say how its values are spread.
    """
    if not output.scale:
        return THRESHOLDS
    return tuple(t for t in THRESHOLDS if abs(t - output.center[number]) <= _REACH * output.scale[number])


class _PerNumber(CaseMetric):
    """A metric with a value, and parts, for each number of an output."""

    tasks = ("regression",)

    def of_number(self, predicted: Floats, true: Floats, output: OutputSpec, number: int) -> dict[str, float]:
        """Return the value, under "", and the parts, of one number in the N cases where it is known, [N] each."""
        raise NotImplementedError

    def _columns(self, output: OutputSpec, predicted: Floats, true: Floats) -> dict[str, float]:
        """Return every column of an output from what is predicted and true, [N,D]."""
        known = ~np.isnan(true)
        values = {
            name: self.of_number(predicted[known[:, k], k], true[known[:, k], k], output, k)
            for k, name in enumerate(output.classes)
        }
        if len(values) == 1:
            (only,) = values.values()
            return {self.column(output, part): value for part, value in only.items()}
        found = {self.column(output): nan_mean([value[""] for value in values.values()])}
        for name, parts in values.items():
            found |= {self.column(output, f"{name}/{part}" if part else name): v for part, v in parts.items()}
        return found

    def summarise(self, cases: Sequence[ScoredCase]) -> dict[str, float]:
        """Return the metric over all cases."""
        found: dict[str, float] = {}
        for output in self.outputs:
            found |= self._columns(output, *together(cases, output))
        return found


class _PerCaseAndNumber(_PerNumber):
    """A metric that is a mean over cases, so that a case has a value as well: the metric of that case alone."""

    def per_case(self, case: ScoredCase) -> dict[str, float]:
        """Return the case's own value; NaN where it does not count."""
        found: dict[str, float] = {}
        for output in self.outputs:
            if output.name in case.true:
                found |= self._columns(output, case.predicted[output.name][None], case.true[output.name][None])
        return found


class MeanAbsoluteError(_PerCaseAndNumber):
    """Mean of \\|predicted - true\\|."""

    name = "mae"

    def of_number(self, predicted: Floats, true: Floats, output: OutputSpec, number: int) -> dict[str, float]:
        """Return the mean absolute error."""
        return {"": nan_mean(np.abs(predicted - true))}


class LowRangeError(_PerCaseAndNumber):
    """Mean absolute error of the cases whose true value is low, which a model that predicts the mean gets wrong.

    Low: more than one standard deviation below the mean, both of the training cases (43 for the ejection fractions of
    EchoNet-Dynamic), so that the border does not move with the cases that are scored. NaN where the output does not say
    them. Part ``below-40``: of true values below 40, where `thresholds_of` finds that such occur.
    """

    name = "mae-low"

    def of_number(self, predicted: Floats, true: Floats, output: OutputSpec, number: int) -> dict[str, float]:
        """Return the error below one standard deviation, and below 40."""
        error = np.abs(predicted - true)
        low = output.center[number] - output.scale[number] if output.scale else -math.inf
        found = {"": nan_mean(error[true < low])}
        if 40.0 in thresholds_of(output, number):
            found["below-40"] = nan_mean(error[true < 40.0])
        return found


class RootMeanSquaredError(_PerNumber):
    """Root of the mean of (predicted - true)²."""

    name = "rmse"

    def of_number(self, predicted: Floats, true: Floats, output: OutputSpec, number: int) -> dict[str, float]:
        """Return the root mean squared error."""
        return {"": math.sqrt(nan_mean((predicted - true) ** 2))}


class R2(_PerNumber):
    """Coefficient of determination, 1 - SSE / SST: 0 for predicting the mean of the scored cases, negative if worse.

    Not the squared correlation, which papers often print as R²: see `SquaredCorrelation`. NaN where the true values are
    all equal.
    """

    name = "r2"

    def of_number(self, predicted: Floats, true: Floats, output: OutputSpec, number: int) -> dict[str, float]:
        """Return 1 - SSE / SST, at most 1."""
        if not _varies(true):
            return {"": math.nan}
        return {"": float(1 - ((predicted - true) ** 2).sum() / ((true - true.mean()) ** 2).sum())}


class SquaredCorrelation(_PerNumber):
    """Square of Pearson's correlation: R² of the best straight line through the predictions.

    Blind to a bias and to a wrong scale, so never below what `R2` says. NaN where either side is constant.
    """

    name = "squared-correlation"

    def of_number(self, predicted: Floats, true: Floats, output: OutputSpec, number: int) -> dict[str, float]:
        """Return the squared correlation, 0 to 1."""
        if not (_varies(predicted) and _varies(true)):
            return {"": math.nan}
        x, y = predicted - predicted.mean(), true - true.mean()
        return {"": float((x @ y) ** 2 / ((x @ x) * (y @ y)))}


class BlandAltman(_PerNumber):
    """Limits of agreement (Bland & Altman, Lancet 1986): its value is their half width, 1.96 SD of the differences.

    Parts: ``bias``, the mean of predicted - true, and ``lower`` and ``upper``, bias ∓ 1.96 SD (n - 1). NaN, but for the
    bias, with fewer than two cases.
    """

    name = "bland-altman"

    def of_number(self, predicted: Floats, true: Floats, output: OutputSpec, number: int) -> dict[str, float]:
        """Return half the width of the limits, the bias and the limits."""
        difference = predicted - true
        bias = nan_mean(difference)
        half = 1.96 * float(difference.std(ddof=1)) if len(difference) > 1 else math.nan
        return {"": half, "bias": bias, "lower": bias - half, "upper": bias + half}


class AUROCBelow(_PerNumber):
    """How well the predicted number tells the cases whose true one lies below a threshold: AUROC of its negative.

    Parts: each of `THRESHOLDS` that values are likely to lie on both sides of (`thresholds_of`); the value is their
    mean. A true value equal to the threshold does not lie below it (EchoNet-Dynamic's code asks for value > threshold
    and counts it there). NaN where all cases lie on one side.
    """

    name = "auroc-below"

    def of_number(self, predicted: Floats, true: Floats, output: OutputSpec, number: int) -> dict[str, float]:
        """Return the mean over thresholds, and each."""
        parts = {f"{t:g}": auroc(-predicted, true < t) for t in thresholds_of(output, number)}
        return {"": nan_mean(list(parts.values()))} | parts


class _OfChange(CaseMetric):
    """A metric of the change since the number was measured last; no column at all where no case has such a number."""

    tasks = ("regression",)

    def of_change(self, predicted: Floats, true: Floats) -> float:
        """Return the value from the changes [N] of the cases where both are known, later minus earlier."""
        raise NotImplementedError

    def summarise(self, cases: Sequence[ScoredCase]) -> dict[str, float]:
        """Return the metric over all cases: of several numbers that of each, and the mean."""
        found: dict[str, float] = {}
        for output in self.outputs:
            before, true, predicted = (
                stacked(cases, (kind, output.name), partial(_value, output=output, kind=kind)).reshape(
                    -1, len(output.classes)
                )
                for kind in ("last", "true", "predicted")
            )
            if np.isnan(before).all():
                continue
            values = []
            for number in range(len(output.classes)):
                known = ~np.isnan(before[:, number] + true[:, number])
                last = before[known, number]
                values.append(self.of_change(predicted[known, number] - last, true[known, number] - last))
            found[self.column(output)] = nan_mean(values)
            if len(values) > 1:
                found |= {self.column(output, name): v for name, v in zip(output.classes, values, strict=True)}
        return found


def _value(case: ScoredCase, output: OutputSpec, kind: str) -> Floats:
    """Return what was measured ``last``, is ``true`` or ``predicted`` [D]; NaN where unknown."""
    values: Mapping[str, Floats] = getattr(case, kind)
    return values.get(output.name, np.full(len(output.classes), math.nan))


class AUROCWorsened(_OfChange):
    """How well the predicted fall since the last value tells the cases that fell by `WORSENED` or more: an AUROC.

    The last value carried forward foresees no fall for anyone and has 0.5. NaN where all cases fell so far, or none.
    """

    name = "auroc-worsened"

    def of_change(self, predicted: Floats, true: Floats) -> float:
        """Return the area."""
        return auroc(-predicted, true <= -WORSENED)


class CIndex(_OfChange):
    """Concordance of predicted and true change since the last value (Harrell et al., JAMA 1982).

    Of all pairs of cases that did not change alike, the share of which the one that is predicted to change more did; a
    pair that is predicted alike counts half. By chance 0.5; NaN where all changed alike.
    """

    name = "c-index"

    def of_change(self, predicted: Floats, true: Floats) -> float:
        """Return the share of pairs."""
        if not _varies(true):
            return math.nan
        if not _varies(predicted):
            return 0.5
        # tau-b is (concordant - discordant) / √(pairs that differ in one · in the other)
        tau = float(stats.kendalltau(predicted, true).statistic)
        return (1 + tau * math.sqrt(_unequal_pairs(predicted) / _unequal_pairs(true))) / 2


def _unequal_pairs(values: Floats) -> int:
    """Return how many pairs of values are not equal."""
    counts = np.unique(values, return_counts=True)[1]
    return int(len(values) ** 2 - (counts**2).sum()) // 2


def _varies(values: Floats) -> bool:
    return len(values) > 1 and bool((values != values[0]).any())


build_mae = partial(of_masks_or_cases, "mae", of_masks=PixelError, of_cases=MeanAbsoluteError)
