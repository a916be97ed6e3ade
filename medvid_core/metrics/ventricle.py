"""The left ventricle in a mask: which class it is, and its long axis cut into discs, from which volumes follow.

The long axis runs from the middle of the mitral plane to the apex, the point of the cavity farthest from it (Lang et
al., Journal of the American Society of Echocardiography 2015). A mask does not say where these are; they are found so,
in mm:

1. Of several pieces the largest is the ventricle.
2. Its first principal axis tells base from apex: the base is the blunter end, with more area in the outer quarter.
3. The mitral plane ends in two corners, the pixels farthest towards the base and to either side: those for which
   height + `_SIDEWAYS` · width, and height - `_SIDEWAYS` · width, is largest, in coordinates of that axis. It may be
   tilted by 26 degrees. Its middle is theirs.

The discs stand at right angles to the long axis and are equally thick. The diameter of one is the area of the mask
within it over its thickness, where a pixel on the border of two discs is shared between them. What lies beyond either
end of the axis is of the first or last disc: at a tilted mitral plane it makes up for what is missing opposite.
"""

from __future__ import annotations

import math
import re

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medvid_core.errors import ConfigError
from medvid_core.metrics.base import Floats
from medvid_core.specs import OutputSpec

DISCS = 20
NAMES = (
    "lv",
    "lv-cavity",
    "lv-endo",
    "lv-endocardium",
    "lv-blood-pool",
    "endo",
    "endocardium",
    "left-ventricle",
    "left-ventricular-cavity",
)
"""What the class of the cavity may be called, in any case, with or without what joins the words."""

_SIDEWAYS = 0.5


def _plain(name: str) -> str:
    """A name without case and joints."""
    return re.sub(r"[\W_]", "", name.lower())


def left_ventricle(metric: str, output: OutputSpec) -> int:
    """Return the mask value of the cavity of the left ventricle.

    Raises:
        ConfigError: no foreground class, or more than one, is called so; the text names the metric and the classes.
    """
    known = {_plain(name) for name in NAMES}
    first = 0 if len(output.classes) == 1 else 1
    found = [number for number, name in enumerate(output.classes[first:], 1) if _plain(name) in known]
    if len(found) != 1:
        what = "more than one class is" if found else "no class is"
        raise ConfigError(
            f"The metric {metric!r} measures the left ventricle, and {what} called so: {', '.join(output.classes)}. "
            f"Known names: {', '.join(NAMES)}. Name the class so (dataset.classes=[…] where the data set has that "
            "setting), or leave the metric out."
        )
    return found[0]


def discs(mask: npt.NDArray[np.bool_], spacing: tuple[float, float]) -> Floats:
    """Return the diameters of `DISCS` discs from base to apex, then the length of the long axis, [DISCS+1].

    Args:
        mask: the cavity, [H,W].
        spacing: size of a pixel (row, column), in the unit of the result.

    Returns:
        NaN throughout where the mask is empty.
    """
    points = _largest_piece(mask) * np.array(spacing)
    if not len(points):
        return np.full(DISCS + 1, math.nan)
    base, apex = _ends(points)
    axis = apex - base
    length = float(np.hypot(*axis))
    along = axis / length if length else np.array([1.0, 0.0])
    half_pixel = float(np.hypot(*(along * spacing))) / 2  # outlines pass half a pixel beyond the outermost centres
    length += 2 * half_pixel
    at = (points - base) @ along + half_pixel
    borders = np.linspace(0, length, DISCS + 1)
    width = float(np.abs(along) @ spacing)  # of a pixel, along the axis
    below = np.clip((borders[:, None] - at) / width + 0.5, 0, 1).sum(1)
    below[0], below[-1] = 0, len(points)
    return np.append(np.diff(below) * spacing[0] * spacing[1] * DISCS / length, length)


def _largest_piece(mask: npt.NDArray[np.bool_]) -> Floats:
    """Row and column of the pixels of the largest piece, [N,2]; pixels that touch by a corner are of one."""
    pieces, count = ndimage.label(mask, np.ones((3, 3)))
    if count > 1:
        mask = pieces == 1 + np.bincount(pieces.ravel())[1:].argmax()
    return np.argwhere(mask).astype(np.float64)


def _ends(points: Floats) -> tuple[Floats, Floats]:
    """The middle of the mitral plane, and the apex, of points [N,2]."""
    centred = points - points.mean(0)
    up = np.linalg.eigh(centred.T @ centred)[1][:, 1]
    height = centred @ up
    quarter = np.ptp(height) / 4
    if (height > height.max() - quarter).sum() < (height < height.min() + quarter).sum():
        height = -height
    sideways = _SIDEWAYS * (centred @ np.array([-up[1], up[0]]))
    base = (points[(height + sideways).argmax()] + points[(height - sideways).argmax()]) / 2
    return base, points[((points - base) ** 2).sum(1).argmax()]
