"""Several recordings shown one after the other, as one video: a patient's visits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from medvid_core.data.clip import Array, Source
from medvid_core.data.readers import image_size, read_images
from medvid_core.errors import DataError


@dataclass(frozen=True)
class Part:
    """One recording of several.

    Attributes:
        reader: see `Source`.
        files: how many of the joined source's paths are its own.
        frames: number of frames.
    """

    reader: str
    files: int
    frames: int


def join(sources: Sequence[Source], frames: Sequence[int]) -> Source:
    """Return the source that shows recordings, of so many ``frames`` each, one after the other."""
    parts = tuple(Part(each.reader, len(each.paths), count) for each, count in zip(sources, frames, strict=True))
    return Source(
        reader=f"{__name__}:read",
        paths=tuple(path for each in sources for path in each.paths),
        options=parts,
    )


def read(source: Source, frames: Sequence[int]) -> Array:
    """Read the wanted frames, uint8 [T,H,W,3]; recordings of another size than the first are resized to it.

    Raises:
        DataError: a frame lies outside, or a file cannot be read; the text names it.
    """
    wanted = np.asarray(frames, np.int64)
    parts: tuple[Part, ...] = source.options
    if len(wanted) and not 0 <= wanted.min() <= wanted.max() < sum(part.frames for part in parts):
        raise DataError(f"Frames {wanted.min()} to {wanted.max()} were asked of what begins with {source.paths[0]}.")
    height, width = image_size(_source(source, 0))
    found = np.empty((len(wanted), height, width, 3), np.uint8)
    first = 0
    for number, part in enumerate(parts):
        places = np.flatnonzero((wanted >= first) & (wanted < first + part.frames))
        if len(places):
            images = read_images(_source(source, number), (wanted[places] - first).tolist())
            found[places] = [_fitted(image, (width, height)) for image in images]
        first += part.frames
    return found


def _source(source: Source, number: int) -> Source:
    """Return one of the recordings."""
    parts: tuple[Part, ...] = source.options
    start = sum(part.files for part in parts[:number])
    return Source(reader=parts[number].reader, paths=source.paths[start : start + parts[number].files])


def _fitted(image: Array, size: tuple[int, int]) -> Array:
    """Return an image [H,W,3] of a width and height."""
    if image.shape[1::-1] == size:
        return image
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
