"""What a metric is, and what it is given."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medvid_core.data.clip import UNLABELLED, Case
from medvid_core.errors import ConfigError
from medvid_core.specs import OutputSpec

Row = Mapping[str, float]
Floats = npt.NDArray[np.float64]


class ScoredFrames:
    """Some frames of a case, predicted and annotated.

    Args:
        probabilities: [T,K,H,W]; K = 1: of the foreground.
        mask: class of each pixel, long [T,H,W]; 255 = unlabelled.
        labelled: which frames are annotated, bool [T].
        spacing: mm per pixel (row, column) of these arrays; None where unknown.
        indices: number of each frame in its video.
        case: the video; None where unknown.
    """

    def __init__(
        self,
        probabilities: Tensor,
        mask: Tensor,
        labelled: Tensor,
        spacing: tuple[float, float] | None = None,
        indices: Sequence[int] = (),
        case: Case | None = None,
    ) -> None:
        self.probabilities, self.mask, self.labelled = probabilities, mask, labelled
        self.spacing, self.indices, self.case = spacing, tuple(indices), case

    @functools.cached_property
    def foreground(self) -> range:
        """The class indices that are not background."""
        return range(1, max(2, self.probabilities.shape[1]))

    @functools.cached_property
    def predicted(self) -> Tensor:
        """Predicted class of each pixel, long [T,H,W]."""
        return to_classes(self.probabilities)

    @functools.cached_property
    def valid(self) -> Tensor:
        """Annotated pixels, bool [T,H,W]."""
        return self.mask != UNLABELLED

    @functools.cached_property
    def confusion(self) -> Tensor:
        """Pixels that are true positive, false positive, false negative and true negative, double [T,classes,4].

        The second axis holds the foreground classes only, each against all others.
        """
        rows = []
        for number in self.foreground:
            predicted, actual = (self.predicted == number) & self.valid, (self.mask == number) & self.valid
            tp = (predicted & actual).flatten(1).sum(1)
            fp = predicted.flatten(1).sum(1) - tp
            fn = actual.flatten(1).sum(1) - tp
            tn = self.valid.flatten(1).sum(1) - tp - fp - fn
            rows.append(torch.stack([tp, fp, fn, tn], 1))
        return torch.stack(rows, 1).double()


@dataclass(frozen=True, kw_only=True)
class ScoredCase:
    """What a model predicted for a case beside its masks, and what is known of it.

    All arrays are float64, by name of the output. What is predicted has the shape of its task: probabilities [K] for
    classification and multilabel; numbers [D] for regression; for ordinal the probabilities [K-1] of lying above each
    grade but the last; for every frame, probabilities [T,K] for frame_classification and a score [T] for anomaly.

    Attributes:
        case_id: the case.
        group_id: its patient.
        predicted: by output.
        true: of the whole case, by output: a class or grade is its index, shape []; multilabel [K]; regression [D];
            an anomaly 0 or 1, shape []. Outputs whose target is unknown are absent.
        true_frames: of every frame [T], by output; NaN where unknown. Absent likewise.
        fps: frames a second, NaN where unknown.
        last: of numbers, what was measured last before, by output [D]; NaN where unknown. Absent likewise.
        alarms: of anomalies, by output, the scores above which a ``frame`` and a ``video`` raise an alarm, chosen on
            validation cases. Absent where they were not: metrics then choose them on the cases they are given.
    """

    case_id: str
    group_id: str
    predicted: Mapping[str, Floats]
    true: Mapping[str, Floats]
    true_frames: Mapping[str, Floats] = field(default_factory=dict)
    fps: float = math.nan
    last: Mapping[str, Floats] = field(default_factory=dict)
    alarms: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


class CaseMetric:
    """A metric of what is predicted for whole cases or for their frames, in two stages.

    Subclasses give `name`, `tasks`, and one or both stages. They are made for every output of a fitting task.
    """

    name = ""
    tasks: tuple[str, ...] = ()

    def __init__(self, outputs: tuple[OutputSpec, ...]) -> None:
        self.outputs = tuple(output for output in outputs if output.task in self.tasks)

    def column(self, output: OutputSpec, part: str = "") -> str:
        """Return the name of a value: ``name``, with the output's where there are several, and a part's."""
        words = [self.name, *([output.name] if len(self.outputs) > 1 else []), *([part] if part else [])]
        return "/".join(words)

    def per_case(self, case: ScoredCase) -> dict[str, float]:
        """Return a case's own values, for its row; NaN where undefined."""
        return {}

    def summarise(self, cases: Sequence[ScoredCase]) -> dict[str, float]:
        """Return the metric over all cases, by default the mean of their own values."""
        rows = [self.per_case(case) for case in cases]
        names = dict.fromkeys(name for row in rows for name in row)
        return {name: mean([row.get(name, math.nan) for row in rows]) for name in names}


def to_classes(probabilities: Tensor) -> Tensor:
    """Return the predicted class, long [T,H,W], of probabilities [T,K,H,W]: p > 0.5 for K = 1, else the largest."""
    if probabilities.shape[1] == 1:
        return (probabilities[:, 0] > 0.5).long()
    return probabilities.argmax(1)


class Metric:
    """A metric of masks in three stages: per frame, per case, over all cases.

    Subclasses give `name` and `per_frame`; the other two stages are means unless overridden. Values that are not
    defined are NaN and left out of means.

    Attributes:
        name: the metric, and the beginning of all its columns.
        every_frame: whether it is given the frames that nobody annotated, too.
    """

    name = ""
    every_frame = False

    def __init__(self, outputs: tuple[OutputSpec, ...]) -> None:
        self.outputs = outputs

    def per_frame(self, frames: ScoredFrames) -> Mapping[str, Tensor]:
        """Return the metric and its parts (``dice``, ``dice/lv``) for each frame, [T].

        What `per_case` makes numbers of may have further axes, [T,...].
        """
        raise NotImplementedError

    def per_case(self, values: Mapping[str, Floats]) -> Mapping[str, float | Floats]:
        """Return a case's row from the values of its frames, in order; of none, the mapping is empty.

        Arrays are for `across`, and are in no table.
        """
        return {name: mean(column) for name, column in values.items()}

    def across(self, rows: Sequence[dict[str, Any]], cases: Sequence[Case]) -> None:
        """Complete, in place, the rows of all cases by what one case alone does not tell, such as two views of a heart.

        Called once, before `summarise`. The row of a case without scored frames lacks the metric's columns.
        """

    def summarise(self, rows: Sequence[Row]) -> dict[str, float]:
        """Return the metric over all cases."""
        names = dict.fromkeys(name for row in rows for name in row if name.split("/")[0] == self.name)
        return {name: mean([row.get(name, math.nan) for row in rows]) for name in names}


def of_masks_or_cases(
    name: str, outputs: tuple[OutputSpec, ...], of_masks: type[Metric], of_cases: type[CaseMetric]
) -> Metric | CaseMetric:
    """Build a metric that is called the same of masks and of whole cases.

    Raises:
        ConfigError: there are outputs of both kinds.
    """
    other = next((output.task for output in outputs if output.task != "segmentation"), None)
    if other is None:
        return of_masks(outputs)
    if any(output.task == "segmentation" for output in outputs):
        raise ConfigError(
            f"The metric {name!r} means one thing for a segmentation and another for a {other}, and the model has "
            "both. Choose one with outputs=[…], or other metrics."
        )
    return of_cases(outputs)


def mean(values: Sequence[float] | npt.NDArray[np.float64]) -> float:
    """Return the mean of the values that are not NaN; NaN if there is none."""
    defined = [value for value in values if not math.isnan(value)]
    return float(np.mean(defined)) if defined else math.nan
