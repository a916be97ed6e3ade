"""Measures of how like a soft map is to a mask: structure, alignment, weighted F, and the error of the stretched map.

Each picture of a prediction is first stretched to 0..1 (`medvid_core.metrics.thresholds.stretched`), as is usual for
these; unlabelled pixels count as background that is predicted so. Formulas as in the papers named, and in what their
authors and PySODMetrics publish where the papers leave a choice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from medvid_core.metrics.base import Floats, Metric, ScoredFrames
from medvid_core.metrics.gather import remembered
from medvid_core.metrics.segmentation import with_classes
from medvid_core.metrics.thresholds import BestOfCurve, of_classes, stretched
from medvid_core.specs import OutputSpec

LEVELS = 256
_EPS = float(np.spacing(1))


def structure_measure(p: Floats, annotated: Floats) -> float:
    """Return the S-measure of a map [H,W], 0 to 1 (Fan et al., ICCV 2017, with α = 0.5).

    Half how alike foreground and background are inside, half how alike the four quarters around the centroid are.
    Where nothing is annotated 1 - mean p, where everything is, mean p.
    """
    share = annotated.mean()
    if share in (0, 1):
        return float(1 - p.mean() if share == 0 else p.mean())
    inside = annotated > 0
    of_objects = share * _object(p[inside]) + (1 - share) * _object(1 - p[~inside])
    return max(0.0, float(0.5 * of_objects + 0.5 * _quarters(p, annotated)))


def _object(values: Floats) -> float:
    """How surely and evenly a region [N] is 1: 2 m / (m² + 1 + σ)."""
    spread = values.std(ddof=1) if len(values) > 1 else 0.0
    return float(2 * values.mean() / (values.mean() ** 2 + 1 + spread + _EPS))


def _quarters(p: Floats, annotated: Floats) -> float:
    """Structural similarity of the four quarters around the centroid of the annotation, weighted by area."""
    row, column = np.round(np.argwhere(annotated > 0).mean(0)).astype(int) + 1
    total = 0.0
    for rows in (slice(None, row), slice(row, None)):
        for columns in (slice(None, column), slice(column, None)):
            part, true = p[rows, columns], annotated[rows, columns]
            if part.size:
                total += part.size / p.size * _similarity(part, true)
    return total


def _similarity(x: Floats, y: Floats) -> float:
    mx, my, n = x.mean(), y.mean(), max(1, x.size - 1)
    sx, sy, sxy = ((x - mx) ** 2).sum() / n, ((y - my) ** 2).sum() / n, ((x - mx) * (y - my)).sum() / n
    alpha, beta = 4 * mx * my * sxy, (mx**2 + my**2) * (sx + sy)
    if alpha != 0:
        return float(alpha / (beta + _EPS))
    return 1.0 if beta == 0 else 0.0


def alignment_curve(p: Floats, annotated: Floats) -> Floats:
    """Return the E-measure of a map [H,W] cut at each of 256 levels, from the highest to the lowest.

    (Fan et al., IJCAI 2018.) Divided by the number of pixels less one, as their code does: a perfect map of N pixels
    reaches N / (N - 1). Where nothing is annotated it is the share predicted background, where everything is, that
    predicted foreground.
    """
    levels = np.floor(255 * p).astype(int)
    inside = annotated > 0
    tp, fp = (
        np.bincount(levels[chosen], minlength=LEVELS)[::-1].cumsum().astype(np.float64) for chosen in (inside, ~inside)
    )
    return _alignment(tp, fp, inside)


def adaptive_alignment(p: Floats, annotated: Floats) -> float:
    """Return the E-measure of a map [H,W] cut at twice its mean, at most 1."""
    chosen, inside = p >= min(1.0, 2 * p.mean()), annotated > 0
    tp, fp = (np.array([float((chosen & where).sum())]) for where in (inside, ~inside))
    return float(_alignment(tp, fp, inside)[0])


def _alignment(tp: Floats, fp: Floats, inside: np.ndarray) -> Floats:
    """E-measure from how many pixels inside and outside the annotation are predicted, [N]."""
    size, true = float(inside.size), float(inside.sum())
    if true in (0, size):
        total = tp if true else size - fp
        return np.asarray(total / (size - 1 + _EPS))
    counts = (tp, fp, true - tp, size - true - fp)
    predicted, annotated = (tp + fp) / size, true / size
    total = np.zeros_like(tp)
    for count, (one, other) in zip(counts, ((1, 1), (1, 0), (0, 1), (0, 0)), strict=True):
        x, y = one - predicted, other - annotated
        total += count * (2 * x * y / (x**2 + y**2 + _EPS) + 1) ** 2 / 4
    return np.asarray(total / (size - 1 + _EPS))


@cache
def _gaussian() -> Floats:
    """7x7, sigma 5, adding up to 1."""
    offsets = np.arange(-3, 4)
    kernel = np.exp(-(offsets[:, None] ** 2 + offsets**2) / 50)
    return np.asarray(kernel / kernel.sum())


def weighted_f(p: Floats, annotated: Floats) -> float:
    """Return the weighted F-measure of a map [H,W], β = 1 (Margolin et al., CVPR 2014); NaN where nothing is annotated.

    Errors inside are smoothed over their neighbours, those outside weigh the more the farther they lie from the object.
    """
    inside = annotated > 0
    if not inside.any():
        return float("nan")
    distance, nearest = ndimage.distance_transform_edt(~inside, return_indices=True)
    error = np.abs(p - annotated)
    smoothed = ndimage.convolve(error[tuple(nearest)], _gaussian(), mode="constant")
    least = np.where(inside & (smoothed < error), smoothed, error)
    weighed = least * np.where(inside, 1.0, 2 - np.exp(np.log(0.5) / 5 * distance))
    found = inside.sum() - weighed[inside].sum()
    recall, precision = 1 - weighed[inside].mean(), found / (found + weighed[~inside].sum() + _EPS)
    return float(2 * recall * precision / (recall + precision + _EPS))


def stretched_error(p: Floats, annotated: Floats) -> float:
    """Return the mean absolute difference of a map [H,W] and its mask."""
    return float(np.abs(p - annotated).mean())


Measure = Callable[[Floats, Floats], "float | Floats"]


def _each(frames: ScoredFrames, measure: Measure) -> Tensor:
    """Measure every frame and class, [T,classes,...]."""
    maps = remembered(frames, "stretched", partial(stretched, frames)).cpu().numpy()
    annotated = of_classes(frames)[1].cpu().numpy().astype(np.float64)
    values = [[measure(*pair) for pair in zip(*frame, strict=True)] for frame in zip(maps, annotated, strict=True)]
    return torch.from_numpy(np.array(values, np.float64))


class OfStretchedMap(Metric):
    """A number for each stretched map."""

    def __init__(self, name: str, measure: Measure, outputs: tuple[OutputSpec, ...]) -> None:
        super().__init__(outputs)
        self.name, self.measure = name, measure

    def per_frame(self, frames: ScoredFrames) -> Mapping[str, Tensor]:
        """Return the value of each frame."""
        return with_classes(self.name, _each(frames, self.measure), self.outputs)


class BestAlignment(BestOfCurve):
    """The E-measure at the level that is best for all cases."""

    name = "e-measure-max"

    def curve(self, frames: ScoredFrames) -> Tensor:
        """Return the E-measure at each level."""
        return _each(frames, alignment_curve)


def mean_alignment(p: Floats, annotated: Floats) -> float:
    """Return the mean over levels of the E-measure of a map [H,W]."""
    return float(alignment_curve(p, annotated).mean())


build_structure_measure = partial(OfStretchedMap, "s-measure", structure_measure)
build_mean_alignment = partial(OfStretchedMap, "e-measure", mean_alignment)
build_adaptive_alignment = partial(OfStretchedMap, "e-measure-adaptive", adaptive_alignment)
build_weighted_f = partial(OfStretchedMap, "weighted-f", weighted_f)
build_stretched_error = partial(OfStretchedMap, "stretched-mae", stretched_error)
