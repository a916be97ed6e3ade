"""Words, curves and bands beside a picture: what is predicted of a case, drawn at some width."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from medvid_core.metrics.base import Floats
from medvid_core.report.draw import font
from medvid_core.report.palette import palette

# heights and widths in pixels, at scale 1; the gutter is left of curves and bands
_MARGIN, _GUTTER, _CHIP = 6, 46, 14
_LINE, _CURVE, _BAND, _GAP = 18, 40, 13, 4
_TEXT_SIZE, _SMALL_SIZE = 12, 10
_TEXT, _FAINT, _CURSOR = (235, 235, 235), (110, 110, 110), (255, 255, 255)

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Track:
    """A value of every frame, as a curve (anomaly) or as bands (classes).

    Attributes:
        title: what it is.
        curve: [T]; None for bands.
        bands: predicted class of each frame [T]; None for a curve.
        truth: known class, or 0 and 1, of each frame [T]; NaN where unknown.
        classes: what the classes are called; of a curve, what its second class is.
    """

    title: str
    curve: Floats | None
    bands: Floats | None
    truth: Floats
    classes: tuple[str, ...]

    @property
    def known(self) -> bool:
        """Whether the truth of a frame is known."""
        return bool(np.isfinite(self.truth).any())

    @property
    def colours(self) -> list[Colour]:
        """The colour of each class; of a curve, those of its line and of what is truly abnormal."""
        rows = palette(max(3, len(self.classes) + 1))[1:]
        return [(int(red), int(green), int(blue)) for red, green, blue in rows]

    @property
    def legend(self) -> list[tuple[Colour | None, str]]:
        """Coloured words that say what is what."""
        if self.curve is not None:
            abnormal = [(self.colours[1], f"truly {self.classes[0]}")] if self.known else []
            return [(None, f"{self.title}:"), (self.colours[0], "score"), *abnormal]
        return [(None, f"{self.title}:"), *zip(self.colours, self.classes, strict=False)]


def wrapped(text: str, width: int, size: int = _TEXT_SIZE) -> list[str]:
    """Return a text, in letters of some size, as lines of at most so many pixels; a word that alone is wider is cut."""
    rows: list[str] = []
    for word in text.split():
        longer = f"{rows[-1]} {word}" if rows else word
        if rows and font(size).getlength(longer) <= width:
            rows[-1] = longer
        else:
            rows.append(cut(word, width, size))
    return rows


def cut(text: str, width: int, size: int = _TEXT_SIZE) -> str:
    """Return a text on one line of at most so many pixels."""
    line = " ".join(text.split())
    if font(size).getlength(line) <= width:
        return line
    while line and font(size).getlength(f"{line}…") > width:
        line = line[:-1]
    return f"{line}…"


@dataclass(frozen=True)
class _Item:
    """A word of a legend, with its place: left edge in pixels, and row."""

    left: int
    row: int
    colour: Colour | None
    text: str


class Captions:
    """Words and tracks of a case, drawn once.

    Args:
        words: lines of text; long ones are wrapped.
        tracks: drawn below them.
        width: in pixels.
        scale: of letters and heights.

    Attributes:
        image: RGB, as wide as asked for and as high as needed.
    """

    def __init__(self, words: Sequence[str], tracks: Sequence[Track], width: int, scale: float = 1.0) -> None:
        self.width, self.tracks, self.scale = width, tracks, scale
        self.spans: list[tuple[int, int]] = []
        size = self._px(_TEXT_SIZE)
        rows = [row for line in words for row in wrapped(line, width - 2 * self._px(_MARGIN), size)]
        legends = [self._placed(track.legend) for track in tracks]
        self.image = Image.new("RGB", (width, self._height(len(rows), legends)))
        self.pen, top = ImageDraw.Draw(self.image), self._px(_MARGIN)
        for row in rows:
            self.pen.text((self._px(_MARGIN), top), row, fill=_TEXT, font=font(size))
            top += self._px(_LINE)
        for track, legend in zip(tracks, legends, strict=True):
            top = self._legend(legend, top)
            bottom = self._track(track, top)
            self.spans.append((top, bottom))
            top = bottom + 2 * self._px(_GAP)

    def at(self, frame: int) -> Image.Image:
        """Return the picture with a cursor at a frame."""
        picture = self.image.copy()
        pen = ImageDraw.Draw(picture)
        for track, (top, bottom) in zip(self.tracks, self.spans, strict=True):
            x = self._x(frame + 0.5, len(track.truth))
            pen.line((x, top - 1, x, bottom + 1), fill=_CURSOR)
        return picture

    def _px(self, length: float) -> int:
        return round(length * self.scale)

    def _x(self, position: float, count: int) -> float:
        """Return where a position among ``count`` frames lies."""
        left = self._px(_GUTTER)
        return left + (self.width - left - self._px(_MARGIN)) * position / max(1, count)

    def _height(self, rows: int, legends: Sequence[Sequence[_Item]]) -> int:
        height = 2 * self._px(_MARGIN) + self._px(_LINE) * (rows + sum(items[-1].row + 1 for items in legends))
        for track in self.tracks:
            height += self._px(_BAND if track.curve is None else _CURVE) + 2 * self._px(_GAP)
            height += self._px(_GAP) + self._px(_BAND) if track.known else 0
        return height

    def _placed(self, legend: Sequence[tuple[Colour | None, str]]) -> list[_Item]:
        """Place coloured words one after the other, in as many rows as needed."""
        margin, size = self._px(_MARGIN), self._px(_TEXT_SIZE)
        left, row = margin, 0
        placed: list[_Item] = []
        for colour, text in legend:
            chip = 0 if colour is None else self._px(_CHIP)
            shown = cut(text, self.width - 2 * margin - chip, size)
            wide = chip + math.ceil(font(size).getlength(shown))
            if placed and left + wide > self.width - margin:
                left, row = margin, row + 1
            placed.append(_Item(left, row, colour, shown))
            left += wide + self._px(10)
        return placed

    def _legend(self, items: Sequence[_Item], top: int) -> int:
        """Draw the coloured words of a track; return where it goes on."""
        for item in items:
            left, y = item.left, top + self._px(_LINE) * item.row
            if item.colour is not None:
                edge = self._px(_CHIP - 5)
                self.pen.rectangle((left, y + self._px(3), left + edge, y + self._px(3) + edge), fill=item.colour)
                left += self._px(_CHIP)
            self.pen.text((left, y), item.text, fill=_TEXT, font=font(self._px(_TEXT_SIZE)))
        return top + self._px(_LINE) * (items[-1].row + 1)

    def _track(self, track: Track, top: int) -> int:
        """Draw what is predicted, and below it what is known; return where that ends."""
        if track.curve is not None:
            bottom = self._curve(track.curve, track.colours[0], top)
            # normal frames are left blank
            truth = np.where(track.truth > 0, 1.0, math.nan)
        else:
            assert track.bands is not None
            bottom, truth = self._bands(track.bands, track.colours, top, "pred."), track.truth
        return self._bands(truth, track.colours, bottom + self._px(_GAP), "true") if track.known else bottom

    def _bands(self, classes: Floats, colours: Sequence[Colour], top: int, label: str) -> int:
        """Draw the class of every frame [T], NaN blank, inside a faint frame."""
        bottom = top + self._px(_BAND)
        self._beside(label, (top + bottom) / 2)
        self.pen.rectangle((self._x(0, 1), top, self._x(1, 1), bottom), outline=_FAINT)
        for number, kind in enumerate(classes):
            if not math.isnan(kind):
                ends = self._x(number, len(classes)), self._x(number + 1, len(classes))
                self.pen.rectangle((ends[0], top, ends[1], bottom), fill=colours[int(kind)])
        return bottom

    def _curve(self, curve: Floats, colour: Colour, top: int) -> int:
        """Draw a curve [T] between its lowest and highest value, which stand beside it; gaps where it is undefined."""
        bottom = top + self._px(_CURVE)
        defined = curve[np.isfinite(curve)]
        low, high = (float(defined.min()), float(defined.max())) if len(defined) else (0.0, 0.0)
        for value, y in ((high, top + self._px(4)), (low, bottom - self._px(4))) if len(defined) else ():
            self._beside(f"{value:.2g}", y)
        self.pen.line((self._x(0, 1), bottom, self._x(1, 1), bottom), fill=_FAINT)
        unit = (bottom - top - 2) / (high - low or 1.0)
        spots = [
            (self._x(i + 0.5, len(curve)), bottom - 1 - (value - low) * unit) if math.isfinite(value) else None
            for i, value in enumerate(curve)
        ]
        for one, other in itertools.pairwise(spots):
            if one and other:
                self.pen.line((*one, *other), fill=colour, width=self._px(2))
        if len(spots) == 1 and spots[0]:
            self.pen.circle(spots[0], self._px(2), fill=colour)
        return bottom

    def _beside(self, text: str, middle: float) -> None:
        """Write into the gutter, flush right, at half height."""
        place = (self._px(_GUTTER - 5), middle)
        self.pen.text(place, text, fill=_TEXT, font=font(self._px(_SMALL_SIZE)), anchor="rm")
