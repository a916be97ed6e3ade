"""What is predicted beside masks, shown with the video: words, and curves of what frames have."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from medvid_core.data.clip import Case
from medvid_core.data.readers import read_images
from medvid_core.engine.scoring import columns
from medvid_core.metrics.base import ScoredCase
from medvid_core.metrics.frames import known_frames
from medvid_core.report.captionbox import Captions, Track
from medvid_core.report.draw import Bytes, fitted_size, frame_row, resize_image
from medvid_core.report.video import VideoWriter
from medvid_core.specs import OutputSpec

_NARROWEST = 256  # pixels: words need some width, however narrow the video
_STILLS, _STILL_SIDE, _STILL_LONGEST = 5, 200, 320
_STILL_SCALE = 1.5  # of words below a still, which a page shows smaller than it is
_AT_ONCE = 8  # frames read together


def tracks(case: ScoredCase, outputs: Sequence[OutputSpec]) -> list[Track]:
    """Return what is predicted for the frames of a case."""
    found = []
    for output in outputs:
        if output.task not in ("anomaly", "frame_classification"):
            continue
        predicted = case.predicted[output.name]
        truth = case.true_frames.get(output.name, np.full(len(predicted), math.nan))
        if output.task == "anomaly":
            found.append(Track(output.name, predicted, None, truth, output.classes or ("abnormal",)))
        else:
            found.append(Track(output.name, None, predicted.argmax(1).astype(np.float64), truth, output.classes))
    return found


def lines(case: ScoredCase, outputs: Sequence[OutputSpec]) -> list[str]:
    """Return what is predicted for the whole case, and what is known, in a line an output."""
    values = columns(case, outputs)
    found = []
    for output in outputs:
        name = output.name
        if output.task == "multilabel":
            labels = [f"{label} {values[f'p/{name}/{label}']:.2f}" for label in output.classes]
            known = case.true.get(name, np.zeros(0))
            present = [label for label, value in zip(output.classes, known, strict=False) if value > 0]
            truly = f"; truly {', '.join(present) or 'none'}" if len(known) and not np.isnan(known).all() else ""
            found.append(f"{name}: {', '.join(labels)}{truly}")
        elif output.task in ("classification", "ordinal"):
            known = values[f"true/{name}"]
            sure = f" ({values[f'p/{name}/' + values[f'predicted/{name}']]:.2f})" if output.task[0] == "c" else ""
            found.append(f"{name}: {values[f'predicted/{name}']}{sure}" + (f", truly {known}" if known else ""))
        elif output.task == "regression":
            for label in output.classes:
                end = f"{name}/{label}" if len(output.classes) > 1 else name
                known = values[f"true/{end}"]
                truly = "" if math.isnan(known) else f", truly {_short(known)}"
                found.append(f"{end}: {_short(values[f'predicted/{end}'])}{truly}")
        elif output.task == "anomaly":
            known = values[f"true/{name}"]
            truly = "" if math.isnan(known) else ", truly abnormal" if known > 0 else ", truly normal"
            found.append(f"{name}: score {_short(values[f'score/{name}'])}{truly}")
        elif output.task == "frame_classification":
            found += _share_right(case, output)
    return found


def _share_right(case: ScoredCase, output: OutputSpec) -> list[str]:
    """Return how many of the frames are right, where their truth is known."""
    true, predicted = known_frames(case, output)
    return [f"{output.name}: {(true == predicted).mean():.0%} of {len(true)} frames right"] if len(true) else []


def _short(value: float) -> str:
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


class Panel:
    """Draws picture, words and curves of one case; the picture last, for players lay their controls over the foot.

    Args:
        case: what is predicted and known.
        outputs: of the model.
        size: height and width of the picture, pixels.
    """

    def __init__(self, case: ScoredCase, outputs: Sequence[OutputSpec], size: tuple[int, int]) -> None:
        self.size = size
        self.words = captions_for(lines(case, outputs), tracks(case, outputs), size)

    def draw(self, image: Bytes, frame: int) -> Bytes:
        """Return one frame, uint8 [H,W,3], under words and curves with a cursor at the frame."""
        return np.asarray(stacked(self.words.at(frame), Image.fromarray(resize_image(image, self.size))))


def captions_for(words: Sequence[str], tracks: Sequence[Track], size: tuple[int, int]) -> Captions:
    """Return words and curves to go above a picture of some height and width, pixels."""
    return Captions(words, tracks, max(size[1], _NARROWEST))


def stacked(above: Image.Image, below: Image.Image) -> Image.Image:
    """Return two pictures one above the other, each in the middle, on black."""
    width = max(above.width, below.width)
    sheet = Image.new("RGB", (width, above.height + below.height))
    sheet.paste(above, ((width - above.width) // 2, 0))
    sheet.paste(below, ((width - below.width) // 2, above.height))
    return sheet


def with_words(row: Image.Image, words: Sequence[str], tracks: Sequence[Track]) -> Image.Image:
    """Return a row of stills with words and curves below, legible where a page shows it smaller than it is."""
    scale = _STILL_SCALE if row.width > 2 * _NARROWEST else 1.0
    return stacked(row, Captions(words, tracks, max(row.width, _NARROWEST), scale).image)


def still(
    images: Sequence[Bytes], numbers: Sequence[int], case: ScoredCase, outputs: Sequence[OutputSpec]
) -> Image.Image:
    """Return frames [H,W,3] side by side, and below them everything that is predicted of the case."""
    height, width = images[0].shape[:2]
    size = fitted_size(height, width, _STILL_SIDE, longest=_STILL_LONGEST)
    row = frame_row([resize_image(image, size) for image in images], [f"frame {number}" for number in numbers])
    return with_words(row, lines(case, outputs), tracks(case, outputs))


def write_captioned(
    path: Path, case: Case, scored: ScoredCase, outputs: Sequence[OutputSpec], shown: range, longest: int | None = None
) -> tuple[Bytes, float]:
    """Write a video of a case with what is predicted above it; return some frames as a still, and the rate shown.

    Raises:
        DataError: a frame cannot be read.
    """
    picks = {shown[round(i)] for i in np.linspace(0, len(shown) - 1, min(_STILLS, len(shown)))}
    stills: dict[int, Bytes] = {}
    panel: Panel | None = None
    with VideoWriter(path, case.fps) as writer:
        for first in range(shown.start, shown.stop, _AT_ONCE):
            numbers = range(first, min(first + _AT_ONCE, shown.stop))
            for number, image in zip(numbers, read_images(case.streams["video"], numbers), strict=True):
                if panel is None:
                    panel = Panel(scored, outputs, fitted_size(image.shape[0], image.shape[1], 256, longest))
                writer.append(panel.draw(image, number))
                if number in picks:
                    stills[number] = image
    return np.asarray(still(list(stills.values()), list(stills), scored, outputs)), writer.fps
