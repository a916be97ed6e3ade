"""Metrics of the class of every frame: actions, phases.

Conventions. The predicted class of a frame is the most probable one. Frames without annotation are taken out of both
sequences before anything else. A segment is a run of frames of one class; every class counts, background too. What is
averaged over videos and what is pooled over all of them is said of each metric. Undefined is NaN. A metric that has
values per case is their mean. All are shares, 0 to 1; papers print edit score and segmental F1 times 100.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from medvid_core.metrics.base import CaseMetric, ScoredCase
from medvid_core.metrics.classification import confusion, f1_of
from medvid_core.metrics.gather import nan_mean, remembered, stacked
from medvid_core.specs import OutputSpec

OVERLAPS = (10, 25, 50)
"""Percent of overlap at which a segment counts as found."""

Integers = npt.NDArray[np.int64]
Segments = tuple[Integers, Integers, Integers]
"""Class, first frame and frame after the last of each segment, [S] each."""


def known_frames(case: ScoredCase, output: OutputSpec) -> tuple[Integers, Integers]:
    """Return true and predicted class of the annotated frames [T] each; empty where there is none."""
    if output.name not in case.true_frames:
        nothing = np.zeros(0, dtype=np.int64)
        return nothing, nothing
    true = case.true_frames[output.name]
    known = ~np.isnan(true)
    return true[known].astype(np.int64), case.predicted[output.name][known].argmax(-1)


def segments(classes: Integers) -> Segments:
    """Return the runs of equal values of a sequence [T]."""
    if not len(classes):
        return classes, classes, classes
    starts = np.append(0, np.flatnonzero(np.diff(classes)) + 1)
    return classes[starts], starts, np.append(starts[1:], len(classes))


def matched_segments(true: Integers, predicted: Integers, overlap: float) -> Integers:
    """Return the segments that are true positive, false positive and false negative, [3].

    As in Lea et al., CVPR 2017: a predicted segment is right if its intersection over union with the true segment of
    its class that it overlaps most is at least ``overlap`` and no earlier segment took that one; each true segment is
    found at most once.
    """
    classes, starts, ends = segments(true)
    taken = np.zeros(len(classes), dtype=bool)
    right = wrong = 0
    for name, start, end in zip(*segments(predicted), strict=True):
        shared = np.minimum(end, ends) - np.maximum(start, starts)
        ratio = shared / (np.maximum(end, ends) - np.minimum(start, starts)) * (classes == name)
        best = int(ratio.argmax())
        if ratio[best] >= overlap and not taken[best]:
            taken[best] = True
            right += 1
        else:
            wrong += 1
    return np.array([right, wrong, len(classes) - right])


def edit_score(true: Integers, predicted: Integers) -> float:
    """Return 1 - Levenshtein distance of the two sequences of segments over the longer one's length.

    (Lea et al., ECCV 2016.) It sees the order of the segments and their number, not how long they last. NaN without
    frames.
    """
    wanted, found = segments(true)[0].tolist(), segments(predicted)[0].tolist()
    if not wanted:
        return math.nan
    row = list(range(len(found) + 1))
    for i, label in enumerate(wanted, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(found, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (label != other))
    return 1 - row[-1] / max(len(wanted), len(found))


def _counts(case: ScoredCase, output: OutputSpec) -> Integers:
    """Return the confusion matrix of a case's frames [K,K]."""
    return confusion(*known_frames(case, output), len(output.classes))


class _OfVideos(CaseMetric):
    """A metric that is a mean over videos."""

    tasks = ("frame_classification",)

    def of_video(self, case: ScoredCase, output: OutputSpec) -> float:
        """Return the value of one video; NaN where undefined."""
        raise NotImplementedError

    def per_case(self, case: ScoredCase) -> dict[str, float]:
        """Return the value of a video."""
        return {
            self.column(output): remembered(case, (self.name, output.name), partial(self.of_video, case, output))
            for output in self.outputs
            if output.name in case.true_frames
        }

    def summarise(self, cases: Sequence[ScoredCase]) -> dict[str, float]:
        """Return the mean over videos."""
        found = {}
        for output in self.outputs:
            values = stacked(cases, (self.name, output.name), partial(self._of_known, output=output))
            found[self.column(output)] = nan_mean(values)
        return found

    def _of_known(self, case: ScoredCase, output: OutputSpec) -> float:
        return self.of_video(case, output) if output.name in case.true_frames else math.nan


class FrameAccuracy(_OfVideos):
    """Share of a video's frames whose class is right; then the mean over videos, however long.

    Part ``pooled``: the share of all frames of all videos, as action segmentation reports it.
    """

    name = "frame-accuracy"

    def of_video(self, case: ScoredCase, output: OutputSpec) -> float:
        """Return the share of frames that are right."""
        return _share_right(_counts(case, output))

    def summarise(self, cases: Sequence[ScoredCase]) -> dict[str, float]:
        """Return the mean over videos, and the share of all frames."""
        pooled = {self.column(output, "pooled"): _share_right(_pooled(cases, output)) for output in self.outputs}
        return super().summarise(cases) | pooled


class FrameF1(CaseMetric):
    """Macro F1 of frames, pooled over all videos: mean over classes of 2 TP / (2 TP + FP + FN); parts: each class.

    Pooled, because most videos lack some class. Classes that are neither true nor predicted anywhere are left out.
    """

    name = "frame-f1"
    tasks = ("frame_classification",)

    def summarise(self, cases: Sequence[ScoredCase]) -> dict[str, float]:
        """Return the mean over classes, and each class."""
        found: dict[str, float] = {}
        for output in self.outputs:
            values = f1_of(_pooled(cases, output))
            found[self.column(output)] = nan_mean(values)
            parts = zip(output.classes, values.tolist(), strict=True)
            found |= {self.column(output, name): value for name, value in parts}
        return found


class SegmentalF1(CaseMetric):
    """F1 of segments that overlap a true one by at least 50 % (intersection over union); parts ``10`` and ``25``.

    Lea et al., CVPR 2017 (`matched_segments`). Counts are summed over all videos, then F1 = 2 TP / (2 TP + FP + FN).
    """

    name = "segmental-f1"
    tasks = ("frame_classification",)

    def _matches(self, case: ScoredCase, output: OutputSpec) -> Integers:
        """Return the counts of a case for every overlap, [3,3]."""
        classes = known_frames(case, output)
        return np.stack([matched_segments(*classes, percent / 100) for percent in OVERLAPS])

    def summarise(self, cases: Sequence[ScoredCase]) -> dict[str, float]:
        """Return segmental F1 at 50, 10 and 25 % overlap."""
        found: dict[str, float] = {}
        for output in self.outputs:
            matches = partial(self._matches, output=output)
            counts = _summed(cases, ("segments", output.name), matches, (len(OVERLAPS), 3))
            for percent, (tp, fp, fn) in zip(OVERLAPS, counts.tolist(), strict=True):
                part = "" if percent == 50 else str(percent)
                found[self.column(output, part)] = 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else math.nan
        return found


class EditScore(_OfVideos):
    """Segmental edit score (Lea et al., ECCV 2016) of each video: `edit_score`; then the mean over videos."""

    name = "edit-score"

    def of_video(self, case: ScoredCase, output: OutputSpec) -> float:
        """Return the edit score."""
        return edit_score(*known_frames(case, output))


def _pooled(cases: Sequence[ScoredCase], output: OutputSpec) -> Integers:
    """Return the confusion matrix of all frames [K,K]."""
    shape = (len(output.classes),) * 2
    return _summed(cases, ("frame confusion", output.name), partial(_counts, output=output), shape)


def _summed(
    cases: Sequence[ScoredCase], key: Hashable, of: Callable[[ScoredCase], Integers], shape: tuple[int, ...]
) -> Integers:
    """Return the sum over cases of counts of each."""
    total: Integers = stacked(cases, key, of).reshape(-1, *shape).sum(0, dtype=np.int64)
    return total


def _share_right(counts: Integers) -> float:
    total = counts.sum()
    return float(np.trace(counts) / total) if total else math.nan
