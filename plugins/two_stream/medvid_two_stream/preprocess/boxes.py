"""Boxes of people, and the square that follows one of them smoothly.

A box is x1, y1, x2, y2 in pixels, of the edges.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from medvid_core.data.clip import Array

Boxes = npt.NDArray[np.float64]

_MARGIN = 0.08  # around the person, of her or his height, on either side
_SMOOTH_PLACE_S = 0.2  # the body sways and its box with it; the square shall not
_SMOOTH_SIZE_S = 0.8


def overlaps(a: Boxes, b: Boxes) -> Boxes:
    """Return the intersection over union of boxes [N,4] and [M,4], [N,M]."""
    inside = _inside(a, b)
    found: Boxes = inside / np.maximum(areas(a)[:, None] + areas(b)[None] - inside, 1e-9)
    return found


def held(a: Boxes, b: Boxes) -> Boxes:
    """Return the share of each of the boxes [N,4] that lies within each of [M,4], [N,M]."""
    found: Boxes = _inside(a, b) / np.maximum(areas(a)[:, None], 1e-9)
    return found


def _inside(a: Boxes, b: Boxes) -> Boxes:
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    found: Boxes = np.prod(np.clip(high - low, 0, None), axis=-1)
    return found


def areas(boxes: Boxes) -> Boxes:
    """Return the areas [N] of boxes [N,4]."""
    found: Boxes = np.prod(boxes[:, 2:] - boxes[:, :2], axis=-1)
    return found


def centres(boxes: Boxes) -> Boxes:
    """Return the centres [N,2], x and y, of boxes [N,4]."""
    found: Boxes = (boxes[:, :2] + boxes[:, 2:]) / 2
    return found


def smooth_squares(boxes: Boxes, step_s: float) -> Boxes:
    """Return squares [N,4] that follow boxes [N,4] without jitter.

    Centre and size are smoothed forwards and backwards alike, so without delay, after a median over five frames that
    takes out single wrong boxes. A steady motion stays as it is, to the ends.

    Args:
        boxes: of one person in frames one after the other.
        step_s: time between them in seconds.
    """
    sides = np.maximum(boxes[:, 3] - boxes[:, 1], boxes[:, 2] - boxes[:, 0]) * (1 + 2 * _MARGIN)
    middles = centres(boxes)
    x, y = (_smooth(_median(middles[:, axis]), _SMOOTH_PLACE_S / step_s) for axis in range(2))
    half = _smooth(_median(sides), _SMOOTH_SIZE_S / step_s) / 2
    return np.stack([x - half, y - half, x + half, y + half], axis=1)


def _median(values: Boxes) -> Boxes:
    """Median over five values; the two at either end stay."""
    found = values.copy()
    if len(values) >= 5:
        found[2:-2] = np.median(np.lib.stride_tricks.sliding_window_view(values, 5), axis=-1)
    return found


def _smooth(values: Boxes, sigma: float) -> Boxes:
    """Return, at each place, the line that fits best around it: local linear regression with a Gaussian's weights."""
    reach = int(np.ceil(4 * sigma))
    found = np.empty_like(values)
    for place in range(len(values)):
        first, last = max(0, place - reach), min(len(values), place + reach + 1)
        offsets = np.arange(first, last) - place
        weights = np.exp(-0.5 * (offsets / sigma) ** 2)
        weights /= weights.sum()
        mean, level = weights @ offsets, weights @ values[first:last]
        spread = weights @ (offsets - mean) ** 2
        slope = weights @ ((offsets - mean) * values[first:last]) / spread if spread > 0 else 0.0
        found[place] = level - slope * mean
    return found


def crop(image: Array, square: Boxes, size: int) -> Array:
    """Return what a square shows of an image, uint8 [size,size] or [size,size,3], black outside the picture.

    The square need not lie on whole pixels: rounding it would make the person tremble.
    """
    height, width = image.shape[:2]
    left, top = int(np.floor(min(0.0, square[0]))), int(np.floor(min(0.0, square[1])))
    right, bottom = int(np.ceil(max(width, square[2]))), int(np.ceil(max(height, square[3])))
    around = ((-top, bottom - height), (-left, right - width), *(((0, 0),) * (image.ndim - 2)))
    padded = np.pad(image, around) if any(sum(pair) for pair in around) else image
    x1, y1, x2, y2 = (float(edge) for edge in square)
    return np.asarray(
        Image.fromarray(padded).resize(
            (size, size), Image.Resampling.BILINEAR, box=(x1 - left, y1 - top, x2 - left, y2 - top)
        )
    )
