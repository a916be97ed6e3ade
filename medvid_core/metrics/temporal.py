"""How smoothly the predicted left ventricle changes from frame to frame, whether annotated or not."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from torch import Tensor

from medvid_core.metrics.base import Floats, Metric, ScoredFrames
from medvid_core.metrics.ventricle import left_ventricle
from medvid_core.specs import OutputSpec

LARGEST = 0.016
"""A larger d_t is an inconsistency: the threshold of Painchaud et al. for the area of the left ventricle."""


class TemporalConsistency(Metric):
    """Mean d_t of the area of the predicted left ventricle; lower is smoother (Painchaud et al., IEEE TMI 2022).

    d_t = \\|a_t - (a_(t-1) + a_(t+1)) / 2\\|, 0 in the first and the last frame, where a is the number of its pixels,
    scaled so that the least in the video is 0 and the most 1. Part ``inconsistent``: share of the frames with d_t above
    `LARGEST`. It knows no annotation: a prediction that stands still is as smooth as can be. NaN in videos of fewer
    than three frames, and where no frame has a ventricle. Cases without any annotated frame are in no summary.
    """

    name = "temporal-consistency"
    every_frame = True

    def __init__(self, outputs: tuple[OutputSpec, ...]) -> None:
        """Find the class that is the ventricle.

        Raises:
            ConfigError: no class is called so.
        """
        super().__init__(outputs)
        self.number = left_ventricle(self.name, next(output for output in outputs if output.task == "segmentation"))

    def per_frame(self, frames: ScoredFrames) -> Mapping[str, Tensor]:
        """Return the area of each frame in pixels, [T]."""
        return {self.name: (frames.predicted == self.number).flatten(1).sum(1)}

    def per_case(self, values: Mapping[str, Floats]) -> dict[str, float]:
        """Return the mean of d_t, and the share of frames that are inconsistent."""
        steps = inconsistency(values[self.name])
        undefined = len(steps) == 0
        return {
            self.name: math.nan if undefined else float(steps.mean()),
            f"{self.name}/inconsistent": math.nan if undefined else float((steps > LARGEST).mean()),
        }


def inconsistency(areas: Floats) -> Floats:
    """Return d_t of areas [T], [T]; empty where it is undefined."""
    if len(areas) < 3 or areas.max() == 0:
        return np.empty(0)
    scaled = (areas - areas.min()) / max(np.ptp(areas), 1)
    steps = np.zeros(len(areas))
    steps[1:-1] = np.abs(scaled[1:-1] - (scaled[:-2] + scaled[2:]) / 2)
    return steps
