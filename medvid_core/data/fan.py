"""The sector of an ultrasound picture: where it lies in a frame, so that clips can be cropped to it.

`fan_box` gives one rectangle a case, for all of its frames: that of a fan mask, where one lies beside the clip, or
estimated from the clip. Every part of medvid that reads the case crops to it, and results are put back into the frame
(`medvid_core.data.transforms.to_source`).

**Fan masks** are images of the size of a frame, bright inside the sector and dark elsewhere: ``fan.png`` in a folder of
frames, ``<folder>_fan.png`` beside it, ``<video>_fan.png`` beside a video, or the stream ``fan`` of a case.

**The estimate** looks at some frames of the clip. Support in time: pixels that change, which letters, logos and scales
do not. Support in space: pixels brighter than the background, where they are large and full as a sector is, not thin as
letters are; those that overlap what changes join it. In still pictures nothing changes, and support in space decides
alone. The largest connected part is the sector.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medvid_core.data.clip import Array, Case, Source
from medvid_core.data.datasets.media import stem
from medvid_core.data.readers import frames as frame_files
from medvid_core.data.readers import image_size, read_images
from medvid_core.data.transforms import Box
from medvid_core.errors import DataError

STREAM = "fan"
"""The stream of a case that holds a fan mask, one image."""

LOOKED_AT = 16
"""Frames of a clip, equispaced, that the sector is estimated from."""

_CELLS = 320
"""Longest side, in cells of a few pixels, of the picture that the estimate works on."""

_CHANGE = 12.0
"""Grey values by which a cell of the sector changes; compression makes those around letters change by less."""

_FAINT_CHANGE = 6.0
"""Grey values by which a cell changes in its dark parts, which count where they hang together with such cells."""

_BRIGHT = 8.0
"""Grey values by which a cell must exceed the background."""

_LEAST = 0.02
"""Share of the picture that a sector takes at least."""

_PIECE = 0.025
"""Share of the picture that a piece takes at least which a shadow parts from the sector; an ECG takes less."""

Bools = npt.NDArray[np.bool_]


def fan_box(case: Case, how: str) -> Box | None:
    """Return where the sector of a case lies, the smallest upright rectangle around it; None: nothing is cropped.

    Args:
        case: the video.
        how: ``none``, ``mask`` (a fan mask, which must be there), ``estimate`` (from the clip, whatever lies beside it)
            or ``auto`` (a fan mask where there is one, else the estimate).

    Returns:
        The rectangle, in source pixels. Of a clip in which no sector can be told it is the whole frame.

    Raises:
        DataError: the fan mask is missing, empty, or of another size than the frames; or a file cannot be read.
    """
    if how == "none":
        return None
    video = case.streams["video"]
    path = "" if how == "estimate" else _required_mask(case, how)
    return _masked_box(path, _changed(path), video) if path else _estimated_box(video, case.frames)


def check_fans(cases: Sequence[Case], how: str) -> None:
    """Refuse fan masks that `fan_box` would, before anything is trained; only their headers are read.

    A video that cannot be read is passed over: it costs its case, where it is read.

    Args:
        cases: the videos.
        how: as of `fan_box`.

    Raises:
        DataError: a fan mask is missing, or of another size than the frames; or cannot be read.
    """
    for case in cases if how in ("mask", "auto") else ():
        if path := _required_mask(case, how):
            _fits(path, case.streams["video"])


def _required_mask(case: Case, how: str) -> str:
    """The file of the fan mask; empty where there is none and none is asked for."""
    path = fan_mask(case)
    if how == "mask" and not path:
        raise DataError(
            f"Case {case.case_id!r} has no fan mask, which clip.fan_crop=mask asks for: "
            f"{_expected(case.streams['video'])}. Add it, or set clip.fan_crop=auto, which estimates the sector where "
            "there is no mask."
        )
    return path


def _fits(path: str, video: Source) -> None:
    """Refuse a fan mask of another size than the frames."""
    found = frame_files.size(path)
    try:
        size = image_size(video)
    except DataError:
        return
    if found != size:
        raise DataError(
            f"The fan mask {path} is {found[1]}x{found[0]} pixels while the frames are {size[1]}x{size[0]}. "
            "Draw it on a frame of the clip, or set clip.fan_crop=estimate."
        )


def fan_mask(case: Case) -> str:
    """Return the file of the fan mask of a case; empty where there is none."""
    if STREAM in case.streams:
        return case.streams[STREAM].paths[0]
    places = _places(case.streams["video"])
    return next((str(path) for place in places for path in _images(place) if path.is_file()), "")


def _places(video: Source) -> list[Path]:
    """Where a fan mask may lie, without the ending."""
    first = Path(next((path for path in video.paths if path), ""))
    if not first.name:
        return []
    if video.reader != "frames":
        return [first.with_name(f"{stem(first)}_fan")]
    folder = first.parent
    return [folder / "fan", folder.with_name(f"{folder.name}_fan")] if folder.name else [folder / "fan"]


def _images(place: Path) -> list[Path]:
    return [place.with_name(place.name + suffix) for suffix in frame_files.SUFFIXES]


def _expected(video: Source) -> str:
    """Where a fan mask was looked for, for error texts."""
    places = [f"{place}.png" for place in _places(video)]
    return f"there is no {' and no '.join(places)}" if places else "it is not read from files"


def _changed(path: str) -> int:
    """When a file was last changed, so that a mask drawn anew is read anew; 0 where it is not there."""
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0


@functools.lru_cache(maxsize=4096)
def _masked_box(path: str, changed: int, video: Source) -> Box:
    """The rectangle around a fan mask."""
    _fits(path, video)
    raw = frame_files.read_raw_mask(path)
    raw = raw.max(axis=-1) if raw.ndim == 3 else raw
    if not raw.any():
        raise DataError(f"The fan mask {path} is empty: no pixel is above 0. Draw it anew, or remove it.")
    return around(raw > raw.max() / 2)  # half: a mask stored as JPEG is not quite black outside


@functools.lru_cache(maxsize=4096)
def _estimated_box(video: Source, frames: int) -> Box:
    """The rectangle around the estimated sector of a clip."""
    numbers = np.unique(np.linspace(0, frames - 1, min(frames, LOOKED_AT)).round().astype(int))
    return estimate(read_images(video, [int(number) for number in numbers]))


def around(inside: Bools) -> Box:
    """Return the smallest rectangle that holds all true pixels of a map [H,W], of which there is one at least."""
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    top, left = int(rows[0]), int(columns[0])
    return Box(top, left, int(rows[-1]) + 1 - top, int(columns[-1]) + 1 - left)


def estimate(images: Array) -> Box:
    """Return the rectangle around the sector in frames of one clip, uint8 [T,H,W,3], to within a cell.

    A cell is a square of 1/320 of the longer side, at least a pixel; the rectangle is a cell larger on every side.
    Where no sector of 2 % of the picture or more can be told, it is the whole frame.
    """
    height, width = images.shape[1:3]
    step = max(1, -(-max(height, width) // _CELLS))
    sector = sector_of(_cells(images, step))
    if sector is None:
        return Box(0, 0, height, width)
    box = around(sector)
    top, left = max(0, (box.top - 1) * step), max(0, (box.left - 1) * step)
    bottom = min(height, (box.top + box.height + 1) * step)
    right = min(width, (box.left + box.width + 1) * step)
    return Box(top, left, bottom - top, right - left)


def _cells(images: Array, step: int) -> npt.NDArray[np.float32]:
    """Grey of squares of ``step`` pixels, [T,h,w]: the mean of each; those at the edges are filled up."""
    grey = images.mean(-1, dtype=np.float32)
    down, right = -grey.shape[1] % step, -grey.shape[2] % step
    grey = np.pad(grey, ((0, 0), (0, down), (0, right)), mode="edge")
    count, height, width = grey.shape
    cells: npt.NDArray[np.float32] = grey.reshape(count, height // step, step, width // step, step).mean((2, 4))
    return cells


def sector_of(grey: npt.NDArray[np.float32]) -> Bools | None:
    """Return where the sector is in small grey frames [T,h,w], bool [h,w]; None where it cannot be told."""
    size = grey.shape[1:]
    area = size[0] * size[1]
    change, background = np.ptp(grey, axis=0), _background(grey)
    bright = _solid(grey.max(0) > background + _BRIGHT, size)
    changing = _solid(change > _CHANGE, size)
    moving = _largest(changing)
    if moving is None or moving.sum() < _LEAST * area:
        found = _largest(bright)
        return None if found is None or found.sum() < _LEAST * area else _with_pieces(found, bright, _PIECE * area)
    moving = _with_pieces(moving, changing, _PIECE * area)
    for more in (_solid(change > _FAINT_CHANGE, size), bright):  # dark parts, and still ones such as the skin line
        moving = _joined(moving, more)
    return moving


def _with_pieces(sector: Bools, found: Bools, least: float) -> Bools:
    """Add parts of at least so many cells that stand over or under the sector, nearly all within its columns."""
    whole = sector.copy()
    for part in _parts(found):
        columns = part.any(0)
        if part.sum() >= least and (columns & sector.any(0)).sum() >= 0.9 * columns.sum():
            whole |= part
    return whole


def _joined(sector: Bools, more: Bools) -> Bools:
    """Add the parts of a map that lie half inside the sector or hold half of it."""
    found = sector.copy()
    for part in _parts(more):
        if 2 * (part & sector).sum() > min(part.sum(), sector.sum()):
            found |= part
    return found


def _parts(found: Bools) -> Iterator[Bools]:
    """The connected parts of a map."""
    labels, count = ndimage.label(found)
    for number in range(1, count + 1):
        yield labels == number


def _background(grey: npt.NDArray[np.float32]) -> float:
    """The grey value of the picture's surroundings: the commonest one along its border."""
    border = np.concatenate([grey[:, 0].ravel(), grey[:, -1].ravel(), grey[:, :, 0].ravel(), grey[:, :, -1].ravel()])
    return float(np.bincount(border.astype(np.int64).ravel(), minlength=256).argmax())


def _solid(found: Bools, size: tuple[int, ...]) -> Bools:
    """Close the gaps of speckle, then take away what is thin: letters, lines, curves."""
    gap, thin = max(1, round(0.01 * max(size))), max(1, round(0.02 * max(size)))
    padded = np.pad(found, gap)  # so that closing does not eat what touches the border
    closed = ndimage.binary_closing(padded, _disc(gap))[gap:-gap, gap:-gap]
    filled = ndimage.binary_fill_holes(closed)
    padded = np.pad(filled, thin, mode="edge")  # and opening neither
    solid: Bools = ndimage.binary_opening(padded, _disc(thin))[thin:-thin, thin:-thin]
    return solid


def _disc(radius: int) -> Bools:
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    disc: Bools = x * x + y * y <= radius * radius
    return disc


def _largest(found: Bools) -> Bools | None:
    """The largest connected part; None of nothing."""
    labels, count = ndimage.label(found)
    if not count:
        return None
    largest: Bools = labels == 1 + int(np.bincount(labels.ravel())[1:].argmax())
    return largest
