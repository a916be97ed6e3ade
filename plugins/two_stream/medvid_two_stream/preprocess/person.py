"""Find the walking person, follow her or him, and cut a smoothly moving square out of every n-th frame."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from medvid_core.data.clip import Array
from medvid_core.data.stages import Made, Work
from medvid_core.errors import DataError
from medvid_two_stream.preprocess.background import Scene
from medvid_two_stream.preprocess.boxes import Boxes, crop, smooth_squares
from medvid_two_stream.preprocess.config import GaitConfig
from medvid_two_stream.preprocess.tracks import GAP_S, SHORTEST, choose, fill, link, on_the_spot
from medvid_two_stream.preprocess.weights import Published

_CHUNK = 8  # frames in memory at once
_USUAL_RATE = 30.0  # frames a second, where nothing is known
_UNEVEN = 0.3  # of the usual time between frames: beyond, the rate varies
_SLOWEST_S = 0.25  # between the frames that are taken: half of what a step takes, or it cannot be told where it goes


def cut_out(config: GaitConfig, detector: Published, work: Work) -> Made:
    """Write the stream ``video``: the walker in a square, uint8 [3,size,size] a frame.

    Raises:
        DataError: too few frames, or too far apart; nobody who walks; or (without a detector) a camera that moves.
    """
    timed = work.case.fps is not None or bool(work.case.times_s)
    times_s = work.times_s() if timed else [frame / _USUAL_RATE for frame in range(work.case.frames)]
    notes = [] if timed else [f"its frame rate is not known: {_USUAL_RATE:.0f} a second are assumed"]
    grid, step_s, remarks = even_frames(times_s, config.stride)
    notes += remarks
    if len(grid) < SHORTEST:
        raise DataError(
            f"It has {work.case.frames} frame(s), of which preprocess.stride={config.stride} leaves {len(grid)}: "
            f"nobody can be seen to walk in fewer than {SHORTEST}."
        )
    if step_s > _SLOWEST_S:
        raise DataError(
            f"Its frames are {step_s / config.stride:.2g} s apart, those that preprocess.stride={config.stride} leaves "
            f"{step_s:.2g} s: a step cannot be followed with more than {_SLOWEST_S} s between them. Set a smaller "
            "preprocess.stride, or leave the video out."
        )
    width = work.read([0]).shape[2]
    found = _detected(config, detector, work, grid) if detector.needed else _moving(work, grid)
    most_missing = round(GAP_S / step_s)
    tracks = link(found, most_missing)
    track = choose(tracks, config.who, len(grid), width)
    if not detector.needed and (still := on_the_spot(track, found)) is not track:
        track = still
        notes.append("the walker stays on the spot: masks by background lack what hardly moves")
    places, boxes = whole(*fill(track, most_missing), width)
    squares = smooth_squares(boxes, step_s)
    frames = [grid[place] for place in places]
    work.write("video", "image", _squares_of(work, frames, squares, config.size))
    left_out = len(grid) - len(places)
    if left_out:
        notes.append(f"shows frames {frames[0]} to {frames[-1]} of {work.case.frames}, where the walker is seen")
    return Made(
        frames=tuple(frames),
        details={"frames": frames, "boxes": boxes.tolist(), "squares": squares.tolist(), "step_s": step_s},
        note="; ".join(notes),
    )


def even_frames(times_s: Sequence[float], stride: int) -> tuple[list[int], float, list[str]]:
    """Return every n-th frame, the time between these in seconds, and remarks where frames come unevenly.

    Where the rate varies, the frames nearest to an even grid of the usual (median) time are taken, so that a flow is a
    speed; one may be taken twice where a frame is missing. A pause longer than `GAP_S` shows nothing, and ends the
    video: the longest stretch between pauses is taken.

    Args:
        times_s: when each frame was taken, rising; stamps that do not rise are taken for the usual rate.
        stride: n.
    """
    steps = np.diff(times_s)
    usual = float(np.median(steps)) if len(steps) else 0.0
    if usual <= 0:
        return list(range(0, len(times_s), stride)), stride / _USUAL_RATE, []
    pauses = np.flatnonzero(steps > max(GAP_S, (1 + _UNEVEN) * usual)) + 1
    stretch = max(np.split(np.arange(len(times_s)), pauses), key=len)
    first, last = int(stretch[0]), int(stretch[-1])
    remarks = []
    if len(pauses):
        remarks.append(f"the recording pauses: of it frames {first} to {last}, the longest stretch without, are taken")
    times, steps = np.asarray(times_s)[stretch], steps[first:last]
    if not len(steps) or np.abs(steps - usual).max() <= _UNEVEN * usual:
        return list(range(first, last + 1, stride)), usual * stride, remarks
    wanted = np.arange(times[0], times[-1] + 0.5 * usual, usual * stride)
    after = np.clip(np.searchsorted(times, wanted), 1, len(times) - 1)
    nearest = first + after - (wanted - times[after - 1] < times[after] - wanted)
    remarks.append(f"the frame rate varies: frames nearest to every {1000 * usual * stride:.1f} ms are taken")
    return nearest.tolist(), usual * stride, remarks


def whole(frames: list[int], boxes: Boxes, width: int) -> tuple[list[int], Boxes]:
    """Leave out both ends where the person is cut off by the side of the picture, coming or going."""
    inside = (boxes[:, 0] > 1) & (boxes[:, 2] < width - 1)
    if not inside.any():
        return frames, boxes
    first, last = int(inside.argmax()), len(inside) - int(inside[::-1].argmax())
    return (frames[first:last], boxes[first:last]) if last - first >= SHORTEST else (frames, boxes)


def _squares_of(work: Work, frames: Sequence[int], squares: Boxes, size: int) -> Iterator[Array]:
    for first in range(0, len(frames), _CHUNK):
        chunk = frames[first : first + _CHUNK]
        for image, square in zip(work.read(chunk), squares[first : first + _CHUNK], strict=True):
            yield np.ascontiguousarray(crop(image, square, size).transpose(2, 0, 1))


def _moving(work: Work, grid: Sequence[int]) -> list[Boxes]:
    """Return the boxes of what moves before a still scene, frame by frame."""
    scene = Scene(work.read, work.case.frames)
    found = []
    for first in range(0, len(grid), _CHUNK):
        found += [scene.people(image) for image in scene.small(grid[first : first + _CHUNK])]
    return found


def _detected(config: GaitConfig, detector: Published, work: Work, grid: Sequence[int]) -> list[Boxes]:
    """Return the boxes of people that a network is sure of, frame by frame."""
    network, person = detector.network(work.device), detector.class_number("person")
    found = []
    for first in range(0, len(grid), _CHUNK):
        images = torch.from_numpy(work.read(grid[first : first + _CHUNK])).to(work.device)
        with torch.inference_mode():
            answers = network(list(images.permute(0, 3, 1, 2).float() / 255))
        for answer in answers:
            sure = (answer["labels"] == person) & (answer["scores"] >= config.score)
            found.append(answer["boxes"][sure].double().cpu().numpy().reshape(-1, 4))
    return found
