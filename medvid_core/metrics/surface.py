"""How far predicted and annotated outlines lie apart, per frame and foreground class.

Outlines are MONAI's (`monai.metrics.utils`): the pixels of a mask that erosion by a cross takes away, those at the edge
of the picture among them. The distance of an outline pixel is that to the nearest one of the other outline, from centre
to centre.

Conventions. Class 0 is the background and is not scored; predictions at unlabelled pixels (255) count as none. Where
prediction or annotation is empty, or both, there is no distance: NaN, and counted by the part ``undefined``. A value is
in mm where the spacing of the case is known, else in pixels of the scored size, and the part ``mm`` or ``pixels``
repeats it under the name of its unit. The two are never averaged: where they come together, the metric and its classes
are of the cases in mm alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.metrics.utils import get_mask_edges, get_surface_distance
from torch import Tensor

from medvid_core.data.clip import Case
from medvid_core.metrics.base import Floats, Metric, ScoredFrames
from medvid_core.metrics.gather import remembered
from medvid_core.metrics.segmentation import with_classes

Bools = npt.NDArray[np.bool_]
Distances = tuple[Floats, Floats]
"""Of every pixel of the predicted outline to the annotated one [P], and the other way round [A]."""


def surface_distances(predicted: Bools, annotated: Bools, spacing: tuple[float, float] = (1.0, 1.0)) -> Distances:
    """Return the distances between the outlines of two masks [H,W], neither of them empty.

    Args:
        predicted: one mask.
        annotated: the other.
        spacing: size of a pixel (row, column), in the unit of the distances.
    """
    both = predicted | annotated
    box = tuple(slice(hits[0], hits[-1] + 1) for hits in (np.flatnonzero(both.any(axis)) for axis in (1, 0)))
    edges, other = get_mask_edges(predicted[box], annotated[box])  # it pads the box: its border is outline
    return (
        np.asarray(get_surface_distance(edges, other, spacing=spacing), np.float64),
        np.asarray(get_surface_distance(other, edges, spacing=spacing), np.float64),
    )


def _of_frames(frames: ScoredFrames) -> list[list[Distances | None]]:
    """Return the distances of every frame and foreground class; None where one of the masks is empty."""
    spacing, valid = frames.spacing or (1.0, 1.0), frames.valid.numpy()
    found: list[list[Distances | None]] = [[] for _ in valid]
    for number in frames.foreground:
        predicted, annotated = (frames.predicted == number).numpy() & valid, (frames.mask == number).numpy()
        for row, one, other in zip(found, predicted, annotated, strict=True):
            row.append(surface_distances(one, other, spacing) if one.any() and other.any() else None)
    return found


class SurfaceDistance(Metric):
    """A metric that is a function of the distances between two outlines alone."""

    def distance(self, to_annotated: Floats, to_predicted: Floats) -> float:
        """Return the value of a frame and class from the distances [P] and [A]."""
        raise NotImplementedError

    def per_frame(self, frames: ScoredFrames) -> Mapping[str, Tensor]:
        """Return the value of each frame, mean over the classes that have one; ``undefined``: share of the others."""
        distances = remembered(frames, "surface distances", lambda: _of_frames(frames))
        values = torch.tensor(
            [[math.nan if each is None else self.distance(*each) for each in row] for row in distances],
            dtype=torch.float64,
        )
        named = with_classes(self.name, values, self.outputs)
        unit = "mm" if frames.spacing else "pixels"
        undefined = values.isnan().double().mean(1)
        return {**named, f"{self.name}/{unit}": named[self.name], f"{self.name}/undefined": undefined}

    def across(self, rows: Sequence[dict[str, Any]], cases: Sequence[Case]) -> None:
        """Where some cases are in mm and some in pixels, leave to the latter the part ``pixels`` alone."""
        mm, pixels, undefined = (f"{self.name}/{part}" for part in ("mm", "pixels", "undefined"))
        if any(mm in row for row in rows):
            for row in (row for row in rows if pixels in row):
                own = [name for name in row if name.split("/")[0] == self.name and name not in (pixels, undefined)]
                row |= dict.fromkeys(own, math.nan)


class Hausdorff(SurfaceDistance):
    """Hausdorff distance: the largest of all distances, of both outlines."""

    name = "hausdorff"

    def distance(self, to_annotated: Floats, to_predicted: Floats) -> float:
        """Return the maximum."""
        return float(max(to_annotated.max(), to_predicted.max()))


class Hausdorff95(SurfaceDistance):
    """The larger of the 95th percentiles (linearly interpolated) of the distances of either outline."""

    name = "hd95"

    def distance(self, to_annotated: Floats, to_predicted: Floats) -> float:
        """Return the larger percentile."""
        return float(max(np.quantile(to_annotated, 0.95), np.quantile(to_predicted, 0.95)))


class AverageSurfaceDistance(SurfaceDistance):
    """Mean distance from the predicted outline to the annotated one; what is missed altogether does not count."""

    name = "asd"

    def distance(self, to_annotated: Floats, to_predicted: Floats) -> float:
        """Return the mean of one direction."""
        return float(to_annotated.mean())


class AverageSymmetricSurfaceDistance(SurfaceDistance):
    """Mean of all distances, of both outlines together, so that the longer outline weighs more."""

    name = "assd"

    def distance(self, to_annotated: Floats, to_predicted: Floats) -> float:
        """Return the mean of both directions."""
        return float(np.concatenate([to_annotated, to_predicted]).mean())
