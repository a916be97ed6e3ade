"""Frames as they come: from a file, a folder that is being written, or a capture device.

Nothing here knows how many frames there will be, and no frame is kept.
"""

from __future__ import annotations

import heapq
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image

from medvid_core.data.clip import Array
from medvid_core.data.datasets.folders import natural_key
from medvid_core.data.datasets.media import locate
from medvid_core.data.readers import read_images, video
from medvid_core.data.readers.frames import SUFFIXES, read_image
from medvid_core.errors import DataError

POLL_S = 0.02
"""Seconds between two looks into a folder."""

LIST_S = 0.2
"""Seconds to wait for the frame with the next number before the folder is listed for one with another name."""

BATCH = 4096
"""Names that are kept of one listing."""

STEADY = 8
"""So many frames in a row with rising numbers, and the next is looked for by its name."""

_NUMBER = re.compile(r"(.*?)([0-9]+)(\.[^.]+)")


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

    A file gives the frames and times that it gives when it is read whole. A folder of images has no times.

    Args:
        path: a video, DICOM or NIfTI file, a folder of images that may still be growing, an address that FFmpeg opens
            or, with ``device_format``, a capture device.
        device_format: FFmpeg's name of the device's kind: ``v4l2`` (Linux), ``avfoundation`` (macOS), ``dshow``
            (Windows), ``lavfi`` (a made-up picture).
        idle_s: a folder to which nothing was added for so long is taken to be complete.

    Raises:
        DataError: it cannot be opened, or a frame cannot be read.
    """
    if device_format is None and Path(path).is_dir():
        yield from _folder(Path(path), idle_s)
    elif device_format is None and Path(path).is_file():
        yield from _file(Path(path))
    else:
        yield from _decoded(path, device_format)


def _file(path: Path) -> Iterator[LiveFrame]:
    """All frames of a file."""
    media = locate(path.parent, path.name)
    if media.reader == "video":
        for number, (image, time_s) in enumerate(video.iterate(str(path))):
            yield LiveFrame(number, image, time_s)
        return
    info, source = media.measure(), media.source()
    for number in range(info.frames):
        time_s = info.times_s[number] if info.times_s else number / info.fps if info.fps else None
        yield LiveFrame(number, read_images(source, [number])[0], time_s)


def _decoded(path: str, device_format: str | None) -> Iterator[LiveFrame]:
    """Frames of a device or an address."""
    what = f"The device {path} ({device_format})" if device_format else f"The video {path}"
    try:
        container = av.open(path, format=device_format)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise DataError(
            f"{what} cannot be opened ({error}). Check its name, and with a device --device-format."
        ) from error
    number = 0
    with container:
        if not container.streams.video:
            raise DataError(f"{what} has no video stream.")
        reformatter = VideoReformatter()
        try:
            for frame in container.decode(container.streams.video[0]):
                if frame.is_corrupt:
                    raise DataError(f"{what} is damaged at frame {number}; all frames before it are predicted.")
                yield LiveFrame(number, video.upright(frame, reformatter), frame.time)
                number += 1
        except (av.error.FFmpegError, OSError) as error:
            raise DataError(
                f"{what} broke off at frame {number} ({error}); all frames before it are predicted."
            ) from error
    if not number:
        raise DataError(f"{what} holds no frames.")


def _folder(folder: Path, idle_s: float) -> Iterator[LiveFrame]:
    """Frames of a folder in natural order, each once it is whole; names must rise as they are added.

    Listing a folder takes the longer the more is in it. While frames come with rising numbers, the next is therefore
    looked for by its name.
    """
    taken = steady = 0
    last = ""
    changed = listed = time.monotonic()
    while True:
        following = _following(last)
        now = time.monotonic()
        if steady >= STEADY and (folder / following).exists():
            names, newest = [following], "" if (folder / _following(following)).exists() else following
        elif steady >= STEADY and now - max(changed, listed) <= min(LIST_S, idle_s):
            time.sleep(POLL_S)
            continue
        else:
            names, newest = _later_names(folder, last, taken)
            listed = now
        before = taken
        for name in names:
            image = _whole_image(folder / name, certain=name != newest or time.monotonic() - changed > idle_s)
            if image is None:
                break
            yield LiveFrame(taken, image, None)
            steady = steady + 1 if name == _following(last) else 0
            last, taken, changed = name, taken + 1, time.monotonic()
        if taken == before:
            if now - changed > idle_s:
                break
            time.sleep(POLL_S)
    if not taken:
        raise DataError(f"{folder} holds no image ({', '.join(SUFFIXES)}), and none came for {idle_s:g} seconds.")


def _later_names(folder: Path, last: str, taken: int) -> tuple[list[str], str]:
    """Return the next images by name after the last one taken, in natural order, and the last of those found.

    Raises:
        DataError: more stand before it than were taken: one came late.
    """
    after = natural_key(last) if last else ()
    earlier = 0

    def later() -> Iterator[tuple[Any, str]]:
        nonlocal earlier
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.lower().endswith(SUFFIXES) and not entry.name.startswith("."):
                    key = natural_key(entry.name)
                    if key > after:
                        yield key, entry.name
                    else:
                        earlier += 1

    found = [name for _, name in heapq.nsmallest(BATCH + 1, later())]
    if earlier > taken:
        raise DataError(
            f"A file was added to {folder} after {last} was taken, but comes before it by name. A stream goes forward "
            "only: number the files as they are written."
        )
    return found[:BATCH], found[-1] if found else ""


def _following(name: str) -> str:
    """The name with the next number, ``frame_0010.png`` after ``frame_0009.png``; empty where there is no number."""
    match = _NUMBER.fullmatch(name)
    return f"{match[1]}{int(match[2]) + 1:0{len(match[2])}}{match[3]}" if match else ""


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
    return np.array(read_image(str(path)))  # a copy: Pillow's own cannot be written to, of which PyTorch warns
