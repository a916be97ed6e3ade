"""What a metric is, and what it is given."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medvid_core.data.clip import UNLABELLED
from medvid_core.specs import OutputSpec

Row = Mapping[str, float]


class ScoredFrames:
    """Some frames of a case, predicted and annotated.

    Args:
        probabilities: [T,K,H,W]; K = 1: of the foreground.
        mask: class of each pixel, long [T,H,W]; 255 = unlabelled.
        labelled: which frames are annotated, bool [T].
    """

    def __init__(self, probabilities: Tensor, mask: Tensor, labelled: Tensor) -> None:
        self.probabilities, self.mask, self.labelled = probabilities, mask, labelled

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


def to_classes(probabilities: Tensor) -> Tensor:
    """Return the predicted class, long [T,H,W], of probabilities [T,K,H,W]: p > 0.5 for K = 1, else the largest."""
    if probabilities.shape[1] == 1:
        return (probabilities[:, 0] > 0.5).long()
    return probabilities.argmax(1)


class Metric:
    """A metric in three stages: per frame, per case, over all cases.

    Subclasses give `name` and `per_frame`; the other two stages are means unless overridden. Values that are not
    defined are NaN and left out of means.
    """

    name = ""

    def __init__(self, outputs: tuple[OutputSpec, ...]) -> None:
        self.outputs = outputs

    def per_frame(self, frames: ScoredFrames) -> Mapping[str, Tensor]:
        """Return the metric and its parts (``dice``, ``dice/lv``) for each frame, [T]."""
        raise NotImplementedError

    def per_case(self, values: Mapping[str, npt.NDArray[np.float64]]) -> dict[str, float]:
        """Return a case's row from the values of its annotated frames."""
        return {name: mean(column) for name, column in values.items()}

    def summarise(self, rows: Sequence[Row]) -> dict[str, float]:
        """Return the metric over all cases."""
        names = dict.fromkeys(name for row in rows for name in row if name.split("/")[0] == self.name)
        return {name: mean([row.get(name, math.nan) for row in rows]) for name in names}


def mean(values: Sequence[float] | npt.NDArray[np.float64]) -> float:
    """Return the mean of the values that are not NaN; NaN if there is none."""
    defined = [value for value in values if not math.isnan(value)]
    return float(np.mean(defined)) if defined else math.nan
