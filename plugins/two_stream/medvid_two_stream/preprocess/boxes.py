"""From boxes of people, frame by frame, to a square that follows one of them smoothly.

A box is x1, y1, x2, y2 in pixels, of the edges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.optimize import linear_sum_assignment

from medvid_core.data.clip import Array
from medvid_core.errors import DataError

Boxes = npt.NDArray[np.float64]

GAP_S = 0.5
"""A person who is not seen for so long is followed on, the way between interpolated; longer gaps end a stretch."""

SHORTEST = 4
"""Frames that a person must be followed through at least."""

_GROWTH = 1.5  # of the height: a box that is taller or lower than before by so much is not that of the same person
_MEMORY = 15  # boxes that say how tall somebody is
_MOST_OF_THE_TIME = 0.8  # share of the frames in which who stays on the spot covers it
_WHOLE = 0.7  # of what moves there: a track that holds as much is of the whole person
_MARGIN = 0.08  # around the person, of her or his height, on either side
_SMOOTH_PLACE_S = 0.2  # the body sways and its box with it; the square shall not
_SMOOTH_SIZE_S = 0.8
_ALIKE = 0.6  # of the best score: others that walk about as far and long


@dataclass
class Track:
    """One person through time: frame numbers, rising, and the box in each."""

    frames: list[int] = field(default_factory=list)
    boxes: list[Boxes] = field(default_factory=list)

    @property
    def heights(self) -> Boxes:
        """Height of every box."""
        return np.array([box[3] - box[1] for box in self.boxes])


def overlaps(a: Boxes, b: Boxes) -> Boxes:
    """Return the intersection over union of boxes [N,4] and [M,4], [N,M]."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    inside = np.prod(np.clip(high - low, 0, None), axis=-1)
    areas = [np.prod(boxes[:, 2:] - boxes[:, :2], axis=-1) for boxes in (a, b)]
    found: Boxes = inside / np.maximum(areas[0][:, None] + areas[1][None] - inside, 1e-9)
    return found


def link(found: Sequence[Boxes], most_missing: int) -> list[Track]:
    """Join the boxes of neighbouring frames to tracks.

    A box goes on with the track where it is expected: that it overlaps most, or whose centre is nearest, within half
    its height, unless it is far taller or lower. Every box goes to one track only (Kuhn-Munkres).

    Args:
        found: boxes [N,4] of each frame.
        most_missing: frames that a track may be without a box.
    """
    open_tracks: list[Track] = []
    closed: list[Track] = []
    for frame, boxes in enumerate(found):
        still = [track for track in open_tracks if frame - track.frames[-1] <= most_missing + 1]
        closed += [track for track in open_tracks if frame - track.frames[-1] > most_missing + 1]
        open_tracks = still
        taken: set[int] = set()
        if len(boxes) and open_tracks:
            last = np.array([_expected(track, frame) for track in open_tracks])
            shared = overlaps(last, boxes)
            apart = np.linalg.norm(_centres(last)[:, None] - _centres(boxes)[None], axis=-1)
            reach = 0.5 * np.maximum(last[:, 3] - last[:, 1], 1)[:, None]
            tall = np.array([np.median(track.heights[-_MEMORY:]) for track in open_tracks])[:, None]
            grown = (boxes[:, 3] - boxes[:, 1])[None] / np.maximum(tall, 1)
            near = ((shared > 0.1) | (apart < reach)) & (grown > 1 / _GROWTH) & (grown < _GROWTH)
            worth = np.where(near, 1 + shared - 0.5 * np.minimum(apart / reach, 1), 0.0)
            for row, column in zip(*linear_sum_assignment(-worth), strict=True):
                if worth[row, column] > 0:
                    open_tracks[row].frames.append(frame)
                    open_tracks[row].boxes.append(boxes[column])
                    taken.add(int(column))
        open_tracks += [Track([frame], [box]) for number, box in enumerate(boxes) if number not in taken]
    return closed + open_tracks


def _expected(track: Track, frame: int) -> Boxes:
    """Return where a track should be: it goes on as it went over its last few frames."""
    if len(track.frames) < 2:
        return track.boxes[-1]
    back = max(0, len(track.frames) - 6)
    steps = track.frames[-1] - track.frames[back]
    speed = (_centres(track.boxes[-1][None]) - _centres(track.boxes[back][None]))[0] / steps
    moved: Boxes = track.boxes[-1] + np.tile(speed * (frame - track.frames[-1]), 2)
    return moved


def _centres(boxes: Boxes) -> Boxes:
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def choose(tracks: Sequence[Track], who: str, frames: int, width: int) -> Track:
    """Return the track of the person meant.

    The score of a track is the share of the video it is seen in, times how far it goes sideways, as a share of the
    picture's width (plus a tenth: on a treadmill nobody goes anywhere), times its height: parts of a person
    go as far, and so do those who pass behind.

    Args:
        tracks: all.
        who: ``walker``: the best score; ``shorter``: of those with at least 60 % of the best score, the one whose boxes
            are lowest (Walk_Video_PyTorch takes the shorter of two people for the patient).
        frames: length of the video.
        width: of the picture in pixels.

    Raises:
        DataError: nobody is followed through `SHORTEST` frames.
    """
    long = [track for track in tracks if len(track.frames) >= SHORTEST]
    if not long:
        raise DataError(
            "No walking person is found in it: nobody can be followed through "
            f"{SHORTEST} of the {frames} frames that are looked at."
        )
    scores = [_score(track, frames, width) for track in long]
    if who == "walker":
        return long[int(np.argmax(scores))]
    alike = [track for track, score in zip(long, scores, strict=True) if score >= _ALIKE * max(scores)]
    return min(alike, key=lambda track: float(np.median(track.heights)))


def _score(track: Track, frames: int, width: int) -> float:
    centres = _centres(np.array(track.boxes))[:, 0]
    travel = float(np.ptp(np.percentile(centres, [5, 95]))) / width
    return len(track.frames) / frames * (0.1 + travel) * float(np.median(track.heights))


def on_the_spot(track: Track, found: Sequence[Boxes]) -> Track:
    """Return the track of somebody who stays in one place with one box for all frames, that holds what moves there.

    Who walks on a treadmill, or balances, is himself a part of the empty scene: what differs from it are limbs, now
    these, now those. One who walks on, or is seen as a whole, comes back unchanged.

    Args:
        track: of the person, or of a part of the body.
        found: all boxes [N,4] of each frame.
    """
    unions = np.array([_with_touching(box, found[frame]) for frame, box in zip(track.frames, track.boxes, strict=True)])
    places = np.linspace(unions[:, 0].min(), unions[:, 2].max(), 200)
    covered = (unions[:, 0] <= places[:, None]) & (places[:, None] <= unions[:, 2])
    whole = float(np.median(_areas(np.array(track.boxes)) / _areas(unions)))
    if covered.mean(1).max() < _MOST_OF_THE_TIME or whole > _WHOLE:
        return track
    edges = np.concatenate([np.percentile(unions, 30, axis=0)[:2], np.percentile(unions, 70, axis=0)[2:]])
    return Track(track.frames, [edges] * len(track.frames))


def _areas(boxes: Boxes) -> Boxes:
    found: Boxes = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    return found


def _with_touching(box: Boxes, others: Boxes) -> Boxes:
    """Return a box with all those that stand on it, the nearest first."""
    for other in sorted(others, key=lambda other: float(np.abs(other - box).sum())):
        if _stacked(box, other):
            box = np.concatenate([np.minimum(box[:2], other[:2]), np.maximum(box[2:], other[2:])])
    return box


def _stacked(a: Boxes, b: Boxes) -> bool:
    """Whether one box stands on, or within, the other."""
    beside = min(a[2], b[2]) - max(a[0], b[0]) < 0.2 * min(a[2] - a[0], b[2] - b[0])
    return not beside and bool(max(a[1], b[1]) - min(a[3], b[3]) < 0.3 * max(a[3] - a[1], b[3] - b[1]))


def fill(track: Track, most_missing: int) -> tuple[list[int], Boxes]:
    """Return the longest stretch of a track without a long gap: its frames, all, and boxes [N,4], gaps interpolated."""
    breaks = [k + 1 for k, step in enumerate(np.diff(track.frames)) if step > most_missing + 1]
    starts, ends = [0, *breaks], [*breaks, len(track.frames)]
    first, last = max(
        zip(starts, ends, strict=True), key=lambda pair: track.frames[pair[1] - 1] - track.frames[pair[0]]
    )
    seen = np.array(track.frames[first:last])
    frames = np.arange(seen[0], seen[-1] + 1)
    boxes = np.array(track.boxes[first:last])
    return frames.tolist(), np.stack([np.interp(frames, seen, boxes[:, side]) for side in range(4)], axis=1)


def smooth_squares(boxes: Boxes, step_s: float) -> Boxes:
    """Return squares [N,4] that follow boxes [N,4] without jitter.

    Centre and size are smoothed forwards and backwards alike, so without delay, after a median over five frames that
    takes out single wrong boxes. A steady motion stays as it is, to the ends.

    Args:
        boxes: of one person in frames one after the other.
        step_s: time between them in seconds.
    """
    sides = np.maximum(boxes[:, 3] - boxes[:, 1], boxes[:, 2] - boxes[:, 0]) * (1 + 2 * _MARGIN)
    centres = _centres(boxes)
    x, y = (_smooth(_median(centres[:, axis]), _SMOOTH_PLACE_S / step_s) for axis in range(2))
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
