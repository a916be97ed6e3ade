"""Metrics of anomaly scores, of frames and of whole videos.

Conventions. A score is larger where more is wrong. A frame counts if it is known to be normal or abnormal: annotated,
or in a video that as a whole is normal. A video is abnormal if it is labelled so; without a label, if a frame is
abnormal, and normal if all its frames are. The score of a video is the mean of its highest sixteenth of frame scores,
as in training (`medvid_core.losses.tasks.top_k_mean`); part ``max``: its highest. AUROC looks good where anomalies are
rare: read it beside average precision and ``prevalence``, what random scores would reach. Metrics that need both
normal and abnormal are NaN without. A metric that has values per case is their mean.

Thresholds at 95 % specificity come from the normal frames (videos) that are scored, so that what is read off at them is
somewhat better than with a threshold fixed beforehand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from medvid_core.metrics.base import CaseMetric, Floats, ScoredCase
from medvid_core.metrics.curves import Bools, alarm_threshold, auroc, average_precision, sensitivity_at
from medvid_core.metrics.gather import nan_mean, remembered
from medvid_core.specs import OutputSpec

Scored = tuple[Floats, Bools]
"""Scores [N] and which of them are of something abnormal [N]."""


def frame_truth(case: ScoredCase, output: OutputSpec) -> Floats:
    """Return 0 or 1 for every frame [T]; NaN where unknown."""
    unknown = np.full(len(case.predicted[output.name]), math.nan)
    true = case.true_frames.get(output.name, unknown)
    if case.true.get(output.name, math.nan) == 0:
        return np.where(np.isnan(true), 0.0, true)
    return true


def video_truth(case: ScoredCase, output: OutputSpec) -> float:
    """Return 1 for an abnormal video, 0 for a normal one, NaN where unknown."""
    if output.name in case.true:
        return float(case.true[output.name])
    true = frame_truth(case, output)
    if (true > 0).any():
        return 1.0
    return 0.0 if len(true) and not np.isnan(true).any() else math.nan


def video_scores(scores: Floats) -> tuple[float, float]:
    """Return the mean of the highest sixteenth of the scores [T], at least one of them, and the highest."""
    count = -(-len(scores) // 16)
    highest = np.sort(scores)[-count:]
    return float(highest.mean()), float(highest[-1])


def _frames(case: ScoredCase, output: OutputSpec) -> Scored:
    """Return the frames of a case that count."""

    def compute() -> Scored:
        true = frame_truth(case, output)
        known = ~np.isnan(true)
        return case.predicted[output.name][known], true[known] > 0

    return remembered(case, ("anomaly frames", output.name), compute)


def pooled_frames(cases: Sequence[ScoredCase], output: OutputSpec) -> Scored:
    """Return all frames of all cases that count."""
    parts = [_frames(case, output) for case in cases]
    if not parts:
        return np.zeros(0), np.zeros(0, dtype=bool)
    return np.concatenate([scores for scores, _ in parts]), np.concatenate([truth for _, truth in parts])


def videos(cases: Sequence[ScoredCase], output: OutputSpec) -> tuple[Floats, Floats, Bools]:
    """Return top-sixteenth scores, highest scores and truth of the videos that are known to be either, [N] each."""

    rows = [remembered(case, ("anomaly video", output.name), partial(_video, case, output)) for case in cases]
    mean, highest, true = np.array(rows, dtype=np.float64).reshape(-1, 3).T
    known = ~np.isnan(true)
    return mean[known], highest[known], true[known] > 0


def _video(case: ScoredCase, output: OutputSpec) -> tuple[float, float, float]:
    return (*video_scores(case.predicted[output.name]), video_truth(case, output))


class _Anomaly(CaseMetric):
    tasks = ("anomaly",)

    def of_output(self, cases: Sequence[ScoredCase], output: OutputSpec) -> dict[str, float]:
        """Return the value, under "", and the parts of an output."""
        raise NotImplementedError

    def summarise(self, cases: Sequence[ScoredCase]) -> dict[str, float]:
        """Return the metric over all cases."""
        return {
            self.column(output, part): value
            for output in self.outputs
            for part, value in self.of_output(cases, output).items()
        }


class _OfFrames(_Anomaly):
    """A curve's summary, of all frames together; part ``per-video``: the mean over videos that hold both kinds."""

    curve: Callable[[Floats, Bools], float]

    def _video(self, case: ScoredCase, output: OutputSpec) -> float:
        """Return the value of a video's frames; NaN unless it holds both kinds."""
        return remembered(case, (self.name, output.name), lambda: type(self).curve(*_frames(case, output)))

    def per_case(self, case: ScoredCase) -> dict[str, float]:
        """Return the value of the video's own frames."""
        return {self.column(output, "per-video"): self._video(case, output) for output in self.outputs}

    def of_output(self, cases: Sequence[ScoredCase], output: OutputSpec) -> dict[str, float]:
        """Return the pooled value and the mean over videos."""
        return {
            "": type(self).curve(*pooled_frames(cases, output)),
            "per-video": nan_mean([self._video(case, output) for case in cases]),
        }


class FrameAUROC(_OfFrames):
    """Area under the ROC curve of all frames of all videos; part ``per-video``: mean over videos that hold both kinds.

    Pooled, it also asks whether scores of different videos can be compared; per video, only whether the abnormal frames
    of one stand out in it.
    """

    name = "frame-auroc"
    curve = staticmethod(auroc)


class FrameAP(_OfFrames):
    """Average precision of all frames of all videos; parts ``per-video``, as in `FrameAUROC`, and ``prevalence``."""

    name = "frame-ap"
    curve = staticmethod(average_precision)

    def of_output(self, cases: Sequence[ScoredCase], output: OutputSpec) -> dict[str, float]:
        """Return the pooled value, the mean over videos, and the share of abnormal frames."""
        _, abnormal = pooled_frames(cases, output)
        return super().of_output(cases, output) | {"prevalence": nan_mean(abnormal.astype(np.float64))}


class VideoAUROC(_Anomaly):
    """Area under the ROC curve of the scores of videos; part ``max``: of their highest frame scores."""

    name = "video-auroc"

    def of_output(self, cases: Sequence[ScoredCase], output: OutputSpec) -> dict[str, float]:
        """Return the AUROC of both scores."""
        mean, highest, true = videos(cases, output)
        return {"": auroc(mean, true), "max": auroc(highest, true)}


class VideoAP(_Anomaly):
    """Average precision of the scores of videos; parts ``max``, of their highest frame scores, and ``prevalence``."""

    name = "video-ap"

    def of_output(self, cases: Sequence[ScoredCase], output: OutputSpec) -> dict[str, float]:
        """Return the average precision of both scores, and the share of abnormal videos."""
        mean, highest, true = videos(cases, output)
        return {
            "": average_precision(mean, true),
            "max": average_precision(highest, true),
            "prevalence": nan_mean(true.astype(np.float64)),
        }


class AnomalyAUROC(_Anomaly):
    """The one figure that choosing a checkpoint needs: `FrameAUROC` pooled or, where that is NaN, `VideoAUROC`.

    So it is defined with labelled frames and with labelled videos alone, as long as there are normal and abnormal ones.
    """

    name = "anomaly-auroc"

    def of_output(self, cases: Sequence[ScoredCase], output: OutputSpec) -> dict[str, float]:
        """Return the area of frames, else of videos."""
        value = auroc(*pooled_frames(cases, output))
        if math.isnan(value):
            mean, _, true = videos(cases, output)
            value = auroc(mean, true)
        return {"": value}


class Sensitivity(_Anomaly):
    """Share of abnormal frames that score above 95 % of the normal ones; part ``video``: likewise of videos."""

    name = "sensitivity-at-95-specificity"

    def of_output(self, cases: Sequence[ScoredCase], output: OutputSpec) -> dict[str, float]:
        """Return the sensitivity of frames and of videos."""
        mean, _, true = videos(cases, output)
        return {"": sensitivity_at(*pooled_frames(cases, output)), "video": sensitivity_at(mean, true)}


class DetectionDelay(_Anomaly):
    """Frames from the onset of an anomaly to the first alarm at or after it, mean over the videos with an alarm.

    The onset is a video's first frame annotated as abnormal. An alarm is a score above 95 % of those of all normal
    frames (`alarm_threshold`). Parts: ``seconds``, of the videos whose frame rate is known, and ``missed``, the share
    of videos with an onset and no alarm from there on, which the mean leaves out. Earlier alarms do not count.
    """

    name = "detection-delay"

    def of_output(self, cases: Sequence[ScoredCase], output: OutputSpec) -> dict[str, float]:
        """Return the mean delay in frames and in seconds, and the share of onsets missed."""
        scores, abnormal = pooled_frames(cases, output)
        threshold = alarm_threshold(scores[~abnormal])
        delays, rates = [], []
        for case in cases:
            onset = remembered(case, ("onset", output.name), partial(_onset, case, output))
            if onset is not None and not math.isnan(threshold):
                alarms = np.flatnonzero(case.predicted[output.name][onset:] > threshold)
                delays.append(float(alarms[0]) if len(alarms) else math.nan)
                rates.append(case.fps)
        frames = np.array(delays)
        missed = float(np.isnan(frames).mean()) if len(frames) else math.nan
        return {"": nan_mean(frames), "seconds": nan_mean(frames / np.array(rates)), "missed": missed}


def _onset(case: ScoredCase, output: OutputSpec) -> int | None:
    """Return the first abnormal frame; None without."""
    abnormal = np.flatnonzero(frame_truth(case, output) > 0)
    return int(abnormal[0]) if len(abnormal) else None
