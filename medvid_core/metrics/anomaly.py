"""Metrics of anomaly scores, of frames and of whole videos.

Conventions. A score is larger where more is wrong. A frame counts if it is known to be normal or abnormal: annotated,
or in a video that as a whole is normal. A video is abnormal if it is labelled so; without a label, if a frame is
abnormal, and normal if all its frames are. The score of a video is the mean of its highest sixteenth of frame scores,
as in training (`medvid_core.losses.tasks.top_k_mean`); part ``max``: its highest. AUROC looks good where anomalies are
rare: read it beside average precision and ``prevalence``, what random scores would reach. Metrics that need both
normal and abnormal are NaN without. A metric that has values per case is their mean.

Alarm thresholds at 95 % specificity belong to a case where they were chosen on validation cases (`alarms_of`); where
they were not, they come from the normal frames (videos) that are scored, and what is read off at them is somewhat too
good.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from medvid_core.metrics.base import CaseMetric, Floats, Metric, ScoredCase
from medvid_core.metrics.curves import Bools, alarm_threshold, auroc, average_precision, share_above
from medvid_core.metrics.gather import Drawn, nan_mean, remembered, stacked
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
    if isinstance(cases, Drawn):  # several metrics ask the same of the same draw
        return remembered(cases, ("pooled frames", output.name), partial(_drawn_frames, cases, output))
    parts = [_frames(case, output) for case in cases]
    if not parts:
        return np.zeros(0), np.zeros(0, dtype=bool)
    return np.concatenate([scores for scores, _ in parts]), np.concatenate([truth for _, truth in parts])


def _drawn_frames(cases: Drawn, output: OutputSpec) -> Scored:
    """Return the frames of the cases that were drawn from those of all, joined once."""
    scores, abnormal = cases.of_pool(("pooled frames", output.name), partial(pooled_frames, output=output))
    counts = cases.of_pool(("frame counts", output.name), partial(_frame_counts, output=output))
    starts, drawn = (counts.cumsum() - counts)[cases.places], counts[cases.places]
    places = np.arange(drawn.sum()) + np.repeat(starts - (drawn.cumsum() - drawn), drawn)
    return scores[places], abnormal[places]


def _frame_counts(cases: Sequence[ScoredCase], output: OutputSpec) -> npt.NDArray[np.int64]:
    """Return how many frames of each case count, [N]."""
    counts: npt.NDArray[np.int64] = stacked(
        cases, ("frame counts", output.name), lambda case: len(_frames(case, output)[0])
    ).astype(np.int64)
    return counts


def videos(cases: Sequence[ScoredCase], output: OutputSpec) -> tuple[Floats, Floats, Bools]:
    """Return top-sixteenth scores, highest scores and truth of the videos that are known to be either, [N] each."""
    mean, highest, true = _video_rows(cases, output).T
    known = ~np.isnan(true)
    return mean[known], highest[known], true[known] > 0


def _video_rows(cases: Sequence[ScoredCase], output: OutputSpec) -> Floats:
    """Return both scores and the truth, NaN where unknown, of every video, [N,3]."""
    return stacked(cases, ("anomaly video", output.name), partial(_video, output=output)).reshape(-1, 3)


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
        return type(self).curve(*_frames(case, output))

    def per_case(self, case: ScoredCase) -> dict[str, float]:
        """Return the value of the video's own frames."""
        return {
            self.column(output, "per-video"): remembered(
                case, (self.name, output.name), partial(self._video, case, output)
            )
            for output in self.outputs
        }

    def of_output(self, cases: Sequence[ScoredCase], output: OutputSpec) -> dict[str, float]:
        """Return the pooled value and the mean over videos."""
        return {
            "": type(self).curve(*pooled_frames(cases, output)),
            "per-video": nan_mean(stacked(cases, (self.name, output.name), partial(self._video, output=output))),
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


def alarms_of(cases: Sequence[ScoredCase], outputs: Iterable[OutputSpec]) -> dict[str, dict[str, float]]:
    """Return the scores above which a ``frame`` and a ``video`` raise an alarm, by anomaly output: `ScoredCase.alarms`.

    95 % of the normal ones of these cases lie at or below them. Absent where none is normal, or a score is NaN.
    """
    found = {}
    for output in outputs:
        if output.task == "anomaly":
            limits = {kind: alarm_threshold(_normal(cases, output, kind)) for kind in ("frame", "video")}
            found[output.name] = {kind: limit for kind, limit in limits.items() if not math.isnan(limit)}
    return found


def raise_alarms(metrics: Iterable[Metric | CaseMetric]) -> list[str]:
    """Return the names of the metrics that need alarm thresholds."""
    return [metric.name for metric in metrics if isinstance(metric, _OfAlarms)]


def _normal(cases: Sequence[ScoredCase], output: OutputSpec, kind: str) -> Floats:
    """Return the scores of normal frames or videos."""
    if kind == "video":
        mean, _, true = videos(cases, output)
        return mean[~true]
    scores, abnormal = pooled_frames(cases, output)
    return scores[~abnormal]


class _OfAlarms(_Anomaly):
    """A metric of alarms."""

    def limits(self, cases: Sequence[ScoredCase], output: OutputSpec, kind: str) -> Floats:
        """Return the score above which each case raises an alarm [N]: fixed beforehand, else chosen on these cases."""
        fixed = _alarms(cases, output, kind)
        if not np.isnan(fixed).any():
            return fixed
        return np.full(len(fixed), alarm_threshold(_normal(cases, output, kind)))


class Sensitivity(_OfAlarms):
    """Share of abnormal frames that raise an alarm; part ``video``: of abnormal videos.

    An alarm is a score above 95 % of those of normal frames (videos). Parts ``specificity`` and ``video-specificity``:
    the share of the scored normal ones that raise none, 95 % where the threshold fits them.
    """

    name = "sensitivity-at-95-specificity"

    def of_output(self, cases: Sequence[ScoredCase], output: OutputSpec) -> dict[str, float]:
        """Return the sensitivity of frames and of videos, and the specificity of both."""
        scores, abnormal = pooled_frames(cases, output)
        frames = np.repeat(self.limits(cases, output, "frame"), _frame_counts(cases, output))
        mean, _, true = videos(cases, output)
        known = ~np.isnan(_video_rows(cases, output)[:, 2])
        of_videos = self.limits(cases, output, "video")[known]
        return {
            "": share_above(scores[abnormal], frames[abnormal]),
            "video": share_above(mean[true], of_videos[true]),
            "specificity": 1 - share_above(scores[~abnormal], frames[~abnormal]),
            "video-specificity": 1 - share_above(mean[~true], of_videos[~true]),
        }


class DetectionDelay(_OfAlarms):
    """Frames from the onset of an anomaly to the first alarm at or after it, mean over the videos with an alarm.

    The onset is a video's first frame annotated as abnormal. An alarm is a score above 95 % of those of normal frames
    (`alarm_threshold`). Parts: ``seconds``, of the videos whose frame rate is known, and ``missed``, the share of
    videos with an onset and no alarm from there on, which the mean leaves out. Earlier alarms do not count.
    """

    name = "detection-delay"

    def of_output(self, cases: Sequence[ScoredCase], output: OutputSpec) -> dict[str, float]:
        """Return the mean delay in frames and in seconds, and the share of onsets missed."""
        limits = self.limits(cases, output, "frame")
        onsets = stacked(cases, ("onset", output.name), partial(_onset, output=output))
        known = (onsets >= 0) & ~np.isnan(limits)
        if (_alarms(cases, output, "frame") == limits).all():  # fixed: the same in every resample
            delays = stacked(cases, ("delay", output.name), lambda case: _delay(case, output, _alarm(case, output)))
        else:
            delays = np.full(len(limits), math.nan)
            for place in np.flatnonzero(known).tolist():
                delays[place] = _delay(cases[place], output, limits[place])
        frames, rates = delays[known], stacked(cases, "fps", lambda case: case.fps)[known]
        missed = float(np.isnan(frames).mean()) if len(frames) else math.nan
        return {"": nan_mean(frames), "seconds": nan_mean(frames / rates), "missed": missed}


def _alarms(cases: Sequence[ScoredCase], output: OutputSpec, kind: str) -> Floats:
    """Return the thresholds that were fixed beforehand [N]; NaN where none was."""
    return stacked(cases, ("alarm", kind, output.name), partial(_alarm, output=output, kind=kind)).astype(np.float64)


def _alarm(case: ScoredCase, output: OutputSpec, kind: str = "frame") -> float:
    return case.alarms.get(output.name, {}).get(kind, math.nan)


def _onset(case: ScoredCase, output: OutputSpec) -> int:
    """Return the first abnormal frame; -1 without."""
    abnormal = np.flatnonzero(frame_truth(case, output) > 0)
    return int(abnormal[0]) if len(abnormal) else -1


def _delay(case: ScoredCase, output: OutputSpec, limit: float) -> float:
    """Return the frames from the onset to the first alarm from there on; NaN without either."""
    onset = remembered(case, ("onset", output.name), partial(_onset, case, output))
    alarms = case.predicted[output.name][onset:] > limit
    return float(alarms.argmax()) if onset >= 0 and alarms.any() else math.nan
