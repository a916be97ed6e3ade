"""NIfTI cines through nibabel, which is imported when such a file is read: axes (x, y, t) or (x, y, 1, t).

What is done to pixels: pictures are transposed, x to columns and y to rows; orientation in the header is not applied,
so that masks drawn on the same axes fit. Bytes (uint8) are taken as they are. All other types are scaled by one linear
map a file, its smallest value to 0 and its largest to 255, so that frames stay comparable; what is no number is black.
That map knows the whole file: through it a score of frame t depends on later frames. For strictly causal use store
bytes.
As masks, pixels keep their integers.

A compressed file (.nii.gz) cannot be read from its middle: it is unpacked whole, and the last two are kept in memory. A
file that is not compressed is read frame by frame, however long it is.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from medvid_core.data.clip import Array
from medvid_core.data.readers.cine import CineInfo, Signature, check_range, signature
from medvid_core.errors import DataError

SUFFIXES = (".nii", ".nii.gz")
"""Names of NIfTI files end in one of these, in any case."""

_MILLIMETRES = {"mm": 1.0, "meter": 1000.0, "micron": 0.001, "unknown": 1.0}
_SECONDS = {"sec": 1.0, "msec": 1e-3, "usec": 1e-6, "unknown": 1.0}
_REMEDY = "Copy it again from its source, or remove its case from the data."


@dataclass(frozen=True)
class _Volume:
    """The stored values [x,y,t] and the linear map to the values meant."""

    stored: Array
    slope: float
    intercept: float


def probe(path: str) -> CineInfo:
    """Read the header.

    Raises:
        DataError: if the file is missing, no NIfTI file, or holds slices rather than frames.
    """
    return _probe(*signature(path, "NIfTI file"))


@functools.lru_cache(maxsize=4096)
def _probe(path: str, size: int, changed: int) -> CineInfo:
    with _guarded(path):
        image = _load(path)
        shape = _shape(image, path)
        if not path.lower().endswith(".gz") and size < _end(image):
            raise DataError(f"The NIfTI file {path} ends before its {shape[2]} frames do: it is truncated. {_REMEDY}")
        space, time = image.header.get_xyzt_units()
        zooms = [float(zoom) for zoom in image.header.get_zooms()]
        step = _known(zooms[3], _SECONDS[time], time) if len(zooms) > 3 else None
        sides = [_known(zoom, _MILLIMETRES[space], space) for zoom in zooms[:2]]
        spacing = (sides[1], sides[0]) if sides[0] and sides[1] else None
        return CineInfo(shape[2], 1 / step if step else None, spacing)


def _end(image: Any) -> int:
    """Where the values of a file that is not compressed end, in bytes."""
    count: int = math.prod(image.shape)
    return int(image.dataobj.offset) + count * int(image.get_data_dtype().itemsize)


def _known(zoom: float, unit: float, name: str) -> float | None:
    """A size in mm or s; None where it is none, or 1 of no unit: what a header holds that nobody filled in."""
    return zoom * unit if np.isfinite(zoom) and zoom > 0 and (name != "unknown" or zoom != 1) else None


def count_frames(path: str) -> int:
    """Return the number of frames.

    Raises:
        DataError: see `probe`.
    """
    return probe(path).frames


def size(path: str) -> tuple[int, int]:
    """Return height and width.

    Raises:
        DataError: see `probe`.
    """
    with _guarded(path):
        width, height, _ = _shape(_load(path), path)
    return height, width


def read(path: str, frames: Sequence[int]) -> Array:
    """Read the wanted frames, in any order and with repeats, as uint8 [T,H,W,3].

    Raises:
        DataError: if the file is missing, truncated or damaged.
    """
    key = signature(path, "NIfTI file")
    with _guarded(path):
        volume = _volume(*key)
        check_range(path, sorted(frames), volume.stored.shape[2])
        grey = _pick(volume.stored, frames)
        if grey.dtype != np.uint8:
            low, high = _extremes(key)
            grey = np.nan_to_num((grey.astype(np.float64) - low) / (high - low or 1), posinf=0, neginf=0)
            grey = np.round(255 * (1 - grey if volume.slope < 0 else grey)).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


def read_raw(path: str, frames: Sequence[int]) -> Array:
    """Read the wanted frames with their integers, [T,H,W].

    Raises:
        DataError: if the file is missing, truncated or damaged, or a value is no integer.
    """
    with _guarded(path):
        volume = _volume(*signature(path, "NIfTI file"))
        check_range(path, sorted(frames), volume.stored.shape[2])
        values = _pick(volume.stored, frames)
        if volume.slope != 1 or volume.intercept != 0:
            values = values * volume.slope + volume.intercept
        if values.dtype.kind == "f":
            whole = np.rint(values)
            if not np.allclose(values, whole, atol=1e-3):
                raise DataError(f"The mask {path} holds values that are no integers. Store class numbers.")
            values = whole.astype(np.int64)
    return values


def drawn_frames(path: str) -> tuple[int, ...]:
    """Return the numbers of the frames that hold anything but 0; the whole file is read.

    Raises:
        DataError: if the file is missing, truncated or damaged.
    """
    with _guarded(path):
        volume = _volume(*signature(path, "NIfTI file"))
        empty = -volume.intercept / volume.slope
        return tuple(t for t in range(volume.stored.shape[2]) if (volume.stored[:, :, t] != empty).any())


def _pick(stored: Array, frames: Sequence[int]) -> Array:
    """Copy the wanted frames of [x,y,t] to [T,H,W]."""
    return np.ascontiguousarray(np.moveaxis(stored[:, :, list(frames)], (2, 1, 0), (0, 1, 2)))


@functools.lru_cache(maxsize=2)
def _volume(path: str, size: int, changed: int) -> _Volume:
    """Open the values: mapped from the file where it is not compressed, else in memory."""
    image = _load(path)
    shape = _shape(image, path)
    proxy = image.dataobj
    return _Volume(proxy.get_unscaled().reshape(shape, order="F"), float(proxy.slope), float(proxy.inter))


@functools.lru_cache(maxsize=4096)
def _extremes(key: Signature) -> tuple[float, float]:
    """The smallest and the largest number of a file, as stored."""
    stored = _volume(*key).stored
    low, high = np.inf, -np.inf
    for number in range(stored.shape[2]):
        frame = stored[:, :, number]
        finite = frame[np.isfinite(frame)]
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    return (low, high) if low <= high else (0.0, 0.0)


def _load(path: str) -> Any:
    """Open a file with nibabel."""
    import nibabel

    return nibabel.load(path)


def _shape(image: Any, path: str) -> tuple[int, int, int]:
    """Return the number of columns, rows and frames.

    Raises:
        DataError: if the axes are others.
    """
    shape = tuple(int(side) for side in image.shape)
    while len(shape) > 4 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) == 4 and shape[2] != 1:
        raise DataError(
            f"The NIfTI file {path} holds {shape[2]} slices in each of {shape[3]} volumes (axes {shape}): it is no "
            "video of one plane. Save each slice as a file of axes (x, y, time)."
        )
    if not 2 <= len(shape) <= 4 or 0 in shape:
        raise DataError(f"The NIfTI file {path} has the axes {shape}; a video has (x, y, time) or (x, y, 1, time).")
    if image.get_data_dtype().kind not in "iuf":
        raise DataError(
            f"The NIfTI file {path} holds {image.get_data_dtype()} values; grey values are read. Convert it to uint8."
        )
    return shape[0], shape[1], shape[-1] if len(shape) > 2 else 1


@contextmanager
def _guarded(path: str) -> Iterator[None]:
    """Turn whatever nibabel raises inside into a `DataError` that names the file."""
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(
            f"The NIfTI file {path} does not exist. Restore it, or remove its case from the data."
        ) from error
    except Exception as error:  # nibabel, gzip and zlib raise nearly anything on damaged data
        cause = " ".join(str(error).split())
        raise DataError(
            f"The NIfTI file {path} cannot be read ({type(error).__name__}: {cause}): it is truncated, damaged or no "
            f"NIfTI file. {_REMEDY}"
        ) from error
