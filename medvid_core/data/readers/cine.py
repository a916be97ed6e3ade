"""What DICOM and NIfTI files say of a cine without decoding it."""

from __future__ import annotations

import os
from dataclasses import dataclass

from medvid_core.errors import DataError


@dataclass(frozen=True)
class CineInfo:
    """What is known of a clip before its frames are read.

    Attributes:
        frames: number of frames.
        fps: mean frames per second, None where unknown.
        spacing: mm per pixel (row, column), None where unknown.
        times_s: when each frame was taken in seconds, where they are not evenly spaced.
        patient: whose clip it is, where the file says so: a hash, see `dicom.patient_hash`.
    """

    frames: int
    fps: float | None = None
    spacing: tuple[float, float] | None = None
    times_s: tuple[float, ...] = ()
    patient: str = ""


Signature = tuple[str, int, int]
"""Path, size and time of change: the key under which what was learnt of a file is kept."""


def signature(path: str, kind: str) -> Signature:
    """Return the signature of a file.

    Raises:
        DataError: if the file does not exist.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise DataError(f"The {kind} {path} does not exist. Restore it, or remove its case from the data.") from error
    return path, status.st_size, status.st_mtime_ns


def check_range(path: str, wanted: list[int], count: int) -> None:
    """Raise `DataError` if one of the frames, given in rising order, is not in the file."""
    if wanted and (wanted[0] < 0 or wanted[-1] >= count):
        frame = wanted[0] if wanted[0] < 0 else wanted[-1]
        raise DataError(f"Frame {frame} was asked of {path}, which has {count} frames (0 to {count - 1}).")
