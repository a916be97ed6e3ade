"""People through time: boxes of neighbouring frames joined to tracks, and of these the patient's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from medvid_core.errors import DataError
from medvid_two_stream.preprocess.boxes import Boxes, areas, centres, held, overlaps

GAP_S = 0.5
"""A person who is not seen for so long is followed on, the way between interpolated; longer gaps end a stretch."""

SHORTEST = 4
"""Frames that a person must be followed through at least."""

_MEMORY = 15  # boxes that say how large somebody is
_GROWTH = 1.5  # of the height: a box that is taller or lower than before by so much is not that of the same person
_REACH = 0.5  # of the height: how far from where somebody is expected the next box may be
_HELD = 0.6  # of a box: as much of it lies in the one that holds it
_WIDER = 1.3  # than either of two people: a box that holds both
_APART = 0.15  # of the height, between the centres of two people whom one box holds
_NARROWER = 0.75  # than the box of two people: that of either
_SAME = 0.5  # intersection over union: two boxes of one person
_SIZE_COUNTS = 2.0  # how much a box as tall as before is worth against one in the right place
_MOST_OF_THE_TIME = 0.8  # share of the frames in which who stays on the spot covers it
_WHOLE = 0.7  # of what moves there: a track that holds as much is of the whole person
_ALIKE = 0.6  # of the best score, and of the height: others that walk about as far and long
_LEVEL = 0.03  # of the height: feet that differ by less are as near to the camera


@dataclass(eq=False)
class Track:
    """One person through time.

    Attributes:
        frames: numbers of the frames with a box of this person alone, rising.
        boxes: these.
        shared: numbers of the frames in which one box holds this person and another.
    """

    frames: list[int] = field(default_factory=list)
    boxes: list[Boxes] = field(default_factory=list)
    shared: list[int] = field(default_factory=list)

    @property
    def last(self) -> int:
        """The last frame in which the person is seen, alone or not."""
        return max(self.frames[-1:] + self.shared[-1:])

    @property
    def heights(self) -> Boxes:
        """Height of every box."""
        return np.array([box[3] - box[1] for box in self.boxes])

    @property
    def feet(self) -> float:
        """Lower edge of the usual box."""
        return float(np.median([box[3] for box in self.boxes]))

    def size(self) -> tuple[float, float]:
        """Return the usual width and height of late."""
        late = np.array(self.boxes[-_MEMORY:])
        width, height = np.median(late[:, 2:] - late[:, :2], axis=0)
        return float(width), float(height)

    def expected(self, frame: int) -> Boxes:
        """Return where the person should be: she or he goes on as over the last few frames."""
        if len(self.frames) < 2:
            return self.boxes[-1]
        back = max(0, len(self.frames) - 6)
        steps = self.frames[-1] - self.frames[back]
        way = (centres(self.boxes[-1][None]) - centres(self.boxes[back][None]))[0]
        moved: Boxes = self.boxes[-1] + np.tile(way / steps * (frame - self.frames[-1]), 2)
        return moved


def link(found: Sequence[Boxes], most_missing: int) -> list[Track]:
    """Join the boxes of neighbouring frames to tracks.

    A box goes on with the track where it is expected: that it overlaps most, whose centre is nearest, and that was as
    tall; it must lie within half the height, and not be far taller or lower. Every box goes to one track only
    (Kuhn-Munkres).

    People who pass one another, or walk together, are now and then seen as one. A box that holds two who are followed,
    and is too wide for either, is neither's: both are expected on. And a track that begins so ends where its box parts
    in two, so that nobody takes over where another was followed.

    Args:
        found: boxes [N,4] of each frame.
        most_missing: frames that a track may be without a box.
    """
    live: list[Track] = []
    ended: list[Track] = []
    for frame, boxes in enumerate(found):
        before, live = live, []
        for track in before:
            lost = frame - track.last > most_missing + 1 or _parted(track, boxes, frame)
            (ended if lost else live).append(track)
        begins = np.ones(len(boxes), bool)
        if len(boxes) and live:
            used = _go_on(live, boxes, frame)
            if used:  # a second box of somebody who is followed, e.g. without a foot, is no one else
                begins = overlaps(boxes, boxes[used]).max(1) <= _SAME
        live += [Track([frame], [box]) for box in boxes[begins]]
    return ended + live


def _parted(track: Track, boxes: Boxes, frame: int) -> bool:
    """Whether two people stand side by side, each narrower and about as tall, where the track's last box should be."""
    expected = track.expected(frame)
    narrow = boxes[:, 2] - boxes[:, 0] < _NARROWER * (expected[2] - expected[0])
    there = boxes[narrow & (held(boxes, expected[None])[:, 0] > _HELD) & _as_tall([track], boxes)[0]]
    there = there[np.argsort(there[:, 0])]
    widths = there[:, 2] - there[:, 0]
    return any(there[i, 2] - there[j, 0] < 0.3 * min(widths[i], widths[j]) for j in range(len(there)) for i in range(j))


def _go_on(tracks: Sequence[Track], boxes: Boxes, frame: int) -> list[int]:
    """Add to every track its box, or that it shares one, and return the numbers of the boxes that were used."""
    expected = np.array([track.expected(frame) for track in tracks])
    grown = _growth(tracks, boxes)
    fitting = _as_tall(tracks, boxes)
    within = fitting & (held(expected, boxes) > _HELD)
    of_two = np.array([_holds_two(box, tracks, expected, inside) for box, inside in zip(boxes, within.T, strict=True)])
    same = overlaps(expected, boxes)
    reach = _REACH * np.array([track.size()[1] for track in tracks])[:, None]
    apart = np.linalg.norm(centres(expected)[:, None] - centres(boxes)[None], axis=-1) / np.maximum(reach, 1e-9)
    near = ((same > 0.1) | (apart < 1)) & fitting & ~of_two
    worth = np.where(near, 3 + same - 0.5 * np.minimum(apart, 1) - _SIZE_COUNTS * np.abs(np.log(grown)), 0.0)
    used = np.flatnonzero(of_two).tolist()
    for row, column in zip(*linear_sum_assignment(-worth), strict=True):
        if near[row, column]:
            tracks[row].frames.append(frame)
            tracks[row].boxes.append(boxes[column])
            used.append(int(column))
    for track, inside in zip(tracks, within, strict=True):
        if track.frames[-1] != frame and (inside & of_two).any():
            track.shared.append(frame)
    return used


def _growth(tracks: Sequence[Track], boxes: Boxes) -> Boxes:
    """Return the height of each box over that of each track of late, [tracks, boxes]."""
    tall = np.array([track.size()[1] for track in tracks])[:, None]
    found: Boxes = np.maximum(boxes[:, 3] - boxes[:, 1], 1e-3)[None] / np.maximum(tall, 1e-3)
    return found


def _as_tall(tracks: Sequence[Track], boxes: Boxes) -> npt.NDArray[np.bool_]:
    grown = _growth(tracks, boxes)
    return (grown > 1 / _GROWTH) & (grown < _GROWTH)


def _holds_two(box: Boxes, tracks: Sequence[Track], expected: Boxes, inside: npt.NDArray[np.bool_]) -> bool:
    """Whether a box is that of two people seen as one."""
    if inside.sum() < 2:
        return False
    usual, tall = np.median([track.size() for track, within in zip(tracks, inside, strict=True) if within], axis=0)
    side_by_side = np.ptp(centres(expected[inside])[:, 0]) > _APART * tall
    return bool(side_by_side and box[2] - box[0] > _WIDER * usual)


def choose(tracks: Sequence[Track], who: str, frames: int, width: int) -> Track:
    """Return the track of the person meant.

    The score of a track is the share of the video it is seen in, times how far it goes sideways, as a share of the
    picture's width (plus a tenth: on a treadmill nobody goes anywhere). Best is the one with the best product of score
    and height: parts of a person go as far, and so do those who pass behind. Those with at least 60 % of its score and
    of its height walk along: one of them is the patient, the others assist.

    Args:
        tracks: all.
        who: of those that walk along, ``walker``: the nearest to the camera, whose feet are lowest in the picture (an
            assistant keeps out of the view); of those with feet as low, the shorter. ``shorter``: the one whose boxes
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
    scores = np.array([_score(track, frames, width) for track in long])
    tall = np.array([np.median(track.heights) for track in long])
    best = int(np.argmax(scores * tall))
    alike = np.flatnonzero((scores >= _ALIKE * scores[best]) & (tall >= _ALIKE * tall[best]))
    if who == "walker":
        feet = np.array([long[number].feet for number in alike])
        alike = alike[feet >= feet.max() - _LEVEL * tall[best]]
    return long[int(alike[np.argmin(tall[alike])])]


def _score(track: Track, frames: int, width: int) -> float:
    middles = centres(np.array(track.boxes))[:, 0]
    travel = float(np.ptp(np.percentile(middles, [5, 95]))) / width
    return (len(track.frames) + len(track.shared)) / frames * (0.1 + travel)


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
    whole = float(np.median(areas(np.array(track.boxes)) / areas(unions)))
    if covered.mean(1).max() < _MOST_OF_THE_TIME or whole > _WHOLE:
        return track
    edges = np.concatenate([np.percentile(unions, 30, axis=0)[:2], np.percentile(unions, 70, axis=0)[2:]])
    return Track(track.frames, [edges] * len(track.frames))


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
    """Return the longest stretch of a track without a long gap: its frames, all, and boxes [N,4], gaps interpolated.

    Where somebody is seen together with another, there is no gap, and the box is interpolated too.
    """
    seen = np.array(sorted({*track.frames, *track.shared}))
    stretches = np.split(seen, np.flatnonzero(np.diff(seen) > most_missing + 1) + 1)
    known = [np.intersect1d(stretch, track.frames) for stretch in stretches]
    alone = max(filter(len, known), key=np.ptp)
    boxes = np.array([box for frame, box in zip(track.frames, track.boxes, strict=True) if frame in alone])
    frames = np.arange(alone[0], alone[-1] + 1)
    return frames.tolist(), np.stack([np.interp(frames, alone, boxes[:, side]) for side in range(4)], axis=1)
