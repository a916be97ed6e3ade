"""People without a network: what differs from the picture of the empty scene, for a camera that stands still.

The empty scene is the median over the video, where nobody stands for more than half of the time. What differs by more
than the noise is cleaned by opening and closing, and joined to blobs (Piccardi, "Background subtraction techniques",
IEEE SMC 2004, section 2.2, the median model).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
import numpy.typing as npt

from medvid_core.data.clip import Array
from medvid_core.errors import DataError
from medvid_two_stream.preprocess.boxes import Boxes

Floats = npt.NDArray[np.float32]
Frames = Callable[[Sequence[int]], Array]
"""Gives frames by number, uint8 [T,H,W,3]."""

LONGEST_SIDE = 640
"""Pixels to which larger pictures are reduced to look for people."""

_SAMPLES = 45  # frames that the median is taken of
_LEAST = 12.0  # grey levels: smaller differences are noise whatever the noise is
_NOISES = 4.0  # times the usual difference of a pixel
_LIGHT = 0.15  # of the picture that differs: more, and far more than usual, is no person but the light
_TOO_MUCH = 0.35  # of the picture that changes in the middle one of all frames: the camera moves, or the light
_SMALLEST = 0.004  # of the picture: smaller blobs are no person
_AS_TALL = 0.6  # of the taller: two blobs side by side that are no parts of one person
_CHUNK = 16


class Scene:
    """The empty scene of a video, and how noisy it is.

    Args:
        read: gives frames of the video.
        count: how many it has.
        longest: pixels to which the longer side is reduced; a smaller picture stays as it is.

    Raises:
        DataError: too much of the picture changes.
    """

    def __init__(self, read: Frames, count: int, longest: int = LONGEST_SIDE) -> None:
        self._read, self._longest = read, longest
        self.scale = 1.0
        numbers = np.unique(np.linspace(0, count - 1, min(count, _SAMPLES)).round().astype(int)).tolist()
        samples = np.concatenate([self.small(numbers[k : k + _CHUNK]) for k in range(0, len(numbers), _CHUNK)])
        self._empty = _blurred(np.median(samples, axis=0).astype(np.uint8))
        differences = np.stack([np.abs(self._difference(sample)).max(-1) for sample in samples])
        # of leaves in the wind, of a screen: what a pixel does most of the time is no person
        noise = cv2.GaussianBlur(np.median(differences, axis=0), (9, 9), 0)
        self._threshold = np.maximum(_LEAST, _NOISES * noise)
        self._usual = float(np.median([(each > self._threshold).mean() for each in differences]))
        restless = max(self._usual, float((noise > _LEAST).mean()))
        if restless > _TOO_MUCH:
            raise DataError(
                f"{100 * restless:.0f} % of the picture differs from the median of the video: the camera moves, the "
                "light changes, or somebody fills the picture, so that no empty scene can be told. "
                "preprocess.person=background and preprocess.mask=background need a camera that stands still. Take a "
                "detector: preprocess.person=fasterrcnn_resnet50_fpn_v2, preprocess.mask=maskrcnn_resnet50_fpn_v2."
            )

    def small(self, numbers: Sequence[int]) -> Array:
        """Return frames reduced, uint8 [T,h,w,3]."""
        images = self._read(numbers)
        height, width = images.shape[1:3]
        self.scale = min(1.0, self._longest / max(height, width))
        if self.scale == 1.0:
            return images
        to = (max(1, round(width * self.scale)), max(1, round(height * self.scale)))
        return np.stack([cv2.resize(image, to, interpolation=cv2.INTER_AREA) for image in images])

    def _difference(self, image: Array) -> Floats:
        """Difference from the empty scene, after a little blur, float [h,w,3]."""
        return _blurred(image) - self._empty

    def foreground(self, image: Array) -> npt.NDArray[np.uint8]:
        """Return what differs from the empty scene in a reduced frame, 0 and 1 [h,w], cleaned.

        Where far more differs than usual, the light has changed: what changes slowly over the picture is taken off.
        """
        difference = self._difference(image)
        mask = (np.abs(difference).max(-1) > self._threshold).astype(np.uint8)
        if mask.mean() > max(_LIGHT, 3 * self._usual):
            mask = (np.abs(difference - _slow(difference)).max(-1) > self._threshold).astype(np.uint8)
        reach = max(3, round(0.008 * max(mask.shape))) | 1
        mask = cv2.morphologyEx(mask, cv2.MORPH_OPEN, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3)))
        closed = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (reach, reach)))
        return np.asarray(closed, np.uint8)

    def people(self, image: Array) -> Boxes:
        """Return the boxes of blobs as large as a person, [N,4], in pixels of the video.

        Blobs that stand close above one another are given each by itself and joined: clothes of the colour of the wall
        cut a person in two, and two people may stand so too. Following them tells which it is.
        """
        mask = self.foreground(image)
        blobs = _blobs(mask)
        boxes = {tuple(box): box for box in (*blobs, *_joined(blobs, mask.shape[0]))}.values()
        large = [box for box in boxes if (box[2] - box[0]) * (box[3] - box[1]) >= _SMALLEST * mask.size]
        return np.array(large, np.float64).reshape(-1, 4) / self.scale


def _blurred(image: Array) -> Floats:
    kernel = 5 if max(image.shape) > 400 else 3
    return cv2.GaussianBlur(image, (kernel, kernel), 0).astype(np.float32)


def _slow(difference: Floats) -> Floats:
    """Return what of a difference [h,w,3] changes slowly over the picture: its median over a third of the height."""
    height, width = difference.shape[:2]
    small = cv2.resize(difference, (max(1, width // 4), max(1, height // 4)), interpolation=cv2.INTER_AREA)
    halves = np.clip(small / 2 + 128, 0, 255).astype(np.uint8)  # the median of large windows is there for bytes only
    median = cv2.medianBlur(halves, max(3, height // 12) | 1)
    found: Floats = (cv2.resize(median, (width, height), interpolation=cv2.INTER_LINEAR).astype(np.float32) - 128) * 2
    return found


def _blobs(mask: npt.NDArray[np.uint8]) -> list[Boxes]:
    """Return the boxes of connected regions that are no specks."""
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    return [
        np.array([x, y, x + w, y + h], np.float64)
        for x, y, w, h, area in stats[1:]
        if area >= 0.1 * _SMALLEST * mask.size
    ]


def _joined(boxes: list[Boxes], height: int) -> list[Boxes]:
    """Join parts that stand one above the other."""
    boxes, reach = list(boxes), 0.06 * height
    for _ in range(len(boxes)):
        pairs = ((i, j) for i, a in enumerate(boxes) for j, b in enumerate(boxes[:i]) if _one_above(a, b, reach))
        pair = next(pairs, None)
        if pair is None:
            break
        a, b = boxes.pop(pair[0]), boxes.pop(pair[1])
        boxes.append(np.concatenate([np.minimum(a[:2], b[:2]), np.maximum(a[2:], b[2:])]))
    return boxes


def _one_above(a: Boxes, b: Boxes, reach: float) -> bool:
    """Whether two boxes are parts of one person; two that are about as tall, side by side, are two people."""
    if min(a[2], b[2]) - max(a[0], b[0]) <= 0.3 * min(a[2] - a[0], b[2] - b[0]):
        return False
    low, tall = sorted((a[3] - a[1], b[3] - b[1]))
    beside = low > _AS_TALL * tall and min(a[3], b[3]) - max(a[1], b[1]) > 0.5 * low
    return not beside and bool(max(a[1], b[1]) - min(a[3], b[3]) < reach)
