"""Measures of soft maps: by hand, at their limits, and where nothing or everything is annotated."""

import math

import numpy as np
import pytest
import torch

from medvid_core import OutputSpec, create_metric
from medvid_core.metrics.base import ScoredFrames
from medvid_core.metrics.saliency import (
    adaptive_alignment,
    alignment_curve,
    stretched_error,
    structure_measure,
    weighted_f,
)

BINARY = OutputSpec(name="mask", task="segmentation", classes=("lesion",))
MULTI = OutputSpec(name="mask", task="segmentation", classes=("background", "solid", "non-solid"))
NAMES = ("s-measure", "e-measure", "e-measure-max", "e-measure-adaptive", "weighted-f", "stretched-mae")


def square(size=12, start=3, stop=8):
    mask = np.zeros((size, size))
    mask[start:stop, start:stop] = 1
    return mask


def test_a_perfect_map():
    mask = square()
    n = mask.size
    assert structure_measure(mask, mask) == pytest.approx(1)
    assert alignment_curve(mask, mask).max() == pytest.approx(n / (n - 1))
    assert adaptive_alignment(mask, mask) == pytest.approx(n / (n - 1))
    assert weighted_f(mask, mask) == pytest.approx(1)
    assert stretched_error(mask, mask) == 0


def test_structure_by_hand():
    """Half the picture, predicted 1 in a half of it and 0 elsewhere.

    Objects: inside m = 1/2 and σ² = 1/3, outside 2 / 2 = 1. The centroid (0.5, 0.5) is rounded to even, (0, 0), so that
    the quarters meet at (1, 1): two of 1 by 1 that are right, two of 3 by 1 where a prediction of nothing does not vary
    with the annotation.
    """
    annotated = np.array([[1.0, 1], [1, 1], [0, 0], [0, 0]])
    p = np.array([[1.0, 1], [0, 0], [0, 0], [0, 0]])
    inside = 2 * 0.5 / (0.5**2 + 1 + math.sqrt(1 / 3))
    quarters = 2 * (1 / 8) * 1 + 2 * (3 / 8) * 0
    assert structure_measure(p, annotated) == pytest.approx(0.5 * (0.5 * inside + 0.5 * 1) + 0.5 * quarters)


def test_alignment_by_hand():
    """2 x 2 pixels, one annotated, another predicted: means 1/4, so agreement is ξ = 1 or -6/10 of four and of none."""
    annotated, p = np.array([[1.0, 0], [0, 0]]), np.array([[0, 1.0], [0, 0]])
    one, two = 0.75, -0.25
    wrong = 2 * one * two / (one**2 + two**2)
    assert alignment_curve(p, annotated)[0] == pytest.approx((2 * (wrong + 1) ** 2 / 4 + 2) / 3)
    assert adaptive_alignment(p, annotated) == pytest.approx((2 * (wrong + 1) ** 2 / 4 + 2) / 3)


def test_weighted_f_by_hand():
    """A lone error far outside weighs 2 - exp(log(1/2) / 5 · d), d pixels away from the object."""
    annotated = np.zeros((1, 20))
    annotated[0, 0] = 1
    p = annotated.copy()
    p[0, 10] = 1
    excess = 2 - 0.5 ** (10 / 5)
    precision = 1 / (1 + excess)
    assert weighted_f(p, annotated) == pytest.approx(2 * precision / (1 + precision))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_nothing_or_everything_annotated(share):
    p, annotated = np.linspace(0, 1, 20).reshape(4, 5), np.full((4, 5), share)
    assert structure_measure(p, annotated) == pytest.approx(0.5)
    assert alignment_curve(p, annotated)[0] == pytest.approx((1 if share else 19) / 19)
    assert math.isnan(weighted_f(p, annotated)) == (share == 0)


@pytest.mark.parametrize("corner", [(0, 0), (0, -1), (-1, 0), (-1, -1)])
def test_an_object_of_one_pixel_in_a_corner(corner):
    """A quarter of the picture is then empty, and a lone pixel has no spread."""
    annotated = np.zeros((5, 7))
    annotated[corner] = 1
    assert structure_measure(annotated, annotated) == pytest.approx(1)
    assert 0 <= structure_measure(1 - annotated, annotated) <= 0.5  # quarters without object are alike


@pytest.mark.parametrize("name", NAMES)
def test_the_scale_of_a_prediction_does_not_matter(name):
    """Predictions are stretched; that of each class by itself."""
    g = torch.Generator().manual_seed(0)
    p, mask = torch.rand(2, 1, 9, 8, generator=g).double(), torch.randint(0, 2, (2, 9, 8), generator=g)
    metric = create_metric(name, [BINARY])
    found = [
        metric.per_frame(ScoredFrames(each, mask, torch.ones(2, dtype=torch.bool)))[name] for each in (p, 0.1 + p / 4)
    ]
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("name", NAMES)
def test_every_class_by_itself(name):
    g = torch.Generator().manual_seed(0)
    p, mask = torch.rand(2, 3, 9, 8, generator=g), torch.randint(0, 3, (2, 9, 8), generator=g)
    marks = torch.ones(2, dtype=torch.bool)
    found = create_metric(name, [MULTI]).per_frame(ScoredFrames(p, mask, marks))
    for number, label in enumerate(("solid", "non-solid"), 1):
        alone = ScoredFrames(p[:, number : number + 1], (mask == number).long(), marks)
        torch.testing.assert_close(found[f"{name}/{label}"], create_metric(name, [BINARY]).per_frame(alone)[name])
    torch.testing.assert_close(found[name], (found[f"{name}/solid"] + found[f"{name}/non-solid"]) / 2)
