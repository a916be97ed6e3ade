"""Video files through PyAV (FFmpeg's libraries): exact frame numbers, only the wanted frames converted.

Frame ``t`` is the t-th picture in presentation order. Containers that carry an index (MP4 and MOV, Matroska and WebM,
AVI) are listed once a file and process without decoding (`_Listing`); a wanted frame is then reached from the nearest
keyframe before it. All others (MPEG streams, GIF) are decoded from the start. A frame decoded from damaged data is an
error, never a picture: FFmpeg would conceal the damage.
"""

from __future__ import annotations

import bisect
import functools
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import av
import av.error
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from medvid_core.data.clip import Array
from medvid_core.errors import DataError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpeg", ".mpg", ".wmv", ".ogv", ".gif")
"""Names of video files end in one of these, in any case; what the file really is decides how it is read."""

_INDEXED = ("mov,mp4", "matroska", "avi")
_HIDDEN_FRAMES = ("vp8",)  # has packets that show no picture: packets cannot be counted for frames
_SEEK_GAP = 8
"""Frames decoded on and thrown away rather than seeking, which restarts the decoding threads."""

_REMEDY = "Copy it again from its source, or encode what is left of it anew with 'ffmpeg -i {path} fixed.mp4'."


class _NotSeekableError(Exception):
    """The time stamps do not lead to the wanted frame: decode from the start instead."""


@dataclass(frozen=True)
class VideoInfo:
    """What the container says without decoding.

    Attributes:
        frames: number of frames; counted by decoding where the container does not say.
        fps: mean frames per second, None where unknown.
    """

    frames: int
    fps: float | None


@dataclass(frozen=True)
class _Listing:
    """How many frames there are; time stamps in presentation order (none: unusable) and numbers of keyframes."""

    frames: int
    stamps: tuple[int, ...] = ()
    keyframes: tuple[int, ...] = ()


@contextmanager
def _opened(path: str) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open the first video stream; errors are those of `_named`."""
    with _named(path), av.open(path) as container:
        yield container, _first_stream(container, path)


def _first_stream(container: InputContainer, path: str) -> VideoStream:
    if not container.streams.video:
        raise DataError(f"{path} has no video stream. Remove it from the data, or name another file.")
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    return stream


@contextmanager
def _named(path: str) -> Iterator[None]:
    """Make whatever FFmpeg raises inside a `DataError` that names the file."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"The video {path} does not exist. Restore it, or remove its case from the data.") from error
    except (av.error.FFmpegError, OSError) as error:
        cause = getattr(error, "strerror", "") or str(error)
        raise DataError(f"The video {path} cannot be decoded ({cause}). {_REMEDY.format(path=path)}") from error


def _frames(container: InputContainer, stream: VideoStream, path: str) -> Iterator[VideoFrame]:
    """Decode on from here.

    Raises:
        DataError: at a frame that FFmpeg marks as damaged: it and those that follow are guesses.
    """
    for frame in container.decode(stream):
        if frame.is_corrupt:
            raise DataError(f"The video {path} is damaged inside. {_REMEDY.format(path=path)}")
        yield frame


def _is_indexed(container: InputContainer, stream: VideoStream) -> bool:
    """Whether frames can be listed and reached without decoding all."""
    return container.format.name.startswith(_INDEXED) and stream.codec_context.name not in _HIDDEN_FRAMES


def _declared(container: InputContainer, stream: VideoStream) -> int:
    """Return the number of frames the header promises, 0 where it does not say."""
    if container.format.name.startswith("mov,mp4") and stream.frames:
        return sum(not entry.is_discard for entry in stream.index_entries)  # an edit list may cut frames away
    return stream.frames


def _signature(path: str) -> tuple[str, int, int]:
    """Path, size and time of change: the key under which what was learnt of a file is kept."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise DataError(f"The video {path} does not exist. Restore it, or remove its case from the data.") from error
    return path, status.st_size, status.st_mtime_ns


def probe(path: str) -> VideoInfo:
    """Return number and rate of frames.

    Reads the header alone where it holds the count; else lists the packets, or decodes (MPEG streams).

    Raises:
        DataError: if the file is missing, is no video, is damaged, or has no frame.
    """
    return _probe(*_signature(path))


@functools.lru_cache(maxsize=4096)
def _probe(path: str, size: int, changed: int) -> VideoInfo:
    with _opened(path) as (container, stream):
        if container.format.name == "gif":
            _check_gif_end(path)
        rate = float(stream.average_rate) if stream.average_rate else None
        count = _declared(container, stream)
        if not count and not _is_indexed(container, stream):
            count = sum(1 for _ in _frames(container, stream, path))
    if not count:
        count = _listing(path, size, changed).frames
    if not count:
        raise _empty(path)
    return VideoInfo(count, rate)


def _check_gif_end(path: str) -> None:
    """Raise `DataError` for a GIF without its end mark: FFmpeg would take a truncated one for a shorter one."""
    with open(path, "rb") as file:
        file.seek(-min(64, os.path.getsize(path)), os.SEEK_END)
        if not file.read().rstrip(b"\0\r\n").endswith(b";"):
            raise DataError(f"The video {path} has no end: it is truncated. {_REMEDY.format(path=path)}")


def count_frames(path: str) -> int:
    """Return the number of frames.

    Raises:
        DataError: see `probe`.
    """
    return probe(path).frames


def frame_times(path: str) -> tuple[float, ...]:
    """Return the time stamp of each frame, in seconds from the first; empty where the container lists none usable.

    Raises:
        DataError: see `probe`.
    """
    signature = _signature(path)
    with _opened(path) as (container, stream):
        stamps = _listing(*signature).stamps if _is_indexed(container, stream) else ()
        unit = float(stream.time_base) if stream.time_base else 0.0
    return tuple((stamp - stamps[0]) * unit for stamp in stamps) if unit else ()


@functools.lru_cache(maxsize=256)
def _listing(path: str, size: int, changed: int) -> _Listing:
    """List the frames of an indexed container, without time stamps where its packets carry no usable ones.

    Raises:
        DataError: if fewer frames are present than the header declares.
    """
    with _opened(path) as (container, stream):
        declared = _declared(container, stream)
        shown = [
            (packet.pts, packet.is_keyframe)
            for packet in container.demux(stream)
            if packet.size and not packet.is_discard
        ]
    if len(shown) < declared:
        raise _short(path, declared, len(shown))
    stamped = sorted((pts, key) for pts, key in shown if pts is not None)
    stamps = tuple(pts for pts, _ in stamped)
    if len(set(stamps)) < len(shown):
        return _Listing(len(shown))
    return _Listing(len(shown), stamps, tuple(number for number, (_, key) in enumerate(stamped) if key))


def _short(path: str, declared: int, found: int) -> DataError:
    """The error for a file that ends early."""
    return DataError(
        f"The video {path} declares {declared} frames but holds {found}: it is truncated. {_REMEDY.format(path=path)}"
    )


def _empty(path: str) -> DataError:
    """The error for a file without a frame."""
    return DataError(f"The video {path} holds no frames. {_REMEDY.format(path=path)}")


def size(path: str) -> tuple[int, int]:
    """Return height and width of the first frame, upright.

    Raises:
        DataError: if the file cannot be decoded.
    """
    shape = read(path, [0]).shape
    return shape[1], shape[2]


def read(path: str, frames: Sequence[int]) -> Array:
    """Read the wanted frames, in any order and with repeats, as uint8 [T,H,W,3].

    Raises:
        DataError: if the file is missing, truncated or damaged, or changes its picture size.
    """
    wanted = sorted(set(frames))
    if not wanted:
        return np.empty((0, 0, 0, 3), np.uint8)
    signature = _signature(path)
    with _named(path):
        video = _continued(signature, wanted[0]) or _Open(signature)
        try:
            listing = _listing(*signature) if _is_indexed(video.container, video.stream) else _Listing(0)
            if listing.stamps:
                if wanted[-1] >= listing.frames or wanted[0] < 0:
                    raise _absent(path, wanted[-1] if wanted[0] >= 0 else wanted[0], listing.frames)
                found = _collect(_by_stamp(video, listing, wanted), frames, path)
                _last.video = video
                return found
        except _NotSeekableError:
            pass
        finally:
            if getattr(_last, "video", None) is not video:
                video.container.close()
    with _opened(path) as (container, stream):
        return _collect(_by_count(container, stream, path, wanted), frames, path)


class _Open:
    """A video that is being decoded.

    Attributes:
        signature: of the file.
        process: that opened it: after a fork two would move one file.
        container: where it comes from.
        stream: of the container.
        decoder: what gives its frames.
        following: number of the frame the decoder gives next.
    """

    def __init__(self, signature: tuple[str, int, int]) -> None:
        self.signature, self.process = signature, os.getpid()
        self.container = av.open(signature[0])
        self.stream = _first_stream(self.container, signature[0])
        self.restart(0)

    def restart(self, following: int) -> None:
        """Go on decoding from where the container is now."""
        self.decoder = _frames(self.container, self.stream, self.signature[0])
        self.following = following


_last = threading.local()
"""The video each thread read last stays open: windows one after the other go on where the one before ended, rather than
decode again from a keyframe, of which there may be one in hundreds of frames."""


def _continued(signature: tuple[str, int, int], first: int) -> _Open | None:
    """Return the video that this thread read last, if it is this one and has not come past the wanted frame."""
    video: _Open | None = getattr(_last, "video", None)
    _last.video = None
    if video is None:
        return None
    if (video.signature, video.process) == (signature, os.getpid()) and video.following <= first:
        return video
    video.container.close()
    return None


def _by_count(
    container: InputContainer, stream: VideoStream, path: str, wanted: Sequence[int]
) -> Iterator[tuple[int, VideoFrame]]:
    """Yield the wanted frames with their numbers, decoding from the start."""
    left = set(wanted)
    number = -1
    for number, frame in enumerate(_frames(container, stream, path)):
        if number in left:
            yield number, frame
            left.remove(number)
            if not left:
                return
    declared = _declared(container, stream)
    if declared > number + 1:
        raise _short(path, declared, number + 1)
    raise _absent(path, max(left), number + 1)


def _absent(path: str, frame: int, count: int) -> DataError:
    """The error for a frame number past the end."""
    return DataError(f"Frame {frame} was asked of {path}, which has {count} frames (0 to {count - 1}).")


def _by_stamp(video: _Open, listing: _Listing, wanted: Sequence[int]) -> Iterator[tuple[int, VideoFrame]]:
    """Yield the wanted frames with their numbers, seeking to the keyframe before each where that saves decoding.

    Raises:
        _NotSeekableError: if the decoder's time stamps are not those of the listing.
    """
    for number in wanted:
        keyframe = listing.keyframes[max(0, bisect.bisect_right(listing.keyframes, number) - 1)]
        if keyframe - video.following > _SEEK_GAP:
            video.container.seek(listing.stamps[keyframe], stream=video.stream)
            video.restart(keyframe)
        frame = _advance(video.decoder, listing.stamps[number])
        video.following = number + 1
        yield number, frame


def _advance(decoder: Iterator[VideoFrame], stamp: int) -> VideoFrame:
    """Decode on to the frame with this time stamp."""
    for frame in decoder:
        if frame.pts == stamp:
            return frame
        if frame.pts is None or frame.pts > stamp:
            break
    raise _NotSeekableError


def iterate(path: str) -> Iterator[tuple[Array, float | None]]:
    """Yield all frames in order, uint8 [H,W,3], with their times in seconds (None: unknown); none is kept.

    Times are those that training goes by, of a steady rate; where the file names no rate, its time stamps.

    Raises:
        DataError: as `read` does, at the frame where the file is found damaged, or after the last it holds.
    """
    reformatter = VideoReformatter()
    shape: tuple[int, ...] | None = None
    with _opened(path) as (container, stream):
        if container.format.name == "gif":
            _check_gif_end(path)
        rate = float(stream.average_rate) if stream.average_rate else None
        number = -1
        for number, frame in enumerate(_frames(container, stream, path)):
            picture = upright(frame, reformatter)
            shape = shape or picture.shape
            _check_size(picture, shape, number, path)
            yield picture, number / rate if rate else frame.time
        if (declared := _declared(container, stream)) > number + 1:
            raise _short(path, declared, number + 1)
    if shape is None:
        raise _empty(path)


def upright(frame: VideoFrame, reformatter: VideoReformatter) -> Array:
    """Return a decoded frame as uint8 [H,W,3], turned as its file says.

    Args:
        frame: as decoded.
        reformatter: one for all frames: a new one for each converts five times slower.
    """
    return np.rot90(reformatter.reformat(frame, format="rgb24").to_ndarray(), round(frame.rotation / 90))


def _check_size(picture: Array, shape: tuple[int, ...], number: int, path: str) -> None:
    """Raise `DataError` for a frame of another size than the first."""
    if picture.shape != shape:
        raise DataError(
            f"The video {path} changes its picture size at frame {number}. "
            "Make one size of it with 'ffmpeg -i IN -vf scale=WIDTH:HEIGHT OUT.mp4'."
        )


def _collect(pictures: Iterator[tuple[int, VideoFrame]], frames: Sequence[int], path: str) -> Array:
    """Convert the pictures to RGB and put each where it was asked for, uint8 [T,H,W,3]."""
    reformatter = VideoReformatter()
    places: dict[int, list[int]] = {}
    for position, number in enumerate(frames):
        places.setdefault(number, []).append(position)
    out: Array | None = None
    for number, frame in pictures:
        picture = upright(frame, reformatter)
        if out is None:
            out = np.empty((len(frames), *picture.shape), np.uint8)
        _check_size(picture, out.shape[1:], number, path)
        out[places[number]] = picture
    assert out is not None
    return out
