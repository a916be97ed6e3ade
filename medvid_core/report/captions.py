"""What is predicted beside masks, shown with the video: words below the picture, and curves of what frames have."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from medvid_core.data.clip import Case
from medvid_core.data.readers import read_images
from medvid_core.engine.scoring import columns
from medvid_core.metrics.base import Floats, ScoredCase
from medvid_core.report.draw import Bytes, fitted_size, resize_image
from medvid_core.report.palette import palette
from medvid_core.report.video import VideoWriter
from medvid_core.specs import OutputSpec

_LINE, _CURVE, _MARGIN = 18, 48, 6  # pixels
_TEXT, _FAINT, _CURSOR = (235, 235, 235), (110, 110, 110), (255, 255, 255)
_AT_ONCE = 8  # frames read together


@dataclass(frozen=True)
class Track:
    """A value of every frame, as a curve (anomaly) or as bands (classes).

    Attributes:
        label: what it is.
        curve: [T]; None for bands.
        bands: predicted class of each frame [T]; None for a curve.
        truth: known class, or 0 and 1, of each frame [T]; NaN where unknown.
        classes: how many.
    """

    label: str
    curve: Floats | None
    bands: Floats | None
    truth: Floats
    classes: int


def tracks(case: ScoredCase, outputs: Sequence[OutputSpec]) -> list[Track]:
    """Return what is predicted for the frames of a case."""
    found = []
    for output in outputs:
        if output.task not in ("anomaly", "frame_classification"):
            continue
        predicted = case.predicted[output.name]
        truth = case.true_frames.get(output.name, np.full(len(predicted), math.nan))
        if output.task == "anomaly":
            found.append(Track(output.name, predicted, None, truth, 2))
        else:
            bands = predicted.argmax(1).astype(np.float64)
            found.append(Track(f"{output.name}: {', '.join(output.classes)}", None, bands, truth, len(output.classes)))
    return found


def lines(case: ScoredCase, outputs: Sequence[OutputSpec]) -> list[str]:
    """Return what is predicted for the whole case, and what is known, in a line an output."""
    values = columns(case, outputs)
    found = []
    for output in outputs:
        name = output.name
        if output.task == "multilabel":
            labels = [f"{label} {values[f'p/{name}/{label}']:.2f}" for label in output.classes]
            found.append(f"{name}: {', '.join(labels)}")
        elif output.task in ("classification", "ordinal"):
            known = values[f"true/{name}"]
            sure = f" ({values[f'p/{name}/' + values[f'predicted/{name}']]:.2f})" if output.task[0] == "c" else ""
            found.append(f"{name}: {values[f'predicted/{name}']}{sure}" + (f", truly {known}" if known else ""))
        elif output.task == "regression":
            for label in output.classes:
                end = f"{name}/{label}" if len(output.classes) > 1 else name
                known = values[f"true/{end}"]
                truly = "" if math.isnan(known) else f", truly {known:.1f}"
                found.append(f"{end}: {values[f'predicted/{end}']:.1f}{truly}")
    return found


class Panel:
    """Draws picture, words and curves of one case."""

    def __init__(self, case: ScoredCase, outputs: Sequence[OutputSpec], size: tuple[int, int]) -> None:
        self.size, self.lines, self.tracks = size, lines(case, outputs), tracks(case, outputs)
        self.height = size[0] + _LINE * len(self.lines) + (_CURVE + _LINE) * len(self.tracks) + _MARGIN
        self.font = ImageFont.load_default(12)

    def draw(self, image: Bytes, frame: int) -> Bytes:
        """Return one frame, uint8 [H,W,3], with everything below it and a cursor at the frame."""
        sheet = Image.new("RGB", (self.size[1], self.height))
        sheet.paste(Image.fromarray(resize_image(image, self.size)))
        pen, top = ImageDraw.Draw(sheet), self.size[0] + _MARGIN // 2
        for line in self.lines:
            pen.text((_MARGIN, top), line, fill=_TEXT, font=self.font)
            top += _LINE
        for track in self.tracks:
            pen.text((_MARGIN, top), track.label, fill=_TEXT, font=self.font)
            self._track(pen, track, top + _LINE, frame)
            top += _LINE + _CURVE
        return np.asarray(sheet)

    def _track(self, pen: ImageDraw.ImageDraw, track: Track, top: int, frame: int) -> None:
        width, count = self.size[1] - 2 * _MARGIN, len(track.truth)
        colours = palette(max(3, track.classes + 1))[1:]

        def x(position: float) -> float:
            return _MARGIN + width * position / max(1, count)

        bottom = top + _CURVE - _MARGIN
        for number, known in enumerate(track.truth):  # what is known: a band along the foot
            if not math.isnan(known) and (track.curve is None or known > 0):
                colour = tuple(map(int, colours[int(known)]))
                pen.rectangle((x(number), bottom - 8, x(number + 1), bottom), fill=colour)
        if track.bands is not None:
            for number, band in enumerate(track.bands):
                colour = tuple(map(int, colours[int(band)]))
                pen.rectangle((x(number), top, x(number + 1), bottom - 12), fill=colour)
        if track.curve is not None:
            low, high = float(track.curve.min()), float(track.curve.max())
            scale = (bottom - 12 - top) / (high - low or 1.0)
            points = [(x(i + 0.5), bottom - 12 - (value - low) * scale) for i, value in enumerate(track.curve)]
            pen.line((_MARGIN, bottom - 12, _MARGIN + width, bottom - 12), fill=_FAINT)
            if count > 1:
                pen.line(points, fill=tuple(map(int, colours[0])), width=2)
        pen.line((x(frame + 0.5), top, x(frame + 0.5), bottom), fill=_CURSOR)


def write_captioned(
    path: Path, case: Case, scored: ScoredCase, outputs: Sequence[OutputSpec], shown: range, longest: int | None = None
) -> tuple[Bytes, float]:
    """Write a video of a case with what is predicted below it; return the middle frame as drawn, and the rate shown.

    Raises:
        DataError: a frame cannot be read.
    """
    still: Bytes | None = None
    panel: Panel | None = None
    with VideoWriter(path, case.fps) as writer:
        for first in range(shown.start, shown.stop, _AT_ONCE):
            numbers = range(first, min(first + _AT_ONCE, shown.stop))
            for number, image in zip(numbers, read_images(case.streams["video"], numbers), strict=True):
                if panel is None:
                    panel = Panel(scored, outputs, fitted_size(image.shape[0], image.shape[1], 256, longest))
                picture = panel.draw(image, number)
                writer.append(picture)
                if still is None or number <= (shown.start + shown.stop) // 2:
                    still = picture
    assert still is not None
    return still, writer.fps
