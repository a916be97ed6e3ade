"""Prepared streams on disk: frames packed without loss, each by itself, so that a clip decodes only its own.

A file is the packed frames one after the other, an index (JSON: type, shape, scale, where each frame ends), the length
of the index (8 bytes, little endian) and the mark ``medvid-1``. A frame [C,H,W] is stored as its differences along rows
and columns, modulo the type's range, compressed by zlib, whose checksum finds damage.

Whole numbers (uint8) are kept as they are. Vectors are fixed point: int16 in steps of `STEP` = 1/64 pixel, rounded to
the nearest, so that a component is off by 1/128 pixel at most and reaches ±511.98 pixels. One beyond is an error.
"""

from __future__ import annotations

import functools
import json
import os
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medvid_core.data.clip import Array, Source
from medvid_core.errors import DataError

STEP = 1 / 64
"""Pixels a unit of a stored vector."""

LIMIT = 32767 * STEP
"""Longest component of a vector that can be stored, in pixels."""

READER = f"{__name__}:read"
"""What a `Source` of such a file names."""

_MARK = b"medvid-1"
_KINDS = ("uint8", "int16")


@dataclass(frozen=True)
class _Index:
    """What a file holds, and where each frame begins; the last number is where the last one ends."""

    dtype: str
    shape: tuple[int, int, int]
    scale: float
    starts: tuple[int, ...]


def write(path: Path, frames: Iterable[Array]) -> int:
    """Write a stream as its frames come; return how many.

    Args:
        path: the file to make.
        frames: each uint8 [C,H,W], or float [C,H,W]: vectors in pixels.

    Raises:
        DataError: there is no frame, they differ in shape or type, or a vector is too long or not finite.
    """
    first: tuple[str, tuple[int, ...]] | None = None
    starts = [0]
    with open(path, "wb") as file:
        for number, frame in enumerate(frames):
            whole = frame if frame.dtype == np.uint8 else _fixed_point(frame, path.stem, number)
            first = first or (whole.dtype.name, whole.shape)
            if (whole.dtype.name, whole.shape) != first or whole.ndim != 3:
                raise DataError(
                    f"Frame {number} of the stream {path.stem} is {whole.dtype.name} {whole.shape}, the first "
                    f"{first[0]} {first[1]}; all must be alike, [C,H,W]."
                )
            starts.append(starts[-1] + file.write(_pack(whole)))
        if first is None:
            raise DataError(f"The stream {path.stem} has no frame.")
        content = {
            "dtype": first[0],
            "shape": first[1],
            "scale": STEP if first[0] == "int16" else 1.0,
            "starts": starts,
        }
        index = json.dumps(content).encode()
        file.write(index + len(index).to_bytes(8, "little") + _MARK)
    return len(starts) - 1


def _fixed_point(vectors: Array, name: str, number: int) -> Array:
    """Return vectors as int16 in steps of `STEP`."""
    steps = np.rint(np.asarray(vectors, np.float64) / STEP)
    if not np.isfinite(steps).all() or np.abs(steps).max(initial=0) > 32767:
        raise DataError(
            f"Frame {number} of the stream {name} holds vectors that are not finite or longer than {LIMIT:.2f} pixels, "
            "which are no motion of a body in a picture of usual size. Check the video at this frame."
        )
    return steps.astype(np.int16)


def _pack(frame: Array) -> bytes:
    """Compress one frame: a neighbour's value is a good guess, what is left is small."""
    rows = frame.copy()
    rows[..., 1:, :] -= frame[..., :-1, :]
    both = rows.copy()
    both[..., 1:] -= rows[..., :-1]
    return zlib.compress(both.astype(both.dtype.newbyteorder("<")).tobytes(), 6)


def _unpack(packed: bytes, index: _Index) -> Array:
    dtype = np.dtype(index.dtype)
    flat = np.frombuffer(zlib.decompress(packed), dtype.newbyteorder("<")).reshape(index.shape).astype(dtype)
    unpacked: Array = np.cumsum(np.cumsum(flat, -1, dtype=dtype), -2, dtype=dtype)
    return unpacked


def read(source: Source, frames: Sequence[int]) -> Array:
    """Read the wanted frames, in any order and with repeats.

    Returns:
        Of vectors float32 [T,2,H,W], in pixels; of colours uint8 [T,H,W,3], of one channel uint8 [T,H,W].

    Raises:
        DataError: the file is missing or damaged, or holds no such frame; the text names it.
    """
    path = source.paths[0]
    index = _index_of(path)
    stored = np.empty((len(frames), *index.shape), index.dtype)
    with open(path, "rb") as file:
        for place, frame in enumerate(frames):
            if not 0 <= frame < len(index.starts) - 1:
                raise DataError(f"{path} holds {len(index.starts) - 1} frames, and was asked for frame {frame}.")
            file.seek(index.starts[frame])
            packed = file.read(index.starts[frame + 1] - index.starts[frame])
            try:
                stored[place] = _unpack(packed, index)
            except (zlib.error, ValueError) as error:
                raise _damaged(path, f"frame {frame}: {error}") from error
    if index.dtype == "int16":
        return stored.astype(np.float32) * np.float32(index.scale)
    return stored[:, 0] if index.shape[0] == 1 else np.ascontiguousarray(stored.transpose(0, 2, 3, 1))


def _index_of(path: str) -> _Index:
    try:
        status = os.stat(path)
    except OSError as error:
        raise DataError(
            f"The prepared file {path} does not exist any more. Start again: it will be made anew."
        ) from error
    return _read_index(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=4096)
def _read_index(path: str, size: int, changed: int) -> _Index:
    """Read the end of a file; kept as long as size and time of change stay."""
    with open(path, "rb") as file:
        file.seek(max(0, size - 16))
        end = file.read()
        length = int.from_bytes(end[:8], "little")
        if len(end) < 16 or end[8:] != _MARK or length > size - 16:
            raise _damaged(path, "it has no end")
        file.seek(size - 16 - length)
        content = json.loads(file.read(length))
    if content["dtype"] not in _KINDS:
        raise _damaged(path, f"it holds {content['dtype']}")
    return _Index(content["dtype"], tuple(content["shape"]), content["scale"], tuple(content["starts"]))


def _damaged(path: str, why: str) -> DataError:
    return DataError(f"The prepared file {path} is damaged ({why}). Remove its folder: it will be made anew.")
