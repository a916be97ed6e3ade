"""What speaks for a prediction, drawn over the video: a video and a sheet of stills."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as changes

from medvid_core.data.clip import Case
from medvid_core.data.loader import frame_times
from medvid_core.data.readers import read_images
from medvid_core.data.transforms import to_source
from medvid_core.report.captionbox import Captions, Colour, Track
from medvid_core.report.captions import captions_for, stacked, with_words
from medvid_core.report.draw import Bytes, Still, fitted_size, resize_image, strip
from medvid_core.report.video import VideoWriter

Floats = npt.NDArray[np.float32]

FOR, AGAINST = (230, 120, 0), (30, 110, 255)
"""Orange and blue: told apart by colour-blind readers, and from grey."""

_OPACITY = 0.8  # of the strongest places
_FAINTEST = 0.05  # of full strength: up to this, the picture is left as it is
_SMOOTHED = 0.015  # of the picture's longer side: standard deviation, for maps of single pixels
_STRONGEST = 99.5  # percentile of signed maps that is drawn at full strength: a few pixels hold far more
_STILLS, _STILL_SIDE, _STILL_LONGEST = 6, 200, 320
_AT_ONCE = 8  # frames read together


@dataclass(frozen=True)
class Heat:
    """How much each place of a video speaks for something.

    Attributes:
        values: float [T,h,w], in model pixels.
        signed: whether negative values, which speak against it, have a meaning.
        affine: [3,3], source → model pixel coordinates.
        source_size: height and width of the video in pixels.
    """

    values: Tensor
    signed: bool
    affine: Tensor
    source_size: tuple[int, int]

    @functools.cached_property
    def smooth(self) -> Tensor:
        """The values as they are drawn: those of single pixels, which no eye could follow, are spread a little."""
        if not self.signed:
            return self.values
        sigma = max(0.5, _SMOOTHED * max(self.values.shape[-2:]))
        reach = 2 * round(2 * sigma) + 1
        spread: Tensor = changes.gaussian_blur(self.values, [reach, reach], [sigma, sigma])
        return spread

    @functools.cached_property
    def full(self) -> float:
        """The value that is drawn at full strength; 0 where there is nothing to draw."""
        strengths = self.smooth.abs().numpy()
        return float(np.percentile(strengths, _STRONGEST) if self.signed else strengths.max())

    @property
    def frames(self) -> Floats:
        """One number a frame, [T]: the sum of signed values, the largest of others."""
        flat = self.values.flatten(1)
        found: Floats = (flat.sum(1) if self.signed else flat.amax(1)).numpy()
        return found

    def at(self, numbers: Sequence[int], size: tuple[int, int]) -> Floats:
        """Return what is drawn on some frames at some height and width, [n,H,W], in [-1, 1]."""
        values = to_source(self.smooth[list(numbers), None], self.affine, self.source_size)
        values = F.interpolate(values, size=size, mode="bilinear", align_corners=False)[:, 0]
        found: Floats = (values / (self.full or 1.0)).clamp(-1, 1).numpy()
        return found


@dataclass(frozen=True)
class _Strength(Track):
    """The curve of what frames say."""

    @property
    def legend(self) -> list[tuple[Colour | None, str]]:
        """Its colour and title."""
        return [(FOR, self.title)]

    @property
    def colours(self) -> list[Colour]:
        """The colour of what speaks for it."""
        return [FOR, AGAINST]


def draw_heat(image: Bytes, heat: Floats) -> Bytes:
    """Draw heat over a picture: orange where it is positive, blue where it is negative, the stronger the less clear.

    Args:
        image: uint8 [H,W,3].
        heat: [H,W], in [-1, 1].

    Returns:
        uint8 [H,W,3].
    """
    strength = np.abs(heat)
    opacity = _OPACITY * (np.maximum(0, strength - _FAINTEST) / (1 - _FAINTEST))[..., None] ** 0.7
    colours = np.where((heat > 0)[..., None], FOR, AGAINST)
    drawn: Bytes = np.rint((1 - opacity) * image + opacity * colours).astype(np.uint8)
    return drawn


def stills_of(strengths: Floats) -> list[int]:
    """Return the frames of a sheet: equispaced, one of them moved to the strongest frame [T]."""
    picks = [round(frame) for frame in np.linspace(0, len(strengths) - 1, min(_STILLS, len(strengths)))]
    strongest = int(strengths.argmax())
    picks[min(range(len(picks)), key=lambda place: abs(picks[place] - strongest))] = strongest
    return sorted(set(picks))


def frame_label(case: Case, number: int) -> str:
    """Return the number of a frame in the recording, and when it was taken where that is known."""
    index = case.source_frames[number] if case.source_frames else number
    time_s = float(frame_times(case, np.array([number]))[0])
    return f"frame {index}" if math.isnan(time_s) else f"frame {index}, {time_s:.2f} s"


def write_heat(stem: Path, case: Case, heat: Heat, words: Sequence[str], curve: str) -> None:
    """Write ``<stem>.webm``, every frame with its heat, and ``<stem>.png``, some frames without and with it.

    Args:
        stem: path without an ending.
        case: the video.
        heat: what is drawn.
        words: above the video, and below the stills.
        curve: what the curve of `Heat.frames` is of.

    Raises:
        DataError: a frame cannot be read.
    """
    track = _Strength(curve, heat.frames.astype(np.float64), None, np.full(case.frames, np.nan), (curve,))
    height, width = heat.source_size
    size = fitted_size(height, width, 256)
    still_size = fitted_size(height, width, _STILL_SIDE, longest=_STILL_LONGEST)
    above: Captions = captions_for(words, [track], size)
    picks, stills = stills_of(heat.frames), []
    with VideoWriter(stem.with_name(f"{stem.name}.webm"), case.fps) as writer:
        for first in range(0, case.frames, _AT_ONCE):
            numbers = range(first, min(first + _AT_ONCE, case.frames))
            images = read_images(case.streams["video"], numbers)
            for number, image, drawn in zip(numbers, images, heat.at(numbers, size), strict=True):
                picture = draw_heat(resize_image(image, size), drawn)
                writer.append(np.asarray(stacked(above.at(number), Image.fromarray(picture))))
                if number in picks:
                    small = resize_image(image, still_size)
                    stills.append(Still(frame_label(case, number), small, resize_image(picture, still_size)))
    with_words(strip(stills), words, [track]).save(stem.with_name(f"{stem.name}.png"))
