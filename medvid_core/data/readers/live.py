"""Frames as they come: from a file, a folder that is being written, or a capture device.

Nothing here knows how many frames there will be, and nothing is kept.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import av.error
import numpy as np
from PIL import Image

from medvid_core.data.clip import Array
from medvid_core.data.datasets.folders import natural_key
from medvid_core.data.readers.frames import SUFFIXES, read_image
from medvid_core.errors import DataError

POLL_S = 0.02
"""Seconds between two looks into a folder."""


@dataclass(frozen=True)
class LiveFrame:
    """One frame.

    Attributes:
        number: how many came before it.
        image: uint8 [H,W,3].
        time_s: when it was taken, in seconds, as the stream says; None where it does not.
    """

    number: int
    image: Array
    time_s: float | None


def live_frames(path: str, device_format: str | None = None, idle_s: float = 5.0) -> Iterator[LiveFrame]:
    """Yield frames as they come.

    Args:
        path: a video file or address that FFmpeg opens, a folder of images that may still be growing, or, with
            ``device_format``, a capture device.
        device_format: FFmpeg's name of the device's kind: ``v4l2`` (Linux), ``avfoundation`` (macOS), ``dshow``
            (Windows), ``lavfi`` (a made-up picture).
        idle_s: a folder to which nothing was added for so long is taken to be complete.

    Raises:
        DataError: it cannot be opened, or a frame cannot be read.
    """
    if device_format is None and Path(path).is_dir():
        yield from _folder(Path(path), idle_s)
    else:
        yield from _decoded(path, device_format)


def _decoded(path: str, device_format: str | None) -> Iterator[LiveFrame]:
    what = f"The device {path} ({device_format})" if device_format else f"The video {path}"
    try:
        with av.open(path, format=device_format) as container:
            if not container.streams.video:
                raise DataError(f"{what} has no video stream.")
            stream = container.streams.video[0]
            for number, frame in enumerate(container.decode(stream)):
                if frame.is_corrupt:
                    raise DataError(f"{what} is damaged at frame {number}; all frames before it are predicted.")
                yield LiveFrame(number, frame.to_ndarray(format="rgb24"), frame.time)
    except (FileNotFoundError, av.error.FFmpegError, OSError, ValueError) as error:
        raise DataError(
            f"{what} cannot be opened ({error}). Check its name, and with a device --device-format."
        ) from error


def _folder(folder: Path, idle_s: float) -> Iterator[LiveFrame]:
    """Frames of a folder in natural order, each once it is whole; names must rise as they are added."""
    done: set[str] = set()
    last = ""
    changed = time.monotonic()
    while True:
        names = sorted(
            (path.name for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.name[0] != "."),
            key=natural_key,
        )
        fresh = [name for name in names if name not in done]
        ready = 0
        for name in fresh:
            if last and natural_key(name) < natural_key(last):
                raise DataError(
                    f"{folder / name} was added after {last}, but comes before it by name. A stream goes forward only: "
                    "number the files as they are written."
                )
            newest = name == fresh[-1]
            image = _whole_image(folder / name, certain=not newest or time.monotonic() - changed > idle_s)
            if image is None:
                break
            yield LiveFrame(len(done), image, None)
            done.add(name)
            last, ready, changed = name, ready + 1, time.monotonic()
        if not ready:
            if time.monotonic() - changed > idle_s:
                break
            time.sleep(POLL_S)
    if not done:
        raise DataError(f"{folder} holds no image ({', '.join(SUFFIXES)}), and none came for {idle_s:g} seconds.")


def _whole_image(path: Path, certain: bool) -> Array | None:
    """Read an image; None where it is still being written.

    Args:
        path: the file.
        certain: whether it must be whole by now.
    """
    try:
        with Image.open(path) as image:
            image.load()
    except (OSError, SyntaxError, ValueError):
        if not certain:
            return None
    return np.ascontiguousarray(read_image(str(path)))
