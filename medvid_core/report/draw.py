"""Drawing of masks over images, and strips of still frames."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from medvid_core.data.clip import UNLABELLED
from medvid_core.report.palette import Colours

Bytes = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]

FILL = 0.32
"""Opacity of the predicted area: enough to see its colour, little enough to see the tissue under it."""

_DASH = 6  # pixels
_GAP = 4  # pixels between the panels of a strip
_LABEL = 24  # pixels above the panels of a strip
_BLACK, _WHITE = (0, 0, 0), (255, 255, 255)


def contour(mask: Bytes) -> Bools:
    """Return the contour of every class, one pixel wide, on the inside, bool [H,W].

    Where two foreground classes touch it lies in the one of the higher number. Unlabelled pixels (255) have none.
    """
    edge = np.zeros(mask.shape, bool)
    for axis in (0, 1):
        line, lifted = np.swapaxes(mask, 0, axis), np.swapaxes(edge, 0, axis)
        lifted[1:] |= line[1:] > line[:-1]
        lifted[:-1] |= line[:-1] > line[1:]
    known: Bools = edge & (mask != UNLABELLED)
    return known


def _dashes(shape: tuple[int, int]) -> Bools:
    """Return a fixed pattern of stripes: a line through it is dashed, whatever its direction (nearly)."""
    rows, columns = np.indices(shape)
    dashed: Bools = (columns + 2 * rows) // _DASH % 2 == 0
    return dashed


def draw(image: Bytes, predicted: Bytes, truth: Bytes | None, palette: Colours) -> Bytes:
    """Draw a prediction, and the annotation where there is one, over an image.

    The prediction is filled translucently with a solid contour, in the colour of its class. The annotation is a thin
    contour of black and white dashes: seen on any grey and any colour, and told from the prediction without colour.

    Args:
        image: uint8 [H,W,3].
        predicted: class of each pixel, uint8 [H,W].
        truth: annotated class of each pixel, uint8 [H,W], 255 = unlabelled; None: not annotated.
        palette: colour of each class, uint8 [classes,3].

    Returns:
        uint8 [H,W,3].
    """
    out = image.copy()
    inside = predicted > 0
    colours = palette[predicted[inside]]
    out[inside] = np.rint((1 - FILL) * image[inside] + FILL * colours).astype(np.uint8)
    edge = contour(predicted)
    out[edge] = palette[predicted[edge]]
    if truth is not None:
        line = contour(truth)
        out[line] = np.where(_dashes(truth.shape)[line, None], np.uint8(255), np.uint8(0))
    return out


def fitted_size(height: int, width: int, shortest: int, longest: int | None = None) -> tuple[int, int]:
    """Return height and width to show an image at.

    Small ones grow by a whole factor until the shorter side has ``shortest`` pixels, so that mask pixels stay square;
    with ``longest``, large ones shrink until the longer side has at most that.
    """
    factor = float(max(1, -(-shortest // min(height, width))))
    if longest is not None:
        factor = min(factor, longest / max(height, width))
    return max(1, round(height * factor)), max(1, round(width * factor))


def resize_image(image: Bytes, size: tuple[int, int]) -> Bytes:
    """Return an image uint8 [H,W,3] at another size, bilinear (averaged when it shrinks)."""
    return _resized(image, size, Image.Resampling.BILINEAR)


def resize_mask(mask: Bytes, size: tuple[int, int]) -> Bytes:
    """Return a mask uint8 [H,W] at another size, nearest neighbour."""
    return _resized(mask, size, Image.Resampling.NEAREST)


def _resized(array: Bytes, size: tuple[int, int], how: Image.Resampling) -> Bytes:
    if array.shape[:2] == size:
        return array
    return np.asarray(Image.fromarray(array).resize((size[1], size[0]), how))


@dataclass(frozen=True)
class Still:
    """One column of a strip.

    Attributes:
        label: what stands above it.
        image: the frame, uint8 [H,W,3].
        overlay: the same frame with masks drawn on, uint8 [H,W,3].
    """

    label: str
    image: Bytes
    overlay: Bytes


@functools.cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """Return a font with the letters of most of Europe's languages, which Pillow's own lacks: matplotlib's DejaVu Sans.

    Args:
        size: pixels.
    """
    import matplotlib  # here, for listing plugins must not load it

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def frame_row(images: Sequence[Bytes], labels: Sequence[str]) -> Image.Image:
    """Return images uint8 [H,W,3] of one size side by side, each below its label, on black."""
    height, width = images[0].shape[:2]
    sheet = Image.new("RGB", (len(images) * (width + _GAP) - _GAP, _LABEL + height), _BLACK)
    pen = ImageDraw.Draw(sheet)
    for column, (image, label) in enumerate(zip(images, labels, strict=True)):
        left = column * (width + _GAP)
        pen.text((left + 4, 3), label, fill=_WHITE, font=font(15))
        sheet.paste(Image.fromarray(image), (left, _LABEL))
    return sheet


def strip(stills: Sequence[Still]) -> Image.Image:
    """Return the stills side by side, label over image over overlay, on black."""
    height, width = stills[0].image.shape[:2]
    sheet = Image.new("RGB", (len(stills) * (width + _GAP) - _GAP, _LABEL + 2 * height + _GAP), _BLACK)
    sheet.paste(frame_row([still.image for still in stills], [still.label for still in stills]))
    for column, still in enumerate(stills):
        left = column * (width + _GAP)
        sheet.paste(Image.fromarray(still.overlay), (left, _LABEL + height + _GAP))
    return sheet
