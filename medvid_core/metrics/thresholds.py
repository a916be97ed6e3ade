"""Overlap of masks at many thresholds instead of at 0.5: the mean over them, and the best of them.

Papers on polyps report these; they are higher or lower than values at 0.5, and not to be compared with them. Each class
is decided by itself, p_k above the threshold; conventions otherwise as in `medvid_core.metrics.segmentation`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medvid_core.data.clip import Case
from medvid_core.metrics.base import CaseMetric, Floats, Metric, ScoredFrames, mean
from medvid_core.metrics.gather import remembered
from medvid_core.metrics.segmentation import Dice, Jaccard, Overlap, Precision, Recall, Specificity, with_classes

THRESHOLDS = 256

_CURVE = "/curve"


def of_classes(frames: ScoredFrames) -> tuple[Tensor, Tensor]:
    """Return the probability of each foreground class, and where it is annotated (bool), both [T,classes,H,W]."""
    first = 0 if frames.probabilities.shape[1] == 1 else 1
    annotated = torch.stack([frames.mask == number for number in frames.foreground], 1)
    return frames.probabilities[:, first:], annotated


def stretched(frames: ScoredFrames) -> Tensor:
    """Return the probabilities of the foreground classes [T,classes,H,W], each picture stretched to 0..1.

    The smallest and the largest are those of annotated pixels; where they are equal, nothing is changed. Unlabelled
    pixels become 0.
    """
    p, valid = of_classes(frames)[0].double(), frames.valid[:, None]
    low = torch.where(valid, p, torch.inf).amin((2, 3), keepdim=True)
    high = torch.where(valid, p, -torch.inf).amax((2, 3), keepdim=True)
    varies = high > low
    return torch.where(varies, (p - low) / torch.where(varies, high - low, 1), p) * valid


def confusion_above(
    p: Tensor, annotated: Tensor, valid: Tensor, thresholds: Tensor, at_least: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return TP, FP, FN and TN at every threshold, each double [T,classes,N].

    Args:
        p: probabilities [T,C,H,W].
        annotated: where the class is, bool [T,C,H,W].
        valid: annotated pixels, bool [T,H,W].
        thresholds: rising, [N].
        at_least: p >= threshold is foreground; otherwise p > threshold.
    """
    frames, classes = p.shape[:2]
    below = torch.searchsorted(thresholds.to(p), p.contiguous(), right=at_least)  # how many thresholds a pixel passes
    bins = len(thresholds) + 1
    picture = torch.arange(frames * classes, device=p.device).view(frames, classes, 1, 1)
    kept = valid[:, None].expand_as(annotated)
    places = ((picture * 2 + annotated) * bins + below)[kept]
    histogram = torch.bincount(places, minlength=frames * classes * 2 * bins).view(frames, classes, 2, bins).double()
    passed = histogram.flip(3).cumsum(3).flip(3)  # pixels that pass at least so many
    everything = passed[..., :1]
    fp, tp = passed[..., 1:].unbind(2)
    tn, fn = (everything - passed[..., 1:]).unbind(2)
    return tp, fp, fn, tn


def _mean_confusion(frames: ScoredFrames) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As Vivim's evaluation: p > t, t from 0 to 1 in float32."""
    thresholds = torch.linspace(1, 0, THRESHOLDS).flip(0)
    p, annotated = of_classes(frames)
    return confusion_above(p, annotated, frames.valid, thresholds)


def _max_confusion(frames: ScoredFrames) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As the polyp protocol: stretched predictions, p >= t."""
    thresholds = torch.from_numpy(np.linspace(1, 0, THRESHOLDS)[::-1].copy())
    return confusion_above(stretched(frames), of_classes(frames)[1], frames.valid, thresholds, at_least=True)


class MeanOverThresholds(Metric):
    """Mean of an overlap over 256 thresholds, p > t, t from 0 to 1: what Vivim's evaluation prints as Dice and so on.

    Where prediction and annotation are both empty at a threshold it is 1 there, as at 0.5; the original has 0.
    """

    of: type[Overlap]

    def per_frame(self, frames: ScoredFrames) -> Mapping[str, Tensor]:
        """Return the mean of each frame."""
        counts = remembered(frames, "thresholds", partial(_mean_confusion, frames))
        return with_classes(self.name, self.of(self.outputs).score(*counts).mean(2), self.outputs)


class MeanDice(MeanOverThresholds):
    """Dice."""

    name, of = "threshold-mean-dice", Dice


class MeanJaccard(MeanOverThresholds):
    """Jaccard index."""

    name, of = "threshold-mean-jaccard", Jaccard


class MeanPrecision(MeanOverThresholds):
    """Precision."""

    name, of = "threshold-mean-precision", Precision


class MeanRecall(MeanOverThresholds):
    """Recall."""

    name, of = "threshold-mean-recall", Recall


class MeanSpecificity(MeanOverThresholds):
    """Specificity."""

    name, of = "threshold-mean-specificity", Specificity


class BestOfCurve(Metric):
    """The largest value over thresholds of a curve that is averaged over frames, then over cases.

    The threshold is one for all cases, and each class has its own; each case's value is that of its own curve there, so
    that the result is their mean. A case by itself, and with `summarise` alone, has the largest value of its own curve.
    """

    def curve(self, frames: ScoredFrames) -> Tensor:
        """Return the value of each frame and class at each threshold, [T,classes,N]; NaN where undefined."""
        raise NotImplementedError

    def per_frame(self, frames: ScoredFrames) -> Mapping[str, Tensor]:
        """Return the curves of each frame, [T,N]."""
        return with_classes(self.name, self.curve(frames), self.outputs)

    def per_case(self, values: Mapping[str, Floats]) -> Mapping[str, float | Floats]:
        """Return the best of a case's own curves; ``…/curve`` [N] is for `across` and `at_best_thresholds`."""
        curves = {name: _mean_curve(list(values[name])) for name in self._columns(values)}
        best = {name: float(curve.max()) for name, curve in curves.items()}
        return {**self._mean(best), **best, **{f"{name}{_CURVE}": curve for name, curve in curves.items()}}

    def across(self, rows: Sequence[dict[str, Any]], cases: Sequence[Case]) -> None:
        """Replace each case's values by those at the threshold that is best for all."""
        known = [row for row in rows if self.name in row]
        for column in self._columns(known[0]) if known else ():
            best = int(np.argmax(_mean_curve([row[f"{column}{_CURVE}"] for row in known])))
            for row in known:
                row[column] = float(row[f"{column}{_CURVE}"][best])
        for row in known:
            row |= self._mean({column: row[column] for column in self._columns(row)})

    def _columns(self, row: Mapping[str, Any]) -> list[str]:
        """The columns that are of a class, of those in a row."""
        own = [name for name in row if name.split("/")[0] == self.name and not is_curve(name)]
        return [name for name in own if name != self.name] or own

    def _mean(self, values: Mapping[str, float]) -> dict[str, float]:
        return {self.name: mean(list(values.values()))} if values else {}


def is_curve(name: str) -> bool:
    """Whether an array that a metric keeps for `Metric.across` is a curve of `BestOfCurve`."""
    return name.endswith(_CURVE)


def at_best_thresholds(
    metrics: Sequence[Metric | CaseMetric],
    rows: Sequence[Mapping[str, float]],
    curves: Sequence[Mapping[str, Floats]],
) -> list[dict[str, float]]:
    """Return rows with every `BestOfCurve` at the threshold that is best for these cases together.

    For cases that were scored apart, or with others: a threshold of other cases is none of theirs.

    Args:
        metrics: all metrics; others are passed over.
        rows: of the cases.
        curves: of the same, by name.
    """
    full: list[dict[str, Any]] = [{**row, **mine} for row, mine in zip(rows, curves, strict=True)]
    for metric in metrics:
        if isinstance(metric, BestOfCurve):
            metric.across([row for row, mine in zip(full, curves, strict=True) if mine], ())
    return [{name: value for name, value in row.items() if not is_curve(name)} for row in full]


def _mean_curve(curves: Sequence[Floats]) -> Floats:
    """Mean [N] of those curves that are defined; NaN if none is."""
    return np.array([mean(values) for values in np.stack(curves).T])


class MaxOverThresholds(BestOfCurve):
    """The largest over 256 thresholds of an overlap of stretched predictions, p >= t (Ji et al., PNS-Net, MICCAI 2021).

    0 wherever prediction and annotation share no pixel, for specificity too. A stretched prediction is never empty, so
    frames without annotation are undefined; the original counts them as 0.
    """

    of: type[Overlap]

    def curve(self, frames: ScoredFrames) -> Tensor:
        """Return the overlap at each threshold."""
        tp, fp, fn, tn = remembered(frames, "stretched thresholds", partial(_max_confusion, frames))
        value = torch.where(tp > 0, self.of(self.outputs).score(tp, fp, fn, tn), 0)
        return torch.where(tp + fn > 0, value, torch.nan)


class MaxDice(MaxOverThresholds):
    """Dice."""

    name, of = "threshold-max-dice", Dice


class MaxJaccard(MaxOverThresholds):
    """Jaccard index."""

    name, of = "threshold-max-jaccard", Jaccard


class MaxSpecificity(MaxOverThresholds):
    """Specificity."""

    name, of = "threshold-max-specificity", Specificity
