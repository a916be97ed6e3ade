"""Writing overlay videos that a browser plays, one frame at a time.

VP9 in WebM: every current browser plays it, while AV1 (smaller and quicker to write) needs special hardware in
Safari. The encoder's real-time mode is used; on the clips at hand it is five times quicker than its default and the
file a fifth larger.
"""

from __future__ import annotations

import math
import os
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import av
import numpy as np

from medvid_core.errors import DataError
from medvid_core.report.draw import Bytes, draw, fitted_size, resize_image, resize_mask
from medvid_core.report.palette import palette

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.video.stream import VideoStream

DEFAULT_FPS = 12.0
LOWEST_FPS = 5.0
HIGHEST_FPS = 60.0
_ENCODER = {"crf": "36", "b:v": "0", "deadline": "realtime", "cpu-used": "8", "row-mt": "1"}


def shown_fps(fps: float | None) -> float:
    """Return the frames a second to show a clip at: its own, within what an eye and a screen can follow."""
    if fps is None or not math.isfinite(fps) or fps <= 0:
        return DEFAULT_FPS
    return min(max(fps, LOWEST_FPS), HIGHEST_FPS)


def _even(image: Bytes) -> Bytes:
    """Return the image with its last row and column repeated where a side is odd: 4:2:0 video needs even sides."""
    height, width = image.shape[:2]
    return np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


class VideoWriter:
    """Writes pictures as a video that a browser plays, in memory that does not grow with its length.

    The file appears under its name only when it is complete; after an exception inside ``with`` it does not appear.

    Args:
        path: the file to write, ending in ``.webm``.
        fps: frames a second of the clip; None where unknown.
    """

    def __init__(self, path: Path, fps: float | None = None) -> None:
        self.path, self.fps = path, shown_fps(fps)
        self.frames = 0
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}")
        self._container: OutputContainer | None = None
        self._stream: VideoStream | None = None

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._container is not None and self._stream is not None:
                if kind is None:
                    self._container.mux(self._stream.encode(None))
                self._container.close()
                if kind is None:
                    os.replace(self._temporary, self.path)
        finally:
            self._temporary.unlink(missing_ok=True)

    def append(self, picture: Bytes) -> None:
        """Append a picture, uint8 [H,W,3]; all must have one size."""
        picture = _even(picture)
        if self._container is None or self._stream is None:
            self._container = av.open(os.fspath(self._temporary), "w", format="webm")
            self._stream = self._container.add_stream(
                "libvpx-vp9", rate=Fraction(self.fps).limit_denominator(1001), options=dict(_ENCODER)
            )
            self._stream.height, self._stream.width = picture.shape[:2]
            self._stream.pix_fmt = "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        self._container.mux(self._stream.encode(frame))
        self.frames += 1


class OverlayWriter(VideoWriter):
    """Writes a video of predicted masks over frames.

    Args:
        path: the file to write, ending in ``.webm``.
        classes: number of classes of the output.
        fps: frames a second of the clip; None where unknown.
        shortest: smaller frames are enlarged until the shorter side has so many pixels.
        longest: larger frames are reduced until the longer side has so many pixels; None: never.

    Example:
        >>> with OverlayWriter(Path("overlay.webm"), classes=2, fps=20) as writer:
        ...     writer.write(image, predicted, truth)
    """

    def __init__(
        self, path: Path, classes: int, fps: float | None = None, shortest: int = 256, longest: int | None = None
    ) -> None:
        super().__init__(path, fps)
        self.palette = palette(classes)
        self.shortest, self.longest = shortest, longest
        self._source_size: tuple[int, int] | None = None

    def write(self, image: Bytes, predicted: Bytes, truth: Bytes | None = None) -> Bytes:
        """Draw and append one frame; return it as drawn.

        Args:
            image: uint8 [H,W,3].
            predicted: class of each pixel, uint8 [H,W].
            truth: annotated class of each pixel, uint8 [H,W], 255 = unlabelled; None: not annotated.

        Raises:
            DataError: the frames differ in size.
        """
        source = (image.shape[0], image.shape[1])
        if self._source_size not in (None, source):
            raise DataError(f"{self.path}: frame {self.frames} is {source}, those before are {self._source_size}.")
        self._source_size = source
        size = fitted_size(*source, self.shortest, self.longest)
        drawn = draw(
            resize_image(image, size),
            resize_mask(predicted, size),
            None if truth is None else resize_mask(truth, size),
            self.palette,
        )
        self.append(drawn)
        return drawn
