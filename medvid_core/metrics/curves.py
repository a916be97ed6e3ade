"""Areas under curves and thresholds, of scores and a yes-or-no truth. Undefined is NaN."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from medvid_core.metrics.base import Floats

Bools = npt.NDArray[np.bool_]

SPECIFICITY = 0.95
"""Where sensitivity is read off, and where alarms are raised."""


def _undefined(scores: Floats, positive: Bools) -> bool:
    """Whether one class is missing, or a score is NaN."""
    found = np.count_nonzero(positive)
    return found in (0, len(positive)) or bool(np.isnan(scores).any())


def auroc(scores: Floats, positive: Bools) -> float:
    """Return the area under the ROC curve: how often a positive scores above a negative, ties counting half.

    (Hanley & McNeil, Radiology 1982: the Mann-Whitney statistic over the number of pairs.)

    Args:
        scores: [N], larger where positive is likelier.
        positive: the truth [N].

    Returns:
        0 to 1; NaN if only one class occurs, or a score is NaN.
    """
    if _undefined(scores, positive):
        return math.nan
    negatives, positives = np.sort(scores[~positive]), scores[positive]
    below = negatives.searchsorted(positives, "left").sum()
    not_above = negatives.searchsorted(positives, "right").sum()
    return float((below + not_above) / (2 * len(positives) * len(negatives)))


def average_precision(scores: Floats, positive: Bools) -> float:
    """Return Σ (R_i - R_(i-1)) P_i over falling thresholds i, equal scores forming one (as scikit-learn defines it).

    Args:
        scores: [N], larger where positive is likelier.
        positive: the truth [N].

    Returns:
        0 to 1; scores drawn at random reach the prevalence. NaN if only one class occurs, or a score is NaN.
    """
    if _undefined(scores, positive):
        return math.nan
    order = np.argsort(-scores)
    falling, found = scores[order], positive[order].cumsum()
    ends = np.append(np.flatnonzero(falling[1:] != falling[:-1]), len(falling) - 1)
    hits = found[ends]
    return float((np.diff(hits, prepend=0) / hits[-1] * hits / (ends + 1)).sum())


def alarm_threshold(normal: Floats, specificity: float = SPECIFICITY) -> float:
    """Return the lowest score of normal ones such that the share ``specificity`` of them lies at or below it.

    Whatever scores above it raises an alarm. NaN without scores, or if one is NaN.
    """
    if not len(normal) or np.isnan(normal).any():
        return math.nan
    rank = max(0, math.ceil(specificity * len(normal) - 1e-9) - 1)  # 0.95 n may lie a rounding error above a whole
    return float(np.partition(normal, rank)[rank])


def share_above(scores: Floats, limits: Floats) -> float:
    """Return the share of scores [N] that lie above their limits [N]; NaN without scores, or if one of either is NaN.

    Of positives that is the sensitivity of these limits, of negatives 1 - specificity.
    """
    if not len(scores) or np.isnan(scores).any() or np.isnan(limits).any():
        return math.nan
    return float((scores > limits).mean())
