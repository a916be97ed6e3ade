"""Temporal consistency of the predicted ventricle, by hand, over all frames."""

import math

import numpy as np
import pytest
import torch

from medvid_core import OutputSpec, create_metric
from medvid_core.metrics.base import ScoredFrames
from medvid_core.metrics.temporal import LARGEST

OUTPUT = OutputSpec(name="mask", task="segmentation", classes=("background", "myo", "lv"))


def score(areas) -> dict[str, float]:
    """A video whose frames show this many pixels of the ventricle beside some of the wall, none of them annotated."""
    metric = create_metric("temporal-consistency", [OUTPUT])
    probabilities = torch.zeros(len(areas), 3, 1, 400)
    for frame, area in enumerate(areas):
        probabilities[frame, 2, 0, :area] = 0.9
        probabilities[frame, 1, 0, area : area + 50 * frame] = 0.8
    probabilities[:, 0] = 0.5
    nothing = torch.full((len(areas), 1, 400), 255)
    frames = ScoredFrames(probabilities, nothing, torch.zeros(len(areas), dtype=torch.bool))
    return metric.per_case({name: column.double().numpy() for name, column in metric.per_frame(frames).items()})


def test_it_is_asked_of_every_frame():
    assert create_metric("temporal-consistency", [OUTPUT]).every_frame


def test_by_hand():
    """Areas 100, 300, 100, 200 scale to 0, 1, 0, 0.5: d = 0, 1, 0.75, 0."""
    found = score([100, 300, 100, 200])
    assert found == pytest.approx({"temporal-consistency": 1.75 / 4, "temporal-consistency/inconsistent": 0.5})


def test_the_threshold():
    """Within a straight line nothing is inconsistent; a step of 1.6 % is at the border."""
    assert score([0, 100, 200, 300]) == {"temporal-consistency": 0, "temporal-consistency/inconsistent": 0}
    areas = np.array([0, 125, 254, 375])  # scaled bends of 2 and 4 of 375, halved
    bends = np.abs(np.diff(areas, 2)) / 2 / 375
    assert score(areas)["temporal-consistency/inconsistent"] == (bends > LARGEST).sum() / 4
    assert score([0, 125, 265, 375])["temporal-consistency/inconsistent"] == 0.5


def test_a_ventricle_that_stands_still_is_smooth_and_none_is_undefined():
    assert score([90, 90, 90])["temporal-consistency"] == 0
    for areas in ([0, 0, 0, 0], [100, 200], [100]):
        assert all(math.isnan(value) for value in score(areas).values())
