"""Metrics of classes, labels and grades of whole cases.

Conventions. The predicted class is the most probable one; a label is predicted where p > 0.5; the predicted grade is
the number of thresholds with p > 0.5. Every case counts the same. Binary classification: class 1 is the positive one.
With more classes each is asked for against all others, and the value is the unweighted mean over classes (macro); of
multilabel outputs it is the mean over labels. What needs cases with a class and without it (AUROC) is NaN where either
is missing, and NaN is left out of means. A metric that has values per case is their mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from medvid_core.metrics.base import CaseMetric, Floats, ScoredCase, of_masks_or_cases
from medvid_core.metrics.curves import Bools, auroc, average_precision
from medvid_core.metrics.gather import nan_mean, together
from medvid_core.metrics.segmentation import Precision as PixelPrecision
from medvid_core.metrics.segmentation import Recall as PixelRecall
from medvid_core.specs import OutputSpec

_DECIDED = ("classification", "multilabel", "ordinal")
_RANKED = ("classification", "multilabel")

Integers = npt.NDArray[np.int64]
Question = tuple[str, Floats, Bools]
"""A yes-or-no question: its name ("" for the only one), the probabilities [N] and the truth [N]."""


def decide(output: OutputSpec, predicted: Floats) -> Integers:
    """Return the predicted class or grade [...], or labels [...,K], of probabilities [...,K] ([...,K-1] of grades)."""
    if output.task == "multilabel":
        return (predicted > 0.5).astype(np.int64)
    chosen: Integers = (predicted > 0.5).sum(-1) if output.task == "ordinal" else predicted.argmax(-1)
    return chosen


def confusion(true: npt.NDArray[Any], predicted: npt.NDArray[Any], classes: int) -> Integers:
    """Return how often class i was called j, [K,K], from class indices [N]."""
    flat = true.astype(np.int64) * classes + predicted.astype(np.int64)
    return np.bincount(flat, minlength=classes * classes).reshape(classes, classes)


def f1_of(counts: npt.NDArray[Any]) -> Floats:
    """Return F1 = 2 TP / (2 TP + FP + FN) of each class [K] of a confusion matrix; NaN of a class that never occurs."""
    total = counts.sum(0) + counts.sum(1)
    return np.where(total > 0, 2 * np.diagonal(counts) / np.maximum(total, 1), math.nan)


def recall_of(counts: npt.NDArray[Any]) -> Floats:
    """Return the share of each class [K] that was found; NaN of a class that is never true."""
    total = counts.sum(1)
    return np.where(total > 0, np.diagonal(counts) / np.maximum(total, 1), math.nan)


def precision_of(counts: npt.NDArray[Any]) -> Floats:
    """Return of each class [K] the share of what was called so that is.

    0 where nothing was called so, as in scikit-learn: else never calling a rare class would be no fault. NaN of a class
    that never occurs either.
    """
    called, total = counts.sum(0), counts.sum(0) + counts.sum(1)
    return np.where(total > 0, np.diagonal(counts) / np.maximum(called, 1), math.nan)


@dataclass(frozen=True)
class ClassResult:
    """What became of one class, asked for against all others: it is the positive one.

    Attributes:
        name: the class or label.
        count: how often it is true.
        precision: share of what was called so that is; 0 where nothing was, NaN of a class that never occurs either.
        recall: share of it that was found (sensitivity); NaN where it is never true.
        specificity: share of all else that was not called so; NaN where there is nothing else.
        f1: 2 TP / (2 TP + FP + FN); NaN of a class that never occurs.
        auroc: of its probability; NaN where it has none, or is always or never true.
        frames: of masks, how many annotated frames hold it; None: not counted.
    """

    name: str
    count: int
    precision: float
    recall: float
    specificity: float
    f1: float
    auroc: float = math.nan
    frames: int | None = None


def class_results(
    counts: npt.NDArray[Any], classes: Sequence[str], frames: npt.NDArray[np.int64] | None = None
) -> list[ClassResult]:
    """Return what became of every class of a confusion matrix [K,K], rows true.

    Args:
        counts: the matrix.
        classes: their names.
        frames: how many annotated frames hold each class, [K]; None: not counted.
    """
    found = []
    precision = precision_of(counts).tolist()
    for number, name in enumerate(classes):
        tp = int(counts[number, number])
        fp, fn = int(counts[:, number].sum()) - tp, int(counts[number].sum()) - tp
        tn = int(counts.sum()) - tp - fp - fn
        shares = (_share(tp, tp + fn), _share(tn, tn + fp), _share(2 * tp, 2 * tp + fp + fn))
        held = None if frames is None else int(frames[number])
        found.append(ClassResult(name, tp + fn, precision[number], *shares, frames=held))
    return found


def ranked_results(output: OutputSpec, cases: Sequence[ScoredCase]) -> list[ClassResult]:
    """Return what became of every class of a classification, or every label, with the AUROC of its probability."""
    predicted, true = together(cases, output)
    if output.task == "multilabel":
        asked = list(_labels(output, predicted, true))
        results = [class_results(confusion(y, p > 0.5, 2), ("", name))[1] for name, p, y in asked]
    else:
        asked = [(name, predicted[:, k], true == k) for k, name in enumerate(output.classes)]
        results = class_results(confusion(true, decide(output, predicted), len(output.classes)), output.classes)
    return [replace(result, auroc=auroc(p, y)) for result, (_, p, y) in zip(results, asked, strict=True)]


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def _labels(output: OutputSpec, predicted: Floats, true: Floats) -> Iterator[Question]:
    """Yield every label of a multilabel output, with the cases where it is known."""
    for number, label in enumerate(output.classes):
        known = ~np.isnan(true[:, number])
        yield label, predicted[known, number], true[known, number] > 0.5


def questions(output: OutputSpec, predicted: Floats, true: Floats) -> list[Question]:
    """Return every class against all others (the second alone, if there are two), or every label."""
    if output.task == "multilabel":
        found = list(_labels(output, predicted, true))
    elif len(output.classes) == 2:
        found = [("", predicted[:, 1], true == 1)]
    else:
        found = [(name, predicted[:, k], true == k) for k, name in enumerate(output.classes)]
    return [("", *found[0][1:])] if len(found) == 1 else found


class Accuracy(CaseMetric):
    """Share of the cases whose class or grade is right; of multilabel outputs, the share of right labels."""

    name = "accuracy"
    tasks = _DECIDED

    def per_case(self, case: ScoredCase) -> dict[str, float]:
        """Return 1 or 0; of several labels, the share that is right."""
        found = {}
        for output in self.outputs:
            if output.name in case.true:
                true = case.true[output.name]
                right = np.where(np.isnan(true), math.nan, decide(output, case.predicted[output.name]) == true)
                found[self.column(output)] = nan_mean(right.reshape(-1))
        return found

    def summarise(self, cases: Sequence[ScoredCase]) -> dict[str, float]:
        """Return the mean over cases."""
        found = {}
        for output in self.outputs:
            predicted, true = together(cases, output)
            right = np.where(np.isnan(true), math.nan, decide(output, predicted) == true)
            each = [nan_mean(row) for row in right] if output.task == "multilabel" else right
            found[self.column(output)] = nan_mean(each)
        return found


class _FromConfusion(CaseMetric):
    """A metric that is a mean over classes, or labels, of what a confusion matrix says of each."""

    tasks = _DECIDED

    def of_classes(self, counts: npt.NDArray[Any]) -> Floats:
        """Return the value of each class [K]."""
        raise NotImplementedError

    def of_label(self, counts: npt.NDArray[Any]) -> float:
        """Return the value of a label from its 2x2 matrix."""
        raise NotImplementedError

    def summarise(self, cases: Sequence[ScoredCase]) -> dict[str, float]:
        """Return the mean over classes, and each class."""
        found: dict[str, float] = {}
        for output in self.outputs:
            predicted, true = together(cases, output)
            if output.task == "multilabel":
                values = [self.of_label(confusion(y, p > 0.5, 2)) for _, p, y in _labels(output, predicted, true)]
            else:
                values = self.of_classes(confusion(true, decide(output, predicted), len(output.classes))).tolist()
            found[self.column(output)] = nan_mean(values)
            if len(values) > 1:
                found |= {self.column(output, name): v for name, v in zip(output.classes, values, strict=True)}
        return found


class BalancedAccuracy(_FromConfusion):
    """Mean over the classes that occur of the share that was found; parts: that share (recall) of each class.

    Of a label: the mean of its sensitivity and specificity.
    """

    name = "balanced-accuracy"

    def of_classes(self, counts: npt.NDArray[Any]) -> Floats:
        """Return the recall of each class."""
        return recall_of(counts)

    def of_label(self, counts: npt.NDArray[Any]) -> float:
        """Return the mean of sensitivity and specificity."""
        return nan_mean(recall_of(counts))


class F1(_FromConfusion):
    """Macro F1: mean over classes of 2 TP / (2 TP + FP + FN); parts: each class.

    Classes that are neither true nor predicted in any case are left out. The means run over F1 values, as in
    scikit-learn, not over precision and recall first.
    """

    name = "f1"

    def of_classes(self, counts: npt.NDArray[Any]) -> Floats:
        """Return F1 of each class."""
        return f1_of(counts)

    def of_label(self, counts: npt.NDArray[Any]) -> float:
        """Return F1 of the label's presence."""
        return float(f1_of(counts)[1])


class Precision(_FromConfusion):
    """Macro precision: mean over classes of the share of what was called so that is; parts: each class.

    Of two classes the part of the positive one is the positive predictive value. For classes that are never called see
    `precision_of`.
    """

    name = "precision"

    def of_classes(self, counts: npt.NDArray[Any]) -> Floats:
        """Return the precision of each class."""
        return precision_of(counts)

    def of_label(self, counts: npt.NDArray[Any]) -> float:
        """Return the precision of the label's presence."""
        return float(precision_of(counts)[1])


class Recall(_FromConfusion):
    """Macro recall: mean over the classes that occur of the share of them that was found; parts: each class.

    Of two classes the part of the positive one is the sensitivity, that of the other the specificity.
    """

    name = "recall"

    def of_classes(self, counts: npt.NDArray[Any]) -> Floats:
        """Return the recall of each class."""
        return recall_of(counts)

    def of_label(self, counts: npt.NDArray[Any]) -> float:
        """Return the recall of the label's presence."""
        return float(recall_of(counts)[1])


build_precision = partial(of_masks_or_cases, "precision", of_masks=PixelPrecision, of_cases=Precision)
build_recall = partial(of_masks_or_cases, "recall", of_masks=PixelRecall, of_cases=Recall)


class AUROC(CaseMetric):
    """Area under the ROC curve; with several classes each against all others, then the mean; parts: each class.

    A class that every case has, or none, is left out; NaN if that holds of all.
    """

    name = "auroc"
    tasks = _RANKED

    def summarise(self, cases: Sequence[ScoredCase]) -> dict[str, float]:
        """Return the mean over classes, and each class."""
        found: dict[str, float] = {}
        for output in self.outputs:
            asked = questions(output, *together(cases, output))
            values = {self.column(output, name): auroc(p, y) for name, p, y in asked}
            found |= {self.column(output): nan_mean(list(values.values()))} | values
        return found


class AveragePrecision(CaseMetric):
    """Average precision; with several classes each against all others, then the mean; parts: each class.

    Beside it ``prevalence``: what random scores would reach. Both means run over the classes that some cases have and
    others lack; NaN if there is none.
    """

    name = "average-precision"
    tasks = _RANKED

    def summarise(self, cases: Sequence[ScoredCase]) -> dict[str, float]:
        """Return the mean over classes, each class, and the prevalence of each."""
        found: dict[str, float] = {}
        for output in self.outputs:
            asked = questions(output, *together(cases, output))
            values = {name: average_precision(p, y) for name, p, y in asked}
            shares = {name: math.nan if math.isnan(values[name]) else float(y.mean()) for name, _, y in asked}
            found[self.column(output)] = nan_mean(list(values.values()))
            found[self.column(output, "prevalence")] = nan_mean(list(shares.values()))
            if len(asked) > 1:
                found |= {self.column(output, name): value for name, value in values.items()}
                found |= {self.column(output, f"prevalence/{name}"): share for name, share in shares.items()}
        return found


class GradeMAE(CaseMetric):
    """Mean absolute difference of predicted and true grade, in grades."""

    name = "grade-mae"
    tasks = ("ordinal",)

    def per_case(self, case: ScoredCase) -> dict[str, float]:
        """Return by how many grades the prediction is off."""
        return {
            self.column(output): abs(float(decide(output, case.predicted[output.name]) - case.true[output.name]))
            for output in self.outputs
            if output.name in case.true
        }

    def summarise(self, cases: Sequence[ScoredCase]) -> dict[str, float]:
        """Return the mean over cases."""
        found = {}
        for output in self.outputs:
            predicted, true = together(cases, output)
            found[self.column(output)] = nan_mean(np.abs(decide(output, predicted) - true))
        return found


class Kappa(CaseMetric):
    """Cohen's kappa with quadratic weights, 1 - Σ w O / Σ w E with w = (i - j)² (Cohen, Psychological Bulletin 1968).

    O counts the grades i called j, E those expected from the margins by chance. NaN where E holds no disagreement: all
    cases are of one grade and are called so.
    """

    name = "kappa"
    tasks = ("ordinal",)

    def summarise(self, cases: Sequence[ScoredCase]) -> dict[str, float]:
        """Return kappa over all cases, at most 1, 0 by chance."""
        found = {}
        for output in self.outputs:
            predicted, true = together(cases, output)
            found[self.column(output)] = quadratic_kappa(
                confusion(true, decide(output, predicted), len(output.classes))
            )
        return found


def quadratic_kappa(counts: npt.NDArray[Any]) -> float:
    """Return kappa with quadratic weights of a confusion matrix [K,K]."""
    grades = np.arange(len(counts))
    weights = (grades[:, None] - grades) ** 2
    expected = (weights * np.outer(counts.sum(1), counts.sum(0))).sum()
    return float(1 - (weights * counts).sum() * counts.sum() / expected) if expected else math.nan
