"""Overlap at many thresholds: by hand, by brute force, and the one threshold of all cases."""

import math

import numpy as np
import pytest
import torch

from medvid_core import OutputSpec, create_metric
from medvid_core.metrics.base import ScoredFrames
from medvid_core.metrics.thresholds import at_best_thresholds, confusion_above, is_curve, stretched

BINARY = OutputSpec(name="mask", task="segmentation", classes=("lesion",))
MULTI = OutputSpec(name="mask", task="segmentation", classes=("background", "solid", "non-solid"))


def picture(p, actual) -> ScoredFrames:
    """One frame from two lists of pixels."""
    mask = torch.tensor(actual).view(1, 1, -1)
    return ScoredFrames(torch.tensor(p).float().view(1, 1, 1, -1), mask, torch.tensor([True]))


def score(name, frames) -> float:
    return float(create_metric(name, [BINARY]).per_frame(frames)[name][0])


def best(name, *pictures) -> float:
    """The result over cases of one frame each, as an evaluation has it."""
    metric = create_metric(name, [BINARY])
    rows = [dict(metric.per_case({name: metric.per_frame(each)[name].double().numpy()})) for each in pictures]
    metric.across(rows, [None] * len(rows))
    return metric.summarise([{k: v for k, v in row.items() if not isinstance(v, np.ndarray)} for row in rows])[name]


def test_counts_at_every_threshold():
    """Against counting at each; ties fall on either side by the comparison."""
    g = torch.Generator().manual_seed(0)
    p = (torch.rand(2, 3, 5, 4, generator=g) * 8).round() / 8
    annotated = torch.rand(2, 3, 5, 4, generator=g) > 0.5
    valid = torch.rand(2, 5, 4, generator=g) > 0.2
    thresholds = torch.linspace(0, 1, 9)
    for at_least in (False, True):
        found = confusion_above(p, annotated, valid, thresholds, at_least)
        for number, threshold in enumerate(thresholds):
            called = p >= threshold if at_least else p > threshold
            pairs = ((called, annotated), (called, ~annotated), (~called, annotated), (~called, ~annotated))
            for got, (one, other) in zip(found, pairs, strict=True):
                assert torch.equal(got[..., number], (one & other & valid[:, None]).flatten(2).sum(2).double())


def test_mean_by_hand():
    """p = 1 and 0.5 in the object, 0 outside: both above t < 0.5 (128 thresholds), one up to t < 1, none at t = 1."""
    frames = picture([1.0, 0.5, 0.0, 0.0], [1, 1, 0, 0])
    assert score("threshold-mean-dice", frames) == pytest.approx((128 * 1 + 127 * 2 / 3) / 256)
    assert score("threshold-mean-jaccard", frames) == pytest.approx((128 * 1 + 127 * 1 / 2) / 256)
    assert score("threshold-mean-recall", frames) == pytest.approx((128 * 1 + 127 * 1 / 2) / 256)
    assert score("threshold-mean-precision", frames) == pytest.approx(255 / 256)
    assert score("threshold-mean-specificity", frames) == 1


def test_mean_where_nothing_is_annotated():
    """1 at thresholds where nothing is predicted either."""
    assert score("threshold-mean-dice", picture([0.5, 0.0], [0, 0])) == pytest.approx(128 / 256)
    assert score("threshold-mean-dice", picture([0.0, 0.0], [0, 0])) == 1
    assert score("threshold-mean-specificity", picture([0.5, 0.0], [0, 0])) == pytest.approx((128 / 2 + 128) / 256)


def test_max_by_hand():
    """Stretched to 1, 2/3, 1/3, 0: Dice 2/3 (one pixel), 1 (two), 4/5 (three), 2/3 (all)."""
    frames = picture([0.4, 0.3, 0.2, 0.1], [1, 1, 0, 0])
    assert best("threshold-max-dice", frames) == pytest.approx(1)
    assert best("threshold-max-jaccard", frames) == pytest.approx(1)
    wrong = picture([0.4, 0.3, 0.2, 0.1], [0, 0, 1, 1])
    assert best("threshold-max-dice", wrong) == pytest.approx(2 / 3)
    assert best("threshold-max-specificity", wrong) == 0  # as soon as the object is met, nothing else is left out
    assert best("threshold-max-specificity", picture([0.1, 0.4, 0.3, 0.2], [1, 1, 0, 0])) == 1


def test_the_threshold_is_one_for_all_cases():
    """Dice by number of predicted pixels is 2/3, 1, 4/5, 2/3 in one case and 1, 2/3, 1/2, 2/5 in the other."""
    one, other = picture([0.4, 0.3, 0.2, 0.1], [1, 1, 0, 0]), picture([0.4, 0.3, 0.2, 0.1], [1, 0, 0, 0])
    assert best("threshold-max-dice", one, other) == pytest.approx((1 + 2 / 3) / 2)
    assert (best("threshold-max-dice", one) + best("threshold-max-dice", other)) / 2 == 1


def test_cases_scored_apart_are_brought_to_one_threshold():
    """As if they had been scored together: each alone had the best of its own curve."""
    metric = create_metric("threshold-max-dice", [BINARY])
    rows, curves = [], []
    for actual in ([1, 1, 0, 0], [1, 0, 0, 0]):
        frames = picture([0.4, 0.3, 0.2, 0.1], actual)
        values = metric.per_case({name: x.double().numpy() for name, x in metric.per_frame(frames).items()})
        rows.append({name: value for name, value in values.items() if not is_curve(name)} | {"dice": 0.5})
        curves.append({name: value for name, value in values.items() if is_curve(name)})
    assert [row["threshold-max-dice"] for row in rows] == [1, 1]
    found = at_best_thresholds([create_metric("dice", [BINARY]), metric], rows, curves)
    assert found == [
        {"threshold-max-dice": pytest.approx(1), "dice": 0.5},
        {"threshold-max-dice": pytest.approx(2 / 3), "dice": 0.5},
    ]
    assert rows[1]["threshold-max-dice"] == 1  # left as it was


def test_max_without_annotation_is_undefined_and_left_out():
    one, empty = picture([0.4, 0.3, 0.2, 0.1], [1, 1, 0, 0]), picture([0.4, 0.3, 0.2, 0.1], [0, 0, 0, 0])
    assert math.isnan(best("threshold-max-dice", empty))
    assert best("threshold-max-dice", one, empty) == pytest.approx(1)


def test_classes_are_decided_each_by_itself():
    """0.4 against 0.35 and 0.25: nothing at 0.5, and the first class at 0.3."""
    p = torch.tensor([[0.25, 0.4, 0.35], [0.8, 0.1, 0.1]]).T.view(1, 3, 1, 2)
    frames = ScoredFrames(p, torch.tensor([[[1, 0]]]), torch.tensor([True]))
    found = create_metric("threshold-mean-dice", [MULTI]).per_frame(frames)
    low, high = (math.ceil(255 * x) for x in (0.1, 0.4))  # thresholds below
    assert float(found["threshold-mean-dice/solid"][0]) == pytest.approx((low * 2 / 3 + (high - low)) / 256)
    absent = 256 - math.ceil(255 * 0.35)  # nothing predicted, nothing there
    assert float(found["threshold-mean-dice/non-solid"][0]) == pytest.approx(absent / 256)


def test_stretching_sees_annotated_pixels_alone():
    frames = picture([0.2, 0.6, 0.4, 0.9], [1, 0, 0, 255])
    torch.testing.assert_close(stretched(frames).flatten(), torch.tensor([0.0, 1.0, 0.5, 0.0]).double())
    assert stretched(picture([0.3, 0.3], [1, 0])).flatten().tolist() == pytest.approx([0.3, 0.3])


def test_every_class_has_its_own_threshold():
    """One class is best at the highest level, the other at the third: each scores 1, and so does their mean."""
    p = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.4, 0.3, 0.2, 0.1], [0.1, 0.4, 0.3, 0.2]]).view(1, 3, 1, 4)
    mask = torch.tensor([[[1, 2, 2, 2]]])
    metric = create_metric("threshold-max-dice", [MULTI])
    frames = ScoredFrames(p, mask, torch.tensor([True]))
    row = dict(metric.per_case({name: x.double().numpy() for name, x in metric.per_frame(frames).items()}))
    metric.across([row], [None])
    assert {name: value for name, value in row.items() if not isinstance(value, np.ndarray)} == {
        "threshold-max-dice": 1,
        "threshold-max-dice/solid": 1,
        "threshold-max-dice/non-solid": 1,
    }
